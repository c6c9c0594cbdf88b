// Snapshot: what is written, by whom, what is read of it, and what is refused.

#include <cohort/data/combine.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "collect.h"
#include "testing/faulty_file_system.h"
#include "testing/temp_dir.h"

namespace cohort::data {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Ids [0, size) with x = {id / 2, 0} and, where `lists` says so, a list of id % 4 values; what is
// read is counted.
Dataset Recorded(std::int64_t size, bool lists, std::atomic<int>& reads) {
  const Dataset data = Ids(size).Map([lists, &reads](Example& example) {
    ++reads;
    const std::int64_t id = example.at("id").data<std::int64_t>()[0];
    example["x"] = Tensor(DType::kFloat32, {2});
    example.at("x").data<float>()[0] = static_cast<float>(id) / 2;
    if (lists) {
      example["list"] = Tensor(DType::kInt32, {id % 4});
      std::ranges::fill(example.at("list").data<std::int32_t>(), static_cast<std::int32_t>(id));
    }
    return OkStatus();
  });
  return lists ? data.Lists({"list"}) : data;
}

void ExpectRecorded(const Dataset& data, std::int64_t size, bool lists) {
  ASSERT_EQ(data.size(), size);
  for (std::int64_t id = 0; id < size; ++id) {
    const Example example = OrThrow(data.source().Read(id));
    EXPECT_EQ(example.at("id").data<std::int64_t>()[0], id);
    EXPECT_EQ(example.at("x").data<float>()[0], static_cast<float>(id) / 2);
    EXPECT_EQ(example.contains("list"), lists);
    if (lists) {
      const auto list = example.at("list").data<std::int32_t>();
      EXPECT_EQ(list.size(), static_cast<std::size_t>(id % 4));
      EXPECT_TRUE(std::ranges::all_of(list, [id](std::int32_t v) { return v == id; }));
    }
  }
}

// The files of all snapshots in the folder.
std::vector<std::string> SnapshotFiles(const testing::TempDir& folder) {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder.path())) {
    if (entry.is_regular_file()) {
      paths.push_back(entry.path().string());
    }
  }
  std::ranges::sort(paths);
  return paths;
}

TEST(Snapshot, IsWrittenOnceAndReadAsItIs) {
  FileSystem& files = FileSystem::Local();
  for (const bool lists : {false, true}) {
    for (const bool compress : {false, true}) {
      const testing::TempDir folder;
      std::atomic<int> reads = 0;
      const SnapshotOptions options{.shards = 4, .threads = 2, .compress = compress};
      const auto make = [&](std::int64_t size, const SnapshotOptions& how) {
        return OrThrow(Snapshot(Recorded(size, lists, reads), files, folder.path(), how));
      };
      const Dataset first = make(30, options);
      EXPECT_EQ(SnapshotFiles(folder).size(), 4U);
      const int made = reads;
      EXPECT_GE(made, 30);
      ExpectRecorded(first, 30, lists);
      const Dataset again = make(30, options);
      ExpectRecorded(again, 30, lists);
      EXPECT_LE(reads, made + 1) << "but for the look at what the map makes";
      EXPECT_EQ(again.Fingerprint(), first.Fingerprint());
      std::vector<std::int64_t> ids = Flatten(Collect(first.Shuffle(3).Batch(7)));
      std::ranges::sort(ids);
      EXPECT_EQ(ids, Flatten(Collect(Ids(30).Batch(30))));
      EXPECT_EQ(first.source().files().size(), 4U);
      EXPECT_GT(first.source().files()[0].bytes, 0);
      // Other data, and another version of the map, beside it.
      ExpectRecorded(make(31, options), 31, lists);
      SnapshotOptions other = options;
      other.version = "2";
      const int before = reads;
      EXPECT_NE(make(30, other).Fingerprint(), first.Fingerprint());
      EXPECT_GE(reads, before + 30);
      EXPECT_EQ(SnapshotFiles(folder).size(), 12U);
      ExpectRecorded(first, 30, lists);
    }
  }
}

