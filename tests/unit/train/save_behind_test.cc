// Saves that are written while training goes on, where it ends before they have: by an error, as it
// was asked to, or since a server is lost and the job goes back.

#include <cohort/core/file_system.h>
#include <cohort/io/checkpoint.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
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

using testing::kEvaluate;
using testing::kExamples;
using testing::kTrain;
using testing::Points;

constexpr std::int64_t kSteps = 7;  // of an epoch of Points

// A strategy whose rows others hold, as servers do. Saves of them from that number on stand still
// until LetGo, or until an error is reported.
class ServedRows : public testing::PassingStrategy {
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

// One that survives the loss of a server, which calls in the middle of a job say.
class LostServers final : public ServedRows {
 public:
  using ServedRows::ServedRows;

  Result<bool> BeginTraining() override { return true; }
  Status Recover(const Status& error, const WayBack& way) override {
    if (error.code() != StatusCode::kUnavailable) {
      return error;
    }
    ++recoveries_;
    LetGo();  // a save that stands still gets to its end only now
    way.let_go();
    EXPECT_FALSE(frozen());
    if (before_asking_) {
      before_asking_();
    }
    if (!way.to_save()) {
      return FailedPrecondition("there is no save to go back to");
    }
    return SetStep(0);
  }
  Status LoadTable(int /*table*/, FileSystem& /*files*/,
                   const std::vector<std::string>& chain) override {
    return chain.empty() ? NotFound("no rows") : OkStatus();
  }
  Result<bool> FreezeTables() override {
    ++freezes_;
    shares_ = 0;
    return ServedRows::FreezeTables();
  }
  Status Broadcast(std::span<std::byte> bytes) override {
    ++shares_;
    if (freezes_ == lost_freeze_ && shares_ == lost_share_) {
      lost_share_ = 0;
      return Lost();
    }
    return ServedRows::Broadcast(bytes);
  }
  Result<StepResult> Step(const DistributedBatch& batch, const StepFn& fn) override {
    if (step() == lost_step_) {
      lost_step_ = -1;
      return Lost();
    }
    return ServedRows::Step(batch, fn);
  }
  Result<StepResult> Evaluate(const DistributedBatch& batch, const StepFn& fn) override {
    if (++evaluated_ == lost_evaluated_) {
      return Lost();
    }
    return ServedRows::Evaluate(batch, fn);
  }

  // Once, in what comes so many broadcasts after that FreezeTables: the first tells the others of
  // the save that was begun, the second, where it is waited for at once, of its end.
  void LoseInShare(int freeze, int share) {
    lost_freeze_ = freeze;
    lost_share_ = share;
  }
  void LoseAfterStep(std::int64_t step) { lost_step_ = step; }   // once
  void LoseInEvaluation(int batch) { lost_evaluated_ = batch; }  // counted over all
  void BeforeAsking(std::function<void()> does) { before_asking_ = std::move(does); }
  int recoveries() const { return recoveries_; }

 private:
  static Status Lost() { return Unavailable("ps:1 is lost"); }

  int recoveries_ = 0;
  int freezes_ = 0;
  int shares_ = 0;
  int lost_freeze_ = 0;
  int lost_share_ = 0;
  std::int64_t lost_step_ = -1;
  int evaluated_ = 0;
  int lost_evaluated_ = 0;
  std::function<void()> before_asking_;
};

// A model with a table, in a process of its own.
template <typename Served = ServedRows>
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
  std::optional<Served> strategy;
};

std::vector<std::int64_t> SavedSteps(const std::string& folder) {
  return OrThrow(io::CheckpointStore(FileSystem::Local(), folder).Steps());
}

