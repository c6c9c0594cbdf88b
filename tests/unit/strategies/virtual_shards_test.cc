// Virtual shards: the same bits in every world.
#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include <cohort/comm/local.h>
#include <cohort/core/random.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/synchronous.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/integer_model.h"
#include "testing/late_stream.h"
#include "testing/run_job.h"
#include "testing/run_ranks.h"

namespace cohort {
namespace {

using ::testing::HasSubstr;
using testing::IntegerData;
using testing::RunJob;
using testing::World;

// A model of real numbers, whose sums depend on the order in which they are added.
ParameterSet RealParameters() {
  ParameterSet parameters;
  const auto initial = [](int p) {
    return [p](std::uint64_t e) { return std::sin(static_cast<float>(e) + static_cast<float>(p)); };
  };
  parameters.Add("kernel", {17, 9}, initial(0));
  parameters.Add("bias", {9}, initial(1));
  parameters.Add("large", {18'001}, initial(2));
  parameters.Add("table", {50, 3}, initial(3));
  parameters.Build();
  return parameters;
}

// Gradients that depend on the examples, on the values, and on the replica's number (as dropout's
// do).
Result<ReplicaResult> RealStep(ReplicaContext& context, const data::Batch& batch) {
  const auto x = batch["x"].data<float>();
  const auto ids = batch["id"].data<std::int64_t>();
  const Philox mask(3, "mask/" + std::to_string(context.replica));
  float sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    sum += std::sin(x[i] + 0.1F * static_cast<float>(i)) *
           mask.Uniform(i, static_cast<std::uint64_t>(context.step));
  }
  for (const int p : {2, 0, 1}) {
    const auto gradient = context.gradients.Accumulator(p);
    context.stream.Enqueue([=, value = context.parameters.value(p)]() -> Status {
      for (std::size_t e = 0; e < gradient.size(); ++e) {
        gradient[e] = sum * std::cos(value[e] + static_cast<float>(e));
      }
      return {};
    });
    context.gradients.Ready(p);
  }
  struct Rows {
    std::vector<std::int64_t> indices;
    std::vector<float> values;
  };
  const auto rows = std::make_shared<Rows>();
  for (const std::int64_t id : ids) {
    rows->indices.push_back(id * 7 % 50);
    for (int k = 0; k < 3; ++k) {
      rows->values.push_back(sum * std::sin(static_cast<float>(id + k)));
    }
  }
  context.gradients.AddSlices(3, {.indices = rows->indices, .values = rows->values});
  context.stream.Enqueue([rows]() -> Status { return {}; });
  context.gradients.Ready(3);
  const auto weight = static_cast<double>(batch.size);
  return ReplicaResult{.loss_sum = sum * weight, .weight = weight, .metric_sums = {0.1 * sum}};
}

struct Trained {
  std::vector<float> values;
  std::vector<double> losses;
  std::vector<double> metrics;
  friend bool operator==(const Trained&, const Trained&) = default;
};

Trained Train(const World& world, StrategyOptions options) {
  const data::Dataset dataset = IntegerData(94, 20);  // 20 and 14 do not divide by 8
  Trained trained;
  RunJob(world, options, [&](int process, Strategy& strategy) -> Status {
    ParameterSet parameters = RealParameters();
    COHORT_RETURN_IF_ERROR(
        strategy.Bind(parameters, Adam({.learning_rate = 0.01, .global_clip_norm = 5})));
    COHORT_ASSIGN_OR_RETURN(const auto distributed, strategy.Distribute(dataset));
    Trained mine;
    for (int epoch = 0; epoch < 2; ++epoch) {
      COHORT_RETURN_IF_ERROR(distributed->BeginEpoch(epoch));
      while (true) {
        COHORT_ASSIGN_OR_RETURN(const auto batch, distributed->Next());
        if (!batch.has_value()) {
          break;
        }
        COHORT_ASSIGN_OR_RETURN(const StepResult result, strategy.Step(*batch, RealStep));
        mine.losses.push_back(result.loss);
        mine.metrics.push_back(result.metrics.at(0));
      }
    }
    mine.values.assign(parameters.all().begin(), parameters.all().end());
    if (process == 0) {
      trained = std::move(mine);
    }
    return {};
  });
  return trained;
}

TEST(VirtualShards, GiveTheSameBitsInEveryWorld) {
  StrategyOptions options;
  options.virtual_shards = 8;
  const Trained expected = Train({1, 1}, options);
  ASSERT_EQ(expected.losses.size(), 10U);
  const World worlds[] = {{2, 1}, {4, 1}, {8, 1}, {1, 2}, {1, 4}, {1, 8}, {2, 2}, {4, 2}, {2, 4}};
  for (const World& world : worlds) {
    SCOPED_TRACE(std::to_string(world.processes) + "x" + std::to_string(world.devices));
    EXPECT_TRUE(Train(world, options) == expected);
  }
  // However buckets are cut, and whatever the order in which streams run.
  options.first_bucket_bytes = 64;
  options.communication.bytes_per_pack = 300;
  options.make_stream = testing::LateStreams(5);
  for (const World& world : {World{2, 2}, World{4, 1}, World{1, 1}}) {
    EXPECT_TRUE(Train(world, options) == expected);
  }
}

TEST(VirtualShards, AreWhatMakesTheBitsTheSame) {
  // If these were equal the test above would show nothing.
  EXPECT_FALSE(Train({1, 1}, {}) == Train({4, 1}, {}));
  EXPECT_FALSE(Train({1, 1}, {.virtual_shards = 8}) == Train({1, 1}, {.virtual_shards = 4}));
}

TEST(VirtualShards, AreTheReplicasThatAProgramSees) {
  std::mutex mutex;
  std::vector<int> seen;
  RunJob({2, 2}, {.virtual_shards = 16}, [&](int, Strategy& strategy) -> Status {
    EXPECT_EQ(strategy.num_replicas_in_sync(), 16);
    EXPECT_EQ(strategy.num_local_replicas(), 8);
    ParameterSet parameters = RealParameters();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = 0.1})));
    COHORT_ASSIGN_OR_RETURN(const auto distributed, strategy.Distribute(IntegerData(16, 16)));
    COHORT_RETURN_IF_ERROR(distributed->BeginEpoch(0));
    COHORT_ASSIGN_OR_RETURN(const auto batch, distributed->Next());
    return strategy
        .Step(*batch,
              [&](ReplicaContext& context, const data::Batch& part) {
                EXPECT_EQ(context.num_replicas, 16);
                const std::lock_guard lock(mutex);
                seen.push_back(context.replica);
                return RealStep(context, part);
              })
        .status();
  });
  std::ranges::sort(seen);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(seen.at(static_cast<std::size_t>(i)), i);
  }
}

