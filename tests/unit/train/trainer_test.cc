#include <cohort/core/file_system.h>
#include <cohort/core/metrics.h>
#include <cohort/data/combine.h>
#include <cohort/io/checkpoint.h>
#include <cohort/io/record_file.h>
#include <cohort/train/console.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>
#include <optional>
#include <thread>
#include <utility>

#include "job.h"
#include "passing_strategy.h"
#include "testing/temp_dir.h"

namespace cohort {
namespace {

using testing::Job;
using testing::kEvaluate;
using testing::kExamples;
using testing::kTrain;
using testing::Points;
using testing::SquaredError;

std::vector<float> TrainedFor(int epochs) {
  Job job({.epochs = epochs});
  OrThrow(job.trainer->Fit(Points(), kTrain));
  return job.values();
}

TEST(Trainer, FitLearnsAndTellsHow) {
  Job job({.epochs = 30});
  const auto points = Points();
  const History history = OrThrow(job.trainer->Fit(points, kTrain, &points, kEvaluate));
  ASSERT_EQ(history.epochs.size(), 30U);
  ASSERT_EQ(history.evaluations.size(), 30U);
  EXPECT_EQ(history.steps, 30 * 7);
  EXPECT_EQ(history.examples, 30.0 * kExamples);
  EXPECT_EQ(history.epochs[3].steps, 7);
  EXPECT_EQ(history.epochs[3].examples, kExamples);
  EXPECT_EQ(history.epochs[3].metrics, std::vector<double>{1.0});
  EXPECT_EQ(history.evaluations[3].examples, kExamples);
  EXPECT_LT(history.epochs.back().loss, 1e-3);
  EXPECT_GT(history.epochs.front().loss, 0.1);
  EXPECT_NEAR(job.values()[0], 2.0, 0.1);
}

TEST(Trainer, ProgressCountsEveryBatch) {
  std::vector<Progress> seen;
  Job job({.epochs = 2, .progress = [&](const Progress& p) { seen.push_back(p); }});
  OrThrow(job.trainer->Fit(Points(), kTrain));
  ASSERT_EQ(seen.size(), 14U);
  EXPECT_EQ(seen[6].batch, 7);
  EXPECT_EQ(seen[6].batches, 7);
  EXPECT_TRUE(seen[6].epoch_finished);
  EXPECT_FALSE(seen[5].epoch_finished);
  EXPECT_EQ(seen[13].epoch, 1);
}

// Of a sample without labels; -1 where there is none.
double Value(const Metrics& metrics, const std::string& name) {
  const std::string page = metrics.ToText();
  const std::size_t at = page.find("\n" + name + " ");
  return at == page.npos ? -1 : std::stod(page.substr(at + name.size() + 2));
}

TEST(Trainer, CountsWhatItDoes) {
  Metrics metrics;
  const testing::TempDir dir;
  std::vector<double> ratios;
  Job job({.epochs = 3,
           .batches_per_step = 3,
           .checkpoint_dir = dir / "checkpoints",
           .progress =
               [&](const Progress& p) {
                 ratios.push_back(Value(metrics, "cohort_progress_ratio"));
                 EXPECT_EQ(ratios.back(),
                           (static_cast<double>(p.epoch) + static_cast<double>(p.batch) / 7) / 3);
                 EXPECT_EQ(Value(metrics, "cohort_steps_total"), std::ssize(ratios));
                 EXPECT_TRUE(metrics.ready());
               },
           .metrics = &metrics});
  EXPECT_FALSE(metrics.ready());
  EXPECT_TRUE(std::isnan(Value(metrics, "cohort_loss")));
  EXPECT_EQ(Value(metrics, "cohort_checkpoint_duration_seconds_count"), -1);
  const data::Dataset slow = testing::PointsInOrder()
                                 .Map([](data::Example&) {
                                   std::this_thread::sleep_for(std::chrono::microseconds(200));
                                   return OkStatus();
                                 })
                                 .Batch(testing::kBatch);
  const History history = OrThrow(job.trainer->Fit(slow, kTrain));
  EXPECT_EQ(ratios.size(), 9U);
  EXPECT_EQ(ratios.back(), 1);
  EXPECT_EQ(Value(metrics, "cohort_steps_total"), static_cast<double>(history.steps));
  EXPECT_EQ(Value(metrics, "cohort_examples_total"), history.examples);
  EXPECT_EQ(Value(metrics, "cohort_step_duration_seconds_count"),
            static_cast<double>(history.steps));
  double step_seconds = 0;
  for (const EpochResult& epoch : history.epochs) {
    step_seconds += epoch.step_seconds;
  }
  EXPECT_NEAR(Value(metrics, "cohort_step_duration_seconds_sum"), step_seconds, 1e-9);
  EXPECT_GE(history.input_seconds, 3 * kExamples * 200e-6);
  EXPECT_NEAR(Value(metrics, "cohort_input_wait_seconds_total"), history.input_seconds, 1e-9);
  EXPECT_NEAR(Value(metrics, "cohort_exposed_communication_seconds_total"),
              history.exposed_communication_seconds, 1e-9);
  EXPECT_GT(Value(metrics, "cohort_loss"), 0);
  EXPECT_EQ(Value(metrics, "cohort_checkpoint_duration_seconds_count"), 3);
  EXPECT_GT(Value(metrics, "cohort_checkpoint_duration_seconds_sum"), 0);
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  EXPECT_NEAR(Value(metrics, "cohort_checkpoint_last_success_timestamp_seconds"), now.count(), 60);
}

TEST(Trainer, TellsHowLongItWaitedForInput) {
  using Clock = std::chrono::steady_clock;
  std::vector<Progress> seen;
  Job job({.epochs = 1, .progress = [&](const Progress& p) { seen.push_back(p); }});
  const data::Dataset slow = testing::PointsInOrder()
                                 .Map([](data::Example&) {
                                   const auto end = Clock::now() + std::chrono::milliseconds(1);
                                   while (Clock::now() < end) {
                                   }
                                   return OkStatus();
                                 })
                                 .Batch(testing::kBatch);
  const History history = OrThrow(job.trainer->Fit(slow, kTrain));
  const EpochResult& epoch = history.epochs.at(0);
  EXPECT_GE(epoch.input_seconds, 0.001 * kExamples);
  EXPECT_LE(epoch.input_seconds, epoch.seconds);
  EXPECT_EQ(history.input_seconds, epoch.input_seconds);
  ASSERT_EQ(seen.size(), 7U);
  EXPECT_GT(seen[6].input_wait, 0);
  EXPECT_LE(seen[6].input_wait, 1);
}

// A strategy that hands out work, and looks at the next batch in Step, as with tables on servers.
class LookingStrategy final : public testing::PassingStrategy {
 public:
  class Batches final : public DistributedDataset {
   public:
    Batches(std::unique_ptr<DistributedDataset> inner, LookingStrategy& strategy)
        : inner_(std::move(inner)), strategy_(strategy) {
      strategy_.look_ = [this] {
        if (!next_.has_value()) {
          next_ = inner_->Next();
        }
      };
    }
    Status BeginEpoch(std::int64_t epoch, std::int64_t first_batch) override {
      next_.reset();
      return inner_->BeginEpoch(epoch, first_batch);
    }
    Result<std::optional<DistributedBatch>> Next() override {
      std::this_thread::sleep_for(kOthers);  // who else takes part
      return next_.has_value() ? *std::exchange(next_, std::nullopt) : inner_->Next();
    }
    std::int64_t batches_per_epoch() const override { return inner_->batches_per_epoch(); }
    double input_seconds() const override { return inner_->input_seconds(); }

