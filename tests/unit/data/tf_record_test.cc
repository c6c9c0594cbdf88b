// tf.train.Example and TFRecord files, against protobuf and against files that TensorFlow wrote.

#include <cohort/data/tf_record.h>

#include <gmock/gmock.h>
#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/dynamic_message.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <zlib.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <set>
#include <thread>

#include <cohort/core/random.h>
#include <cohort/data/glob.h>
#include <cohort/data/tf_example.h>
#include <cohort/io/record_file.h>

#include "commands/watched_files.h"
#include "testing/faulty_file_system.h"
#include "testing/sanitized.h"
#include "testing/temp_dir.h"
#include "unit/data/collect.h"

namespace cohort::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Hex(std::string_view hex) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
  }
  return bytes;
}

// {f:[1.0,2.0] float; i:[7,-1] int64; s:["x"] bytes}, as TensorFlow writes it.
const char kGolden[] =
    "0a350a110a0166120c120a0a080000803f000000400a140a0169120f1a0d0a0b07ffffffffffffffffff010a0a0a01"
    "73"
    "12050a030a0178";

// What another parser makes of the bytes.
class Protobuf {
 public:
  Protobuf() {
    constexpr char kSchema[] = R"(name: "t.proto" package: "t"
        message_type { name: "BytesList"
          field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
        message_type { name: "FloatList"
          field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
        message_type { name: "Int64List"
          field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
        message_type { name: "Feature" oneof_decl { name: "kind" }
          field { name: "b" number: 1 label: LABEL_OPTIONAL type_name: "BytesList" oneof_index: 0 }
          field { name: "f" number: 2 label: LABEL_OPTIONAL type_name: "FloatList" oneof_index: 0 }
          field { name: "i" number: 3 label: LABEL_OPTIONAL type_name: "Int64List" oneof_index: 0 } }
        message_type { name: "Entry"  # a map is this on the wire
          field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_BYTES }
          field { name: "value" number: 2 label: LABEL_OPTIONAL type_name: "Feature" } }
        message_type { name: "Features"
          field { name: "feature" number: 1 label: LABEL_REPEATED type_name: "Entry" } }
        message_type { name: "Example"
          field { name: "features" number: 1 label: LABEL_OPTIONAL type_name: "Features" } })";
    google::protobuf::FileDescriptorProto file;
    if (!google::protobuf::TextFormat::ParseFromString(kSchema, &file)) {
      throw std::logic_error("the schema of the test");
    }
    example_ = pool_.BuildFile(file)->FindMessageTypeByName("Example");
  }

  // The features as text, by key; nullopt: not a message.
  std::optional<std::map<std::string, std::string>> Parse(std::string_view bytes) {
    const std::unique_ptr<google::protobuf::Message> message(
        factory_.GetPrototype(example_)->New());
    if (!message->ParsePartialFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
      return std::nullopt;
    }
    std::map<std::string, std::string> features;
    const auto* features_field = example_->field(0);
    const auto& map_message = message->GetReflection()->GetMessage(*message, features_field);
    const auto* map_field = features_field->message_type()->field(0);
    const auto* map = map_message.GetReflection();
    for (int i = 0; i < map->FieldSize(map_message, map_field); ++i) {
      const auto& entry = map->GetRepeatedMessage(map_message, map_field, i);
      const auto* entry_type = map_field->message_type();
      const std::string key = entry.GetReflection()->GetString(entry, entry_type->field(0));
      features[key] = FeatureText(entry.GetReflection()->GetMessage(entry, entry_type->field(1)));
    }
    std::erase_if(features, [](const auto& item) { return item.second.empty(); });
    return features;
  }

 private:
  static std::string FeatureText(const google::protobuf::Message& feature) {
    const auto* reflection = feature.GetReflection();
    const auto* kind =
        reflection->GetOneofFieldDescriptor(feature, feature.GetDescriptor()->oneof_decl(0));
    if (kind == nullptr) {
      return "";
    }
    std::string text = kind->name();
    const auto& list = reflection->GetMessage(feature, kind);
    const auto* values = list.GetDescriptor()->field(0);
    const auto* r = list.GetReflection();
    for (int i = 0; i < r->FieldSize(list, values); ++i) {
      if (kind->name() == "b") {
        const std::string value = r->GetRepeatedString(list, values, i);
        text += ":" + std::to_string(value.size()) + "=" + value;
      } else if (kind->name() == "f") {
        text += ":" +
                std::to_string(std::bit_cast<std::uint32_t>(r->GetRepeatedFloat(list, values, i)));
      } else {
        text += ":" + std::to_string(r->GetRepeatedInt64(list, values, i));
      }
    }
    return text;
  }

  google::protobuf::DescriptorPool pool_;
  google::protobuf::DynamicMessageFactory factory_{&pool_};
  const google::protobuf::Descriptor* example_;
};

std::string TextOf(const TfFeature& feature) {
  std::string text = feature.kind == TfFeature::Kind::kBytes   ? "b"
                     : feature.kind == TfFeature::Kind::kFloat ? "f"
                                                               : "i";
  for (const std::string_view value : feature.bytes) {
    text += ":" + std::to_string(value.size()) + "=" + std::string(value);
  }
  for (const float value : feature.floats) {
    text += ":" + std::to_string(std::bit_cast<std::uint32_t>(value));
  }
  for (const std::int64_t value : feature.ints) {
    text += ":" + std::to_string(value);
  }
  return text;
}

std::optional<std::map<std::string, std::string>> OwnParse(std::string_view bytes) {
  const auto parsed = ParseTfExample(bytes);
  if (!parsed.ok()) {
    EXPECT_EQ(parsed.status().code(), StatusCode::kDataLoss);
    return std::nullopt;
  }
  std::map<std::string, std::string> features;
  for (const auto& [name, feature] : *parsed) {
    features[name] = TextOf(feature);
  }
  return features;
}

TEST(TfExample, ParsesWhatTensorFlowWrites) {
  const std::string bytes = Hex(kGolden);
  ASSERT_EQ(bytes.size(), 55U);
  const auto features = OrThrow(ParseTfExample(bytes));
  ASSERT_EQ(features.size(), 3U);
  EXPECT_THAT(features.find("f")->second.floats, ElementsAre(1, 2));
  EXPECT_THAT(features.find("i")->second.ints, ElementsAre(7, -1));
  EXPECT_THAT(features.find("s")->second.bytes, ElementsAre("x"));
  EXPECT_EQ(features.find("i")->second.size(), 2U);
}

TEST(TfExample, EncodesAsTensorFlowDoes) {
  EXPECT_EQ(EncodeTfExample(OrThrow(ParseTfExample(Hex(kGolden)))), Hex(kGolden));
  EXPECT_EQ(EncodeTfExample({}), Hex("0a00"));
  const std::string no_values = Hex("0a090a070a016112021200");
  EXPECT_EQ(EncodeTfExample(OrThrow(ParseTfExample(no_values))), no_values);
}

// {context: {"id": ["7"]}, steps: {"t": [[1, 2], [], missing], "u": []}}, by the field numbers.
TEST(TfExample, SequenceExamples) {
  TfSequenceExample example;
  example.context["id"] = {.kind = TfFeature::Kind::kBytes, .bytes = {"7"}};
  example.steps["t"] = {
      {.kind = TfFeature::Kind::kInt64, .ints = {1, 2}}, {.kind = TfFeature::Kind::kInt64}, {}};
  example.steps["u"] = {};
  const std::string expected =
      Hex("0a0d0a0b0a02696412050a030a0137"
          "121c0a130a0174120e0a061a040a0201020a021a000a00"
          "0a050a01751200");
  EXPECT_EQ(EncodeTfSequenceExample(example), expected);
  const TfSequenceExample parsed = OrThrow(ParseTfSequenceExample(expected));
  EXPECT_THAT(parsed.context.at("id").bytes, ElementsAre("7"));
  ASSERT_EQ(parsed.steps.at("t").size(), 3U);
  EXPECT_THAT(parsed.steps.at("t")[0].ints, ElementsAre(1, 2));
  EXPECT_EQ(parsed.steps.at("t")[1].kind, TfFeature::Kind::kInt64);
  EXPECT_EQ(parsed.steps.at("t")[2].kind, TfFeature::Kind::kNone);
  EXPECT_TRUE(parsed.steps.at("u").empty());
  for (std::size_t size = 1; size < expected.size(); ++size) {
    const auto cut = ParseTfSequenceExample(std::string_view(expected).substr(0, size));
    EXPECT_EQ(cut.ok(), size == 15) << size;
  }
}

TEST(TfExample, UnpackedAndMixedListsAreEqualToPackedOnes) {
  const auto floats = [](std::string_view list) {  // a map entry "f" with this FloatList
    std::string feature = Hex("12") + static_cast<char>(list.size()) + std::string(list);
    std::string entry = Hex("0a0166") + Hex("12") + static_cast<char>(feature.size()) + feature;
    std::string map = Hex("0a") + static_cast<char>(entry.size()) + entry;
    return Hex("0a") + static_cast<char>(map.size()) + map;
  };
  EXPECT_EQ(floats(Hex("0d0000803f0d00000040")).substr(2),
            Hex("0a110a0166120c120a0d0000803f0d00000040"));
  for (const char* list :
       {"0a080000803f00000040", "0d0000803f0d00000040", "0a040000803f0d00000040"}) {
    const auto features = OrThrow(ParseTfExample(floats(Hex(list))));
    EXPECT_THAT(features.find("f")->second.floats, ElementsAre(1, 2)) << list;
  }
  EXPECT_FALSE(ParseTfExample(floats(Hex("0a030000803f"))).ok()) << "not a multiple of four bytes";
}

TEST(TfExample, EmptyMissingAndDuplicate) {
  EXPECT_TRUE(OrThrow(ParseTfExample("")).empty());
  EXPECT_TRUE(OrThrow(ParseTfExample(Hex("0a00"))).empty());
  // A feature whose kind is not set, and one with an empty float list.
  EXPECT_TRUE(OrThrow(ParseTfExample(Hex("0a070a050a01611200"))).empty());
  const std::string no_values = Hex("0a090a070a016112021200");
  const auto empty = OrThrow(ParseTfExample(no_values));
  ASSERT_EQ(empty.size(), 1U);
  EXPECT_EQ(empty.begin()->second.kind, TfFeature::Kind::kFloat);
  EXPECT_EQ(empty.begin()->second.size(), 0U);
  // {i: [1]} and then {i: [2]}: the last.
  const auto twice =
      OrThrow(ParseTfExample(Hex("0a1a0a0b0a016912061a040a020100"
                                 "0a0b0a016912061a040a020200")));
  EXPECT_THAT(twice.find("i")->second.ints, ElementsAre(2, 0));
}

TEST(TfExample, AgreesWithProtobufOnMutatedMessages) {
  Protobuf protobuf;
  const std::string golden = Hex(kGolden);
  ASSERT_EQ(OwnParse(golden), protobuf.Parse(golden));
  std::mt19937 random(5);
  int accepted = 0;
  int refused = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    std::string bytes = golden;
    const unsigned changes = 1 + random() % 3;
    for (unsigned i = 0; i < changes && !bytes.empty(); ++i) {
      const std::size_t at = random() % bytes.size();
      switch (random() % 4) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << (random() % 8)));
          break;
        case 2:
          bytes.erase(at, 1);
          break;
        default:
          bytes.resize(1 + at);
      }
    }
    const auto theirs = protobuf.Parse(bytes);
    if (theirs.has_value()) {
      ++accepted;
      ASSERT_EQ(OwnParse(bytes), theirs) << trial;
    } else {
      refused += !OwnParse(bytes).has_value();
    }
  }
  EXPECT_GT(accepted, 1000);
  EXPECT_GT(refused, 1000);
}

class TfRecordsTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::vector<std::string>& records,
                    io::Compression compression = io::Compression::kNone) {
    std::string path = folder_ / name;
    auto writer = OrThrow(io::RecordWriter::Create(files_, path, compression));
    for (const std::string& record : records) {
      OrThrow(writer->Write(record));
    }
    OrThrow(writer->Close());
    return path;
  }
  std::string WriteBytes(const std::string& name, const std::string& bytes) {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
    return folder_ / name;
  }
  std::string FirstError(const std::string& path, std::vector<TfFeatureSpec> features) {
    const Dataset data = OrThrow(TfRecords({path}, {.features = std::move(features)}));
    const auto read = data.source().Read(0);
    EXPECT_FALSE(read.ok());
    return read.status().message();
  }

  FileSystem& files_ = FileSystem::Local();
  testing::TempDir folder_;
  const std::string golden_ = Hex(kGolden);
  const std::vector<TfFeatureSpec> all_ = {{.name = "f", .shape = {2}},
                                           {.name = "i", .type = TfType::kInt64, .shape = {1, 2}},
                                           {.name = "s", .type = TfType::kBytes, .shape = {1}}};
};

TEST_F(TfRecordsTest, ReadsRawGzipAndZlibAlike) {
  std::uint64_t raw_digest = 0;
  for (const auto compression :
       {io::Compression::kNone, io::Compression::kGzip, io::Compression::kZlib}) {
    const std::string path = Write("r", {golden_, golden_, golden_}, compression);
    const Dataset data = OrThrow(TfRecords({path}, {.features = all_}));
    EXPECT_EQ(data.size(), 3);
    auto iterator = OrThrow(data.Batch(2).Iterate());
    const auto batch = OrThrow(iterator->Next());
    ASSERT_TRUE(batch.has_value());
    EXPECT_THAT((*batch)["f"].data<float>(), ElementsAre(1, 2, 1, 2));
    EXPECT_EQ((*batch)["i"].shape(), Shape({2, 1, 2}));
    EXPECT_THAT((*batch)["i"].data<std::int64_t>(), ElementsAre(7, -1, 7, -1));
    EXPECT_THAT((*batch)["s"].data<std::uint8_t>(), ElementsAre('x', 'x'));
    EXPECT_EQ(data.source().Where(2), path + ", record 2");
    if (compression == io::Compression::kNone) {
      EXPECT_EQ(OrThrow(files_.OpenForRead(path))->size(), 3U * (16 + 55));
      raw_digest = data.Fingerprint();
    }
  }
  Write("r", {golden_, golden_, std::string()});
  EXPECT_NE(OrThrow(TfRecords({folder_ / "r"}, {.features = all_})).Fingerprint(), raw_digest);
}

