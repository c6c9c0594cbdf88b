// What Cache keeps in memory and CacheInFile in a file.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <cohort/data/combine.h>
#include <cohort/data/criteo.h>
#include <cohort/data/text_lines.h>
#include <cohort/io/safetensors.h>

#include "collect.h"
#include "testing/faulty_file_system.h"
#include "testing/temp_dir.h"

namespace cohort::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::int64_t> OrderOf(const Dataset& data, std::int64_t epoch = 0) {
  return Flatten(Collect(data.Batch(7), {.epoch = epoch}));
}

// All bytes of an example.
std::string BytesOf(const Example& example) {
  std::string bytes;
  for (const auto& [name, tensor] : example) {
    bytes += name + tensor.shape().ToString();
    bytes.append(reinterpret_cast<const char*>(tensor.raw()), tensor.bytes());
  }
  return bytes;
}

TEST(Cache, ReadsEveryExampleOnce) {
  std::atomic<int> reads = 0;
  const Dataset counted = Ids(50).Map([&reads](Example&) {
    ++reads;
    return OkStatus();
  });
  const Dataset cached = OrThrow(Cache(counted));
  reads = 0;
  for (const std::int64_t epoch : {0, 1, 2}) {
    EXPECT_EQ(OrderOf(cached.Shuffle(1), epoch), OrderOf(Ids(50).Shuffle(1), epoch));
    EXPECT_EQ(reads, 50);
  }
  EXPECT_THAT(Cache(counted.Shuffle(1)).status().message(), HasSubstr("[Shuffle after it]"));
}

TEST(Cache, InAFileThatIsOfItsData) {
  const testing::TempDir folder;
  FileSystem& files = FileSystem::Local();
  const std::string path = folder / "cache";
  std::atomic<int> reads = 0;
  const auto counted = [&reads](std::int64_t size) {
    return OrThrow(FromTensors({{"id", Tensor(DType::kInt64, {size})},
                                {"x", Tensor(DType::kFloat32, {size, 3})}}))
        .Map([&reads](Example& example) {
          example.at("x").data<float>()[2] = static_cast<float>(++reads);
          return OkStatus();
        });
  };
  const Dataset first = OrThrow(CacheInFile(counted(20), files, path));
  EXPECT_EQ(first.size(), 20);
  const int made = reads;
  EXPECT_GE(made, 20);
  const Dataset again = OrThrow(CacheInFile(counted(20), files, path));
  EXPECT_LE(reads, made + 1) << "but for the look at what the map makes";
  EXPECT_EQ(OrThrow(again.source().Read(7)).at("x").data<float>()[2],
            OrThrow(first.source().Read(7)).at("x").data<float>()[2]);
  EXPECT_THAT(OrThrow(files.List(folder.path())), ElementsAre("cache")) << "nothing else is left";
  // Other data, or another version of the map: written anew.
  EXPECT_EQ(OrThrow(CacheInFile(counted(21), files, path)).size(), 21);
  const int before = reads;
  OrThrow(CacheInFile(counted(21), files, path, "2"));
  EXPECT_GE(reads, before + 21);
  OrThrow(WriteFileAtomically(files, path, "something else"));
  EXPECT_EQ(OrThrow(CacheInFile(counted(21), files, path)).size(), 21);

  // A full disk leaves nothing behind.
  testing::FaultyFileSystem full([](std::string_view operation, const std::string&) {
    return operation == "append" ? ResourceExhausted("disk full") : OkStatus();
  });
  EXPECT_EQ(CacheInFile(counted(5), full, folder / "other").status().code(),
            StatusCode::kResourceExhausted);
  EXPECT_THAT(OrThrow(files.List(folder.path())), ElementsAre("cache"));
}

// 4, 52 and 208 bytes: none that ends where the next may begin.
TEST(Cache, GivesFeaturesOfAnySizeAsTheyWere) {
  const testing::TempDir folder;
  std::string lines;
  for (int i = 0; i < 9; ++i) {
    lines += std::to_string(i % 2);
    for (int column = 0; column < 13; ++column) {
      lines += "\t" + std::to_string(i * 100 + column);
    }
    for (int column = 0; column < 26; ++column) {
      lines += "\t" + std::to_string(i * 50 + column);
    }
    lines += "\n";
  }
  FileSystem& files = FileSystem::Local();
  OrThrow(WriteFileAtomically(files, folder / "day", lines));
  const Dataset data = OrThrow(TextLines({folder / "day"}, {.decoder = CriteoLine({})}));
  const Dataset cached = OrThrow(Cache(data));
  const Dataset in_file = OrThrow(CacheInFile(data, files, folder / "cache"));
  for (const int pass : {0, 1}) {
    for (std::int64_t i = 0; i < 9; ++i) {
      const std::string expected = BytesOf(OrThrow(data.source().Read(i)));
      EXPECT_EQ(BytesOf(OrThrow(cached.source().Read(i))), expected) << i << " pass " << pass;
      EXPECT_EQ(BytesOf(OrThrow(in_file.source().Read(i))), expected) << i;
    }
  }
}

