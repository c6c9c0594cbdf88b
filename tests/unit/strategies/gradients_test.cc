// Gradients that are rows, that are accumulated, that are not there, and how long they are waited
// for: what tests/conformance/strategy_conformance.cc cannot see.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include <cohort/comm/local.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/synchronous.h>

#include <gtest/gtest.h>

#include "testing/run_job.h"
#include "testing/run_ranks.h"

namespace cohort {
namespace {

using testing::ExpectAllOk;
using testing::RunJob;
using testing::RunRanks;
using testing::World;

// ---- Rows ------------------------------------------------------------------------------------

DistributedBatch OneEach(int replicas) {
  DistributedBatch batch;
  batch.replicas.assign(static_cast<std::size_t>(replicas), {.size = 1, .features = {}});
  return batch;
}

TEST(Rows, AreSentWhereTheyAreFewerBytesThanTheTable) {
  constexpr std::int64_t kRows = 4000;
  constexpr std::int64_t kRow = 8;
  constexpr std::uint64_t kTableBytes = kRows * kRow * sizeof(float);
  auto communicators = MakeLocalCommunicators(2);
  ExpectAllOk(RunRanks(2, [&](int process) -> Status {
    SynchronousParts parts;
    Communicator& wire = *communicators[static_cast<std::size_t>(process)];
    parts.communicator = std::move(communicators[static_cast<std::size_t>(process)]);
    COHORT_ASSIGN_OR_RETURN(const auto strategy, MakeSynchronousStrategy(std::move(parts), {}));
    ParameterSet parameters;
    parameters.Add("table", {kRows, kRow}, nullptr);
    parameters.Add("bias", {4}, nullptr);
    parameters.Build();
    COHORT_RETURN_IF_ERROR(strategy->Bind(parameters, Sgd({.learning_rate = 1})));
    std::vector<float> expected(static_cast<std::size_t>(kRows * kRow));
    // Bytes that this process sent in a step in which each touches `rows`, of which half are the
    // other's too, one of them twice.
    const auto step = [&](std::int64_t rows) -> Result<std::uint64_t> {
      std::vector<std::int64_t> indices;
      for (int p = 0; p < 2; ++p) {
        std::vector<std::int64_t> touched;
        for (std::int64_t i = 0; i < rows; ++i) {
          touched.push_back((i * 3 + p * rows / 2 * 3) % kRows);
        }
        if (rows > 0) {
          touched.push_back(touched.front());
        }
        for (const std::int64_t row : touched) {
          for (std::int64_t k = 0; k < kRow; ++k) {
            expected[static_cast<std::size_t>(row * kRow + k)] -= static_cast<float>(k + 1 + p) / 2;
          }
        }
        if (p == process) {
          indices = touched;
        }
      }
      std::vector<float> values;
      for (std::size_t i = 0; i < indices.size(); ++i) {
        for (std::int64_t k = 0; k < kRow; ++k) {
          values.push_back(static_cast<float>(k + 1 + process));
        }
      }
      const std::uint64_t before = wire.stats().bytes_sent;
      const auto result = strategy->Step(OneEach(1), [&](ReplicaContext& c, const data::Batch&) {
        c.gradients.AddSlices(0, {.indices = indices, .values = values});
        c.gradients.Ready(0);
        c.gradients.Ready(1);
        return Result<ReplicaResult>({.loss_sum = 0, .weight = 1});
      });
      COHORT_RETURN_IF_ERROR(result.status());
      EXPECT_TRUE(std::ranges::equal(parameters.value(0), expected));
      return wire.stats().bytes_sent - before;
    };
    COHORT_ASSIGN_OR_RETURN(const std::uint64_t unknown, step(10));  // is it a table at all?
    EXPECT_GE(unknown, kTableBytes);
    for (const std::int64_t rows : {10, 0, 1, 300, 10}) {
      COHORT_ASSIGN_OR_RETURN(const std::uint64_t sparse, step(rows));
      EXPECT_LT(sparse, static_cast<std::uint64_t>(rows) * (8 + 4 * kRow) + 4000) << rows;
    }
    COHORT_ASSIGN_OR_RETURN(const std::uint64_t dense, step(kRows - 1));
    EXPECT_GE(dense, kTableBytes);
    EXPECT_LT(dense, kTableBytes + 4000);
    COHORT_ASSIGN_OR_RETURN(const std::uint64_t after, step(5));  // nothing of the last step stays
    EXPECT_LT(after, 5 * (8 + 4 * kRow) + 4000U);
    return strategy->Shutdown();
  }));
}

TEST(Rows, ThatAreWrittenOtherwiseNowAndThenStillCount) {
  // In step 1 all replicas give rows; later one of them writes the whole table, or nothing.
  RunJob({2, 2}, {}, [](int, Strategy& strategy) -> Status {
    ParameterSet parameters;
    parameters.Add("table", {100, 2}, nullptr);
    parameters.Build();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = 1})));
    const std::vector<std::int64_t> indices{3, 99, 3};
    const std::vector<float> values(6, 1.0F);
    for (int step = 1; step <= 6; ++step) {
      const auto result =
          strategy.Step(OneEach(2), [&](ReplicaContext& context, const data::Batch&) {
            if (step % 2 == 0 && context.replica == 3) {
              std::ranges::fill(context.gradients.Accumulator(0), 1.0F);
            } else if (step != 5) {
              context.gradients.AddSlices(0, {.indices = indices, .values = values});
            }
            context.gradients.Ready(0);
            return Result<ReplicaResult>({.loss_sum = 0, .weight = 1});
          });
      COHORT_RETURN_IF_ERROR(result.status());
    }
    // Steps 1 and 3: 4 replicas. Steps 2, 4, 6: 3 of rows, one of all. The mean is over 4.
    EXPECT_EQ(parameters.value(0)[6], -(2 * 8 + 3 * 7) / 4.0F);
    EXPECT_EQ(parameters.value(0)[198], -(2 * 4 + 3 * 4) / 4.0F);
    EXPECT_EQ(parameters.value(0)[0], -3 / 4.0F);
    return {};
  });
}