TEST_F(TfRecordsTest, GoldenFileBytes) {
  const std::string path =
      WriteBytes("g", Hex("3700000000000000e7e8ca59") + golden_ + Hex("9b7b0831"));
  EXPECT_EQ(OrThrow(TfRecords({path}, {.features = all_})).size(), 1);
}

TEST_F(TfRecordsTest, FilesFollowOneAnotherEmptyOnesToo) {
  const std::string one = Write("1", {golden_});
  const std::string none = WriteBytes("2", "");
  const std::string two = Write("3", {golden_, golden_}, io::Compression::kGzip);
  const Dataset data = OrThrow(TfRecords({none, one, none, two}, {.features = all_}));
  EXPECT_EQ(data.size(), 3);
  EXPECT_EQ(data.source().files().size(), 4U);
  EXPECT_EQ(data.source().Where(0), one + ", record 0");
  EXPECT_EQ(data.source().Where(2), two + ", record 1");
  EXPECT_TRUE(data.source().Read(2).ok());
}

TEST_F(TfRecordsTest, FeaturesThatAreNotAsAskedForAreNamed) {
  const std::string path = Write("r", {golden_});
  EXPECT_THAT(FirstError(path, {{.name = "g"}}),
              AllOf(HasSubstr("r, record 0: feature 'g': is missing"), HasSubstr("`missing`")));
  EXPECT_THAT(FirstError(path, {{.name = "f", .type = TfType::kInt64, .shape = {2}}}),
              HasSubstr("feature 'f': holds a list of float, a list of int64 is asked for"));
  EXPECT_THAT(FirstError(path, {{.name = "f", .shape = {3}}}),
              HasSubstr("holds 2 values, 3 are asked for"));
  EXPECT_THAT(FirstError(path, {{.name = "s", .type = TfType::kBytes, .shape = {4}}}),
              HasSubstr("holds 1 bytes, 4 are asked for"));
  EXPECT_THAT(FirstError(Write("bad", {"\x0a\x05xx"}), all_),
              HasSubstr("bad, record 0: not a tf.train.Example"));
  // An empty list is not a missing feature.
  EXPECT_THAT(
      FirstError(Write("e", {Hex("0a090a070a016112021200")}), {{.name = "a", .missing = 1}}),
      HasSubstr("holds 0 values, 1 are asked for"));
}