TEST(SavesBehindTraining, AnErrorWaitsForTheSaveSoThatTheJobCanBeLeft) {
  const testing::TempDir dir;
  Process<> process;
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
  Process<> process;
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
  Process<> process;
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

// The writer is started before the others are told.
TEST(SavesBehindTraining, ASaveWhoseBeginningCouldNotBeToldIsOverWhenSaveReturns) {
  const testing::TempDir dir;
  Process<LostServers> process;
  LostServers& strategy = *process.strategy;
  Trainer trainer(strategy, process.parameters, {.checkpoint_dir = dir / "saved"});
  strategy.LoseInShare(1, 1);
  EXPECT_EQ(trainer.Save().code(), StatusCode::kUnavailable);
  EXPECT_FALSE(strategy.frozen());
  OrThrow(strategy.SetStep(1));
  EXPECT_EQ(trainer.Save(), OkStatus());
  EXPECT_EQ(SavedSteps(dir / "saved"), (std::vector<std::int64_t>{0, 1}));
}

TEST(SavesBehindTraining, SoTheJobGoesBackAndSavesOnceMore) {
  const testing::TempDir dir;
  Process<LostServers> process;
  LostServers& strategy = *process.strategy;
  strategy.HoldFrom(1);
  strategy.LoseInShare(1, 1);
  Trainer trainer(
      strategy, process.parameters,
      {.metric_names = {"ones"}, .checkpoint_dir = dir / "saved", .save_every_steps = 2});
  const History history = OrThrow(trainer.Fit(Points(), kTrain));
  EXPECT_EQ(strategy.recoveries(), 1);
  EXPECT_FALSE(strategy.frozen());
  ASSERT_EQ(history.epochs.size(), 1U);
  EXPECT_EQ(history.epochs[0].steps, kSteps - 2);  // what came after the save
  EXPECT_EQ(SavedSteps(dir / "saved"), (std::vector<std::int64_t>{2, 4, 6, 7}));
}

// That of step 2 is being written at the loss, and the only one.
TEST(SavesBehindTraining, ASaveThatIsWholeWhenItIsAbandonedIsGoneBackTo) {
  const testing::TempDir dir;
  Process<LostServers> process;
  LostServers& strategy = *process.strategy;
  strategy.HoldFrom(1);
  strategy.LoseAfterStep(3);
  Trainer trainer(
      strategy, process.parameters,
      {.metric_names = {"ones"}, .checkpoint_dir = dir / "saved", .save_every_steps = 2});
  const History history = OrThrow(trainer.Fit(Points(), kTrain));
  EXPECT_EQ(strategy.recoveries(), 1);
  ASSERT_EQ(history.epochs.size(), 1U);
  EXPECT_EQ(history.epochs[0].steps, kSteps - 2);
}

TEST(SavesBehindTraining, ADamagedSaveIsNoneToGoBackTo) {
  const testing::TempDir dir;
  Process<LostServers> process;
  LostServers& strategy = *process.strategy;
  strategy.LoseAfterStep(3);
  strategy.BeforeAsking([&] {
    int damaged = 0;
    for (const auto& file : std::filesystem::recursive_directory_iterator(dir / "saved")) {
      if (file.path().filename() == "model.safetensors") {
        std::filesystem::resize_file(file.path(), 1);
        ++damaged;
      }
    }
    EXPECT_EQ(damaged, 1);
  });
  Trainer trainer(
      strategy, process.parameters,
      {.metric_names = {"ones"}, .checkpoint_dir = dir / "saved", .save_every_steps = 2});
  const Status status = trainer.Fit(Points(), kTrain).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status.ToString();
  EXPECT_EQ(SavedSteps(dir / "saved"), std::vector<std::int64_t>{2});
}

// Two epochs with evaluations, in which a server is lost.
void ExpectAllResults(LostServers& strategy, const History& history) {
  EXPECT_EQ(strategy.recoveries(), 1);
  EXPECT_EQ(history.steps, 2 * kSteps);
  ASSERT_EQ(history.epochs.size(), 2U);
  ASSERT_EQ(history.evaluations.size(), 2U);
  for (std::int64_t e = 0; e < 2; ++e) {
    const auto at = static_cast<std::size_t>(e);
    EXPECT_EQ(history.epochs[at].epoch, e);
    EXPECT_EQ(history.epochs[at].steps, kSteps);
    EXPECT_EQ(history.epochs[at].examples, kExamples);
    EXPECT_EQ(history.evaluations[at].epoch, e);
    EXPECT_EQ(history.evaluations[at].steps, kSteps);
    EXPECT_EQ(history.evaluations[at].examples, kExamples);
  }
  EXPECT_LT(history.evaluations[1].loss, history.evaluations[0].loss);
}

History FitTwoEpochs(Process<LostServers>& process, const std::string& folder,
                     std::int64_t save_every_steps = 0) {
  Trainer trainer(*process.strategy, process.parameters,
                  {.epochs = 2,
                   .metric_names = {"ones"},
                   .checkpoint_dir = folder,
                   .save_every_steps = save_every_steps});
  const data::Dataset points = Points();
  return OrThrow(trainer.Fit(points, kTrain, &points, kEvaluate));
}

// Each has seven batches, and the save before it is whole.
TEST(GoingBack, AnEvaluationThatALossComesIntoIsMade) {
  for (const int batch : {3, 10}) {
    const testing::TempDir dir;
    Process<LostServers> process;
    process.strategy->LoseInEvaluation(batch);
    ExpectAllResults(*process.strategy, FitTwoEpochs(process, dir / "saved"));
  }
}

// The last save is waited for.
TEST(GoingBack, AnEpochWhoseSaveIsWholeAndCouldNotBeToldHasItsResult) {
  for (const int share : {1, 2}) {
    const testing::TempDir dir;
    Process<LostServers> process;
    process.strategy->LoseInShare(2, share);
    ExpectAllResults(*process.strategy, FitTwoEpochs(process, dir / "saved"));
  }
}

// That of its last step, within the epoch.
TEST(GoingBack, SoItIsWithASaveByStepsAtTheEndOfAnEpoch) {
  for (const int freeze : {1, 2}) {
    const testing::TempDir dir;
    Process<LostServers> process;
    process.strategy->LoseInShare(freeze, 1);
    ExpectAllResults(*process.strategy, FitTwoEpochs(process, dir / "saved", kSteps));
  }
}

}  // namespace
}  // namespace cohort
