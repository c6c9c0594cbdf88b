// Trainer in a job of several processes, here threads: only the chief has the checkpoint folder.

#include <cohort/comm/local.h>
#include <cohort/io/checkpoint.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>

#include "job.h"
#include "testing/run_ranks.h"
#include "testing/temp_dir.h"

namespace cohort {
namespace {

using testing::Job;
using testing::kTrain;
using testing::Points;

constexpr int kRanks = 3;

class TrainerRanks : public ::testing::Test {
 protected:
  // Fit on every rank; what each returned. `adjust` makes a rank's options.
  std::vector<Status> Fit(TrainerOptions options,
                          const std::function<void(int rank, TrainerOptions&)>& adjust = {}) {
    auto communicators = MakeLocalCommunicators(kRanks);
    values_.assign(kRanks, {});
    steps_.assign(kRanks, 0);
    return testing::RunRanks(kRanks, [&](int rank) -> Status {
      TrainerOptions mine = options;
      mine.checkpoint_dir = FolderOf(rank);
      if (adjust) {
        adjust(rank, mine);
      }
      Job job(std::move(mine), 0.1, std::move(communicators[static_cast<std::size_t>(rank)]));
      const auto history = job.trainer->Fit(Points(), kTrain);
      values_[static_cast<std::size_t>(rank)] = job.values();
      steps_[static_cast<std::size_t>(rank)] = job.strategy->step();
      return history.status();
    });
  }
  std::string FolderOf(int rank) { return dir_ / ("rank" + std::to_string(rank)); }
  std::vector<std::int64_t> SavedSteps() {
    return OrThrow(io::CheckpointStore(FileSystem::Local(), FolderOf(0)).Steps());
  }
  void ExpectOthersWroteNothing() {
    for (int rank = 1; rank < kRanks; ++rank) {
      EXPECT_FALSE(std::filesystem::exists(FolderOf(rank))) << rank;
    }
  }

  testing::TempDir dir_;
  std::vector<std::vector<float>> values_;
  std::vector<std::int64_t> steps_;
};

TEST_F(TrainerRanks, ResumeReachesRanksThatSeeNoFolder) {
  testing::ExpectAllOk(Fit({.epochs = 6}));
  const auto expected = values_;
  std::filesystem::remove_all(FolderOf(0));
  testing::ExpectAllOk(Fit({.epochs = 3}));
  EXPECT_NE(values_, expected);
  testing::ExpectAllOk(Fit({.epochs = 6}));
  EXPECT_EQ(values_, expected);
  EXPECT_EQ(values_[1], values_[0]);
  EXPECT_EQ(steps_, std::vector<std::int64_t>(kRanks, 6 * 7));
  ExpectOthersWroteNothing();
}

TEST_F(TrainerRanks, ADamagedCheckpointIsPassedOver) {
  testing::ExpectAllOk(Fit({.epochs = 3}));
  const auto expected = values_;
  std::filesystem::resize_file(FolderOf(0) + "/step-0000000021/model.safetensors", 10);
  std::mutex lock;
  std::vector<std::string> warnings;
  testing::ExpectAllOk(Fit({.epochs = 3}, [&](int /*rank*/, TrainerOptions& options) {
    options.log = Log([&](LogLevel level, std::string_view text) {
      if (level == LogLevel::kWarning) {
        const std::lock_guard hold(lock);
        warnings.emplace_back(text);
      }
    });
  }));
  EXPECT_EQ(values_, expected) << "the last epoch is trained again";
  ASSERT_EQ(warnings.size(), 1U);
  EXPECT_NE(warnings[0].find("model.safetensors is truncated"), std::string::npos) << warnings[0];
}

// Epochs of 7 steps, fewer than pass between two agreements.
TEST_F(TrainerRanks, OneRankThatIsToldToStopStopsAllAfterTheSameStep) {
  testing::ExpectAllOk(Fit({.epochs = 6}));
  const auto expected = values_;
  std::filesystem::remove_all(FolderOf(0));
  std::atomic<bool> stop = true;
  const std::atomic<bool> go_on = false;
  const auto statuses = Fit({.epochs = 6}, [&](int rank, TrainerOptions& options) {
    options.stop = rank == 1 ? &stop : &go_on;
  });
  for (int rank = 0; rank < kRanks; ++rank) {
    EXPECT_EQ(statuses[static_cast<std::size_t>(rank)].code(), StatusCode::kCancelled)
        << statuses[static_cast<std::size_t>(rank)].ToString();
  }
  EXPECT_EQ(steps_, std::vector<std::int64_t>(kRanks, steps_[0]));
  EXPECT_LT(steps_[0], 6 * 7);
  EXPECT_EQ(SavedSteps().back(), steps_[0]);
  testing::ExpectAllOk(Fit({.epochs = 6}));
  EXPECT_EQ(values_, expected);
}

TEST_F(TrainerRanks, TheChiefsErrorIsEverybodys) {
  std::ofstream(dir_ / "file") << "x";
  for (const Status& status : Fit({.epochs = 2}, [&](int rank, TrainerOptions&options) {
         options.checkpoint_dir = rank == 0 ? dir_ / "file/checkpoints" : FolderOf(rank);
       })) {
    EXPECT_FALSE(status.ok());
    EXPECT_NE(status.message().find("file/checkpoints"), std::string::npos) << status.ToString();
  }
}

TEST_F(TrainerRanks, AFolderOfAnotherRunIsRefusedByAll) {
  testing::ExpectAllOk(Fit({.epochs = 1}));
  for (const Status& status : Fit({.epochs = 1, .resume = false})) {
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status.ToString();
    EXPECT_NE(status.message().find("another run"), std::string::npos) << status.ToString();
  }
  for (const Status& status : Fit({.epochs = 1, .seed = 77})) {
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status.ToString();
    EXPECT_NE(status.message().find("seed"), std::string::npos) << status.ToString();
  }
}

}  // namespace
}  // namespace cohort
