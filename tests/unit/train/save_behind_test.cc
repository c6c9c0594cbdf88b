// Saves that are written while training goes on, where it ends before they have: by an error, or as
// it was asked to.

#include <cohort/core/file_system.h>
#include <cohort/io/checkpoint.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "job.h"
#include "passing_strategy.h"
#include "testing/temp_dir.h"

namespace cohort {
namespace {

using testing::kTrain;
using testing::Points;

// A strategy whose rows others hold, as servers do. Saves of them from that number on stand still
// until LetGo, or until an error is reported.
class ServedRows final : public testing::PassingStrategy {
 public:
  explicit ServedRows(Strategy& inner) : PassingStrategy(inner) {}

  Result<bool> FreezeTables() override {
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(frozen_);
    frozen_ = true;
    return true;
  }
  Status ThawTables(bool /*saved*/) override {
    const std::lock_guard lock(mutex_);
    frozen_ = false;
    return {};
  }
  Status Broadcast(std::span<std::byte> bytes) override {
    {
      const std::lock_guard lock(mutex_);
      if (frozen_ && std::exchange(cuts_, false)) {
        return Unavailable("a connection ended");
      }
    }
    return PassingStrategy::Broadcast(bytes);
  }
  Status SaveTable(int /*table*/, FileSystem& files, const std::string& path) override {
    {
      std::unique_lock lock(mutex_);
      const int number = ++saves_;
      changed_.wait_for(lock, std::chrono::seconds(60),
                        [&] { return number < held_from_ || !error_.ok(); });
      if (!error_.ok()) {
        // Time for a Shutdown that does not wait for this.
        changed_.wait_for(lock, std::chrono::milliseconds(300), [this] { return left_; });
        return error_;
      }
    }
    return WriteFileAtomically(files, path, "rows");
  }
  void ReportError(const Status& error) override {
    {
      const std::lock_guard lock(mutex_);
      error_ = error;
    }
    changed_.notify_all();
  }
  Status Shutdown() override {
    {
      const std::lock_guard lock(mutex_);
      left_ = true;
      left_in_a_save_ = frozen_;
    }
    changed_.notify_all();
    return PassingStrategy::Shutdown();
  }

  void HoldFrom(int number) {  // 1: the first
    const std::lock_guard lock(mutex_);
    held_from_ = number;
  }
  // The next word of the chief to the others, while rows are frozen, does not get there.
  void CutNextWord() {
    const std::lock_guard lock(mutex_);
    cuts_ = true;
  }
  void LetGo() {
    {
      const std::lock_guard lock(mutex_);
      held_from_ = kNone;
    }
    changed_.notify_all();
  }
  void Forgive() {
    const std::lock_guard lock(mutex_);
    error_ = OkStatus();
  }
  int saves() const {
    const std::lock_guard lock(mutex_);
    return saves_;
  }
  bool frozen() const {
    const std::lock_guard lock(mutex_);
    return frozen_;
  }
  bool left_in_a_save() const {
    const std::lock_guard lock(mutex_);
    return left_in_a_save_;
  }

 private:
  static constexpr int kNone = 1'000'000;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int held_from_ = kNone;
  bool frozen_ = false;
  bool cuts_ = false;
  bool left_ = false;
  bool left_in_a_save_ = false;
  Status error_;
  int saves_ = 0;
};

// A model with a table, in a process of its own.
struct Process {
  Process() {
    parameters.Add("weights", {2}, [](std::uint64_t) { return 0.0F; });
    parameters.Add("bias", {1}, [](std::uint64_t) { return 0.0F; });
    TableSpec items;
    items.name = "items";
    items.dim = 2;
    items.optimizer = Sgd({.learning_rate = 1})->config();
    parameters.AddTable(items);
    parameters.Build();
    alone = OrThrow(MakeSynchronousStrategy({}, StrategyOptions()));
    OrThrow(alone->Bind(parameters, Sgd({.learning_rate = 0.1})));
    strategy.emplace(*alone);
  }

