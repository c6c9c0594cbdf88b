// Trainer in a job of several processes, here threads: only the chief has the checkpoint folder.

#include <cohort/comm/local.h>
#include <cohort/io/checkpoint.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <utility>

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

// Points in three files.
class PointFiles final : public data::Source {
 public:
  std::int64_t size() const override { return testing::kExamples; }
  const std::vector<data::FeatureSpec>& features() const override {
    return all_.source().features();
  }
  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    return all_.source().ReadInto(index, rows);
  }
  std::string Where(std::int64_t index) const override { return all_.source().Where(index); }
  std::vector<data::FileRange> files() const override {
    return {{"a", 0, 10}, {"b", 10, 18}, {"c", 18, testing::kExamples}};
  }
  std::uint64_t Fingerprint() const override { return all_.source().Fingerprint(); }

 private:
  const data::Dataset all_ = testing::PointsInOrder();
};

class TrainerPolicy : public TrainerRanks {
 protected:
  struct Run {
    int epochs = 2;
    int stop_at = 0;  // a step, or 0: to the end
    bool checkpoints = true;
    int devices = 2;  // of each process
  };

  // Fit under a policy on so many ranks.
  std::vector<Status> FitUnder(data::ShardPolicy policy, int ranks,
                               const std::function<data::Dataset(int rank)>& data, const Run& run) {
    auto communicators = MakeLocalCommunicators(ranks);
    values_.assign(static_cast<std::size_t>(ranks), {});
    epochs_.clear();
    read_.clear();
    return testing::RunRanks(ranks, [&](int rank) -> Status {
      std::atomic<bool> stop = false;
      TrainerOptions options{.epochs = run.epochs,
                             .policy = policy,
                             .checkpoint_dir = run.checkpoints ? FolderOf(rank) : ""};
      if (run.stop_at > 0) {
        options.stop = &stop;
      }
      Job job(std::move(options), 0.1, std::move(communicators[static_cast<std::size_t>(rank)]),
              run.devices);
      const StepFn step = [&](ReplicaContext& context, const data::Batch& batch) {
        const std::int64_t number = job.strategy->step();
        stop = stop || (run.stop_at > 0 && number + 1 >= run.stop_at);
        {
          const std::lock_guard hold(read_lock_);
          const auto y = batch["y"].data<float>();
          read_[{rank, number}].insert(y.begin(), y.end());
        }
        return testing::SquaredError(context, batch, true);
      };
      const auto history = job.trainer->Fit(data(rank), step);
      values_[static_cast<std::size_t>(rank)] = job.values();
      if (history.ok() && rank == 0) {
        epochs_ = history->epochs;
      }
      return history.status();
    });
  }
  std::vector<Status> FitUnder(data::ShardPolicy policy, int ranks,
                               const std::function<data::Dataset(int rank)>& data) {
    return FitUnder(policy, ranks, data, Run{});
  }

  using ReadByStep = std::map<std::pair<int, std::int64_t>, std::multiset<float>>;

  std::vector<EpochResult> epochs_;
  std::mutex read_lock_;
  ReadByStep read_;  // labels that a rank was given in a step
};

TEST_F(TrainerPolicy, FilesAreSharedOutAndEveryExampleIsTrainedOnOnce) {
  const auto files = [](int) {
    return data::Dataset(std::make_shared<PointFiles>()).Shuffle(3).Batch(6);
  };
  testing::ExpectAllOk(FitUnder(data::ShardPolicy::kFile, 2, files));
  ASSERT_EQ(epochs_.size(), 2U);
  for (const EpochResult& epoch : epochs_) {
    EXPECT_EQ(epoch.examples, testing::kExamples);
    EXPECT_EQ(epoch.steps, 11) << "32 of 50 examples in parts of 3";
  }
  const auto by_file = values_;
  EXPECT_EQ(by_file[0], by_file[1]);
  std::filesystem::remove_all(FolderOf(0));
  testing::ExpectAllOk(FitUnder(data::ShardPolicy::kData, 2, files));
  EXPECT_NE(values_, by_file) << "another order";
}