TEST(VirtualShards, ThatDoNotFitAreNamed) {
  const auto refused = [](int shards, int devices) {
    StrategyOptions options;
    options.num_devices = devices;
    options.virtual_shards = shards;
    return MakeSynchronousStrategy({}, options).status().message();
  };
  EXPECT_THAT(refused(6, 2), HasSubstr("6 virtual shards"));
  EXPECT_THAT(refused(4, 3), HasSubstr("3 device(s)"));
  EXPECT_THAT(refused(2, 4), HasSubstr("2 virtual shards"));
  EXPECT_THAT(refused(-1, 1), HasSubstr("-1 virtual shards"));
  RunJob({1, 2}, {.virtual_shards = 2}, [](int, Strategy& strategy) -> Status {
    ParameterSet parameters = RealParameters();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({})));
    EXPECT_EQ(strategy.Accumulate({}, RealStep).status().code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(strategy.Distribute(IntegerData(16, 1)).status().code(),
              StatusCode::kInvalidArgument);
    for (const auto policy : {data::ShardPolicy::kFile, data::ShardPolicy::kOff,
                              data::ShardPolicy::kHint, data::ShardPolicy::kOwn}) {
      EXPECT_THAT(strategy.Distribute(IntegerData(16, 4), {.policy = policy}).status().message(),
                  HasSubstr("virtual shards are cut from global batches"));
    }
    return {};
  });
}

}  // namespace
}  // namespace cohort
