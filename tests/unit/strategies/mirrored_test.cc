// Synchronous strategies of one process: the step's contract. That the numbers are right is shown
// by tests/conformance/strategy_conformance.cc.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>

#include <cohort/optim/optimizers.h>
#include <cohort/strategies/synchronous.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/integer_model.h"
#include "testing/late_stream.h"

namespace cohort {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::IntegerData;
using testing::IntegerParameters;
using testing::IntegerStep;

std::unique_ptr<Strategy> Make(int replicas, StrategyOptions options = {}) {
  options.num_devices = replicas;
  return OrThrow(MakeSynchronousStrategy({}, std::move(options)));
}

std::unique_ptr<Optimizer> PlainSgd() { return Sgd({.learning_rate = 0.5}); }

// A model of parameters with these sizes, all 1.
ParameterSet Ones(const std::vector<std::int64_t>& sizes) {
  ParameterSet parameters;
  for (std::size_t p = 0; p < sizes.size(); ++p) {
    parameters.Add("p" + std::to_string(p), {sizes[p]}, [](std::uint64_t) { return 1.0F; });
  }
  parameters.Build();
  return parameters;
}

// One part per replica, of these sizes and without features.
DistributedBatch Parts(const std::vector<std::int64_t>& sizes) {
  DistributedBatch batch;
  for (const std::int64_t size : sizes) {
    batch.replicas.push_back({.size = size, .features = {}});
  }
  return batch;
}

ReplicaResult Score(const data::Batch& batch, double mean_loss,
                    std::vector<double> mean_metrics = {}) {
  ReplicaResult result;
  result.weight = static_cast<double>(batch.size);
  result.loss_sum = mean_loss * result.weight;
  for (const double metric : mean_metrics) {
    result.metric_sums.push_back(metric * result.weight);
  }
  return result;
}

// A mean gradient of `value(replica)` for every element of every parameter.
StepFn ConstantGradient(std::function<float(int replica)> value) {
  return [value = std::move(value)](ReplicaContext& context,
                                    const data::Batch& batch) -> Result<ReplicaResult> {
    for (int p = 0; p < context.parameters.size(); ++p) {
      for (float& g : context.gradients.Accumulator(p)) {
        g += context.gradients.loss_seed() * value(context.replica);
      }
      context.gradients.Ready(p);
    }
    return Score(batch, context.replica);
  };
}

// What became of ones after one step of plain SGD with rate 0.5: the gradient that was applied.
float Applied(const ParameterSet& parameters) {
  EXPECT_EQ(std::set<float>(parameters.value(0).begin(), parameters.value(0).end()).size(), 1U);
  return (1.0F - parameters.value(0)[0]) / 0.5F;
}

TEST(LossScale, GlobalMeanWeighsByExamples) {
  auto parameters = Ones({3});
  const auto strategy = Make(3);
  OrThrow(strategy->Bind(parameters, PlainSgd()));
  const StepResult result =
      OrThrow(strategy->Step(Parts({5, 2, 1}), ConstantGradient([](int r) { return r + 1.0F; })));
  EXPECT_FLOAT_EQ(Applied(parameters), (5 * 1 + 2 * 2 + 1 * 3) / 8.0F);
  EXPECT_EQ(result.weight, 8);
  EXPECT_DOUBLE_EQ(result.loss, (5 * 0 + 2 * 1 + 1 * 2) / 8.0);
  EXPECT_EQ(result.step, 1);
}

TEST(LossScale, ReplicaMeanCountsEveryReplicaOnce) {
  auto parameters = Ones({3});
  const auto strategy = Make(4, {.loss_scale = LossScale::kReplicaMean});
  OrThrow(strategy->Bind(parameters, PlainSgd()));
  OrThrow(strategy->Step(Parts({5, 2, 1, 0}), ConstantGradient([](int r) { return r + 1.0F; })));
  EXPECT_FLOAT_EQ(Applied(parameters), (1 + 2 + 3 + 0) / 4.0F);
}

TEST(LossScale, SumLeavesScalingToTheProgram) {
  auto parameters = Ones({3});
  const auto strategy = Make(3, {.loss_scale = LossScale::kSum});
  OrThrow(strategy->Bind(parameters, PlainSgd()));
  OrThrow(strategy->Step(Parts({5, 2, 0}), ConstantGradient([](int) { return 0.25F; })));
  EXPECT_FLOAT_EQ(Applied(parameters), 0.5F);
}

TEST(Step, TellsEachReplicaItsPlace) {
  auto parameters = Ones({1});
  const auto strategy = Make(3, {.intra_op_threads = 2});
  OrThrow(strategy->Bind(parameters, PlainSgd()));
  OrThrow(strategy->SetStep(40));
  std::mutex mutex;
  std::vector<int> replicas;
  std::set<std::thread::id> threads;
  OrThrow(strategy->Step(Parts({1, 1, 1}), [&](ReplicaContext& context, const data::Batch& batch) {
    const std::lock_guard lock(mutex);
    replicas.push_back(context.replica);
    threads.insert(std::this_thread::get_id());
    EXPECT_EQ(context.num_replicas, 3);
    EXPECT_EQ(context.step, 41);
    EXPECT_EQ(context.intra_op_threads, 2);
    EXPECT_EQ(&context.parameters, &parameters);
    context.gradients.Ready(0);
    return Result<ReplicaResult>(Score(batch, 0));
  }));
  EXPECT_THAT(replicas, ::testing::UnorderedElementsAre(0, 1, 2));
  EXPECT_EQ(threads.size(), 3U);
  EXPECT_EQ(strategy->step(), 41);
}

TEST(Step, PartsWithoutExamplesAreNotRun) {
  auto parameters = Ones({1});
  const auto strategy = Make(2);
  OrThrow(strategy->Bind(parameters, PlainSgd()));
  std::atomic<int> calls = 0;
  OrThrow(strategy->Step(Parts({4, 0}), [&](ReplicaContext& context, const data::Batch& batch) {
    ++calls;
    context.gradients.Ready(0);
    return Result<ReplicaResult>(Score(batch, 0));
  }));
  EXPECT_EQ(calls, 1);
}

TEST(Step, WeightZeroUpdatesNothing) {
  auto parameters = Ones({4});
  const auto strategy = Make(2);
  OrThrow(strategy->Bind(parameters, Sgd({.learning_rate = 0.5, .l2 = 0.5})));
  StepResult result =
      OrThrow(strategy->Step(Parts({0, 0}), ConstantGradient([](int) { return 1.0F; })));
  EXPECT_EQ(result.weight, 0);
  EXPECT_EQ(result.loss, 0);
  EXPECT_EQ(strategy->step(), 0);
  // The same where examples are there, but weigh nothing.
  result = OrThrow(strategy->Step(
      Parts({3, 3}), [](ReplicaContext& context, const data::Batch&) -> Result<ReplicaResult> {
        context.gradients.SetWeight(0);
        std::ranges::fill(context.gradients.Accumulator(0), NAN);
        context.gradients.Ready(0);
        return ReplicaResult{.loss_sum = NAN};
      }));
  EXPECT_EQ(result.weight, 0);
  EXPECT_EQ(strategy->step(), 0);
  EXPECT_EQ(Applied(parameters), 0);
}

TEST(Step, MetricsAreWeightedMeans) {
  auto parameters = Ones({1});
  const auto strategy = Make(2);
  OrThrow(strategy->Bind(parameters, PlainSgd()));
  const StepResult result = OrThrow(strategy->Step(
      Parts({3, 1}),
      [](ReplicaContext& context, const data::Batch& batch) -> Result<ReplicaResult> {
        context.gradients.Ready(0);
        return Score(batch, 0, {1.0 * context.replica, 8.0});
      }));
  EXPECT_THAT(result.metrics, ElementsAre(0.25, 8));
}

TEST(Step, ReplicasMustReturnAsManyMetrics) {
  auto parameters = Ones({1});
  const auto strategy = Make(2);
  OrThrow(strategy->Bind(parameters, PlainSgd()));
  const auto result = strategy->Step(
      Parts({1, 1}),
      [](ReplicaContext& context, const data::Batch& batch) -> Result<ReplicaResult> {
        context.gradients.Ready(0);
        return Score(batch, 0, std::vector<double>(static_cast<std::size_t>(context.replica)));
      });
  EXPECT_EQ(result.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(result.status().message(), HasSubstr("metric"));
}

TEST(Gradients, AccumulatorsAreZeroInEveryPass) {
  auto parameters = Ones({5, 7});
  const auto strategy = Make(2);
  OrThrow(strategy->Bind(parameters, PlainSgd()));
  for (int step = 0; step < 3; ++step) {
    OrThrow(strategy->Step(Parts({1, 1}), [](ReplicaContext& context, const data::Batch& batch) {
      for (int p = 0; p < 2; ++p) {
        const auto gradient = context.gradients.Accumulator(p);
        EXPECT_TRUE(std::all_of(gradient.begin(), gradient.end(), [](float g) { return g == 0; }));
        std::ranges::fill(gradient, 3.0F);
        EXPECT_EQ(context.gradients.Accumulator(p)[0], 3.0F);  // the second time as it was left
        context.gradients.Ready(p);
      }
      return Result<ReplicaResult>(Score(batch, 0));
    }));
  }
}

TEST(Gradients, OfUnusedParametersAreZeroAndSaidOnce) {
  std::vector<std::string> warnings;
  StrategyOptions options;
  options.log = Log([&](LogLevel level, std::string_view message) {
    if (level == LogLevel::kWarning) {
      warnings.emplace_back(message);
    }
  });
  auto parameters = Ones({4, 4, 4});
  const auto strategy = Make(2, options);
  OrThrow(strategy->Bind(parameters, PlainSgd()));
  for (int step = 0; step < 2; ++step) {
    OrThrow(strategy->Step(Parts({1, 1}), [](ReplicaContext& context, const data::Batch& batch) {
      std::ranges::fill(context.gradients.Accumulator(0), 1.0F);
      std::ranges::fill(context.gradients.Accumulator(2), 1.0F);
      context.gradients.Ready(0);  // 1 is not used, 2 is written and forgotten
      return Result<ReplicaResult>(Score(batch, 0));
    }));
  }
  EXPECT_EQ(parameters.value(0)[0], 0.0F);
  EXPECT_EQ(parameters.value(1)[0], 1.0F);
  EXPECT_EQ(parameters.value(2)[0], 0.0F);
  ASSERT_EQ(warnings.size(), 1U);
  EXPECT_THAT(warnings[0], HasSubstr("'p1'"));
  EXPECT_THAT(warnings[0], HasSubstr("'p2'"));
}

// What a step function did wrong on one replica, as the caller of Step sees it.
std::string Breach(const std::function<void(ReplicaContext&)>& wrong, int replicas = 2) {
  ParameterSet parameters;
  parameters.Add("kernel", {4}, nullptr);
  parameters.Add("average", {4}, nullptr, /*trainable=*/false);
  parameters.Build();
  const auto strategy = Make(replicas);
  OrThrow(strategy->Bind(parameters, PlainSgd()));
  try {
    (void)strategy->Step(Parts(std::vector<std::int64_t>(static_cast<std::size_t>(replicas), 1)),
                         [&](ReplicaContext& context, const data::Batch& batch) {
                           if (context.replica == replicas - 1) {
                             wrong(context);
                           }
                           return Result<ReplicaResult>(Score(batch, 0));
                         });
  } catch (const ContractError& error) {
    // The strategy is as good as before.
    EXPECT_EQ(strategy->step(), 0);
    OrThrow(strategy->Step(Parts(std::vector<std::int64_t>(static_cast<std::size_t>(replicas), 1)),
                           [&](ReplicaContext& context, const data::Batch& batch) {
                             context.gradients.Ready(0);
                             return Result<ReplicaResult>(Score(batch, 0));
                           }));
    EXPECT_EQ(strategy->step(), 1);
    return error.what();
  }
  return "no ContractError";
}

TEST(Gradients, BreachesOfTheSinksContractNameTheParameter) {
  EXPECT_THAT(Breach([](ReplicaContext& c) {
                c.gradients.Ready(0);
                c.gradients.Ready(0);
              }),
              HasSubstr("'kernel'"));
  EXPECT_THAT(Breach([](ReplicaContext& c) {
                c.gradients.Ready(0);
                c.gradients.Accumulator(0);
              }),
              HasSubstr("'kernel'"));
  EXPECT_THAT(Breach([](ReplicaContext& c) { c.gradients.Ready(1); }), HasSubstr("'average'"));
  EXPECT_THAT(Breach([](ReplicaContext& c) { c.gradients.Ready(2); }), HasSubstr("index"));
  EXPECT_THAT(Breach([](ReplicaContext& c) { c.gradients.Ready(-1); }), HasSubstr("index"));
}

TEST(Gradients, TheWeightIsFixedOnceItWasUsed) {
  EXPECT_THAT(Breach([](ReplicaContext& c) {
                (void)c.gradients.loss_seed();
                c.gradients.SetWeight(3);
              }),
              HasSubstr("SetWeight"));
  EXPECT_THAT(Breach([](ReplicaContext& c) { c.gradients.SetWeight(-1); }), HasSubstr("SetWeight"));
  EXPECT_THAT(Breach([](ReplicaContext& c) { c.gradients.SetWeight(NAN); }),
              HasSubstr("SetWeight"));
  // The step function returns 1 example; its gradients were scaled for 7.
  EXPECT_THAT(Breach([](ReplicaContext& c) { c.gradients.SetWeight(7); }), HasSubstr("SetWeight"));
}

TEST(Gradients, RowsOutOfRangeFailTheStepAndNameTheParameter) {
  ParameterSet parameters;
  parameters.Add("table", {4, 2}, nullptr);
  parameters.Build();
  const auto strategy = Make(2, {.make_stream = testing::LateStreams(3)});
  OrThrow(strategy->Bind(parameters, PlainSgd()));
  const std::vector<std::int64_t> indices{1, 4};
  const std::vector<float> values(4, 1.0F);
  const auto result =
      strategy->Step(Parts({1, 1}), [&](ReplicaContext& context, const data::Batch& batch) {
        context.gradients.AddSlices(0, {.indices = indices, .values = values});
        context.gradients.Ready(0);
        return Result<ReplicaResult>(Score(batch, 0));
      });
  EXPECT_EQ(result.status().code(), StatusCode::kOutOfRange);
  EXPECT_THAT(result.status().message(), HasSubstr("'table'"));
  EXPECT_THAT(result.status().message(), HasSubstr("row 4 of 4"));
  EXPECT_EQ(parameters.value(0)[2], 0);
}

TEST(Step, AnErrorGivesTheStepUp) {
  auto parameters = Ones({4});
  const auto strategy = Make(3);
  OrThrow(strategy->Bind(parameters, PlainSgd()));
  const auto result = strategy->Step(
      Parts({1, 1, 1}),
      [](ReplicaContext& context, const data::Batch& batch) -> Result<ReplicaResult> {
        std::ranges::fill(context.gradients.Accumulator(0), 1.0F);
        context.gradients.Ready(0);
        if (context.replica == 1) {
          return DataLoss("image 17 is torn");
        }
        return Score(batch, 0);
      });
  EXPECT_EQ(result.status().code(), StatusCode::kDataLoss);
  EXPECT_EQ(result.status().message(), "replica 1: image 17 is torn");
  EXPECT_EQ(Applied(parameters), 0);
  EXPECT_EQ(strategy->step(), 0);
  OrThrow(strategy->Step(Parts({1, 1, 1}), ConstantGradient([](int) { return 1.0F; })));
  EXPECT_EQ(Applied(parameters), 1);
}

TEST(Step, AnExceptionArrivesOnTheCallersThread) {
  auto parameters = Ones({4});
  const auto strategy = Make(2);
  OrThrow(strategy->Bind(parameters, PlainSgd()));
  for (const int culprit : {0, 1}) {
    EXPECT_THROW((void)strategy->Step(Parts({1, 1}),
                                      [&](ReplicaContext& context,
                                          const data::Batch& batch) -> Result<ReplicaResult> {
                                        if (context.replica == culprit) {
                                          throw std::out_of_range("at()");
                                        }
                                        return Score(batch, 0);
                                      }),
                 std::out_of_range);
  }
  // One that carries a status is that status.
  const auto result = strategy->Step(
      Parts({1, 1}), [](ReplicaContext&, const data::Batch&) -> Result<ReplicaResult> {
        OrThrow(NotFound("no such file"));
        return ReplicaResult{};
      });
  EXPECT_EQ(result.status().code(), StatusCode::kNotFound);
}

TEST(Step, MisuseIsABreachOfContract) {
  auto parameters = Ones({4});
  const auto strategy = Make(2);
  const StepFn fn = ConstantGradient([](int) { return 1.0F; });
  EXPECT_THROW((void)strategy->Step(Parts({1, 1}), fn), ContractError);  // before Bind
  OrThrow(strategy->Bind(parameters, PlainSgd()));
  EXPECT_THROW((void)strategy->Step(Parts({1}), fn), ContractError);
  EXPECT_THROW((void)strategy->Bind(parameters, PlainSgd()), ContractError);
  EXPECT_THROW((void)strategy->Evaluate(Parts({1, 1}), fn), ContractError);  // uses gradients
  GradientSink* kept = nullptr;
  OrThrow(strategy->Step(Parts({1, 0}), [&](ReplicaContext& context, const data::Batch& batch) {
    kept = &context.gradients;
    context.gradients.Ready(0);
    return Result<ReplicaResult>(Score(batch, 0));
  }));
  EXPECT_THROW(kept->Ready(0), ContractError);  // after the step
}

TEST(Distribute, NamesABatchSmallerThanTheReplicas) {
  const auto strategy = Make(4);
  const auto result = strategy->Distribute(IntegerData(20, 3));
  EXPECT_EQ(result.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(result.status().message(), HasSubstr("3 examples for 4 replicas"));
}

TEST(Distribute, CutsEachBatchAmongReplicasAndResumes) {
  const auto strategy = Make(3);
  const auto dataset = OrThrow(strategy->Distribute(IntegerData(12, 8)));
  OrThrow(dataset->BeginEpoch(0));
  const auto sizes = [](const DistributedBatch& batch) {
    std::vector<std::int64_t> result;
    for (const data::Batch& part : batch.replicas) {
      result.push_back(part.size);
    }
    return result;
  };
  auto batch = OrThrow(dataset->Next());
  ASSERT_TRUE(batch.has_value());
  EXPECT_THAT(sizes(*batch), ElementsAre(3, 3, 2));
  batch = OrThrow(dataset->Next());
  ASSERT_TRUE(batch.has_value());
  EXPECT_THAT(sizes(*batch), ElementsAre(2, 1, 1));
  EXPECT_EQ(batch->index, 1);
  const auto ids = batch->replicas[0]["id"].data<std::int64_t>();
  const std::vector<std::int64_t> last(ids.begin(), ids.end());
  EXPECT_FALSE(OrThrow(dataset->Next()).has_value());

  OrThrow(dataset->BeginEpoch(0, 1));
  batch = OrThrow(dataset->Next());
  ASSERT_TRUE(batch.has_value());
  EXPECT_EQ(batch->index, 1);
  EXPECT_THAT(batch->replicas[0]["id"].data<std::int64_t>(), ::testing::ElementsAreArray(last));
}

TEST(Options, OutOfRangeAreNamed) {
  const auto refused = [](StrategyOptions options) {
    return MakeSynchronousStrategy({}, std::move(options)).status().message();
  };
  EXPECT_THAT(refused({.num_devices = 0}), HasSubstr("num_devices is 0"));
  EXPECT_THAT(refused({.first_bucket_bytes = 0}), HasSubstr("buckets"));
  EXPECT_THAT(refused({.communication = {.bytes_per_pack = -1}}), HasSubstr("buckets"));
  EXPECT_THAT(refused({.intra_op_threads = -2}), HasSubstr("intra_op_threads is -2"));
}

TEST(ReduceAndGather, CombineLocalReplicas) {
  const auto strategy = Make(3);
  PerReplica<Tensor> value;
  for (std::int64_t r = 0; r < 3; ++r) {
    const std::vector<std::int64_t> data{r + 1, -r};
    value.values.push_back(Tensor::Of<std::int64_t>({2}, data));
  }
  const auto reduce = [&](ReduceOp op) {
    const Tensor result = OrThrow(strategy->Reduce(op, value)).value;
    return std::vector<std::int64_t>(result.data<std::int64_t>().begin(),
                                     result.data<std::int64_t>().end());
  };
  EXPECT_THAT(reduce(ReduceOp::kSum), ElementsAre(6, -3));
  EXPECT_THAT(reduce(ReduceOp::kMean), ElementsAre(2, -1));
  EXPECT_THAT(reduce(ReduceOp::kMin), ElementsAre(1, -2));
  EXPECT_THAT(reduce(ReduceOp::kMax), ElementsAre(3, 0));
  EXPECT_THAT(reduce(ReduceOp::kProduct), ElementsAre(6, 0));
  const Tensor gathered = OrThrow(strategy->Gather(value)).value;
  EXPECT_THAT(gathered.data<std::int64_t>(), ElementsAre(1, 0, 2, -1, 3, -2));
  EXPECT_EQ(value.values[0].data<std::int64_t>()[0], 1);  // untouched

  value.values[1] = Tensor(DType::kFloat32, {2});
  EXPECT_EQ(strategy->Reduce(ReduceOp::kSum, value).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(strategy->Gather(value).status().code(), StatusCode::kInvalidArgument);
  value.values.assign(3, Tensor(DType::kFloat32, Shape{}));
  EXPECT_EQ(strategy->Gather(value).status().code(), StatusCode::kInvalidArgument);
  value.values.assign(3, Tensor(DType::kUInt8, {2}));
  EXPECT_EQ(strategy->Reduce(ReduceOp::kSum, value).status().code(), StatusCode::kInvalidArgument);
}

TEST(ReduceGradients, OfOneProcessAreItsOwn) {
  const auto strategy = Make(1);
  std::vector<float> gradient{1, 2, 3};
  const std::span<float> spans[] = {gradient};
  OrThrow(strategy->ReduceGradients(spans, 5));
  EXPECT_THAT(gradient, ElementsAre(1, 2, 3));
  OrThrow(strategy->ReduceGradients(spans, 0));
  EXPECT_THAT(gradient, ElementsAre(0, 0, 0));
  EXPECT_THROW((void)strategy->ReduceGradients(spans, -1), ContractError);
}

TEST(Slots, StartWhereTheOptimizerSays) {
  auto parameters = Ones({3});
  const auto strategy = Make(1);
  OrThrow(strategy->Bind(parameters, Adagrad({.initial_accumulator = 0.25})));
  ASSERT_EQ(strategy->slots().size(), 1U);
  EXPECT_EQ(strategy->slots()[0].size(), parameters.all().size());
  EXPECT_EQ(strategy->slots()[0][1], 0.25F);
  EXPECT_EQ(strategy->optimizer()->name(), "adagrad");
}

TEST(Steps, OfMirroredReplicasAreTheSameBitsInEveryRun) {
  // Real numbers: the order of additions must not depend on which replica is first.
  const auto train = [](std::uint64_t seed) {
    auto parameters = Ones({20'000, 7, 130});
    StrategyOptions options;
    options.make_stream = testing::LateStreams(seed);
    const auto strategy = Make(4, options);
    OrThrow(strategy->Bind(parameters, Adam()));
    for (int step = 0; step < 5; ++step) {
      OrThrow(strategy->Step(
          Parts({3, 3, 2, 2}), [](ReplicaContext& context, const data::Batch& batch) {
            for (int p = 0; p < context.parameters.size(); ++p) {
              const auto gradient = context.gradients.Accumulator(p);
              context.stream.Enqueue([=, replica = context.replica,
                                      value = context.parameters.value(p)]() -> Status {
                for (std::size_t e = 0; e < gradient.size(); ++e) {
                  gradient[e] =
                      std::sin(value[e] * static_cast<float>(replica + 1) + static_cast<float>(e));
                }
                return {};
              });
              context.gradients.Ready(p);
            }
            return Result<ReplicaResult>(Score(batch, 0.1 * context.replica));
          }));
    }
    return std::vector<float>(parameters.all().begin(), parameters.all().end());
  };
  EXPECT_TRUE(train(1) == train(2));
}

}  // namespace
}  // namespace cohort
