// Checkpoints that build on earlier ones: what they need stays, and what is lost is named.

#include <cohort/io/checkpoint.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "testing/faulty_file_system.h"
#include "testing/temp_dir.h"

namespace cohort::io {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::FaultyFileSystem;
using ::testing::HasSubstr;

constexpr char kRows[] = "table-0.rows";

// Saves `step`, whose file of rows says "<step>"; on `base`, unless that is 0.
Result<std::string> Save(FileSystem& files, CheckpointStore& store, std::int64_t step,
                         std::int64_t base) {
  const std::vector<float> value(3, static_cast<float>(step));
  const std::vector<CheckpointSource> model = {{"w", {3}, value}};
  const std::vector<CheckpointFile> others = {{kRows, [&](const std::string& path) {
                                                 return WriteFileAtomically(files, path,
                                                                            std::to_string(step));
                                               }}};
  return store.Save({.step = step}, model, {}, others,
                    base == 0 ? std::nullopt : std::optional(base));
}

// What the files of the newest checkpoint's chain say.
Result<std::vector<std::string>> Read(const CheckpointStore& store) {
  COHORT_ASSIGN_OR_RETURN(const auto checkpoint, store.OpenLatest());
  COHORT_ASSIGN_OR_RETURN(const std::vector<std::string> chain, checkpoint->Chain(kRows));
  std::vector<std::string> texts;
  for (const std::string& path : chain) {
    COHORT_ASSIGN_OR_RETURN(texts.emplace_back(), ReadFile(store.files(), path));
  }
  return texts;
}

class CheckpointChainTest : public ::testing::Test {
 protected:
  CheckpointStore Store(int max_to_keep = 0) {
    return {files_, folder_, {.max_to_keep = max_to_keep}};
  }
  std::string Path(std::int64_t step) const {
    return folder_ + "/step-000000000" + std::to_string(step);
  }