TEST_F(TfRecordsTest, MissingFeaturesAndHashes) {
  const Dataset data = OrThrow(TfRecords(
      {Write("r", {golden_, ""})},
      {.features = {{.name = "f", .shape = {2}, .missing = 0.5},
                    {.name = "i", .type = TfType::kInt64, .shape = {2}, .missing = -3},
                    {.name = "s", .type = TfType::kHash, .missing = 9, .buckets = 100}}}));
  const Example present = OrThrow(data.source().Read(0));
  EXPECT_EQ(present.at("s").data<std::int64_t>()[0], static_cast<std::int64_t>(Hash64("x") % 100));
  const Example missing = OrThrow(data.source().Read(1));
  EXPECT_THAT(missing.at("f").data<float>(), ElementsAre(0.5, 0.5));
  EXPECT_THAT(missing.at("i").data<std::int64_t>(), ElementsAre(-3, -3));
  EXPECT_THAT(missing.at("s").data<std::int64_t>(), ElementsAre(9));
}

// Opening or reading fails, or the content is what it was: never something else.
TEST_F(TfRecordsTest, DamageIsNeverReadAsData) {
  for (const auto compression : {io::Compression::kNone, io::Compression::kGzip}) {
    const std::string path = Write("good", {golden_, golden_}, compression);
    const std::string good = OrThrow(ReadFile(files_, path));
    const auto sums = [&](const std::string& bytes) -> Result<double> {
      COHORT_ASSIGN_OR_RETURN(const Dataset data,
                              TfRecords({WriteBytes("bad", bytes)}, {.features = all_}));
      double sum = 0;
      for (std::int64_t i = 0; i < data.size(); ++i) {
        COHORT_ASSIGN_OR_RETURN(const Example example, data.source().Read(i));
        sum += example.at("f").data<float>()[1] + 100;
      }
      return sum;
    };
    ASSERT_EQ(OrThrow(sums(good)), 204);
    int refused = 0;
    for (std::size_t i = 0; i < good.size(); ++i) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ 0x04);
      const Result<double> result = sums(bad);
      if (result.ok()) {
        EXPECT_EQ(*result, 204) << i;
      } else {
        EXPECT_THAT(result.status().message(), HasSubstr("bad")) << i;
        ++refused;
      }
    }
    if (compression == io::Compression::kNone) {
      EXPECT_EQ(refused, static_cast<int>(good.size())) << "every bit of a raw file counts";
    }
    for (std::size_t size = 1; size < good.size(); ++size) {
      const Result<double> result = sums(good.substr(0, size));
      const bool whole_records = compression == io::Compression::kNone && size == good.size() / 2;
      EXPECT_EQ(result.ok(), whole_records) << size;
    }
  }
}

TEST_F(TfRecordsTest, WhatCannotBeReadAfterOpeningIsNamed) {
  const std::string path = Write("r", {golden_, golden_, golden_});
  bool away = false;
  testing::FaultyFileSystem files([&away](std::string_view operation, const std::string&) {
    return away && operation == "read" ? Unavailable("the disk is away") : Status();
  });
  const Dataset data = OrThrow(TfRecords({path}, {.features = all_, .files = &files}));
  away = true;
  const Status unreadable = data.source().Read(2).status();
  EXPECT_EQ(unreadable.code(), StatusCode::kUnavailable);
  EXPECT_THAT(unreadable.message(),
              AllOf(HasSubstr(path + ": record 2 at byte 142"), HasSubstr("the disk is away")));
  away = false;
  std::filesystem::resize_file(path, 71 + 20);
  EXPECT_TRUE(data.source().Read(0).ok());
  const Status shorter = data.source().Read(1).status();
  EXPECT_EQ(shorter.code(), StatusCode::kDataLoss);
  EXPECT_THAT(shorter.message(),
              AllOf(HasSubstr(path + ": record 1 at byte 71"), HasSubstr("became shorter")));
}

// Digits that a decimal would lose, and a value beside none at all.
TEST_F(TfRecordsTest, FingerprintsTellEveryValueThatStandsForMissingOnes) {
  const std::string path = Write("r", {golden_});
  std::set<std::uint64_t> digests;
  for (const std::optional<double> missing :
       {std::optional<double>(), std::optional(0.5), std::optional(1e-9), std::optional(2e-9)}) {
    digests.insert(
        OrThrow(TfRecords({path}, {.features = {{.name = "f", .shape = {2}, .missing = missing}}}))
            .Fingerprint());
  }
  EXPECT_EQ(digests.size(), 4U);
}