   private:
    const std::unique_ptr<DistributedDataset> inner_;
    LookingStrategy& strategy_;
    std::optional<Result<std::optional<DistributedBatch>>> next_;
  };
  static constexpr std::chrono::milliseconds kOthers{5};

  explicit LookingStrategy(Strategy& inner) : PassingStrategy(inner) {}
  Result<std::unique_ptr<DistributedDataset>> Distribute(const data::Dataset& dataset,
                                                         const InputOptions& options) override {
    COHORT_ASSIGN_OR_RETURN(auto batches, PassingStrategy::Distribute(dataset, options));
    return std::make_unique<Batches>(std::move(batches), *this);
  }
  Result<StepResult> Step(const DistributedBatch& batch, const StepFn& fn) override {
    Result<StepResult> result = PassingStrategy::Step(batch, fn);
    look_();
    return result;
  }

 private:
  std::function<void()> look_;
};

// Examples that are waited for inside of Step are input; others that are waited for in Next aren't.
TEST(Trainer, TellsInputFromOthersWhereverItWaits) {
  constexpr std::chrono::milliseconds kEach{2};
  Job job({});
  LookingStrategy strategy(*job.strategy);
  Trainer trainer(strategy, job.parameters, {.epochs = 1, .metric_names = {"ones"}});
  const data::Dataset slow = testing::PointsInOrder()
                                 .Map([&](data::Example&) {
                                   std::this_thread::sleep_for(kEach);
                                   return OkStatus();
                                 })
                                 .Batch(testing::kBatch);
  const History history = OrThrow(trainer.Fit(slow, kTrain));
  const EpochResult& epoch = history.epochs.at(0);
  const double input = std::chrono::duration<double>(kEach).count() * kExamples;
  const double others =
      std::chrono::duration<double>(LookingStrategy::kOthers).count() * (epoch.steps + 1);
  EXPECT_GE(epoch.input_seconds, input);
  EXPECT_GE(epoch.exposed_communication_seconds, others);
  EXPECT_LE(epoch.input_seconds + epoch.step_seconds + epoch.exposed_communication_seconds,
            epoch.seconds + 1e-6)
      << "nothing is counted twice";
}

TEST(Trainer, TheConsoleShowsWhatWasWaitedFor) {
  const auto show = ConsoleProgress();
  ::testing::internal::CaptureStderr();
  show({.epochs = 2, .batch = 7, .batches = 7, .input_wait = 0.125, .epoch_finished = true});
  show({.epochs = 2, .batch = 7, .batches = 7, .input_wait = 0, .epoch_finished = true});
  const std::string lines = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(lines.find("waiting for input 12.5%"), std::string::npos) << lines;
  EXPECT_EQ(lines.find("waiting", lines.find('\n')), std::string::npos) << lines;
}

// A batch that is filled up is the short one, where the step function weighs.
TEST(Trainer, PaddedBatchesTrainAsShortOnesDo) {
  const StepFn weighed = [](ReplicaContext& context,
                            const data::Batch& batch) -> Result<ReplicaResult> {
    EXPECT_EQ(batch.size, testing::kBatch / 2) << "every batch is whole on every replica";
    const auto weights = batch["weight"].data<float>();
    const auto x = batch["x"].data<float>();
    const auto y = batch["y"].data<float>();
    double weight = 0;
    for (const float w : weights) {
      weight += w;
    }
    context.gradients.SetWeight(weight);
    double loss = 0;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const float error = testing::Apply(context.parameters, x.subspan(2 * i, 2)) - y[i];
      loss += weights[i] * error * error;
      context.gradients.Accumulator(0)[0] += weights[i] * 2 * error * x[2 * i];
      context.gradients.Accumulator(0)[1] += weights[i] * 2 * error * x[2 * i + 1];
      context.gradients.Accumulator(1)[0] += weights[i] * 2 * error;
    }
    context.gradients.Ready(1);
    context.gradients.Ready(0);
    return ReplicaResult{.loss_sum = loss, .weight = weight, .metric_sums = {weight}};
  };
  Job padded({.epochs = 5});
  const History history = OrThrow(padded.trainer->Fit(
      testing::PointsInOrder().Shuffle(1).Batch(testing::kBatch, data::Remainder::kPad), weighed));
  EXPECT_EQ(history.examples, 5.0 * kExamples);
  EXPECT_EQ(history.epochs[3].metrics, std::vector<double>{1.0});
  const std::vector<float> expected = TrainedFor(5);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(padded.values()[i], expected[i], 1e-5);
  }
}

