// What rows on servers come to where they are looked up ahead: as fresh as values, and not evicted
// too early; and what arrives of gradients that are rounded on their way.

#include <gtest/gtest.h>

#include <cohort/core/random.h>
#include <cohort/data/memory.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/row_source.h>
#include <cohort/strategies/parameter_server.h>
#include <cohort/train/trainer.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "sparse_table_job.h"

namespace cohort::testing::sparse_tables {
namespace {

// Each push adds 1 to the value, and before that to the row: a lookup finds at least what the
// values of its step have. worker:1 is slow, and the other waits for its pushes.
TEST(SparseTables, UnderBoundedStalenessRowsAreAsFreshAsValues) {
  constexpr std::int64_t kSteps = 240;  // in splits of 12
  std::atomic<std::int64_t> foreseen = 0;
  std::atomic<int> older = 0;
  Tensor zeros(DType::kInt64, {2 * kSteps, 1});
  std::ranges::fill(zeros.data<std::int64_t>(), 0);
  const data::Dataset data = OrThrow(data::FromTensors({{"id", zeros}}));
  const RunTask run = [&](ParameterServerStrategy& strategy) -> Result<Outcome> {
    ParameterSet parameters;
    parameters.Add("count", {1}, {});
    parameters.AddTable({.name = "counts", .dim = 1, .buckets = 1});
    parameters.Build();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = 1})));
    const bool slow = strategy.cluster().task == TaskId{TaskType::kWorker, 1};
    const StepFn step = [&](ReplicaContext& context,
                            const data::Batch& batch) -> Result<ReplicaResult> {
      const auto examples = static_cast<std::size_t>(batch.size);
      const std::vector<std::uint64_t> ids(examples, 0);
      std::vector<float> rows(examples);
      COHORT_RETURN_IF_ERROR(context.parameters.rows().Lookup(0, ids, /*training=*/true, rows));
      older += rows[0] < static_cast<float>(context.step - 1) ? 1 : 0;
      context.gradients.AddRows(0, ids, std::vector<float>(examples, -1));
      context.gradients.Accumulator(0)[0] = -static_cast<float>(examples);
      context.gradients.Ready(0);
      std::this_thread::sleep_for(std::chrono::milliseconds(slow ? 2 : 0));  // its work
      return ReplicaResult{
          .loss_sum = 0, .weight = static_cast<double>(examples), .metric_sums = {}};
    };
    Trainer trainer(strategy, parameters, {.epochs = 1, .log = Log()});
    COHORT_RETURN_IF_ERROR(trainer.Fit(data.Batch(2), step).status());
    Outcome outcome;
    if (strategy.is_chief()) {
      outcome.values = {std::as_const(parameters).value(0)[0]};
      outcome.rows.resize(1);
      COHORT_RETURN_IF_ERROR(parameters.rows().Lookup(0, std::vector<std::uint64_t>{0},
                                                      /*training=*/false, outcome.rows));
    }
    if (strategy.trains()) {
      COHORT_ASSIGN_OR_RETURN(const ParameterServerStats stats, strategy.stats());
      foreseen += stats.foreseen;
    }
    COHORT_RETURN_IF_ERROR(strategy.Shutdown());
    return outcome;
  };
  const Outcome outcome =
      OnServers(2, 2, run, {.mode = Consistency::Mode::kBoundedStaleness, .staleness = 0});
  EXPECT_EQ(older, 0);
  EXPECT_GE(foreseen, kSteps / 2) << "all but a split's first";
  EXPECT_EQ(outcome.values, std::vector<float>{kSteps});
  EXPECT_EQ(outcome.rows, std::vector<float>{kSteps});
}