TEST_F(TrainerPolicy, AMarkDividesTheData) {
  const auto marked = [](int) {
    return testing::PointsInOrder().Shard(data::kShardHint, data::kShardHint).Shuffle(1).Batch(4);
  };
  testing::ExpectAllOk(FitUnder(data::ShardPolicy::kHint, 2, marked));
  ASSERT_EQ(epochs_.size(), 2U);
  EXPECT_EQ(epochs_[0].examples, testing::kExamples);
  EXPECT_EQ(epochs_[0].steps, 13);
}

// Shares of the processes' own, of 30 and 20 examples: the shorter one ends with empty batches.
TEST_F(TrainerPolicy, OwnSharesEndTogether) {
  const auto own = [](int rank) {
    const data::Dataset all = testing::PointsInOrder();
    return (rank == 0 ? all.Take(30) : all.Skip(30)).Shuffle(1).Batch(8);
  };
  testing::ExpectAllOk(FitUnder(data::ShardPolicy::kOwn, 2, own));
  ASSERT_EQ(epochs_.size(), 2U);
  EXPECT_EQ(epochs_[0].examples, testing::kExamples);
  EXPECT_EQ(epochs_[0].steps, 8) << "30 in parts of 4";
  EXPECT_EQ(values_[0], values_[1]);
  // Other shares are another run's, also where they are one process's only.
  const auto other = [&](int rank) { return rank == 0 ? own(0) : own(1).Prefetch(1); };
  testing::ExpectAllOk(FitUnder(data::ShardPolicy::kOwn, 2, other, {.epochs = 3}));
  const auto changed = [&](int rank) {
    return rank == 0 ? own(0) : testing::PointsInOrder().Skip(31).Shuffle(1).Batch(8);
  };
  for (const Status& status : FitUnder(data::ShardPolicy::kOwn, 2, changed, {.epochs = 4})) {
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status.ToString();
  }
}

// A share is the same whatever devices it is trained on: two of each process, then one, then four.
TEST_F(TrainerPolicy, OwnSharesAreResumedOnAnyNumberOfDevices) {
  const auto own = [](int rank) {
    const data::Dataset all = testing::PointsInOrder();
    return (rank == 0 ? all.Take(30) : all.Skip(30)).Shuffle(1).Batch(8);
  };
  testing::ExpectAllOk(
      FitUnder(data::ShardPolicy::kOwn, 2, own, {.epochs = 3, .checkpoints = false}));
  const ReadByStep expected = read_;
  const auto values = values_;
  ReadByStep read;
  const auto go_on = [&](const Run& run) {
    const auto statuses = FitUnder(data::ShardPolicy::kOwn, 2, own, run);
    for (const auto& [step, labels] : read_) {
      EXPECT_TRUE(read.emplace(step, labels).second)
          << "step " << step.second << " of rank " << step.first << " was trained twice";
    }
    return statuses;
  };
  // Processes agree to stop every 10 steps: at batch 2 of epoch 1, and at batch 4 of epoch 2.
  for (const Run& run : {Run{.epochs = 3, .stop_at = 4, .devices = 2},
                         Run{.epochs = 3, .stop_at = 14, .devices = 1}}) {
    for (const Status& status : go_on(run)) {
      ASSERT_EQ(status.code(), StatusCode::kCancelled) << status.ToString();
    }
  }
  EXPECT_EQ(read.size(), 20U + 14U) << "the shorter share has 5 batches of 8";
  testing::ExpectAllOk(go_on({.epochs = 3, .devices = 4}));
  EXPECT_EQ(read, expected);
  for (std::size_t i = 0; i < values[0].size(); ++i) {
    EXPECT_NEAR(values_[0][i], values[0][i], 1e-4) << "sums are of other parts";
  }
}