TEST(Trainer, SeveralBatchesToAStepAreOneLargerBatch) {
  // 50 examples in batches of 8, three to a step: 24, 24 and 2.
  Job several({.epochs = 4, .batches_per_step = 3});
  const History history = OrThrow(several.trainer->Fit(Points(), kTrain));
  EXPECT_EQ(history.steps, 4 * 3);
  EXPECT_EQ(history.examples, 4.0 * kExamples);
  Job one({.epochs = 4});
  const History larger = OrThrow(one.trainer->Fit(Points(1, 24), kTrain));
  ASSERT_EQ(larger.steps, history.steps);
  EXPECT_NEAR(larger.epochs.back().loss, history.epochs.back().loss, 1e-5);
  EXPECT_NEAR(one.values()[0], several.values()[0], 1e-5);
}

TEST(Trainer, ResumedRunEqualsTheUninterruptedOne) {
  const std::vector<float> expected = TrainedFor(6);
  testing::TempDir dir;
  {
    Job job({.epochs = 3, .checkpoint_dir = dir / "c"});
    const History history = OrThrow(job.trainer->Fit(Points(), kTrain));
    EXPECT_TRUE(std::filesystem::exists(history.checkpoint)) << history.checkpoint;
  }
  Job job({.epochs = 6, .checkpoint_dir = dir / "c"});
  const History history = OrThrow(job.trainer->Fit(Points(), kTrain));
  EXPECT_EQ(history.steps, 3 * 7) << "only what was left";
  EXPECT_EQ(job.values(), expected);
}

