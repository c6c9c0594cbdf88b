// What every Source promises and every Dataset relies on, for each format: a new one is one line in
// kCases. What gives the examples of another data set gives them unchanged: one line in kWrappers.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <numeric>
#include <optional>
#include <set>
#include <thread>

#include <cohort/data/arrays.h>
#include <cohort/data/combine.h>
#include <cohort/data/criteo.h>
#include <cohort/data/csv.h>
#include <cohort/data/dataset.h>
#include <cohort/data/digits.h>
#include <cohort/data/fixed_records.h>
#include <cohort/data/idx.h>
#include <cohort/data/image_folder.h>
#include <cohort/data/memory.h>
#include <cohort/data/text_lines.h>
#include <cohort/data/tf_example.h>
#include <cohort/data/tf_record.h>
#include <cohort/data/tokens.h>
#include <cohort/data/webdataset.h>
#include <cohort/io/compression.h>
#include <cohort/io/record_file.h>
#include <cohort/io/safetensors.h>

#include "testing/temp_dir.h"

namespace cohort::data {
namespace {

constexpr std::int64_t kExamples = 37;

struct Case {
  const char* name;
  // A data set of kExamples examples, all different, made in the folder.
  Dataset (*make)(const testing::TempDir& folder);
};

Dataset Memory(const testing::TempDir& /*folder*/) {
  Tensor x(DType::kFloat32, {kExamples, 3});
  Tensor y(DType::kInt64, {kExamples});
  for (std::int64_t i = 0; i < kExamples; ++i) {
    x.data<float>()[static_cast<std::size_t>(i) * 3] = static_cast<float>(i);
    y.data<std::int64_t>()[static_cast<std::size_t>(i)] = -i;
  }
  return OrThrow(FromTensors({{"x", x}, {"y", y}}));
}

Dataset IdxFiles(const testing::TempDir& folder) {
  Tensor images(DType::kUInt8, {kExamples, 4, 5});
  Tensor labels(DType::kUInt8, {kExamples});
  for (std::size_t i = 0; i < images.bytes(); ++i) {
    images.data<std::uint8_t>()[i] = static_cast<std::uint8_t>(i * 7);
  }
  OrThrow(WriteIdx(FileSystem::Local(), folder / "i.gz", images));
  OrThrow(WriteIdx(FileSystem::Local(), folder / "l", labels));
  return OrThrow(Idx(folder / "i.gz", folder / "l"));
}

Dataset CsvFiles(const testing::TempDir& folder) {
  std::ofstream one(folder / "1.csv");
  std::ofstream two(folder / "2.csv");
  one << "a,b,c\n";
  two << "a,b,c\n";
  for (std::int64_t i = 0; i < kExamples; ++i) {
    (i < 20 ? one : two) << i << ".5,\"t" << i % 3 << "\"," << i * i << "\n";
  }
  one.close();
  two.close();
  return OrThrow(Csv({folder / "1.csv", folder / "2.csv"},
                     {.columns = {{.name = "c", .type = CsvType::kInt64},
                                  {.name = "b", .type = CsvType::kCategory},
                                  {.name = "a"}}}))
      .dataset;
}

// {"i": int64 list [value]} in three files, the last compressed as asked.
Dataset TfFiles(const testing::TempDir& folder, io::Compression compression) {
  const std::vector<std::string> paths = {folder / "1", folder / "2", folder / "3"};
  std::int64_t example = 0;
  for (const std::int64_t count : {std::int64_t{10}, std::int64_t{0}, kExamples - 10}) {
    auto writer =
        OrThrow(io::RecordWriter::Create(FileSystem::Local(),
                                         paths[static_cast<std::size_t>(count == 0    ? 1
                                                                        : count == 10 ? 0
                                                                                      : 2)],
                                         compression));
    for (std::int64_t i = 0; i < count; ++i) {
      std::string record = {0x0a, 0x0c, 0x0a, 0x0a, 0x0a, 0x01, 'i',
                            0x12, 0x05, 0x1a, 0x03, 0x0a, 0x01};
      record += static_cast<char>(example++);
      OrThrow(writer->Write(record));
    }
    OrThrow(writer->Close());
  }
  return OrThrow(TfRecords(paths, {.features = {{.name = "i", .type = TfType::kInt64}}}));
}

Dataset ArrayFiles(const testing::TempDir& folder) {
  Tensor x(DType::kFloat32, {kExamples, 2, 3});
  Tensor y(DType::kInt64, {kExamples});
  for (std::size_t i = 0; i < y.data<std::int64_t>().size(); ++i) {
    x.data<float>()[i * 6 + 5] = static_cast<float>(i);
    y.data<std::int64_t>()[i] = static_cast<std::int64_t>(i * i);
  }
  OrThrow(WriteNpy(FileSystem::Local(), folder / "x.npy", x));
  const io::SafetensorsEntry entry = {.name = "y", .dtype = y.dtype(), .shape = y.shape()};
  std::string bytes = io::EncodeSafetensorsHeader({&entry, 1});
  bytes.append(reinterpret_cast<const char*>(y.raw()), y.bytes());
  OrThrow(WriteFileAtomically(FileSystem::Local(), folder / "y.safetensors", bytes));
  return OrThrow(Arrays(
      {{.name = "x", .path = folder / "x.npy"}, {.name = "y", .path = folder / "y.safetensors"}}));
}

// Records of 7 bytes: i as big-endian int32, three bytes of which one is read.
Dataset FixedFiles(const testing::TempDir& folder, bool gzip) {
  std::string bytes[2] = {"HEAD", "HEAD"};
  for (std::int64_t i = 0; i < kExamples; ++i) {
    bytes[i < 30 ? 0 : 1] += {0, 0, 0, static_cast<char>(i), 'x', static_cast<char>(i * 5), 'y'};
  }
  const std::vector<std::string> paths = {folder / "1", folder / "2"};
  for (std::size_t f = 0; f < 2; ++f) {
    OrThrow(
        WriteFileAtomically(FileSystem::Local(), paths[f], gzip ? io::Gzip(bytes[f]) : bytes[f]));
  }
  return OrThrow(
      FixedRecords(paths, {.record_bytes = 7,
                           .fields = {{.name = "b", .offset = 5},
                                      {.name = "i", .dtype = DType::kInt32, .big_endian = true}},
                           .header_bytes = 4,
                           .gzip = gzip}));
}

Dataset TextFiles(const testing::TempDir& folder, const LineDecoder& decoder) {
  std::string text[3] = {"", "", "\xEF\xBB\xBF"};
  for (std::int64_t i = 0; i < kExamples; ++i) {
    text[i < 9 ? 0 : 2] += std::string(static_cast<std::size_t>(i), 'a') + (i % 2 ? "\r\n" : "\n");
  }
  text[2].pop_back();  // no end of the last line
  const std::vector<std::string> paths = {folder / "1", folder / "2", folder / "3.gz"};
  for (std::size_t f = 0; f < 3; ++f) {
    OrThrow(
        WriteFileAtomically(FileSystem::Local(), paths[f], f == 2 ? io::Gzip(text[f]) : text[f]));
  }
  return OrThrow(TextLines(paths, {.decoder = decoder}));
}

// Images of other sizes than asked for, as JPEG and PNG in turns.
Dataset WebImages(const testing::TempDir& folder) {
  auto writer = OrThrow(TarWriter::Create(FileSystem::Local(), folder / "images.tar"));
  for (std::int64_t i = 0; i < kExamples; ++i) {
    Tensor image(DType::kUInt8, {8 + i % 3, 9, 3});
    std::fill_n(image.data<std::uint8_t>().begin(), image.bytes(),
                static_cast<std::uint8_t>(i * 6));
    OrThrow(writer->AddSample(
        std::to_string(i),
        {i % 2 == 0 ? std::pair("jpg", EncodeJpeg(image)) : std::pair("png", EncodePng(image))}));
  }
  OrThrow(writer->Close());
  return OrThrow(WebDataset({folder / "images.tar"},
                            {.features = {{.name = "image",
                                           .extensions = {"jpg", "png"},
                                           .decoder = ImageElements({.height = 6, .width = 6})}}}));
}

// Images of other sizes than asked for, in three classes.
Dataset ImageFiles(const testing::TempDir& folder,
                   const std::optional<ImageAugmentation>& augmentation) {
  for (std::int64_t i = 0; i < kExamples; ++i) {
    Tensor image(DType::kUInt8, {8 + i % 3, 9, 3});
    for (std::size_t p = 0; p < image.bytes(); ++p) {
      image.data<std::uint8_t>()[p] =
          static_cast<std::uint8_t>(p / 3 + static_cast<std::size_t>(i * 4));
    }
    const std::string of_class = folder / ("class" + std::to_string(i % 3));
    OrThrow(FileSystem::Local().CreateDirectories(of_class));
    OrThrow(WriteFileAtomically(FileSystem::Local(), of_class + "/" + std::to_string(i) + ".png",
                                EncodePng(image)));
  }
  return OrThrow(ImageFolder(folder.path(),
                             {.image = {.height = 6, .width = 6}, .augmentation = augmentation}))
      .dataset;
}

Dataset WebShards(const testing::TempDir& folder, const std::string& suffix) {
  std::vector<std::string> shards;
  std::int64_t i = 0;
  for (const std::int64_t end : {std::int64_t{12}, std::int64_t{12}, kExamples}) {
    shards.push_back(folder / (std::to_string(shards.size()) + suffix));
    auto writer = OrThrow(TarWriter::Create(FileSystem::Local(), shards.back()));
    for (; i < end; ++i) {
      OrThrow(writer->AddSample(std::to_string(i),
                                {{"cls", std::to_string(i * 3)}, {"raw", std::string(4, 'a')}}));
    }
    OrThrow(writer->Close());
  }
  return OrThrow(WebDataset(
      shards,
      {.features = {
           {.name = "label", .extensions = {"cls"}, .decoder = IntegerText()},
           {.name = "x", .extensions = {"raw"}, .decoder = RawElements(DType::kUInt8, {4})}}}));
}

// Records of one number and a list of so many values; every third record is corrupt and left out.
Dataset RaggedRecords(const testing::TempDir& folder) {
  std::string bytes;
  for (std::int64_t i = 0; i < kExamples * 3 / 2; ++i) {
    auto writer = OrThrow(io::RecordWriter::Create(FileSystem::Local(), folder / "one"));
    TfFeatures features;
    features["i"] = {.kind = TfFeature::Kind::kInt64, .ints = {i}};
    features["x"] = {.kind = TfFeature::Kind::kFloat,
                     .floats = std::vector<float>(static_cast<std::size_t>(i % 4), 1.5F)};
    OrThrow(writer->Write(EncodeTfExample(features)));
    OrThrow(writer->Close());
    std::string record = OrThrow(ReadFile(FileSystem::Local(), folder / "one"));
    record.back() = static_cast<char>(record.back() ^ (i % 3 == 1 ? 1 : 0));
    bytes += record;
  }
  OrThrow(WriteFileAtomically(FileSystem::Local(), folder / "r", bytes));
  return OrThrow(TfRecords({folder / "r"}, {.features = {{.name = "i", .type = TfType::kInt64},
                                                         {.name = "x", .ragged = true}},
                                            .on_corrupt = OnCorrupt::kSkip}));
}

Dataset CriteoFiles(const testing::TempDir& folder) {
  std::string lines;
  for (std::int64_t i = 0; i < kExamples; ++i) {
    lines += std::to_string(i % 2) + "\t" + std::to_string(i) + std::string(13, '\t') + "ab" +
             std::string(25, '\t') + "\n";
  }
  OrThrow(WriteFileAtomically(FileSystem::Local(), folder / "day", lines));
  return OrThrow(TextLines({folder / "day"}, {.decoder = CriteoLine({.log = false})}));
}

// A data set whose examples are numbers from `begin`.
Dataset Numbers(std::int64_t begin, std::int64_t size) {
  Tensor i(DType::kInt64, {size});
  std::iota(i.data<std::int64_t>().begin(), i.data<std::int64_t>().end(), begin);
  return OrThrow(FromTensors({{"i", i}}));
}

Dataset Squares(const Dataset& data) {
  return data.Map([](Example& example) {
    const std::int64_t i = example.at("i").data<std::int64_t>()[0];
    example["square"] = Tensor(DType::kFloat32, {2});
    example.at("square").data<float>()[1] = static_cast<float>(i * i);
    return OkStatus();
  });
}

const Case kCases[] = {
    {"Memory", Memory},
    {"Idx", IdxFiles},
    {"Csv", CsvFiles},
    {"TfRecordRaw", [](const testing::TempDir& f) { return TfFiles(f, io::Compression::kNone); }},
    {"TfRecordGzip", [](const testing::TempDir& f) { return TfFiles(f, io::Compression::kGzip); }},
    {"Arrays", ArrayFiles},
    {"FixedRecords", [](const testing::TempDir& f) { return FixedFiles(f, false); }},
    {"FixedRecordsGzip", [](const testing::TempDir& f) { return FixedFiles(f, true); }},
    {"TextHashed", [](const testing::TempDir& f) { return TextFiles(f, HashedLine()); }},
    {"TextPadded", [](const testing::TempDir& f) { return TextFiles(f, PaddedLine(64)); }},
    {"WebDataset", [](const testing::TempDir& f) { return WebShards(f, ".tar"); }},
    {"WebDatasetGzip", [](const testing::TempDir& f) { return WebShards(f, ".tar.gz"); }},
    {"WebDatasetImages", WebImages},
    {"ImageFolder", [](const testing::TempDir& f) { return ImageFiles(f, std::nullopt); }},
    {"ImageFolderAugmented",
     [](const testing::TempDir& f) { return ImageFiles(f, ImageAugmentation{.seed = 3}); }},
    {"RaggedRecords", RaggedRecords},
    {"Criteo", CriteoFiles},
    {"Concatenated",
     [](const testing::TempDir&) {
       return OrThrow(Concatenate({Squares(Numbers(0, 10)).Shuffle(1), Squares(Numbers(10, 0)),
                                   Squares(Numbers(10, kExamples - 10))}));
     }},
    {"Zipped",
     [](const testing::TempDir& f) {
       return OrThrow(
           Zip({Numbers(0, kExamples).ShuffleBlocks(3, 4, 2, /*reshuffle=*/false), ArrayFiles(f)}));
     }},
    {"Mixed",
     [](const testing::TempDir&) {
       return OrThrow(Mix({Numbers(0, 30), Numbers(30, kExamples - 30).Shuffle(2)}, {.block = 8}));
     }},
    {"Interleaved",
     [](const testing::TempDir&) {
       return OrThrow(Interleave({Squares(Numbers(0, 9)).Shuffle(2), Squares(Numbers(9, 0)),
                                  Squares(Numbers(9, 20)), Squares(Numbers(29, kExamples - 29))},
                                 {.cycle_length = 2, .block_length = 3}));
     }},
    {"Filtered",
     [](const testing::TempDir&) {
       return OrThrow(
           Filter(Squares(Numbers(0, kExamples * 2)), [](const Example& example) -> Result<bool> {
             return example.at("i").data<std::int64_t>()[0] % 2 == 1;
           }));
     }},
    {"FlatMapped",
     [](const testing::TempDir&) {
       return OrThrow(FlatMap(
           Numbers(0, kExamples / 2 + 1), [](const Example& example, std::vector<Example>& made) {
             const auto i = example.at("i").data<std::int64_t>()[0];
             for (std::int64_t k = 0; k < (i == 0 ? 1 : 2); ++k) {
               const std::int64_t n = i * 2 + k;
               made.push_back({{"n", Tensor::Of<std::int64_t>(Shape(), {&n, 1})}});
             }
             return OkStatus();
           }));
     }},
    {"Cached",
     [](const testing::TempDir&) { return OrThrow(Cache(Squares(Numbers(0, kExamples)))); }},
    {"CachedInFile",
     [](const testing::TempDir& f) {
       return OrThrow(
           CacheInFile(Squares(Numbers(0, kExamples)), FileSystem::Local(), f / "cache"));
     }},
    {"Snapshot",
     [](const testing::TempDir& f) {
       return OrThrow(
           Snapshot(RaggedRecords(f), FileSystem::Local(), f / "snapshot", {.shards = 3}));
     }},
    {"SnapshotGzip",
     [](const testing::TempDir& f) {
       return OrThrow(Snapshot(Squares(Numbers(0, kExamples)), FileSystem::Local(), f / "snapshot",
                               {.shards = 4, .threads = 2, .compress = true}));
     }},
    {"TokenWindows",
     [](const testing::TempDir&) {
       Tensor tokens(DType::kInt32, {3 * kExamples + 2});
       std::iota(tokens.data<std::int32_t>().begin(), tokens.data<std::int32_t>().end(), 0);
       return OrThrow(TokenWindows(tokens, 4, 3));
     }},
    {"Digits", [](const testing::TempDir&) { return GeneratedDigits({.count = kExamples}); }},
};

class DatasetConformance : public ::testing::TestWithParam<Case> {
 protected:
  testing::TempDir folder_;
  const Dataset data_ = GetParam().make(folder_);
  const Source& source_ = data_.source();