  FaultyFileSystem files_{[](std::string_view, const std::string&) { return Status(); }};
  testing::TempDir dir_;
  std::string folder_ = dir_ / "ckpt";
};

TEST_F(CheckpointChainTest, AChainIsReadFromItsBeginning) {
  CheckpointStore store = Store();
  OrThrow(Save(files_, store, 1, 0));
  OrThrow(Save(files_, store, 2, 1));
  OrThrow(Save(files_, store, 5, 2));
  EXPECT_THAT(OrThrow(Read(store)), ElementsAre("1", "2", "5"));
  EXPECT_THAT(OrThrow(OrThrow(store.Open(1))->Chain(kRows)).size(), 1U);
  EXPECT_EQ(OrThrow(store.Open(5))->Chain("table-1.rows").status().code(),
            StatusCode::kFailedPrecondition);
  const CheckpointStore::ChainSize size = OrThrow(store.SizeOfChain(5));
  EXPECT_EQ(size.checkpoints, 3);
  EXPECT_EQ(size.first_bytes, 1U);
  EXPECT_EQ(size.change_bytes, 2U);
  EXPECT_EQ(store.SizeOfChain(4).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(Save(files_, store, 9, 4).status().code(), StatusCode::kFailedPrecondition);
}

TEST_F(CheckpointChainTest, WhatIsBuiltOnStays) {
  CheckpointStore store = Store(2);
  OrThrow(Save(files_, store, 1, 0));
  OrThrow(Save(files_, store, 2, 1));
  OrThrow(Save(files_, store, 3, 2));
  OrThrow(Save(files_, store, 4, 3));
  EXPECT_THAT(OrThrow(store.Steps()), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(OrThrow(Read(store)), ElementsAre("1", "2", "3", "4"));
  OrThrow(Save(files_, store, 5, 0));
  EXPECT_THAT(OrThrow(store.Steps()), ElementsAre(1, 2, 3, 4, 5)) << "4 is kept";
  OrThrow(Save(files_, store, 6, 5));
  EXPECT_THAT(OrThrow(store.Steps()), ElementsAre(1, 5, 6)) << "5 and 6 are lost together";
  OrThrow(Save(files_, store, 7, 0));
  EXPECT_THAT(OrThrow(store.Steps()), ElementsAre(5, 6, 7));
}

TEST_F(CheckpointChainTest, WhatIsLostOfAChainIsNamed) {
  CheckpointStore store = Store();
  OrThrow(Save(files_, store, 1, 0));
  OrThrow(Save(files_, store, 2, 1));
  OrThrow(Save(files_, store, 3, 2));
  const auto expect_lost = [&](const std::string& naming) {
    const Status status = store.Open(3).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss);
    EXPECT_THAT(status.message(), AllOf(HasSubstr(Path(3)), HasSubstr(naming)));
  };
  fs::rename(Path(1) + "/" + kRows, dir_ / "aside");
  expect_lost(Path(1) + "/" + kRows + " is missing");
  std::ofstream(Path(1) + "/" + kRows) << "7";
  expect_lost(Path(1) + "/" + kRows + " is corrupted");
  fs::rename(dir_ / "aside", Path(1) + "/" + kRows);
  EXPECT_THAT(OrThrow(Read(store)), ElementsAre("1", "2", "3"));

  fs::remove_all(Path(1));
  expect_lost(Path(1));
  EXPECT_EQ(store.OpenLatest().status().code(), StatusCode::kDataLoss) << "nothing else is left";
  // Another checkpoint of that step is none that they build on.
  const std::vector<float> other(3, 9);
  const std::vector<CheckpointSource> model = {{"w", {3}, other}};
  OrThrow(store.Save({.step = 1}, model, {}, {}));
  expect_lost(Path(1) + " is another checkpoint");
  EXPECT_EQ(OrThrow(store.OpenLatest())->state().step, 1);
}

// Retention: a manifest that cannot be read for a moment may say that an older one is needed.
TEST_F(CheckpointChainTest, NothingIsDeletedWhereItIsNotKnownWhatIsBuiltOn) {
  Status answer;
  FaultyFileSystem files([&](std::string_view operation, const std::string& path) {
    return operation == "read" && path == Path(2) + "/manifest.json" ? answer : Status();
  });
  CheckpointStore store(files, folder_, {.max_to_keep = 2});
  OrThrow(Save(files, store, 1, 0));
  OrThrow(Save(files, store, 2, 1));
  for (const Status& error : {Unavailable("stale file handle"), DeadlineExceeded("slow"),
                              PermissionDenied("for a moment"), ResourceExhausted("EMFILE")}) {
    fs::remove_all(Path(3));
    answer = error;
    OrThrow(Save(files, store, 3, 0));
    answer = Status();
    EXPECT_THAT(OrThrow(store.Steps()), ElementsAre(1, 2, 3)) << error.ToString();
  }
  fs::remove_all(Path(3));
  EXPECT_THAT(OrThrow(Read(store)), ElementsAre("1", "2"));
  std::ofstream(Path(2) + "/manifest.json") << "{";
  OrThrow(Save(files, store, 3, 0));
  EXPECT_THAT(OrThrow(store.Steps()), ElementsAre(2, 3)) << "a damaged one needs nothing";
}

// A save that breaks off at its k-th operation, for every k, while a chain grows, or is replaced by
// one that begins anew.
TEST_F(CheckpointChainTest, CrashAnywhereLeavesAWholeChain) {
  for (const std::int64_t base : {2, 0}) {
    for (const bool crash : {true, false}) {
      int broken = 0;
      for (int k = 0;; ++k) {
        fs::remove_all(folder_);
        int calls = 0;
        bool armed = false;
        FaultyFileSystem files([&](std::string_view operation, const std::string& path) {
          const bool fails = armed && (crash ? calls >= k : calls == k);
          calls += armed ? 1 : 0;
          return fails ? ResourceExhausted(std::string(operation) + " " + path) : Status();
        });
        CheckpointStore store(files, folder_, {.max_to_keep = 1});
        OrThrow(Save(files, store, 1, 0));
        OrThrow(Save(files, store, 2, 1));
        armed = true;
        const Result<std::string> saved = Save(files, store, 3, base);
        const bool all_worked = calls <= k;
        armed = false;
        const std::vector<std::string> read =
            OrThrow(Read(CheckpointStore(FileSystem::Local(), folder_)));
        const auto whole =
            base == 2 ? std::vector<std::string>{"1", "2", "3"} : std::vector<std::string>{"3"};
        EXPECT_TRUE(read == whole || (!saved.ok() && read == std::vector<std::string>{"1", "2"}))
            << "broken off at " << k << ": " << ::testing::PrintToString(read);
        for (const std::int64_t step :
             OrThrow(CheckpointStore(FileSystem::Local(), folder_).Steps())) {
          EXPECT_EQ(OrThrow(store.Open(step))->state().step, step)
              << "none lacks what it builds on";
        }
        broken += saved.ok() ? 0 : 1;
        if (all_worked) {
          EXPECT_TRUE(saved.ok());
          break;
        }
      }
      EXPECT_GT(broken, 10) << "the faults reached the save";
    }
  }
}

}  // namespace
}  // namespace cohort::io