TEST(Trainer, StopsInMidEpochSavesAndResumesAtTheExactBatch) {
  const std::vector<float> expected = TrainedFor(6);
  testing::TempDir dir;
  std::atomic<bool> stop = false;
  {
    // Epochs of 7 steps: the flag, raised in the fourth batch, is seen by the end of the epoch at
    // the latest.
    TrainerOptions options = {.epochs = 6, .checkpoint_dir = dir / "c", .stop = &stop};
    options.progress = [&](const Progress& p) { stop = stop || (p.epoch == 1 && p.batch == 4); };
    Job job(std::move(options));
    const Status status = job.trainer->Fit(Points(), kTrain).status();
    EXPECT_EQ(status.code(), StatusCode::kCancelled);
    EXPECT_NE(status.message().find("step-"), std::string::npos) << status.message();
    EXPECT_EQ(job.strategy->step(), 11)
        << "training stops after the step in which the flag was raised";
  }
  Job job({.epochs = 6, .checkpoint_dir = dir / "c"});
  OrThrow(job.trainer->Fit(Points(), kTrain));
  EXPECT_EQ(job.values(), expected);
}

// Points of which some are left out and some come twice: where batches are cannot be told from
// where the points are.
data::Dataset ChosenPoints(int batch) {
  const auto number = [](const data::Example& example) {
    return std::lround(example.at("y").data<float>()[0] * 35);
  };
  const data::Dataset some = OrThrow(data::Filter(
      testing::PointsInOrder(),
      [number](const data::Example& example) -> Result<bool> { return number(example) % 3 != 0; }));
  const data::Dataset twice = OrThrow(
      data::FlatMap(some, [number](const data::Example& example, std::vector<data::Example>& made) {
        made.assign(number(example) % 2 == 0 ? 2 : 1, example);
        return OkStatus();
      }));
  return OrThrow(data::Interleave({twice.Shuffle(3), testing::PointsInOrder().Take(9)}))
      .Shuffle(4)
      .Batch(batch)
      .Prefetch(2);
}

TEST(Trainer, ResumesInMidEpochOfAPipelineThatLeavesOutAndMultiplies) {
  const data::Dataset points = ChosenPoints(4);
  ASSERT_NE(points.size(), kExamples);
  ASSERT_NE(points.size() % 4, 0);
  std::vector<float> expected;
  {
    Job job({.epochs = 3});
    OrThrow(job.trainer->Fit(points, kTrain));
    expected = job.values();
  }
  testing::TempDir dir;
  std::int64_t steps = 0;
  for (int run = 0; run < 12; ++run) {  // each is broken off after seven steps more
    Job job({.epochs = 3, .checkpoint_dir = dir / "c", .save_every_steps = 5});
    const StepFn step = [&](ReplicaContext& context, const data::Batch& batch) {
      return context.step == steps + 7 ? Result<ReplicaResult>(Unavailable("a peer is gone"))
                                       : SquaredError(context, batch, true);
    };
    const Result<History> history = job.trainer->Fit(ChosenPoints(4), step);
    steps = OrThrow(io::CheckpointStore(FileSystem::Local(), dir / "c").Steps()).back();
    const auto saved = OrThrow(io::CheckpointStore(FileSystem::Local(), dir / "c").OpenLatest());
    const auto place = OrThrow(data::DataPosition::Parse(saved->state().data_position));
    EXPECT_EQ(place, points.PositionAt({.epoch = saved->state().epoch}, saved->state().batch));
    if (history.ok()) {
      EXPECT_GT(run, 2);
      EXPECT_EQ(job.values(), expected);
      return;
    }
  }
  FAIL() << "training did not come to its end, at step " << steps;
}