// ---- Accumulation ----------------------------------------------------------------------------

StepFn Constant(float value, double weight) {
  return [=](ReplicaContext& context, const data::Batch&) -> Result<ReplicaResult> {
    context.gradients.SetWeight(weight);
    const float factor = context.gradients.loss_seed();
    std::ranges::fill(context.gradients.Accumulator(0), value * factor);
    context.gradients.Ready(0);
    return ReplicaResult{.loss_sum = value * weight, .weight = weight};
  };
}

TEST(Accumulate, IsTheWeightedMeanOverAllThatWasAccumulated) {
  for (const World& world : {World{1, 1}, World{1, 2}, World{2, 1}, World{2, 2}}) {
    RunJob(world, {}, [](int, Strategy& strategy) -> Status {
      ParameterSet parameters;
      parameters.Add("p", {5}, nullptr);
      parameters.Build();
      COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = 1})));
      const DistributedBatch batch = OneEach(strategy.num_local_replicas());
      for (int round = 1; round <= 3; ++round) {
        COHORT_ASSIGN_OR_RETURN(const StepResult first, strategy.Accumulate(batch, Constant(8, 1)));
        EXPECT_EQ(first.loss, 8);
        EXPECT_EQ(first.weight, strategy.num_local_replicas());
        COHORT_ASSIGN_OR_RETURN(const StepResult empty,
                                strategy.Accumulate(batch, Constant(NAN, 0)));
        EXPECT_EQ(empty.weight, 0);
        COHORT_RETURN_IF_ERROR(strategy.Accumulate(batch, Constant(2, 5)).status());
        EXPECT_EQ(strategy.step(), round - 1);
        COHORT_ASSIGN_OR_RETURN(const StepResult last, strategy.Step(batch, Constant(1, 2)));
        EXPECT_EQ(last.loss, 20.0 / 8);
        EXPECT_EQ(last.weight, 8 * strategy.num_replicas_in_sync());
        EXPECT_EQ(strategy.step(), round);
        EXPECT_EQ(parameters.value(0)[4], -2.5F * static_cast<float>(round));
      }
      return {};
    });
  }
}

// A table's rows, other ones in each batch: 2 * value to `row`, which comes twice, and value to the
// last.
StepFn RowsOf(std::int64_t row, float value) {
  return [indices = std::vector<std::int64_t>{row, 49, row}, values = std::vector<float>(6, value)](
             ReplicaContext& context, const data::Batch&) -> Result<ReplicaResult> {
    context.gradients.AddSlices(0, {.indices = indices, .values = values});
    context.gradients.Ready(0);
    return ReplicaResult{.loss_sum = 0, .weight = 1};
  };
}