// Ids, three bytes, and, where `lists` says so, a list of id % 3 values.
Dataset Small(bool lists = false) {
  return Ids(5).Lists({"list"}).Map([lists](Example& example) {
    const std::int64_t id = example.at("id").data<std::int64_t>()[0];
    example["x"] = Tensor(DType::kUInt8, {3});
    std::ranges::fill(example["x"].data<std::uint8_t>(), static_cast<std::uint8_t>(id + 7));
    if (lists) {
      example["list"] = Tensor(DType::kInt32, {id % 3});
      std::ranges::fill(example["list"].data<std::int32_t>(), static_cast<std::int32_t>(id * 1000));
    }
    return OkStatus();
  });
}

// A bit of every byte of the examples, and of many of the header's: an error that names it, or a
// file that is made anew. Never other data.
TEST(Cache, AFlippedBitInAFileIsNeverReadAsData) {
  const testing::TempDir folder;
  FileSystem& files = FileSystem::Local();
  for (const bool lists : {false, true}) {
    const std::string path = folder / (lists ? "lists" : "cache");
    const Dataset data = Small(lists);
    const auto source = OrThrow(data.AsSource());
    OrThrow(CacheInFile(data, files, path));
    const std::string good = OrThrow(ReadFile(files, path));
    std::uint64_t header = 0;
    std::memcpy(&header, good.data(), sizeof(header));
    header += sizeof(header);
    for (std::size_t at = 0; at < good.size(); at += at < header ? 5 : 1) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ (1 << at % 8));
      std::ofstream(path, std::ios::binary) << bad;
      const Dataset cached = OrThrow(CacheInFile(data, files, path));
      int refused = 0;
      for (std::int64_t i = 0; i < data.size(); ++i) {
        const Result<Example> read = cached.source().Read(i);
        if (read.ok()) {
          EXPECT_EQ(BytesOf(*read), BytesOf(OrThrow(source->Read(i)))) << at;
          continue;
        }
        ++refused;
        EXPECT_EQ(read.status().code(), StatusCode::kDataLoss);
        EXPECT_THAT(read.status().message(),
                    AllOf(HasSubstr(path + ", row " + std::to_string(i)), HasSubstr("checksum")));
      }
      if (at < header) {
        EXPECT_EQ(refused, 0) << "made anew, byte " << at;
      } else {
        EXPECT_GE(refused, 1) << at;
        EXPECT_LE(refused, lists ? 2 : 1) << "a list's end is the next one's begin, byte " << at;
      }
    }
  }
}

// What is cut off, before it is opened or after, and what was written without checksums.
TEST(Cache, AFileThatIsNotWholeIsMadeAnew) {
  const testing::TempDir folder;
  FileSystem& files = FileSystem::Local();
  const std::string path = folder / "cache";
  const Dataset data = Small();
  OrThrow(CacheInFile(data, files, path));
  const std::string good = OrThrow(ReadFile(files, path));
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{5}, good.size() / 2, good.size() - 1}) {
    OrThrow(WriteFileAtomically(files, path, good.substr(0, size)));
    OrThrow(CacheInFile(data, files, path));
    EXPECT_EQ(OrThrow(ReadFile(files, path)), good) << size;
  }
  const std::vector<io::SafetensorsEntry> entries = {
      {.name = "id", .dtype = DType::kInt64, .shape = {5}},
      {.name = "x", .dtype = DType::kUInt8, .shape = {5, 3}}};
  const std::string mark = std::to_string(OrThrow(data.AsSource())->Fingerprint()) + "/";
  OrThrow(WriteFileAtomically(
      files, path,
      io::EncodeSafetensorsHeader(entries, {{"cohort.cache", mark}}) + std::string(5 * 11, '\1')));
  OrThrow(CacheInFile(data, files, path));
  EXPECT_EQ(OrThrow(ReadFile(files, path)), good);

  std::filesystem::resize_file(path, good.size() - 30);
  const Dataset open = OrThrow(CacheInFile(data, files, path));  // made anew
  std::filesystem::resize_file(path, good.size() - 30);
  const Status status = open.source().Read(4).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), AllOf(HasSubstr(path), HasSubstr("row 4")));
}

}  // namespace
}  // namespace cohort::data