TEST(Snapshot, OfFewerExamplesThanShardsAndOfNone) {
  const testing::TempDir folder;
  std::atomic<int> reads = 0;
  ExpectRecorded(
      OrThrow(Snapshot(Recorded(3, true, reads), FileSystem::Local(), folder.path(), {})), 3, true);
  EXPECT_EQ(SnapshotFiles(folder).size(), 3U);
  EXPECT_EQ(OrThrow(Snapshot(Ids(0), FileSystem::Local(), folder.path(), {})).size(), 0);
  EXPECT_THAT(Snapshot(Ids(9).Shuffle(1), FileSystem::Local(), folder.path()).status().message(),
              HasSubstr("[Shuffle after it]"));
  EXPECT_EQ(Snapshot(Ids(9), FileSystem::Local(), folder.path(), {.shards = 0}).status().code(),
            StatusCode::kInvalidArgument);
}

TEST(Snapshot, ByManyAtOnceIsOne) {
  const testing::TempDir folder;
  std::atomic<int> reads = 0;
  std::vector<Result<Dataset>> made(4, Internal("not yet"));
  std::vector<std::thread> writers;
  writers.reserve(made.size());
  for (Result<Dataset>& mine : made) {
    writers.emplace_back([&] {
      mine =
          Snapshot(Recorded(200, true, reads), FileSystem::Local(), folder.path(), {.shards = 20});
    });
  }
  for (std::thread& writer : writers) {
    writer.join();
  }
  for (const Result<Dataset>& mine : made) {
    ExpectRecorded(OrThrow(mine), 200, true);
    EXPECT_EQ(mine->Fingerprint(), made[0]->Fingerprint());
  }
  EXPECT_EQ(SnapshotFiles(folder).size(), 20U) << "nothing else is left";
}

TEST(Snapshot, GoesOnWhereItWasInterrupted) {
  const testing::TempDir folder;
  std::atomic<int> reads = 0;
  std::atomic<int> files_made = 0;
  testing::FaultyFileSystem full([&](std::string_view operation, const std::string&) {
    return operation == "create" && ++files_made > 3 ? ResourceExhausted("disk full") : OkStatus();
  });
  const SnapshotOptions options{.shards = 5};
  EXPECT_EQ(Snapshot(Recorded(50, true, reads), full, folder.path(), options).status().code(),
            StatusCode::kResourceExhausted);
  EXPECT_EQ(SnapshotFiles(folder).size(), 3U) << "whole files only";
  reads = 0;
  ExpectRecorded(
      OrThrow(Snapshot(Recorded(50, true, reads), FileSystem::Local(), folder.path(), options)), 50,
      true);
  EXPECT_LE(reads, 21) << "two of five files";
}

TEST(Snapshot, DamageIsSeen) {
  FileSystem& files = FileSystem::Local();
  for (const bool compress : {false, true}) {
    const testing::TempDir folder;
    std::atomic<int> reads = 0;
    const auto open = [&]() -> Status {
      COHORT_ASSIGN_OR_RETURN(const Dataset data,
                              Snapshot(Recorded(12, true, reads), files, folder.path(),
                                       {.shards = 2, .compress = compress}));
      for (std::int64_t i = 0; i < data.size(); ++i) {
        COHORT_RETURN_IF_ERROR(data.source().Read(i).status());
      }
      return {};
    };
    OrThrow(open());
    const std::string path = SnapshotFiles(folder)[1];
    const std::string whole = OrThrow(ReadFile(files, path));
    const auto replace = [&path](const std::string& bytes) {
      std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    };
    // Bytes anywhere, and any length: an error that names the file, never other examples.
    for (std::size_t at = 0; at < whole.size(); at += 5) {
      std::string damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
      replace(damaged);
      const Status status = open();
      EXPECT_EQ(status.code(), StatusCode::kDataLoss) << at;
      EXPECT_THAT(status.message(), HasSubstr(path)) << at;
      replace(whole.substr(0, at));
      EXPECT_EQ(open().code(), StatusCode::kDataLoss) << at;
    }
    // A file of another snapshot in its place.
    replace(OrThrow(ReadFile(files, SnapshotFiles(folder)[0])));
    EXPECT_THAT(open().message(), AllOf(HasSubstr(path), HasSubstr("[remove it")));
    OrThrow(files.RemoveAll(path));
    OrThrow(open());
    EXPECT_EQ(OrThrow(ReadFile(files, path)), whole) << "written again, and the same";
  }
}