TEST(Accumulate, RowsAddUpToo) {
  for (const World& world : {World{1, 1}, World{1, 2}, World{2, 1}, World{2, 2}}) {
    RunJob(world, {}, [](int, Strategy& strategy) -> Status {
      ParameterSet parameters;
      parameters.Add("table", {50, 2}, nullptr);
      parameters.Build();
      COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = 1})));
      const DistributedBatch batch = OneEach(strategy.num_local_replicas());
      std::vector<float> expected(100, 0.0F);
      for (int step = 1; step <= 6; ++step) {
        const int batches = step % 2 == 0 ? 4 : 2;  // so that the mean is exact
        for (int part = 1; part <= batches; ++part) {
          const std::int64_t row = (7 * step + 3 * part) % 49;
          const auto value = static_cast<float>(4 * part);
          for (const std::size_t column : {0U, 1U}) {
            expected[2 * static_cast<std::size_t>(row) + column] -=
                2 * value / static_cast<float>(batches);
            expected[98 + column] -= value / static_cast<float>(batches);
          }
          COHORT_RETURN_IF_ERROR((part < batches ? strategy.Accumulate(batch, RowsOf(row, value))
                                                 : strategy.Step(batch, RowsOf(row, value)))
                                     .status());
        }
        EXPECT_TRUE(std::ranges::equal(parameters.value(0), expected)) << "step " << step;
      }
      return {};
    });
  }
}

// What a batch came to is of that batch alone: not what the sums of those before have lost in
// rounding, and no loss of theirs that is none.
TEST(Accumulate, ReturnsTheLossOfItsOwnBatch) {
  for (const World& world : {World{1, 1}, World{2, 2}}) {
    RunJob(world, {}, [](int, Strategy& strategy) -> Status {
      ParameterSet parameters;
      parameters.Add("p", {5}, nullptr);
      parameters.Build();
      COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = 1})));
      const DistributedBatch batch = OneEach(strategy.num_local_replicas());
      const auto loss_of = [&](double loss) {
        return strategy.Accumulate(
            batch, [loss](ReplicaContext& context, const data::Batch&) -> Result<ReplicaResult> {
              context.gradients.Ready(0);
              return ReplicaResult{.loss_sum = loss, .weight = 1, .metric_sums = {loss + 1}};
            });
      };
      for (const double loss : {0x1p60, 0.25, HUGE_VAL, 0.5, -HUGE_VAL, 0.75}) {
        COHORT_ASSIGN_OR_RETURN(const StepResult result, loss_of(loss));
        EXPECT_EQ(result.loss, loss);
        EXPECT_EQ(result.weight, strategy.num_local_replicas());
        EXPECT_EQ(result.metrics.at(0), loss + 1);
      }
      COHORT_ASSIGN_OR_RETURN(const StepResult broken, loss_of(NAN));
      EXPECT_TRUE(std::isnan(broken.loss));
      COHORT_ASSIGN_OR_RETURN(const StepResult next, loss_of(1));
      EXPECT_EQ(next.loss, 1);
      return {};
    });
  }
}

TEST(Accumulate, SendsNothing) {
  auto communicators = MakeLocalCommunicators(2);
  ExpectAllOk(RunRanks(2, [&](int process) -> Status {
    SynchronousParts parts;
    Communicator& wire = *communicators[static_cast<std::size_t>(process)];
    parts.communicator = std::move(communicators[static_cast<std::size_t>(process)]);
    COHORT_ASSIGN_OR_RETURN(const auto strategy, MakeSynchronousStrategy(std::move(parts), {}));
    ParameterSet parameters;
    parameters.Add("p", {5}, nullptr);
    parameters.Build();
    COHORT_RETURN_IF_ERROR(strategy->Bind(parameters, Sgd({.learning_rate = 1})));
    const std::uint64_t before = wire.stats().operations;
    COHORT_RETURN_IF_ERROR(strategy->Accumulate(OneEach(1), Constant(1, 1)).status());
    EXPECT_EQ(wire.stats().operations, before);
    COHORT_RETURN_IF_ERROR(strategy->Step(OneEach(1), Constant(1, 1)).status());
    EXPECT_GT(wire.stats().operations, before);
    return strategy->Shutdown();
  }));
}

