#include "conformance/strategy_conformance.h"

#include <cohort/optim/optimizers.h>

#include <memory>
#include <mutex>
#include <utility>
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

void StrategyConformance::ExpectRefused(const StrategyOptions& options,
                                        const std::string& naming) const {
  const StrategyWorld& world = GetParam();
  if (!world.parameter_server) {  // whose servers would wait for those that are refused
    world.start();
  }
  const auto statuses = RunRanks(world.processes, [&](int process) -> Status {
    StrategyOptions mine = options;
    mine.num_devices = world.replicas;
    return world.make(process, mine).status();
  });
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find(naming), std::string::npos) << status.message();
  }
  if (!world.parameter_server) {
    world.stop();
  }
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
    options.communication.bytes_per_pack = bucket;
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

TEST_P(StrategyConformance, AccumulatedBatchesAreOneLargeBatch) {
  // 61 = 36 + 25, in micro-batches of 12, 12, 12 and of 12, 12, 1.
  const Trained expected = TrainOnOneThread(IntegerData(61, 36), *Momentum(), 2);
  for (const bool late : {false, true}) {
    StrategyOptions options;
    if (late) {
      options.first_bucket_bytes = 300;
      options.communication.bytes_per_pack = 300;
      options.make_stream = LateStreams(3);
    }
    RunJob(options, [&](int, Strategy& strategy) -> Status {
      ParameterSet parameters = IntegerParameters();
      COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Momentum()));
      if (strategy.kind() == "parameter_server") {
        EXPECT_EQ(strategy.Accumulate({}, IntegerStep()).status().code(),
                  StatusCode::kUnimplemented);
        return {};
      }
      COHORT_ASSIGN_OR_RETURN(const auto distributed, strategy.Distribute(IntegerData(61, 12)));
      Trained trained;
      for (int epoch = 0; epoch < 2; ++epoch) {
        COHORT_RETURN_IF_ERROR(distributed->BeginEpoch(epoch));
        for (int i = 1; i <= 6; ++i) {
          COHORT_ASSIGN_OR_RETURN(const auto batch, distributed->Next());
          if (i % 3 != 0) {
            COHORT_RETURN_IF_ERROR(strategy.Accumulate(*batch, IntegerStep()).status());
            continue;
          }
          COHORT_ASSIGN_OR_RETURN(const StepResult result, strategy.Step(*batch, IntegerStep()));
          trained.losses.push_back(result.loss);
          trained.metrics.push_back(result.metrics);
          trained.weights.push_back(result.weight);
        }
      }
      COHORT_RETURN_IF_ERROR(strategy.PullState());
      trained.values.assign(parameters.all().begin(), parameters.all().end());
      for (const std::span<float> slot : strategy.slots()) {
        trained.slots.emplace_back(slot.begin(), slot.end());
      }
      trained.step = strategy.step();
      EXPECT_TRUE(trained == expected);
      return {};
    });
  }
}

// All-reduces each parameter on its own.
class OneByOne final : public BucketHook {
 public:
  std::string name() const override { return "one by one"; }
  Status Bind(const ParameterSet&, Communicator&) override { return {}; }
  Communicator::Pending Launch(const GradientBucket& bucket) override {
    std::vector<std::unique_ptr<Work>> works;
    for (const BucketPart& part : bucket.parts) {
      const auto begin = static_cast<std::size_t>(part.begin);
      COHORT_ASSIGN_OR_RETURN(
          auto work,
          bucket.communicator.AllReduce(
              bucket.values.subspan(begin, static_cast<std::size_t>(part.shape.elements())),
              ReduceOp::kSum, bucket.options));
      works.push_back(std::move(work));
    }
    // The last is done when all are.
    return std::move(works.back());
  }
};

TEST_P(StrategyConformance, EqualsPlainLoopsThroughHooks) {
  const data::Dataset dataset = IntegerData(61, 12);
  const Trained expected = TrainOnOneThread(dataset, *Momentum(), 2);
  // In float16 integers up to 2048 are themselves.
  const std::function<std::unique_ptr<BucketHook>()> hooks[] = {
      [] { return std::make_unique<OneByOne>(); },
      [] { return MakeCompressionHook({.dtype = DType::kFloat16}); }};
  for (const auto& hook : hooks) {
    SCOPED_TRACE(hook()->name());
    for (const bool late : {false, true}) {
      StrategyOptions options;
      options.make_bucket_hook = hook;
      if (late) {
        options.first_bucket_bytes = 300;
        options.communication.bytes_per_pack = 300;
        options.make_stream = LateStreams(8);
      }
      if (GetParam().parameter_server) {
        ExpectRefused(options, "make_bucket_hook");
        continue;
      }
      RunJob(options, [&](int, Strategy& strategy) -> Status {
        const Trained trained = TrainWith(strategy, dataset, Momentum(), 2, IntegerStep());
        EXPECT_TRUE(trained == expected);
        return {};
      });
    }
  }
}

TEST_P(StrategyConformance, EqualsPlainLoopsWithVirtualShards) {
  for (const int shards : {8, 16}) {
    StrategyOptions options;
    options.virtual_shards = shards;
    if (GetParam().parameter_server || shards % num_replicas() != 0) {
      ExpectRefused(options, "virtual");
      continue;
    }
    for (const Case& c : {Case{61, 16}, Case{61, 17}, Case{52, 19}}) {
      const data::Dataset dataset = IntegerData(c.examples, c.global_batch);
      for (const bool by_tokens : {false, true}) {
        const Trained expected = TrainOnOneThread(dataset, *Momentum(), 2, by_tokens);
        RunJob(options, [&](int, Strategy& strategy) -> Status {
          const Trained trained =
              TrainWith(strategy, dataset, Momentum(), 2, IntegerStep(by_tokens));
          EXPECT_TRUE(trained == expected);
          return {};
        });
      }
    }
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
    COHORT_RETURN_IF_ERROR(strategy.PullState());
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