TEST(Trainer, ResumesAtTheExampleWithAnotherBatchSize) {
  testing::TempDir dir;
  {
    std::atomic<bool> stop = false;
    TrainerOptions options = {.epochs = 2, .checkpoint_dir = dir / "c", .stop = &stop};
    options.progress = [&](const Progress& p) { stop = p.batch == 3; };
    Job job(std::move(options));
    EXPECT_EQ(job.trainer->Fit(Points(), kTrain).status().code(), StatusCode::kCancelled);
  }
  Job five({.epochs = 2, .checkpoint_dir = dir / "c"});
  const Status status = five.trainer->Fit(Points(1, 5), kTrain).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("stands at example 24 of epoch 1, where no batch of 5 begins"),
            std::string::npos)
      << status.message();
  Job four({.epochs = 2, .checkpoint_dir = dir / "c"});
  const History history = OrThrow(four.trainer->Fit(Points(1, 4), kTrain));
  ASSERT_EQ(history.epochs.size(), 2U);
  EXPECT_EQ(history.epochs[0].examples, kExamples - 24) << "no example twice, none left out";
  EXPECT_EQ(history.epochs[0].steps, 7);
  EXPECT_EQ(history.epochs[1].examples, kExamples);
}

TEST(Trainer, SavesByStepsAndKeepsTheNewest) {
  testing::TempDir dir;
  Job job({.epochs = 2, .checkpoint_dir = dir / "c", .save_every_steps = 3, .max_to_keep = 2});
  OrThrow(job.trainer->Fit(Points(), kTrain));
  EXPECT_EQ(OrThrow(io::CheckpointStore(FileSystem::Local(), dir / "c").Steps()),
            (std::vector<std::int64_t>{12, 14}));
}

TEST(Trainer, ResumesFromACheckpointOfAnEpochsLastStep) {
  const std::vector<float> expected = TrainedFor(3);
  testing::TempDir dir;
  {
    // Saved after step 7, the first epoch's last, and broken off in the next epoch.
    Job job({.epochs = 3, .checkpoint_dir = dir / "c", .save_every_steps = 7});
    const StepFn step = [](ReplicaContext& context, const data::Batch& batch) {
      return context.step == 9 ? Result<ReplicaResult>(Unavailable("a peer is gone"))
                               : SquaredError(context, batch, true);
    };
    EXPECT_EQ(job.trainer->Fit(Points(), step).status().code(), StatusCode::kUnavailable);
  }
  Job job({.epochs = 3, .checkpoint_dir = dir / "c", .log_dir = dir / "logs"});
  const History history = OrThrow(job.trainer->Fit(Points(), kTrain));
  EXPECT_EQ(job.values(), expected);
  ASSERT_EQ(history.epochs.size(), 2U) << "no epoch without steps";
  EXPECT_EQ(history.epochs[0].epoch, 1);
  EXPECT_EQ(history.epochs[0].steps, 7);
}