TEST(Accumulate, IsDroppedByAnError) {
  RunJob({1, 2}, {}, [](int, Strategy& strategy) -> Status {
    ParameterSet parameters;
    parameters.Add("p", {5}, nullptr);
    parameters.Build();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = 1})));
    COHORT_RETURN_IF_ERROR(strategy.Accumulate(OneEach(2), Constant(100, 1)).status());
    const auto failed = strategy.Accumulate(
        OneEach(2), [](ReplicaContext&, const data::Batch&) -> Result<ReplicaResult> {
          return DataLoss("torn");
        });
    EXPECT_EQ(failed.status().code(), StatusCode::kDataLoss);
    COHORT_ASSIGN_OR_RETURN(const StepResult result, strategy.Step(OneEach(2), Constant(1, 1)));
    EXPECT_EQ(result.loss, 1);
    EXPECT_EQ(parameters.value(0)[0], -1);
    return {};
  });
}

TEST(Accumulate, UnderReplicaMeanIsTheMeanOverPassesToo) {
  RunJob({2, 1}, {.loss_scale = LossScale::kReplicaMean}, [](int, Strategy& strategy) -> Status {
    ParameterSet parameters;
    parameters.Add("p", {1}, nullptr);
    parameters.Build();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = 1})));
    COHORT_RETURN_IF_ERROR(strategy.Accumulate(OneEach(1), Constant(4, 7)).status());
    COHORT_RETURN_IF_ERROR(strategy.Step(OneEach(1), Constant(2, 1)).status());
    EXPECT_EQ(parameters.value(0)[0], -3);
    return {};
  });
}

// ---- Frozen parameters -----------------------------------------------------------------------

TEST(Frozen, ParametersTravelOnceAndGetNoGradient) {
  auto communicators = MakeLocalCommunicators(2);
  ExpectAllOk(RunRanks(2, [&](int process) -> Status {
    SynchronousParts parts;
    Communicator& wire = *communicators[static_cast<std::size_t>(process)];
    parts.communicator = std::move(communicators[static_cast<std::size_t>(process)]);
    COHORT_ASSIGN_OR_RETURN(const auto strategy, MakeSynchronousStrategy(std::move(parts), {}));
    ParameterSet parameters;
    parameters.Add("p", {5}, nullptr);
    parameters.Add("embedding", {100'000},
                   [process](std::uint64_t) { return static_cast<float>(process + 1); });
    parameters.Build();
    parameters.Freeze(1);
    COHORT_RETURN_IF_ERROR(strategy->Bind(parameters, Sgd({.learning_rate = 1})));
    EXPECT_EQ(parameters.value(1)[99'999], 1);
    const std::uint64_t before = wire.stats().bytes_sent;
    COHORT_RETURN_IF_ERROR(strategy->Step(OneEach(1), Constant(1, 1)).status());
    EXPECT_LT(wire.stats().bytes_sent - before, 4000U);
    EXPECT_EQ(parameters.value(0)[0], -1);
    EXPECT_EQ(parameters.value(1)[0], 1);
    return strategy->Shutdown();
  }));
}

// ---- Exposed communication -------------------------------------------------------------------

TEST(Exposed, IsTheTimeThatAProcessWaitsForTheOthersAfterItsOwnPass) {
  constexpr auto kLonger = std::chrono::milliseconds(400);
  std::promise<void> first_is_done;
  std::future<void> done = first_is_done.get_future();
  RunJob({2, 1}, {}, [&](int process, Strategy& strategy) -> Status {
    ParameterSet parameters;
    parameters.Add("p", {5}, nullptr);
    parameters.Build();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = 1})));
    COHORT_ASSIGN_OR_RETURN(
        const StepResult result,
        strategy.Step(OneEach(1), [&](ReplicaContext& context, const data::Batch& batch) {
          auto scored = Constant(1, 1)(context, batch);
          if (process == 0) {
            first_is_done.set_value();
          } else {
            done.wait();
            std::this_thread::sleep_for(kLonger);  // the work of a slower process
          }
          return scored;
        }));
    if (process == 0) {
      EXPECT_GE(result.exposed_communication_seconds, 0.03);
    }
    EXPECT_GE(result.exposed_communication_seconds, 0);
    return {};
  });
}

}  // namespace
}  // namespace cohort