  ParameterSet parameters;
  std::unique_ptr<Strategy> alone;
  std::optional<ServedRows> strategy;
};

std::vector<std::int64_t> SavedSteps(const std::string& folder) {
  return OrThrow(io::CheckpointStore(FileSystem::Local(), folder).Steps());
}

TEST(SavesBehindTraining, AnErrorWaitsForTheSaveSoThatTheJobCanBeLeft) {
  const testing::TempDir dir;
  Process process;
  ServedRows& strategy = *process.strategy;
  Trainer trainer(
      strategy, process.parameters,
      {.metric_names = {"ones"}, .checkpoint_dir = dir / "saved", .save_every_steps = 2});
  strategy.HoldFrom(1);
  const StepFn fails = [&](ReplicaContext& context, const data::Batch& batch) {
    return context.step == 3 ? Result<ReplicaResult>(DataLoss("a bad batch"))
                             : kTrain(context, batch);
  };
  const Status status = trainer.Fit(Points(), fails).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status.ToString();
  EXPECT_EQ(strategy.saves(), 1);
  EXPECT_FALSE(strategy.frozen());
  EXPECT_EQ(strategy.Shutdown(), OkStatus());
  EXPECT_FALSE(strategy.left_in_a_save());
  EXPECT_TRUE(SavedSteps(dir / "saved").empty());
}

// The writer has been started when the others are told, which fails: it is waited for all the same,
// and another save can begin.
TEST(SavesBehindTraining, OneThatTheOthersCouldNotBeToldOfIsWaitedFor) {
  const testing::TempDir dir;
  Process process;
  ServedRows& strategy = *process.strategy;
  Trainer trainer(
      strategy, process.parameters,
      {.metric_names = {"ones"}, .checkpoint_dir = dir / "saved", .save_every_steps = 2});
  strategy.HoldFrom(1);
  strategy.CutNextWord();
  const Status status = trainer.Fit(Points(), kTrain).status();
  EXPECT_EQ(status.code(), StatusCode::kUnavailable) << status.ToString();
  EXPECT_EQ(strategy.saves(), 1);
  EXPECT_FALSE(strategy.frozen()) << "the writer is still at it";
  strategy.Forgive();
  strategy.LetGo();
  const Status again = trainer.Fit(Points(), kTrain).status();
  EXPECT_EQ(again, OkStatus()) << again.ToString();
  EXPECT_FALSE(strategy.frozen());
  EXPECT_FALSE(SavedSteps(dir / "saved").empty());
  EXPECT_EQ(strategy.Shutdown(), OkStatus());
}

// Asked to stop at step `at` of a run that saves every second one; what is saved then.
std::vector<std::int64_t> StoppedAt(std::int64_t at, int* saves) {
  const testing::TempDir dir;
  Process process;
  ServedRows& strategy = *process.strategy;
  strategy.HoldFrom(2);  // that of step 4
  std::atomic<bool> stop = false;
  TrainerOptions options = {.metric_names = {"ones"},
                            .checkpoint_dir = dir / "saved",
                            .save_every_steps = 2,
                            .stop = &stop};
  options.progress = [&](const Progress& progress) {
    if (progress.batch == at) {
      stop = true;
      strategy.LetGo();
    }
  };
  Trainer trainer(strategy, process.parameters, std::move(options));
  const Status status = trainer.Fit(Points(), kTrain).status();
  EXPECT_EQ(status.code(), StatusCode::kCancelled) << status.ToString();
  EXPECT_NE(status.message().find("step-"), std::string::npos) << status.ToString();
  EXPECT_EQ(strategy.step(), at);
  EXPECT_FALSE(strategy.frozen());
  EXPECT_EQ(strategy.Shutdown(), OkStatus());
  EXPECT_FALSE(strategy.left_in_a_save());
  *saves = strategy.saves();
  return SavedSteps(dir / "saved");
}

TEST(SavesBehindTraining, AStopMakesNoOtherSaveOfTheStepThatIsBeingSaved) {
  int saves = 0;
  EXPECT_EQ(StoppedAt(4, &saves), (std::vector<std::int64_t>{2, 4}));
  EXPECT_EQ(saves, 2);
}

TEST(SavesBehindTraining, AStopFinishesTheSaveOfAnEarlierStepAndMakesOneMore) {
  int saves = 0;
  EXPECT_EQ(StoppedAt(5, &saves), (std::vector<std::int64_t>{2, 4, 5}));
  EXPECT_EQ(saves, 3);
}

}  // namespace
}  // namespace cohort