TEST(Trainer, RefusesACheckpointOfAnotherRun) {
  testing::TempDir dir;
  const auto fit = [&](TrainerOptions options, double rate, const data::Dataset& data) {
    options.checkpoint_dir = dir / "c";
    options.epochs = 2;
    Job job(std::move(options), rate);
    return job.trainer->Fit(data, kTrain).status();
  };
  ASSERT_TRUE(fit({.seed = 5}, 0.1, Points()).ok());
  const Status seed = fit({.seed = 6}, 0.1, Points());
  EXPECT_EQ(seed.code(), StatusCode::kFailedPrecondition);
  EXPECT_NE(seed.message().find("seed 5"), std::string::npos) << seed.message();
  const Status optimizer = fit({.seed = 5}, 0.2, Points());
  EXPECT_EQ(optimizer.code(), StatusCode::kFailedPrecondition);
  EXPECT_NE(optimizer.message().find("optimizer"), std::string::npos) << optimizer.message();
  EXPECT_EQ(fit({.seed = 5}, 0.1, Points(9)).code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(fit({.resume = false, .seed = 5}, 0.1, Points()).code(),
            StatusCode::kFailedPrecondition);
  // Unless it is asked for; not of another seed.
  EXPECT_TRUE(fit({.allow_changed_data = true, .seed = 5}, 0.1, Points(9)).ok());
  EXPECT_EQ(fit({.allow_changed_data = true, .seed = 6}, 0.1, Points(9)).code(),
            StatusCode::kFailedPrecondition);
}

TEST(Trainer, WithChangedDataTheEpochIsBegunAnewWhereThatIsAllowed) {
  testing::TempDir dir;
  std::atomic<bool> stop = false;
  Job first({.epochs = 3, .checkpoint_dir = dir / "c", .stop = &stop});
  const StepFn until = [&stop](ReplicaContext& context, const data::Batch& batch) {
    stop = stop || context.step == 9;  // the second batch of the second epoch
    return SquaredError(context, batch, true);
  };
  ASSERT_EQ(first.trainer->Fit(Points(), until).status().code(), StatusCode::kCancelled);
  const data::Dataset changed = testing::PointsInOrder().Batch(8);
  Job refused({.epochs = 3, .checkpoint_dir = dir / "c"});
  const Status other = refused.trainer->Fit(changed, kTrain).status();
  EXPECT_EQ(other.code(), StatusCode::kFailedPrecondition);
  EXPECT_NE(other.message().find("--data-allow-changed"), std::string::npos) << other.message();
  std::vector<std::string> warnings;
  Job job({.epochs = 3,
           .checkpoint_dir = dir / "c",
           .allow_changed_data = true,
           .log = Log([&warnings](LogLevel level, std::string_view text) {
             if (level == LogLevel::kWarning) {
               warnings.emplace_back(text);
             }
           })});
  const History history = OrThrow(job.trainer->Fit(changed, kTrain));
  ASSERT_EQ(history.epochs.size(), 2U);
  EXPECT_EQ(history.epochs.front().epoch, 1);
  EXPECT_EQ(history.epochs.front().steps, 7) << "all of it";
  ASSERT_EQ(warnings.size(), 1U);
  EXPECT_NE(warnings[0].find("begun anew"), std::string::npos) << warnings[0];
}

TEST(Trainer, AFolderThatCannotBeWrittenIsNamed) {
  testing::TempDir dir;
  OrThrow(WriteFileAtomically(FileSystem::Local(), dir / "file", "x"));
  Job job({.epochs = 1, .checkpoint_dir = dir / "file/checkpoints"});
  const Status status = job.trainer->Fit(Points(), kTrain).status();
  EXPECT_FALSE(status.ok());
  EXPECT_NE(status.message().find(dir / "file/checkpoints"), std::string::npos) << status.message();
}

// A file of its table's rows is there when the save is opened, and not when it is read.
class LosesRows final : public testing::PassingStrategy {
 public:
  explicit LosesRows(Strategy& inner) : PassingStrategy(inner) {}
  Status SaveTable(int /*table*/, FileSystem& files, const std::string& path) override {
    return WriteFileAtomically(files, path, "rows");
  }
  Status LoadTable(int /*table*/, FileSystem& files,
                   const std::vector<std::string>& chain) override {
    OrThrow(files.RemoveAll(chain.back()));
    return files.OpenForRead(chain.back()).status();
  }
};

// Else a job would begin anew with the values of one that was at another step.
TEST(Trainer, ASaveThatLosesAFileWhileItIsReadIsNotTakenForNone) {
  testing::TempDir dir;
  ParameterSet parameters;
  parameters.Add("weights", {2}, {});
  parameters.AddTable({.name = "items", .dim = 2});
  parameters.Build();
  const auto alone = OrThrow(MakeSynchronousStrategy({}, StrategyOptions()));
  OrThrow(alone->Bind(parameters, Sgd({.learning_rate = 0.1})));
  LosesRows strategy(*alone);
  Trainer trainer(strategy, parameters, {.checkpoint_dir = dir / "saved"});
  EXPECT_FALSE(OrThrow(trainer.Restore())) << "there is none";
  OrThrow(trainer.Save());
  const Status status = trainer.Restore().status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status.ToString();
  EXPECT_NE(status.message().find("table-0.rows"), std::string::npos) << status.message();
}

TEST(Trainer, ALossThatIsNotFiniteEndsTraining) {
  Job job({.epochs = 1});
  const StepFn step = [](ReplicaContext& context, const data::Batch& batch) {
    auto result = SquaredError(context, batch, true);
    if (context.step == 3) {
      result->loss_sum = std::numeric_limits<double>::infinity();
    }
    return result;
  };
  const Status status = job.trainer->Fit(Points(), step).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_NE(status.message().find("batch 2"), std::string::npos) << status.message();
}

TEST(Trainer, StepErrorsNameTheBatch) {
  Job job({.epochs = 1});
  const StepFn step = [](ReplicaContext& context,
                         const data::Batch& batch) -> Result<ReplicaResult> {
    if (context.step == 2) {
      return InvalidArgument("label 12 of 10 classes");
    }
    return SquaredError(context, batch, true);
  };
  const Status status = job.trainer->Fit(Points(), step).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("epoch 1, batch 1"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("label 12"), std::string::npos) << status.message();
}

TEST(Trainer, PredictKeepsTheOrder) {
  Job job({});
  Tensor x(DType::kFloat32, {9, 2});  // batches of 8 and 1: one replica has nothing in the last
  for (std::size_t i = 0; i < 18; ++i) {
    x.data<float>()[i] = static_cast<float>(i);
  }
  const auto dataset = OrThrow(data::FromTensors({{"x", x}}));
  const PredictFn predict = [](ReplicaContext&, const data::Batch& batch) -> Result<Tensor> {
    Tensor rows(DType::kFloat32, {batch.size, 3});
    for (std::size_t i = 0; i < static_cast<std::size_t>(batch.size); ++i) {
      rows.data<float>()[3 * i] = batch["x"].data<float>()[2 * i];
    }
    return rows;
  };
  for (const data::Remainder end :
       {data::Remainder::kShort, data::Remainder::kPad, data::Remainder::kWrap}) {
    const Tensor rows = OrThrow(job.trainer->Predict(dataset.Batch(8, end), predict));
    ASSERT_EQ(rows.shape(), (Shape{9, 3}));
    for (std::size_t i = 0; i < 9; ++i) {
      EXPECT_EQ(rows.data<float>()[3 * i], static_cast<float>(2 * i));
    }
  }
}

// The records of the newest event file of a folder.
std::vector<std::string> NewestEvents(const std::string& folder) {
  const auto names = OrThrow(FileSystem::Local().List(folder));
  auto reader = OrThrow(io::RecordReader::Open(FileSystem::Local(), folder + "/" + names.back()));
  std::vector<std::string> records;
  while (const auto record = OrThrow(reader->Next())) {
    records.emplace_back(*record);
  }
  return records;
}

TEST(Trainer, WritesCurves) {
  testing::TempDir dir;
  const auto points = Points();
  const auto fit = [&](int epochs) {
    Job job({.epochs = epochs, .checkpoint_dir = dir / "c", .log_dir = dir / "logs"});
    OrThrow(job.trainer->Fit(points, kTrain, &points, kEvaluate));
  };
  fit(2);
  for (const char* const run : {"logs/train", "logs/eval"}) {
    const auto events = NewestEvents(dir / run);
    ASSERT_EQ(events.size(), 3U) << "the version and a point for each epoch";
    EXPECT_NE(events[0].find("brain.Event:2"), std::string::npos);
    for (const char* const tag : {"loss", "ones", "examples_per_second"}) {
      EXPECT_NE(events[1].find(tag), std::string::npos) << tag;
    }
  }
  fit(5);
  for (const char* const run : {"logs/train", "logs/eval"}) {
    EXPECT_EQ(OrThrow(FileSystem::Local().List(dir / run)).size(), 2U) << "a file of its own";
    const auto events = NewestEvents(dir / run);
    ASSERT_EQ(events.size(), 2U + 3U);
    // step (2) 15, session_log (7) with status START.
    EXPECT_TRUE(events[1].ends_with(std::string("\x10\x0f\x3a\x02\x08\x01", 6)));
  }
}

}  // namespace
}  // namespace cohort
