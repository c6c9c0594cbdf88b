// Models of sparse tables alone: without a dense parameter there are the same steps, waits, rounds
// and saves as with one.
#include <cohort/core/file_system.h>
#include <cohort/data/memory.h>
#include <cohort/io/checkpoint.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/row_source.h>
#include <cohort/strategies/parameter_server.h>
#include <cohort/train/trainer.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <functional>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "conformance/parameter_server_job.h"
#include "testing/temp_dir.h"
#include "testing/text_case_name.h"

namespace cohort::testing {
namespace {

using ::testing::Each;

// What a job's chief, or its only process, came to.
struct Outcome {
  std::int64_t step = 0;
  std::vector<std::vector<float>> rows;  // by table, in the order of their ids
  ParameterServerStats stats;
};

using RunTask = std::function<Result<Outcome>(Strategy&)>;

// A chief, workers and servers, as threads.
Outcome OnServers(int workers, int servers, const std::string& consistency, const RunTask& run) {
  StrategyOptions options;
  options.consistency = OrThrow(Consistency::Parse(consistency));
  return RunWithChief<Outcome>(workers, servers, options, run).chief;
}

// The chief's, when the workers are done. Evaluation comes first: nothing is pulled before it.
Result<Outcome> OutcomeOf(Strategy& strategy, const ParameterSet& parameters,
                          const std::vector<std::vector<std::uint64_t>>& ids) {
  Outcome outcome;
  if (strategy.is_chief()) {
    for (std::size_t t = 0; t < ids.size(); ++t) {
      std::vector<float> rows(ids[t].size() * static_cast<std::size_t>(parameters.tables()[t].dim));
      COHORT_RETURN_IF_ERROR(
          parameters.rows().Lookup(static_cast<int>(t), ids[t], /*training=*/false, rows));
      outcome.rows.push_back(std::move(rows));
    }
    outcome.step = strategy.step();
    if (auto* const servers = dynamic_cast<ParameterServerStrategy*>(&strategy);
        servers != nullptr) {
      COHORT_ASSIGN_OR_RETURN(outcome.stats, servers->stats());
    }
  }
  COHORT_RETURN_IF_ERROR(strategy.Shutdown());
  return outcome;
}

data::Dataset Numbers(std::int64_t count) {
  Tensor numbers(DType::kInt64, {count, 1});
  std::iota(numbers.data<std::int64_t>().begin(), numbers.data<std::int64_t>().end(), 0);
  return OrThrow(data::FromTensors({{"number", numbers}}));
}

std::vector<std::uint64_t> Range(std::uint64_t first, std::uint64_t count) {
  std::vector<std::uint64_t> ids(count);
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

// ---- Steps --------------------------------------------------------------------------------------

constexpr std::int64_t kSteps = 60;
constexpr std::uint64_t kAlways = 32;  // rows that every step has, on every server
constexpr std::uint64_t kSeldom = 13;  // behind them rows of which it has one, in turn

// What goes by the step: the age of rows, a rate, and Adam's bias. `dense`: with a parameter, too.
Result<Outcome> TrainByTheStep(Strategy& strategy, bool dense) {
  const std::string adam =
      Adam({.learning_rate = Schedule::Step(/*rate=*/0.5, /*steps=*/10, /*factor=*/0.5)})->config();
  ParameterSet parameters;
  parameters.AddTable({.name = "aging", .dim = 1, .time_to_live = 3, .buckets = 8});
  parameters.AddTable({.name = "scheduled",
                       .dim = 2,
                       .optimizer = adam,
                       .bias_scope = TableSpec::BiasScope::kTable,
                       .buckets = 8});
  if (dense) {
    parameters.Add("bias", {1}, {});
  }
  parameters.Build();
  COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = 1})));
  std::int64_t trained = 0;
  const StepFn step = [&](ReplicaContext& context,
                          const data::Batch& batch) -> Result<ReplicaResult> {
    EXPECT_EQ(context.step, ++trained);
    std::vector<std::uint64_t> ids = Range(0, kAlways);
    const auto number = static_cast<std::uint64_t>(batch["number"].data<std::int64_t>()[0]);
    ids.push_back(kAlways + number % kSeldom);
    for (int table = 0; table < 2; ++table) {
      std::vector<float> rows(ids.size() * (table == 0 ? 1 : 2));
      COHORT_RETURN_IF_ERROR(context.parameters.rows().Lookup(table, ids, /*training=*/true, rows));
      context.gradients.AddRows(table, ids, std::vector<float>(rows.size(), -1));
    }
    for (int p = 0; p < context.parameters.size(); ++p) {
      context.gradients.Ready(p);
    }
    return ReplicaResult{.loss_sum = 0, .weight = 1, .metric_sums = {}};
  };
  Trainer trainer(strategy, parameters, {.epochs = 1, .log = Log()});
  COHORT_RETURN_IF_ERROR(trainer.Fit(Numbers(kSteps).Batch(1), step).status());
  const std::vector<std::uint64_t> all = Range(0, kAlways + kSeldom);
  return OutcomeOf(strategy, parameters, {all, all});
}

class TablesOnly : public ::testing::TestWithParam<std::string> {};