// Every example moves its row by (sign, 0.3), and signs of 100 are as many as of -100: of a row in
// int8 beside 100 the 0.3 is always rounded to nothing. What the row comes to, which is small.
Result<Outcome> TrainOnWhatRoundingTakes(Strategy& strategy, std::uint64_t feedback) {
  constexpr std::int64_t kBatches = 240;  // of two examples of one sign
  Tensor signs(DType::kFloat32, {2 * kBatches, 1});
  for (std::size_t i = 0; i < signs.data<float>().size(); ++i) {
    signs.data<float>()[i] = i / 2 % 2 == 0 ? 100.0F : -100.0F;
  }
  const data::Dataset data = OrThrow(data::FromTensors({{"sign", signs}}));
  ParameterSet parameters;
  parameters.Add("count", {1}, {});
  parameters.AddTable({.name = "sums",
                       .dim = 2,
                       .wire = TableSpec::Wire::kInt8,
                       .wire_feedback = feedback,
                       .buckets = 1});
  parameters.Build();
  COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = 1})));
  const StepFn step = [&](ReplicaContext& context,
                          const data::Batch& batch) -> Result<ReplicaResult> {
    const auto examples = static_cast<std::size_t>(batch.size);
    const std::vector<std::uint64_t> ids(examples, 3);
    std::vector<float> rows(2 * examples);
    COHORT_RETURN_IF_ERROR(context.parameters.rows().Lookup(0, ids, /*training=*/true, rows));
    std::vector<float> gradients;
    for (const float sign : batch["sign"].data<float>()) {
      gradients.insert(gradients.end(), {sign, -0.3F});
    }
    context.gradients.AddRows(0, ids, gradients);
    context.gradients.Accumulator(0)[0] = -static_cast<float>(examples);
    context.gradients.Ready(0);
    return ReplicaResult{.loss_sum = 0, .weight = static_cast<double>(examples), .metric_sums = {}};
  };
  Trainer trainer(strategy, parameters, {.epochs = 1, .log = Log()});
  COHORT_RETURN_IF_ERROR(trainer.Fit(data.Batch(2), step).status());
  Outcome outcome;
  if (strategy.is_chief()) {
    outcome.rows.resize(2);
    COHORT_RETURN_IF_ERROR(parameters.rows().Lookup(0, std::vector<std::uint64_t>{3},
                                                    /*training=*/false, outcome.rows));
  }
  if (auto* const servers = dynamic_cast<ParameterServerStrategy*>(&strategy);
      servers != nullptr && strategy.trains()) {
    COHORT_ASSIGN_OR_RETURN(const ParameterServerStats stats, servers->stats());
    EXPECT_EQ(stats.dropped_residuals, 0U);
  }
  COHORT_RETURN_IF_ERROR(strategy.Shutdown());
  return outcome;
}

// Without feedback nothing of it arrives; with it all, but what two workers keep at the end, each
// half a step of 100 / 127 at most, and what is rounded where the row is read.
TEST(SparseTables, WhatRoundingTakesArrivesInTheEnd) {
  constexpr float kExact = 0.3F * 240;
  const auto check = [&](const std::vector<float>& rows, std::uint64_t feedback) {
    ASSERT_EQ(rows.size(), 2U);
    EXPECT_NEAR(rows[0], 0, 0.01);
    if (feedback == 0) {
      EXPECT_EQ(rows[1], 0);
    } else {
      EXPECT_NEAR(rows[1], kExact, 2 * 101.0 / 254 + (kExact + 1) / 254);
    }
  };
  for (const char* text : {"async", "ssp:1", "sync", "sync:1"}) {
    for (const std::uint64_t feedback : {0U, 10U}) {
      SCOPED_TRACE(std::string(text) + ", of rows: " + std::to_string(feedback));
      const Outcome outcome = OnServers(
          2, 2,
          [&](ParameterServerStrategy& strategy) {
            return TrainOnWhatRoundingTakes(strategy, feedback);
          },
          OrThrow(Consistency::Parse(text)));
      check(outcome.rows, feedback);
    }
  }
  const InStepResult in_step = InStep(2, 2, [&](Strategy& strategy) {
    return TrainOnWhatRoundingTakes(strategy, /*feedback=*/10);
  });
  for (const auto& [task, status] : in_step.statuses) {
    EXPECT_EQ(status, OkStatus()) << task << ": " << status.ToString();
  }
  ASSERT_FALSE(in_step.workers.empty());
  check(in_step.workers[0].rows, 10);
}

