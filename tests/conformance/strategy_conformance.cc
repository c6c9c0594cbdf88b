#include "conformance/strategy_conformance.h"

#include <cohort/optim/optimizers.h>

#include <mutex>
#include <vector>

#include "testing/integer_model.h"
#include "testing/late_stream.h"
#include "testing/run_ranks.h"

namespace cohort::testing {

void StrategyConformance::RunJob(const StrategyOptions& options,
                                 const std::function<Status(int, Strategy&)>& fn) const {
  const StrategyWorld& world = GetParam();
  world.start();
  ExpectAllOk(RunRanks(world.processes, [&](int process) -> Status {
    StrategyOptions mine = options;
    mine.num_devices = world.replicas;
    COHORT_ASSIGN_OR_RETURN(const auto strategy, world.make(process, mine));
    COHORT_RETURN_IF_ERROR(fn(process, *strategy));
    return strategy->Shutdown();
  }));
  world.stop();
}

namespace {

struct Case {
  std::int64_t examples;
  std::int64_t global_batch;
};

// 61 = 5 * 12 + 1 and so on: short last batches of 1, 5, 4 and 0 examples.
constexpr Case kCases[] = {{61, 12}, {61, 7}, {52, 16}, {36, 12}};

std::unique_ptr<Optimizer> Momentum() { return Sgd({.learning_rate = 0.0625, .momentum = 0.5}); }

TEST_P(StrategyConformance, EqualsPlainLoopsOnOneThread) {
  for (const Case& c : kCases) {
    SCOPED_TRACE("batch " + std::to_string(c.global_batch));
    const data::Dataset dataset = IntegerData(c.examples, c.global_batch);
    const Trained expected = TrainOnOneThread(dataset, *Momentum(), 2);
    RunJob({}, [&](int, Strategy& strategy) -> Status {
      const Trained trained = TrainWith(strategy, dataset, Momentum(), 2, IntegerStep());
      EXPECT_TRUE(trained == expected);
      return {};
    });
  }
}

TEST_P(StrategyConformance, EqualsPlainLoopsUnderLateStreams) {
  const data::Dataset dataset = IntegerData(33, 10);
  const Trained expected = TrainOnOneThread(dataset, *Momentum(), 2);
  for (const std::int64_t bucket : {std::int64_t{256}, std::int64_t{1} << 20}) {
    StrategyOptions options;
    options.first_bucket_bytes = bucket;
    options.bucket_bytes = bucket;
    options.make_stream = LateStreams(static_cast<std::uint64_t>(bucket));
    RunJob(options, [&](int, Strategy& strategy) -> Status {
      const Trained trained = TrainWith(strategy, dataset, Momentum(), 2, IntegerStep());
      EXPECT_TRUE(trained == expected);
      return {};
    });
  }
}

TEST_P(StrategyConformance, EveryOptimizer) {
  const data::Dataset dataset = IntegerData(27, 8);
  const std::vector<std::function<std::unique_ptr<Optimizer>()>> optimizers{
      [] { return Sgd({.learning_rate = 0.125}); }, [] { return Adam(); }, [] { return Adagrad(); },
      [] { return Sgd({.learning_rate = 0.0625, .l2 = 0.25, .global_clip_norm = 3}); }};
  for (const auto& make : optimizers) {
    SCOPED_TRACE(make()->config());
    const Trained expected = TrainOnOneThread(dataset, *make(), 1);
    RunJob({}, [&](int, Strategy& strategy) -> Status {
      const Trained trained = TrainWith(strategy, dataset, make(), 1, IntegerStep());
      EXPECT_TRUE(trained == expected);
      return {};
    });
  }
}

TEST_P(StrategyConformance, WeightsNeedNotBeExamples) {
  // Few tokens: some parts, of several examples, weigh nothing, and their gradients are NaN.
  const data::Dataset dataset = IntegerData(61, 9);
  const Trained expected = TrainOnOneThread(dataset, *Momentum(), 2, /*by_tokens=*/true);
  RunJob({}, [&](int, Strategy& strategy) -> Status {
    const Trained trained =
        TrainWith(strategy, dataset, Momentum(), 2, IntegerStep(/*by_tokens=*/true));
    EXPECT_TRUE(trained == expected);
    return {};
  });
}

TEST_P(StrategyConformance, EvaluateIsTheWeightedMeanAndChangesNothing) {
  const data::Dataset dataset = IntegerData(31, 8);
  RunJob({}, [&](int, Strategy& strategy) -> Status {
    ParameterSet parameters = IntegerParameters();
    const ParameterSet untouched = IntegerParameters();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Momentum()));
    if (!strategy.evaluates()) {
      return {};
    }
    COHORT_ASSIGN_OR_RETURN(const auto distributed,
                            strategy.Distribute(dataset, {.evaluation = true}));
    COHORT_RETURN_IF_ERROR(distributed->BeginEpoch(0));
    double examples = 0;
    double ids = 0;
    while (true) {
      COHORT_ASSIGN_OR_RETURN(const auto batch, distributed->Next());
      if (!batch.has_value()) {
        break;
      }
      COHORT_ASSIGN_OR_RETURN(
          const StepResult result,
          strategy.Evaluate(*batch, [](ReplicaContext&, const data::Batch& part) {
            ReplicaResult score;
            score.weight = static_cast<double>(part.size);
            for (const std::int64_t id : part["id"].data<std::int64_t>()) {
              score.loss_sum += static_cast<double>(id);
            }
            return Result<ReplicaResult>(score);
          }));
      examples += result.weight;
      ids += result.loss * result.weight;
    }
    EXPECT_EQ(examples, 31);
    EXPECT_DOUBLE_EQ(ids, 31 * 30 / 2);
    EXPECT_TRUE(
        std::equal(parameters.all().begin(), parameters.all().end(), untouched.all().begin()));
    EXPECT_EQ(strategy.step(), 0);
    return {};
  });
}

TEST_P(StrategyConformance, StartsFromTheFirstProcess) {
  RunJob({}, [&](int process, Strategy& strategy) -> Status {
    ParameterSet parameters = IntegerParameters(/*seed=*/process);
    const ParameterSet first = IntegerParameters(0);
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Momentum()));
    COHORT_RETURN_IF_ERROR(strategy.PullState());
    EXPECT_TRUE(std::equal(parameters.all().begin(), parameters.all().end(), first.all().begin()));
    return {};
  });
}

}  // namespace
}  // namespace cohort::testing