// In the middle of an epoch orders that are the processes' own are gone on with by any number of
// processes, under any policy: the epoch's batches stay what they were.
TEST_F(TrainerPolicy, AnEpochEndsAsItWasDividedWhoeverGoesOn) {
  const auto files = [](int) {
    return data::Dataset(std::make_shared<PointFiles>()).Shuffle(3).Batch(4);
  };
  const auto by_step = [this] {
    std::map<std::int64_t, std::multiset<float>> all;
    for (const auto& [place, labels] : read_) {
      all[place.second].insert(labels.begin(), labels.end());
    }
    return all;
  };
  const Run whole{.epochs = 1, .checkpoints = false, .devices = 1};
  testing::ExpectAllOk(FitUnder(data::ShardPolicy::kFile, 2, files, whole));
  const auto expected = by_step();
  const auto values = values_;
  ASSERT_GT(expected.size(), 14U);
  const auto stopped = [&] {
    std::filesystem::remove_all(FolderOf(0));
    for (const Status& status :
         FitUnder(data::ShardPolicy::kFile, 2, files, {.epochs = 1, .stop_at = 4, .devices = 1})) {
      ASSERT_EQ(status.code(), StatusCode::kCancelled) << status.ToString();
    }
  };
  const struct {
    data::ShardPolicy policy;
    int ranks;
  } others[] = {{data::ShardPolicy::kFile, 2},
                {data::ShardPolicy::kFile, 3},
                {data::ShardPolicy::kFile, 1},
                {data::ShardPolicy::kData, 3},
                {data::ShardPolicy::kAuto, 2}};
  for (const auto& [policy, ranks] : others) {
    stopped();
    auto read = by_step();
    testing::ExpectAllOk(FitUnder(policy, ranks, files, {.epochs = 1, .devices = 1}));
    read.merge(by_step());
    EXPECT_EQ(read, expected) << ranks;
    for (std::size_t i = 0; i < values[0].size(); ++i) {
      EXPECT_NEAR(values_[0][i], values[0][i], 1e-4);
    }
  }
  EXPECT_EQ(epochs_.size(), 1U);
  // The epoch after it is divided anew.
  testing::ExpectAllOk(FitUnder(data::ShardPolicy::kFile, 3, files, {.epochs = 2, .devices = 1}));
  std::multiset<float> labels;
  for (const auto& [place, of_step] : read_) {
    labels.insert(of_step.begin(), of_step.end());
  }
  EXPECT_EQ(labels.size(), static_cast<std::size_t>(testing::kExamples));
  // Batches of another size have no such places.
  stopped();
  const auto eights = [](int) {
    return data::Dataset(std::make_shared<PointFiles>()).Shuffle(3).Batch(8);
  };
  for (const Status& status :
       FitUnder(data::ShardPolicy::kFile, 2, eights, {.epochs = 1, .devices = 1})) {
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status.ToString();
    EXPECT_NE(status.message().find("divided by file in batches of 4, not of 8"), std::string::npos)
        << status.message();
  }
}

// Where batches come as they are ready, a checkpoint has those that were overtaken on each process.
TEST_F(TrainerPolicy, BatchesOutOfOrderAreEachTrainedOnOnce) {
  std::atomic<int> calls = 0;
  const auto data = [&](int) {
    return testing::PointsInOrder()
        .Map([&calls](data::Example&) {
          if (++calls % 9 == 0) {
            std::this_thread::sleep_for(std::chrono::milliseconds(3));
          }
          return OkStatus();
        })
        .Batch(4)
        .Prefetch(4, 3)
        .Deterministic(false);
  };
  const auto labels_of = [this] {
    std::multiset<float> labels;
    for (const auto& [place, of_step] : read_) {
      labels.insert(of_step.begin(), of_step.end());
    }
    return labels;
  };
  testing::ExpectAllOk(FitUnder(data::ShardPolicy::kData, 2, data,
                                {.epochs = 1, .checkpoints = false, .devices = 2}));
  const std::multiset<float> expected = labels_of();
  EXPECT_EQ(expected.size(), static_cast<std::size_t>(testing::kExamples));
  int trial = 0;
  for (const int ranks : {2, 1, 4, 2, 1, 4}) {
    std::filesystem::remove_all(FolderOf(0));
    // The place of four processes is a long one.
    const int saving = ++trial > 3 ? 4 : 2;
    for (const Status& status :
         FitUnder(data::ShardPolicy::kData, saving, data,
                  {.epochs = 1, .stop_at = 4, .devices = saving == 2 ? 2 : 1})) {
      ASSERT_EQ(status.code(), StatusCode::kCancelled) << status.ToString();
    }
    auto labels = labels_of();
    EXPECT_LT(labels.size(), expected.size());
    testing::ExpectAllOk(
        FitUnder(data::ShardPolicy::kData, ranks, data, {.epochs = 1, .devices = 1}));
    labels.merge(labels_of());
    EXPECT_EQ(labels, expected) << ranks;
  }
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
    EXPECT_NE(status.message().find("cannot be written to"), std::string::npos)
        << "before anything is done that would be lost: " << status.ToString();
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