TEST_P(TablesOnly, StepsAreCountedAsWithAParameter) {
  const Outcome alone =
      OrThrow(TrainByTheStep(*OrThrow(Strategy::FromEnv("one_device", {})), /*dense=*/true));
  ASSERT_EQ(alone.step, kSteps);
  ASSERT_EQ(alone.rows[0][0], kSteps);
  ASSERT_EQ(std::ranges::max(std::span(alone.rows[0]).subspan(kAlways)), 1) << "none is old";
  for (const int servers : {1, 3}) {
    for (const bool dense : {false, true}) {  // of three servers two have no parameter
      const Outcome remote = OnServers(1, servers, GetParam(), [dense](Strategy& strategy) {
        return TrainByTheStep(strategy, dense);
      });
      EXPECT_EQ(remote.step, kSteps) << servers;
      EXPECT_EQ(remote.rows, alone.rows) << servers;
    }
  }
}

// ---- Rounds, waits and saves --------------------------------------------------------------------

constexpr std::int64_t kExamples = 240;
constexpr std::int64_t kBatch = 2;
constexpr int kEpochs = 2;

// Each example adds 1 to its row. worker:1 takes its time.
Result<Outcome> Count(Strategy& strategy, TrainerOptions options) {
  ParameterSet parameters;
  parameters.AddTable({.name = "examples", .dim = 1, .buckets = 16});
  parameters.Build();
  COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = kBatch})));
  const bool slow = strategy.cluster().task == TaskId{TaskType::kWorker, 1};
  const StepFn step = [&](ReplicaContext& context,
                          const data::Batch& batch) -> Result<ReplicaResult> {
    const auto known = batch["number"].data<std::int64_t>();
    const std::vector<std::uint64_t> ids(known.begin(), known.end());
    std::vector<float> rows(ids.size());
    COHORT_RETURN_IF_ERROR(context.parameters.rows().Lookup(0, ids, /*training=*/true, rows));
    context.gradients.AddRows(0, ids, std::vector<float>(ids.size(), -1));
    std::this_thread::sleep_for(std::chrono::milliseconds(slow ? 3 : 1));  // its work
    return ReplicaResult{
        .loss_sum = 0, .weight = static_cast<double>(ids.size()), .metric_sums = {}};
  };
  options.epochs = kEpochs;
  options.log = Log();
  Trainer trainer(strategy, parameters, options);
  COHORT_RETURN_IF_ERROR(trainer.Fit(Numbers(kExamples).Batch(kBatch), step).status());
  return OutcomeOf(strategy, parameters, {Range(0, kExamples)});
}

constexpr std::int64_t kAllSteps = kEpochs * kExamples / kBatch;

// Nothing is saved, which would have servers apply the last round.
TEST_P(TablesOnly, WhatIsLookedUpInTheEndHasTheLastStep) {
  const Outcome outcome =
      OnServers(2, 2, GetParam(), [](Strategy& strategy) { return Count(strategy, {}); });
  EXPECT_EQ(outcome.step, kAllSteps);
  ASSERT_EQ(outcome.rows.size(), 1U);
  EXPECT_THAT(outcome.rows[0], Each(kEpochs));
  if (GetParam().starts_with("ssp")) {
    EXPECT_GT(outcome.stats.parked, 0U) << "nobody waited for worker:1";
    EXPECT_EQ(outcome.stats.max_lead, 1U);
  }
}

// The job goes on from each of its saves, as if it had ended there.
TEST_P(TablesOnly, EverySaveIsWrittenAndHasItsRows) {
  const TempDir dir;
  const std::string saved = dir / "saved";
  const TrainerOptions options = {
      .checkpoint_dir = saved, .save_every_steps = 20, .max_to_keep = 0};
  const RunTask run = [&](Strategy& strategy) { return Count(strategy, options); };
  EXPECT_THAT(OnServers(2, 2, GetParam(), run).rows, Each(Each(kEpochs)));
  const io::CheckpointStore store(FileSystem::Local(), saved);
  const std::vector<std::int64_t> steps = OrThrow(store.Steps());
  ASSERT_GE(steps.size(), 4U);
  EXPECT_GT(steps.front(), 0);
  EXPECT_EQ(steps.back(), kAllSteps);
  for (const std::size_t kept : {steps.size() / 2, std::size_t{1}}) {
    std::vector<std::filesystem::path> folders;
    for (const auto& entry : std::filesystem::directory_iterator(saved)) {
      if (entry.path().filename().string().starts_with("step")) {
        folders.push_back(entry.path());
      }
    }
    std::ranges::sort(folders);
    for (std::size_t f = kept; f < folders.size(); ++f) {
      std::filesystem::remove_all(folders[f]);
    }
    ASSERT_EQ(OrThrow(store.Steps()),
              std::vector(steps.begin(), steps.begin() + static_cast<std::ptrdiff_t>(kept)));
    ASSERT_LT(steps[kept - 1], kAllSteps);
    const Outcome resumed = OnServers(2, 3, GetParam(), run);
    EXPECT_EQ(resumed.step, kAllSteps);
    EXPECT_THAT(resumed.rows, Each(Each(kEpochs))) << "from step " << steps[kept - 1];
  }
}

INSTANTIATE_TEST_SUITE_P(ParameterServers, TablesOnly, ::testing::Values("async", "ssp:1", "sync"),
                         TextCaseName);

}  // namespace
}  // namespace cohort::testing