  // All features of an example, one after another.
  std::string Bytes(std::int64_t index) const { return BytesOf(source_, index); }
  static std::string BytesOf(const Source& source, std::int64_t index) {
    std::string bytes;
    for (const auto& [name, tensor] : OrThrow(source.Read(index))) {
      bytes.append(reinterpret_cast<const char*>(tensor.raw()), tensor.bytes());
    }
    return bytes;
  }
  static std::vector<std::string> RowBytes(const Batch& batch) {
    std::vector<std::string> rows(static_cast<std::size_t>(batch.size));
    for (std::int64_t i = 0; i < batch.size; ++i) {
      for (const auto& [name, tensor] : batch.features) {
        const Tensor row = tensor.Rows(i, i + 1);
        rows[static_cast<std::size_t>(i)].append(reinterpret_cast<const char*>(row.raw()),
                                                 row.bytes());
      }
      for (const auto& [name, lists] : batch.ragged) {
        const auto splits = lists.splits.data<std::int64_t>();
        const auto at = static_cast<std::size_t>(i);
        const Tensor list = lists.values.Rows(splits[at], splits[at + 1]);
        rows[at].append(reinterpret_cast<const char*>(list.raw()), list.bytes());
      }
    }
    return rows;
  }
  std::vector<std::string> World(const Dataset& dataset, IterateOptions options) const {
    std::vector<std::string> rows;
    for (options.worker = 0; options.worker < options.num_workers; ++options.worker) {
      auto batches = OrThrow(dataset.Iterate(options));
      while (const auto batch = OrThrow(batches->Next())) {
        const auto part = RowBytes(*batch);
        rows.insert(rows.end(), part.begin(), part.end());
      }
    }
    std::sort(rows.begin(), rows.end());
    return rows;
  }
  std::vector<std::string> Everything(std::int64_t epoch = 0) const {
    const auto other = source_.AtEpoch(epoch);
    std::vector<std::string> rows;
    for (std::int64_t i = 0; i < source_.size(); ++i) {
      rows.push_back(BytesOf(other != nullptr ? *other : source_, i));
    }
    std::sort(rows.begin(), rows.end());
    return rows;
  }
};

TEST_P(DatasetConformance, SaysWhatItHolds) {
  ASSERT_EQ(source_.size(), kExamples);
  const auto everything = Everything();
  EXPECT_EQ(std::set(everything.begin(), everything.end()).size(), std::size_t{kExamples});
  std::set<std::string> names;
  std::set<std::string> places;
  for (const FeatureSpec& feature : source_.features()) {
    EXPECT_TRUE(names.insert(feature.name).second) << feature.name;
    const Example example = OrThrow(source_.Read(0));
    EXPECT_EQ(example.at(feature.name).dtype(), feature.dtype);
    EXPECT_EQ(example.at(feature.name).shape(), feature.shape);
  }
  for (std::int64_t i = 0; i < kExamples; ++i) {
    EXPECT_TRUE(places.insert(source_.Where(i)).second) << source_.Where(i);
  }
}

TEST_P(DatasetConformance, FilesFollowOneAnotherWithoutGaps) {
  std::int64_t at = 0;
  for (const FileRange& file : source_.files()) {
    EXPECT_EQ(file.begin, at);
    EXPECT_LE(file.begin, file.end);
    at = file.end;
  }
  EXPECT_EQ(at, source_.files().empty() ? 0 : kExamples);
}

TEST_P(DatasetConformance, WritesEveryByteOfARowAndNoOther) {
  std::vector<std::vector<std::byte>> memory;
  for (const FeatureSpec& feature : source_.features()) {
    memory.emplace_back(feature.bytes() + 16, std::byte{0xAB});
  }
  std::vector<std::byte*> rows;
  for (auto& block : memory) {
    rows.push_back(block.data() + 8);
  }
  OrThrow(source_.ReadInto(5, rows));
  const Example example = OrThrow(source_.Read(5));
  for (std::size_t i = 0; i < memory.size(); ++i) {
    const Tensor& tensor = example.at(source_.features()[i].name);
    EXPECT_EQ(std::memcmp(rows[i], tensor.raw(), tensor.bytes()), 0);
    for (std::size_t k = 0; k < 8; ++k) {
      EXPECT_EQ(memory[i][k], std::byte{0xAB});
      EXPECT_EQ(memory[i][memory[i].size() - 1 - k], std::byte{0xAB});
    }
  }
}

TEST_P(DatasetConformance, IsReadByManyThreadsAtOnce) {
  std::vector<std::vector<std::string>> read(4);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < read.size(); ++t) {
    threads.emplace_back([&, t] {
      for (std::int64_t i = 0; i < kExamples; ++i) {
        read[t].push_back(Bytes((i + static_cast<std::int64_t>(t) * 9) % kExamples));
      }
      std::sort(read[t].begin(), read[t].end());
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const auto& rows : read) {
    EXPECT_EQ(rows, Everything());
  }
}

TEST_P(DatasetConformance, WorkersTogetherReadEverythingOnce) {
  const auto everything = Everything();
  const auto next = Everything(1);
  const Dataset batched = data_.Shuffle(3).Batch(8).Prefetch(2, 2);
  for (int workers = 1; workers <= 5; ++workers) {
    EXPECT_EQ(World(batched, {.num_workers = workers, .epoch = 1}), next) << workers;
  }
  const int files = std::min(5, static_cast<int>(source_.files().size()));
  for (int workers = 2; workers <= files; ++workers) {
    EXPECT_EQ(World(batched, {.num_workers = workers, .policy = ShardPolicy::kFile}), everything)
        << workers;
  }
}

TEST_P(DatasetConformance, IteratorsEndAtAnyPoint) {
  for (const Dataset& dataset : {data_.Shuffle(3).Batch(4).Prefetch(3, 2), data_.Batch(4)}) {
    for (int taken = 0; taken <= 10; ++taken) {
      auto batches = OrThrow(dataset.Iterate());
      for (int i = 0; i < taken; ++i) {
        ASSERT_TRUE(OrThrow(batches->Next()).has_value());
      }
    }
  }
}

TEST_P(DatasetConformance, FingerprintIsOfTheContent) {
  const testing::TempDir elsewhere;
  EXPECT_EQ(GetParam().make(elsewhere).Fingerprint(), data_.Fingerprint());
  EXPECT_NE(data_.Take(kExamples - 1).Fingerprint(), data_.Fingerprint());
}

INSTANTIATE_TEST_SUITE_P(Source, DatasetConformance, ::testing::ValuesIn(kCases),
                         [](const auto& param) { return std::string(param.param.name); });

// Features of sizes at which nothing else may begin, and two lists; all bytes of all examples are
// of their own.
Dataset OddSizes(const testing::TempDir& /*folder*/) {
  return Numbers(0, kExamples).Lists({"a_list", "z_list"}).Map([](Example& example) {
    const auto i = static_cast<std::uint64_t>(example.at("i").data<std::int64_t>()[0]);
    std::uint8_t next = 0;
    const auto add = [&](const std::string& name, DType dtype, Shape shape) {
      Tensor tensor(dtype, std::move(shape));
      for (std::size_t k = 0; k < tensor.bytes(); ++k) {
        tensor.raw()[k] = static_cast<std::byte>(i * 31 + ++next * 7);
      }
      example[name] = tensor;
    };
    add("a_byte", DType::kUInt8, Shape());
    add("b_bytes", DType::kUInt8, {3});
    add("c_half", DType::kFloat16, Shape());
    add("d_float", DType::kFloat32, Shape());
    add("e_floats", DType::kFloat32, {13});
    add("f_ints", DType::kInt64, {26});
    add("g_none", DType::kInt32, {0, 4});
    add("h_doubles", DType::kFloat64, {2, 3});
    add("j_bytes", DType::kUInt8, {5});
    add("a_list", DType::kUInt8, {static_cast<std::int64_t>(i % 5)});
    add("z_list", DType::kInt64, {static_cast<std::int64_t>(i * 7 % 3)});
    return OkStatus();
  });
}

struct Wrapper {
  const char* name;
  Dataset (*wrap)(const Dataset& data, const testing::TempDir& folder);
};

const Wrapper kWrappers[] = {
    {"AsSource", [](const Dataset& data,
                    const testing::TempDir&) { return Dataset(OrThrow(data.AsSource())); }},
    {"Cache", [](const Dataset& data, const testing::TempDir&) { return OrThrow(Cache(data)); }},
    {"CacheInFile",
     [](const Dataset& data, const testing::TempDir& folder) {
       return OrThrow(CacheInFile(data, FileSystem::Local(), folder / "wrapped"));
     }},
    {"Snapshot",
     [](const Dataset& data, const testing::TempDir& folder) {
       return OrThrow(Snapshot(data, FileSystem::Local(), folder / "wrapped", {.shards = 5}));
     }},
    {"SnapshotGzip",
     [](const Dataset& data, const testing::TempDir& folder) {
       return OrThrow(Snapshot(data, FileSystem::Local(), folder / "wrapped",
                               {.shards = 2, .compress = true}));
     }},
    {"Filter",
     [](const Dataset& data, const testing::TempDir&) {
       return OrThrow(Filter(data, [](const Example&) -> Result<bool> { return true; }));
     }},
    {"SkipCorrupt",
     [](const Dataset& data, const testing::TempDir&) { return OrThrow(SkipCorrupt(data, 0)); }},
    {"FlatMap",
     [](const Dataset& data, const testing::TempDir&) {
       return OrThrow(FlatMap(data, [](const Example& example, std::vector<Example>& made) {
         made.push_back(example);
         return OkStatus();
       }));
     }},
    {"Concatenate",
     [](const Dataset& data, const testing::TempDir&) {
       return OrThrow(Concatenate({data.Take(11), data.Skip(11)}));
     }},
    {"Interleave",
     [](const Dataset& data, const testing::TempDir&) { return OrThrow(Interleave({data})); }},
    {"Zip", [](const Dataset& data, const testing::TempDir&) { return OrThrow(Zip({data})); }},
};

using Wrapping = std::tuple<Wrapper, Case>;

class WrapperConformance : public ::testing::TestWithParam<Wrapping> {
 protected:
  static std::string Everything(const Example& example) {
    std::string bytes;
    for (const auto& [name, tensor] : example) {
      bytes += name + " " + std::string(DTypeName(tensor.dtype())) + tensor.shape().ToString();
      bytes.append(reinterpret_cast<const char*>(tensor.raw()), tensor.bytes());
    }
    return bytes;
  }
  static std::string Everything(const Batch& batch) {
    std::string bytes = Everything(batch.features);
    for (const auto& [name, lists] : batch.ragged) {
      bytes += Everything(Example{{name, lists.values}, {name + " splits", lists.splits}});
    }
    return bytes;
  }
};

TEST_P(WrapperConformance, GivesWhatItWraps) {
  const auto& [wrapper, wrapped] = GetParam();
  const testing::TempDir folder;
  const Dataset data = wrapped.make(folder);
  const std::shared_ptr<const Source> source = OrThrow(data.AsSource());
  const Dataset wrapping = wrapper.wrap(data, folder);
  const Source& other = wrapping.source();
  ASSERT_EQ(other.size(), source->size());
  for (const int pass : {0, 1}) {  // the second from what is kept
    for (std::int64_t i = 0; i < source->size(); ++i) {
      ASSERT_EQ(Everything(OrThrow(other.Read(i))), Everything(OrThrow(source->Read(i))))
          << "example " << i << ", pass " << pass;
    }
  }
  const auto batches = OrThrow(data.Batch(8).Iterate());
  const auto others = OrThrow(wrapping.Batch(8).Prefetch(2).Iterate());
  while (const auto batch = OrThrow(batches->Next())) {
    const auto same = OrThrow(others->Next());
    ASSERT_TRUE(same.has_value());
    EXPECT_EQ(Everything(*same), Everything(*batch));
  }
  EXPECT_FALSE(OrThrow(others->Next()).has_value());
}

INSTANTIATE_TEST_SUITE_P(Source, WrapperConformance,
                         ::testing::Combine(::testing::ValuesIn(kWrappers),
                                            ::testing::Values(Case{"OddSizes", OddSizes},
                                                              Case{"Criteo", CriteoFiles},
                                                              Case{"RaggedRecords", RaggedRecords},
                                                              Case{"FixedRecords",
                                                                   [](const testing::TempDir& f) {
                                                                     return FixedFiles(f, false);
                                                                   }})),
                         [](const auto& param) {
                           return std::string(std::get<0>(param.param).name) + "Of" +
                                  std::get<1>(param.param).name;
                         });

}  // namespace
}  // namespace cohort::data