TEST_F(TfRecordsTest, AnIndexStandsForTheWalkAndIsOfItsFile) {
  const std::string path = Write("r", {golden_, "", golden_});
  const TfRecordOptions walked = {.features = {{.name = "f", .shape = {2}, .missing = 5}}};
  TfRecordOptions indexed = walked;
  indexed.index = true;
  const std::uint64_t fingerprint = OrThrow(TfRecords({path}, walked)).Fingerprint();
  EXPECT_EQ(OrThrow(TfRecords({path}, indexed)).size(), 3) << "without an index as ever";
  EXPECT_EQ(OrThrow(WriteTfIndex(files_, path)), 3);
  const Dataset data = OrThrow(TfRecords({path}, indexed));
  EXPECT_EQ(data.Fingerprint(), fingerprint);
  EXPECT_EQ(OrThrow(data.source().Read(2)).at("f").data<float>()[1], 2);

  // As many bytes, other records: refused before one is read.
  Write("r", {"", golden_, golden_});
  EXPECT_THAT(TfRecords({path}, indexed).status().message(),
              AllOf(HasSubstr("/r: record 0 at byte 0: not where the index says"),
                    HasSubstr("cohort data index")));
  // Records of the same lengths.
  std::string other = golden_;
  other.back() ^= 1;
  Write("r", {golden_, "", other});
  EXPECT_THAT(TfRecords({path}, indexed).status().message(),
              AllOf(HasSubstr("r.idx, line 4"), HasSubstr("/r has another content now")));
  // An index as other tools write it.
  const std::string index = OrThrow(ReadFile(files_, path + ".idx"));
  WriteBytes("r.idx", index.substr(0, index.find('#')));
  EXPECT_EQ(OrThrow(TfRecords({path}, indexed)).size(), 3);
  Write("r", {golden_});
  EXPECT_THAT(TfRecords({path}, indexed).status().message(),
              AllOf(HasSubstr("r.idx, line 2"), HasSubstr("which has 71 bytes")));
  for (const char* bad : {"0", "0 x\n", "1 71\n", "0 70\n", "0 71\n71 0\n", "0 71\n\n"}) {
    WriteBytes("r.idx", bad);
    const Status status = TfRecords({path}, indexed).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << bad;
    EXPECT_THAT(status.message(), HasSubstr("r.idx, line ")) << bad;
  }
}

TEST_F(TfRecordsTest, AnIndexIsBuiltWhereThereIsNoneOrAStaleOne) {
  const std::string path = Write("r", {golden_, "", golden_});
  const std::string packed = Write("z", {golden_}, io::Compression::kGzip);
  const TfRecordOptions options = {.features = {{.name = "f", .shape = {2}, .missing = 5}},
                                   .build_index = true};
  EXPECT_EQ(OrThrow(TfRecords({path, packed}, options)).size(), 4);
  EXPECT_FALSE(files_.Exists(packed + ".idx"));
  const std::string index = OrThrow(ReadFile(files_, path + ".idx"));
  EXPECT_THAT(index, ::testing::StartsWith("0 71\n71 16\n87 71\n# cohort "));
  for (const char* const stale : {"0 71\n", "?", ""}) {
    WriteBytes("r.idx", stale);
    EXPECT_EQ(OrThrow(TfRecords({path}, options)).size(), 3);
    EXPECT_EQ(OrThrow(ReadFile(files_, path + ".idx")), index) << stale;
  }
  Write("r", {"", golden_, golden_});
  const Dataset data = OrThrow(TfRecords({path}, options));
  EXPECT_EQ(OrThrow(data.source().Read(1)).at("f").data<float>()[1], 2);
  EXPECT_NE(OrThrow(ReadFile(files_, path + ".idx")), index);
  // Where it cannot be written: no walk in silence on every start.
  std::filesystem::remove(path + ".idx");
  std::filesystem::create_directory(path + ".idx");
  EXPECT_THAT(TfRecords({path}, options).status().message(), HasSubstr("r.idx"));

  // Many at once, over a stale one: whoever reads finds none, the old or the new one, whole.
  const std::string many = Write("m", std::vector<std::string>(200, golden_));
  std::atomic<int> right = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 5; ++i) {
        if (t == 0 && i % 2 == 1) {
          OrThrow(WriteFileAtomically(files_, many + ".idx", "0 71\n"));
        }
        const auto read = TfRecords({many}, options);
        right += read.ok() && read->size() == 200 && read->source().Read(199).ok() ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(right, 20);
  for (const std::string& name : OrThrow(files_.List(folder_.path()))) {
    EXPECT_EQ(name.find(".tmp-"), std::string::npos) << name;
  }
}