// A step looks up the ids of a feature, which are known a batch ahead, and others, which nobody
// foresees and which make rows. What is known ahead keeps its row until its gradient has come.
Result<Outcome> TrainWithEviction(Strategy& strategy, const TableSpec& table) {
  constexpr std::int64_t kEach = 60;
  constexpr std::int64_t kSteps = 24;
  constexpr std::uint64_t kForeseen = 160;
  constexpr std::uint64_t kNew = 10;  // ids, in each step
  const Philox random(7, "ids");
  Tensor ids(DType::kInt64, {kSteps, kEach});
  for (std::size_t i = 0; i < ids.data<std::int64_t>().size(); ++i) {
    ids.data<std::int64_t>()[i] = static_cast<std::int64_t>(random.Below(kForeseen, i));
  }
  Tensor numbers(DType::kInt64, {kSteps, 1});
  std::iota(numbers.data<std::int64_t>().begin(), numbers.data<std::int64_t>().end(), 0);
  const data::Dataset data = OrThrow(data::FromTensors({{"ids", ids}, {"number", numbers}}));
  ParameterSet parameters;
  parameters.Add("bias", {1}, {});
  parameters.AddTable(table);
  parameters.Build();
  COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = 1})));
  const auto dim = static_cast<std::size_t>(table.dim);
  const StepFn step = [&](ReplicaContext& context,
                          const data::Batch& batch) -> Result<ReplicaResult> {
    const auto known = batch["ids"].data<std::int64_t>();
    const std::vector<std::uint64_t> foreseen(known.begin(), known.end());
    std::vector<std::uint64_t> made(kNew);
    const auto number = static_cast<std::uint64_t>(batch["number"].data<std::int64_t>()[0]);
    std::iota(made.begin(), made.end(), kForeseen + kNew * number);
    for (const auto& some : {foreseen, made}) {
      std::vector<float> rows(some.size() * dim);
      COHORT_RETURN_IF_ERROR(context.parameters.rows().Lookup(0, some, /*training=*/true, rows));
      context.gradients.AddRows(0, some, std::vector<float>(rows.size(), -1));
    }
    context.gradients.Accumulator(0)[0] = 1;
    context.gradients.Ready(0);
    return ReplicaResult{.loss_sum = 0, .weight = 1, .metric_sums = {}};
  };
  Trainer trainer(strategy, parameters, {.epochs = 1, .log = Log()});
  COHORT_RETURN_IF_ERROR(trainer.Fit(data.Batch(1), step).status());
  Outcome outcome;
  if (strategy.is_chief()) {
    std::vector<std::uint64_t> all(kForeseen + kNew * kSteps);
    std::iota(all.begin(), all.end(), 0);
    outcome.rows.resize(all.size() * dim);
    COHORT_RETURN_IF_ERROR(parameters.rows().Lookup(0, all, /*training=*/false, outcome.rows));
  }
  COHORT_RETURN_IF_ERROR(strategy.Shutdown());
  return outcome;
}

TEST(SparseTables, RowsThatAreLookedUpAheadAreNotEvictedBeforeTheirGradientComes) {
  TableSpec capacity{.name = "capacity", .dim = 2, .buckets = 2};
  capacity.capacity = 140;
  TableSpec rare = capacity;
  rare.name = "rare";
  rare.eviction = TableSpec::Eviction::kLeastFrequent;
  // A push of several frames, between which rows expire.
  TableSpec time{.name = "time", .dim = 16384, .buckets = 2};
  time.time_to_live = 4;
  for (const TableSpec& table : {capacity, rare, time}) {
    SCOPED_TRACE(table.name);
    const Outcome alone =
        OrThrow(TrainWithEviction(*OrThrow(Strategy::FromEnv("one_device", {})), table));
    EXPECT_GT(std::ranges::count(alone.rows, 0.0F), 0) << "rows have been evicted";
    for (const char* text : {"async", "ssp:1", "sync"}) {
      const Outcome remote = OnServers(
          1, 2,
          [&](ParameterServerStrategy& strategy) { return TrainWithEviction(strategy, table); },
          OrThrow(Consistency::Parse(text)));
      EXPECT_TRUE(remote.rows == alone.rows) << text;
    }
    const InStepResult in_step =
        InStep(1, 2, [&](Strategy& strategy) { return TrainWithEviction(strategy, table); });
    ASSERT_EQ(in_step.workers.size(), 1);
    EXPECT_TRUE(in_step.workers[0].rows == alone.rows) << "in step";
  }
}

}  // namespace
}  // namespace cohort::testing::sparse_tables