// Examples of as many bytes, and of another shape or type, are not taken for those before them.
TEST(Snapshot, ExamplesOfAnotherShapeAreAnError) {
  const auto status = [](const std::function<void(Example&, std::int64_t id)>& change) {
    const testing::TempDir folder;
    const Dataset data = Ids(700).Map([change](Example& example) {
      const std::int64_t id = example.at("id").data<std::int64_t>()[0];
      example["x"] = Tensor(DType::kFloat32, {2, 3});
      example["list"] = Tensor(DType::kInt64, {id % 4});
      // From where a batch of Snapshot's begins: within one a map's examples are equal.
      if (id >= 512) {
        change(example, id);
      }
      return OkStatus();
    });
    const Status made =
        Snapshot(data.Lists({"list"}), FileSystem::Local(), folder.path(), {.shards = 1}).status();
    EXPECT_EQ(made.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(SnapshotFiles(folder), IsEmpty());
    return made.message();
  };
  const auto x = [](DType dtype, const Shape& shape) {
    return [=](Example& example, std::int64_t) { example["x"] = Tensor(dtype, shape); };
  };
  EXPECT_THAT(status(x(DType::kFloat32, {3, 2})),
              HasSubstr("examples 512 to 543: feature 'x' is float32[3,2], in the first example "
                        "float32[2,3]"));
  EXPECT_THAT(status(x(DType::kFloat32, {6})),
              HasSubstr("feature 'x' is float32[6], in the first example float32[2,3]"));
  EXPECT_THAT(status(x(DType::kInt32, {2, 3})),
              HasSubstr("feature 'x' is int32[2,3], in the first example float32[2,3]"));
  EXPECT_THAT(status([](Example& example, std::int64_t id) {
                example["list"] = Tensor(DType::kFloat64, {id % 4});
              }),
              HasSubstr("ragged feature 'list' is float64, in the first example int64"));
  EXPECT_THAT(status([](Example& example, std::int64_t) { example.erase("x"); }),
              HasSubstr("feature 'x' of the first example is missing"));
  EXPECT_THAT(
      status([](Example& example, std::int64_t) { example["y"] = Tensor(DType::kFloat32, {}); }),
      HasSubstr("feature 'y' is not in the first example"));
}

// A file of another snapshot, of as many bytes, under this one's name.
TEST(Snapshot, AFileOfAnotherShapeIsAnError) {
  FileSystem& files = FileSystem::Local();
  const auto make = [&](DType dtype, const Shape& shape, const std::string& folder) {
    const Dataset data = Ids(8).Map([=](Example& example) {
      example["x"] = Tensor(dtype, shape);
      return OkStatus();
    });
    return Snapshot(data, files, folder, {.shards = 1}).status();
  };
  const testing::TempDir mine;
  OrThrow(make(DType::kFloat32, {2, 3}, mine.path()));
  const std::string path = SnapshotFiles(mine).at(0);
  const auto of_other = [&](DType dtype, const Shape& shape) {
    const testing::TempDir folder;
    OrThrow(make(dtype, shape, folder.path()));
    std::filesystem::copy_file(SnapshotFiles(folder).at(0), path,
                               std::filesystem::copy_options::overwrite_existing);
    const Status status = make(DType::kFloat32, {2, 3}, mine.path());
    EXPECT_EQ(status.code(), StatusCode::kDataLoss);
    EXPECT_THAT(status.message(), HasSubstr(path));
    return status.message();
  };
  EXPECT_THAT(of_other(DType::kFloat32, {3, 2}),
              HasSubstr("is of 'x float32[3,2]' where 'x float32[2,3]' is expected"));
  EXPECT_THAT(of_other(DType::kInt32, {2, 3}),
              HasSubstr("is of 'x int32[2,3]' where 'x float32[2,3]' is expected"));
}

}  // namespace
}  // namespace cohort::data