// What a worker reads of a file that has an index is its own records, and little besides.
TEST_F(TfRecordsTest, AWorkerReadsItsOwnBytes) {
  TfFeatures features;
  const std::string blob(40'000, 'x');
  features["b"] = {.kind = TfFeature::Kind::kBytes, .bytes = {blob}};
  const std::string record = EncodeTfExample(features);
  const std::string path = Write("r", std::vector<std::string>(60, record));
  OrThrow(WriteTfIndex(files_, path));
  const std::uint64_t size = std::filesystem::file_size(path);
  const std::uint64_t index = std::filesystem::file_size(path + ".idx");
  std::atomic<std::uint64_t> read = 0;
  WatchedFiles watched(files_, [&read](std::uint64_t begin, std::uint64_t end, std::uint64_t) {
    read += end - begin;
  });
  TfRecordOptions options = {.features = {{.name = "b", .type = TfType::kBytes, .shape = {40'000}}},
                             .index = true,
                             .files = &watched};
  std::uint64_t all = 0;
  for (int worker = 0; worker < 4; ++worker) {
    read = 0;
    const Dataset data = OrThrow(TfRecords({path}, options));
    EXPECT_LT(read, index + 1000) << "opening";
    auto batches = OrThrow(
        data.Shuffle(1).Batch(12).Iterate({.num_workers = 4, .worker = worker, .epoch = 0}));
    while (OrThrow(batches->Next()).has_value()) {
    }
    EXPECT_GE(read, size / 4);
    EXPECT_LT(read, size / 4 + index + 1000) << "worker " << worker;
    all += read;
  }
  EXPECT_LT(all, size + 4 * (index + 1000));
}

TEST_F(TfRecordsTest, WhatIsUnusualAboutFilesIsSaidOnce) {
  const std::string good = Write("good", std::vector<std::string>(9, golden_));
  std::string bytes = OrThrow(ReadFile(files_, good));
  bytes[71 + 20] ^= 1;
  const std::string bad = WriteBytes("bad", bytes);
  const std::string none = WriteBytes("none", "");
  std::filesystem::create_symlink(good, folder_ / "link");
  std::vector<std::string> said;
  TfRecordOptions options = {.features = all_,
                             .on_corrupt = OnCorrupt::kSkip,
                             .log = Log([&said](LogLevel level, std::string_view message) {
                               EXPECT_EQ(level, LogLevel::kWarning);
                               said.emplace_back(message);
                             })};
  EXPECT_EQ(
      OrThrow(TfRecords({good, folder_.path() + "/./none", none, bad, folder_ / "link"}, options))
          .size(),
      9 + 8 + 9);
  ASSERT_EQ(said.size(), 3U);
  EXPECT_THAT(said[0], AllOf(HasSubstr("2 of 5 files are empty"), HasSubstr("none")));
  EXPECT_THAT(said[1], AllOf(HasSubstr("1 corrupt records are left out"),
                             HasSubstr("26 records are read"), HasSubstr("bad: record 1")));
  EXPECT_THAT(said[2], AllOf(HasSubstr("2 of 5 files are given twice"), HasSubstr("none")));
  said.clear();
  EXPECT_EQ(OrThrow(TfRecords({good, none}, {.features = all_, .log = options.log})).size(), 9);
  EXPECT_EQ(said.size(), 1U);

  // Packed files are in the memory of every process.
  said.clear();
  const std::string packed =
      Write("packed", std::vector<std::string>(9, golden_), io::Compression::kGzip);
  std::vector<LogLevel> levels;
  const Log all([&](LogLevel level, std::string_view message) {
    levels.push_back(level);
    said.emplace_back(message);
  });
  OrThrow(TfRecords({good, packed}, {.features = all_, .log = all}));
  ASSERT_EQ(said.size(), 1U);
  EXPECT_EQ(levels, std::vector<LogLevel>{LogLevel::kInfo});
  EXPECT_THAT(said[0], AllOf(HasSubstr("1 of 2 files are packed"),
                             HasSubstr(std::to_string(9 * golden_.size()) + " bytes")));

  // The budget as a part: 1 of 18.
  options.max_corrupt_fraction = 0.06;
  EXPECT_TRUE(TfRecords({bad, good}, options).ok());
  options.max_corrupt_fraction = 0.05;
  EXPECT_THAT(TfRecords({bad, good}, options).status().message(),
              AllOf(HasSubstr("1 corrupt records of 18"), HasSubstr("max_corrupt_fraction"),
                    HasSubstr("bad: record 1")));
  options.max_corrupt_fraction = -1;
  EXPECT_EQ(TfRecords({good}, options).status().code(), StatusCode::kInvalidArgument);
}

// At the beginning, at the end, behind a rest that is dropped; with other batches and workers. Of
// other files, or in another order, there is no such place.
TEST_F(TfRecordsTest, ResumesAtTheEdgesOfAnEpochOfItsFiles) {
  const auto write = [this](const std::string& name, int begin, int end) {
    std::vector<std::string> records;
    for (int i = begin; i < end; ++i) {
      TfFeatures features;
      features["id"] = {.kind = TfFeature::Kind::kInt64, .ints = {i}};
      records.push_back(EncodeTfExample(features));
    }
    return Write(name, records);
  };
  const std::string a = write("a", 0, 13);
  const std::string b = write("b", 13, 22);
  const auto data = [](const std::vector<std::string>& paths, std::uint64_t seed) {
    return OrThrow(TfRecords(paths, {.features = {{.name = "id", .type = TfType::kInt64}}}))
        .Shuffle(seed);
  };
  const Dataset all = data({a, b}, 1);
  const auto order = Flatten(Collect(all.Batch(1), {.epoch = 3}));
  ASSERT_EQ(order.size(), 22U);
  struct Place {
    Remainder remainder;
    std::int64_t batch;
    std::size_t example;
  };
  for (const auto& [remainder, batch, example] :
       {Place{Remainder::kShort, 0, 0}, Place{Remainder::kShort, 3, 15},
        Place{Remainder::kShort, 5, 22}, Place{Remainder::kDrop, 4, 22}}) {
    const DataPosition place = all.Batch(5, remainder).PositionAt({.epoch = 3}, batch);
    EXPECT_EQ(place.example, static_cast<std::int64_t>(example));
    const std::vector<std::int64_t> rest(order.begin() + static_cast<std::ptrdiff_t>(example),
                                         order.end());
    for (const std::int64_t size : {1, 5, 8}) {
      for (const int workers : {1, 2, 3}) {
        const Dataset other = all.Batch(size);
        EXPECT_EQ(Flatten(CollectWorld(other, workers, OrThrow(other.ResumeAt(place)))), rest)
            << example << " " << size << " " << workers;
      }
    }
    for (const Dataset& other : {data({a}, 1), data({b, a}, 1), data({a, b, a}, 1),
                                 data({a, write("c", 14, 23)}, 1), data({a, b}, 2)}) {
      EXPECT_EQ(other.Batch(5).ResumeAt(place).status().code(), StatusCode::kFailedPrecondition);
    }
  }
}

// A million records on disk, shuffled, read by threads ahead: from a random place for each number
// of workers, the whole rest of the epoch is that of the run that was never interrupted.
TEST_F(TfRecordsTest, AMillionShuffledRecordsResumeAtRandomPlaces) {
  constexpr std::int64_t kSize = testing::kSanitized ? 100'000 : 1'000'000;
  constexpr std::int64_t kBatch = 512;
  std::vector<std::string> paths;
  for (std::int64_t i = 0, file = 0; file < 3; ++file) {
    paths.push_back(folder_ / std::to_string(file));
    const auto writer = OrThrow(io::RecordWriter::Create(files_, paths.back()));
    for (const std::int64_t end = kSize * (file + 1) / 3; i < end; ++i) {
      TfFeatures features;
      features["id"] = {.kind = TfFeature::Kind::kInt64, .ints = {i}};
      OrThrow(writer->Write(EncodeTfExample(features)));
    }
    OrThrow(writer->Close());
  }
  const Dataset data =
      OrThrow(TfRecords(paths, {.features = {{.name = "id", .type = TfType::kInt64}}}))
          .Shuffle(11)
          .Batch(kBatch)
          .Prefetch(4, 2);
  const std::vector<std::int64_t> whole = Flatten(Collect(data, {.epoch = 2}));
  std::vector<std::int64_t> sorted = whole;
  std::sort(sorted.begin(), sorted.end());
  ASSERT_EQ(sorted, Flatten(Collect(Ids(kSize).Batch(kSize))));
  EXPECT_NE(sorted, whole);
  std::mt19937_64 random(5);
  for (const int workers : {1, 2, 3, 5}) {
    const auto batch =
        static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(data.batches_per_epoch()));
    const std::string saved = data.PositionAt({.epoch = 2}, batch).ToString();
    const IterateOptions rest = OrThrow(data.ResumeAt(OrThrow(DataPosition::Parse(saved))));
    ASSERT_EQ(Flatten(CollectWorld(data, workers, rest)),
              std::vector<std::int64_t>(whole.begin() + batch * kBatch, whole.end()))
        << workers << " workers from batch " << batch;
  }
}

// As protobuf has it. The memory is not touched.
TEST_F(TfRecordsTest, AnExampleIsBelow2GiB) {
  const std::size_t size = std::size_t{1} << 31;
  void* const memory =
      ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  const std::string_view large(static_cast<const char*>(memory), size);
  for (const Status& status :
       {ParseTfExample(large).status(), ParseTfSequenceExample(large).status()}) {
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(),
                AllOf(HasSubstr("2147483648 bytes"), HasSubstr("at most 2147483647")));
  }
  ::munmap(memory, size);
}

TEST_F(TfRecordsTest, PatternsTogetherGiveEachFileOnce) {
  const std::string a = Write("a-1", {golden_});
  const std::string b = Write("b-1", {golden_});
  std::filesystem::create_symlink(b, folder_ / "c-link");
  std::vector<std::string> said;
  const Log log([&said](LogLevel, std::string_view message) { said.emplace_back(message); });
  EXPECT_THAT(OrThrow(GlobAll(files_, {folder_ / "b*", folder_ / "*-1"}, log)), ElementsAre(a, b));
  EXPECT_TRUE(said.empty());
  EXPECT_THAT(OrThrow(GlobAll(files_, {folder_ / "c*", folder_ / "*-1"}, log)), ElementsAre(a, b));
  EXPECT_THAT(said,
              ElementsAre(AllOf(HasSubstr("c-link is "), HasSubstr("b-1, which is read once"))));
  EXPECT_EQ(GlobAll(files_, {a, folder_ / "x*"}).status().code(), StatusCode::kNotFound);
}

// Flips a byte of each record in turn, in both kinds of files.
TEST_F(TfRecordsTest, CorruptRecordsAreSkippedCountedAndBounded) {
  for (const auto compression : {io::Compression::kNone, io::Compression::kZlib}) {
    const std::string good = Write("good", {golden_, golden_, golden_});
    std::string bytes = OrThrow(ReadFile(files_, good));
    bytes[71 + 20] ^= 1;           // the bytes of record 1
    bytes += bytes.substr(0, 40);  // and a record that is cut off
    std::string path = WriteBytes("bad", bytes);
    if (compression == io::Compression::kZlib) {
      uLongf size = compressBound(bytes.size());
      std::string packed(size, '\0');
      compress(reinterpret_cast<Bytef*>(packed.data()), &size,
               reinterpret_cast<const Bytef*>(bytes.data()), bytes.size());
      path = WriteBytes("bad", packed.substr(0, size));
    }
    CorruptRecords corrupt;
    Metrics metrics;
    const TfRecordOptions options = {.features = all_,
                                     .on_corrupt = OnCorrupt::kSkip,
                                     .max_corrupt = 2,
                                     .corrupt = &corrupt,
                                     .metrics = &metrics};
    const Dataset data = OrThrow(TfRecords({good, path, good}, options));
    EXPECT_THAT(metrics.ToText(),
                AllOf(HasSubstr("\ncohort_data_records_total{result=\"ok\"} 8\n"),
                      HasSubstr("\ncohort_data_records_total{result=\"corrupt\"} 2\n")));
    EXPECT_EQ(data.size(), 3 + 2 + 3);
    EXPECT_EQ(corrupt.records, 1);
    EXPECT_EQ(corrupt.cut_files, 1);
    EXPECT_THAT(corrupt.messages, ElementsAre(HasSubstr("bad: record 1 at byte 71"),
                                              HasSubstr("bad: record 3 at byte 213")));
    EXPECT_EQ(data.source().Where(4), path + ", record 2") << "its number in the file";
    for (std::int64_t i = 0; i < data.size(); ++i) {
      EXPECT_EQ(OrThrow(data.source().Read(i)).at("f").data<float>()[1], 2);
    }
    TfRecordOptions tight = options;
    tight.max_corrupt = 1;
    EXPECT_THAT(TfRecords({good, path}, tight).status().message(),
                AllOf(HasSubstr("2 corrupt records, at most 1"), HasSubstr("record 1 at byte 71")));
    TfRecordOptions strict = options;
    strict.on_corrupt = OnCorrupt::kError;
    const auto refused = TfRecords({path}, strict);
    EXPECT_EQ(refused.status().code(), StatusCode::kDataLoss);
  }
}

TEST_F(TfRecordsTest, RefusesWhatMakesNoSense) {
  const auto status = [](std::vector<TfFeatureSpec> features) {
    return TfRecords({"unread"}, {.features = std::move(features)}).status();
  };
  EXPECT_THAT(status({}).message(), HasSubstr("no features"));
  EXPECT_THAT(status({{.name = "a"}, {.name = "a"}}).message(),
              HasSubstr("'a' is asked for twice"));
  EXPECT_THAT(status({{.name = "a", .buckets = -1}}).message(), HasSubstr("buckets"));
  EXPECT_THAT(status({{.name = "a", .type = TfType::kBytes, .missing = 256}}).message(),
              HasSubstr("'a' is uint8, which has no"));
  EXPECT_THAT(status({{.name = "a", .type = TfType::kInt64, .missing = 1e20}}).message(),
              HasSubstr("'a' is int64, which has no"));
  EXPECT_EQ(TfRecords({}, {.features = all_}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(TfRecords({folder_ / "none"}, {.features = all_}).status().code(),
            StatusCode::kNotFound);
  EXPECT_FALSE(TfRecords({Write("z", {golden_}, io::Compression::kGzip)},
                         {.features = all_, .compression = TfRecordCompression::kNone})
                   .ok());
}

// 15,000 trips that TensorFlow wrote, to the last value: unpacked by zlib, framed by hand and
// parsed by protobuf on one side, read as a data set on the other.
TEST(TfRecordRealData, ChicagoTaxiToTheLastValue) {
  const std::string folder = testing::RealData("chicago_taxi");
  if (folder.empty()) {
    GTEST_SKIP() << "no real data [COHORT_TEST_DATA]";
  }
  Protobuf protobuf;
  std::int64_t records = 0;
  std::int64_t values = 0;
  std::int64_t missing = 0;
  for (const std::string part : {"train", "eval"}) {
    for (const std::string& name : OrThrow(FileSystem::Local().List(folder + "/" + part))) {
      const std::string path = folder + "/" + part + "/" + name;
      std::string content;
      gzFile file = gzopen(path.c_str(), "rb");
      std::vector<char> chunk(1 << 16);
      for (int n = 0; (n = gzread(file, chunk.data(), 1 << 16)) > 0;) {
        content.append(chunk.data(), static_cast<std::size_t>(n));
      }
      gzclose(file);

      auto reader = OrThrow(io::RecordReader::Open(FileSystem::Local(), path));
      std::vector<std::map<std::string, std::string>> expected;
      std::map<std::string, char> kinds;
      for (std::size_t at = 0; at < content.size();) {
        std::uint64_t length = 0;
        std::memcpy(&length, content.data() + at, sizeof(length));
        const std::string_view message = std::string_view(content).substr(at + 12, length);
        expected.push_back(protobuf.Parse(message).value());
        ASSERT_EQ(OwnParse(OrThrow(reader->Next()).value()), expected.back());
        for (const auto& [key, text] : expected.back()) {
          kinds[key] = text[0];
        }
        at += 16 + length;
      }
      EXPECT_FALSE(OrThrow(reader->Next()).has_value());

      // The same through the data set, with a value that no trip has for what is missing.
      std::vector<TfFeatureSpec> specs;
      specs.reserve(kinds.size());
      for (const auto& [key, kind] : kinds) {
        specs.push_back({.name = key,
                         .type = kind == 'f'   ? TfType::kFloat32
                                 : kind == 'i' ? TfType::kInt64
                                               : TfType::kHash,
                         .missing = -12345});
      }
      const Dataset data = OrThrow(TfRecords({path}, {.features = specs}));
      ASSERT_EQ(data.size(), static_cast<std::int64_t>(expected.size()));
      for (std::int64_t i = 0; i < data.size(); ++i) {
        const Example example = OrThrow(data.source().Read(i));
        for (const TfFeatureSpec& spec : specs) {
          const auto& record = expected[static_cast<std::size_t>(i)];
          const auto it = record.find(spec.name);
          const Tensor& tensor = example.at(spec.name);
          std::string text;
          if (spec.type == TfType::kFloat32) {
            const float value = tensor.data<float>()[0];
            text =
                value == -12345 ? "" : "f:" + std::to_string(std::bit_cast<std::uint32_t>(value));
          } else if (spec.type == TfType::kInt64) {
            const std::int64_t value = tensor.data<std::int64_t>()[0];
            text = value == -12345 ? "" : "i:" + std::to_string(value);
          }
          if (spec.type != TfType::kHash) {
            ASSERT_EQ(text, it == record.end() ? "" : it->second);
          } else if (it != record.end()) {
            const std::string value = it->second.substr(it->second.find('=') + 1);
            ASSERT_EQ(tensor.data<std::int64_t>()[0], static_cast<std::int64_t>(Hash64(value)));
          }
          (it == record.end() ? missing : values) += 1;
        }
      }
      records += data.size();
    }
  }
  EXPECT_EQ(records, 15000);
  EXPECT_GT(values, 200000);
  EXPECT_GT(missing, 1000);
}

}  // namespace
}  // namespace cohort::data
