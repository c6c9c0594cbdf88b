// Hooks: what becomes of a bucket between processes, which are threads here. That the plumbing is
// exact, with hooks and without, is shown by tests/conformance/strategy_conformance.cc.
#include <cohort/strategies/bucket_hook.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <cohort/comm/local.h>
#include <cohort/core/random.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/synchronous.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/run_ranks.h"

namespace cohort {
namespace {

using testing::ExpectAllOk;
using ::testing::HasSubstr;
using testing::RunRanks;
using MakeHook = std::function<std::unique_ptr<BucketHook>()>;
// Of element i of `parameter` on `replica` in `step`.
using GradientFn = std::function<float(int parameter, int replica, std::int64_t step, std::size_t)>;

struct Experiment {
  int processes = 2;
  int replicas = 1;  // of each
  std::vector<Shape> shapes;
  std::int64_t steps = 1;
  std::int64_t bucket_bytes = 1 << 20;
  std::vector<double> weights{1};  // of each replica, in step 1, 2, ... and again
  LossScale loss_scale = LossScale::kSum;

  double weight(std::int64_t step) const {
    return weights[static_cast<std::size_t>(step - 1) % weights.size()];
  }
};

// The sum over the steps of what gradients became, all parameters one after the other: with a
// learning rate of 1 that is what was subtracted. The same on all processes.
std::vector<float> SumOfUpdates(const Experiment& experiment, const MakeHook& hook,
                                const GradientFn& gradient) {
  auto communicators = MakeLocalCommunicators(experiment.processes);
  std::vector<std::vector<float>> results(static_cast<std::size_t>(experiment.processes));
  ExpectAllOk(RunRanks(experiment.processes, [&](int process) -> Status {
    StrategyOptions options;
    options.num_devices = experiment.replicas;
    options.loss_scale = experiment.loss_scale;
    options.first_bucket_bytes = experiment.bucket_bytes;
    options.communication.bytes_per_pack = experiment.bucket_bytes;
    options.make_bucket_hook = hook;
    SynchronousParts parts;
    parts.communicator = std::move(communicators[static_cast<std::size_t>(process)]);
    COHORT_ASSIGN_OR_RETURN(const auto strategy,
                            MakeSynchronousStrategy(std::move(parts), options));
    ParameterSet parameters;
    for (std::size_t p = 0; p < experiment.shapes.size(); ++p) {
      parameters.Add("p" + std::to_string(p), experiment.shapes[p], nullptr);
    }
    parameters.Build();
    COHORT_RETURN_IF_ERROR(strategy->Bind(parameters, Sgd({.learning_rate = 1})));
    DistributedBatch batch;
    batch.replicas.assign(static_cast<std::size_t>(experiment.replicas),
                          {.size = 1, .features = {}});
    for (std::int64_t step = 1; step <= experiment.steps; ++step) {
      const auto result = strategy->Step(batch, [&](ReplicaContext& context, const data::Batch&) {
        context.gradients.SetWeight(experiment.weight(step));
        const float seed = context.gradients.loss_seed();
        for (int p = context.parameters.size() - 1; p >= 0; --p) {
          const std::span<float> to = context.gradients.Accumulator(p);
          for (std::size_t i = 0; i < to.size(); ++i) {
            to[i] = seed * gradient(p, context.replica, step, i);
          }
          context.gradients.Ready(p);
        }
        return Result<ReplicaResult>({.loss_sum = 0, .weight = experiment.weight(step)});
      });
      COHORT_RETURN_IF_ERROR(result.status());
    }
    auto& mine = results[static_cast<std::size_t>(process)];
    for (int p = 0; p < parameters.size(); ++p) {
      for (const float value : parameters.value(p)) {
        mine.push_back(-value);
      }
    }
    return strategy->Shutdown();
  }));
  for (const std::vector<float>& result : results) {
    EXPECT_TRUE(std::ranges::equal(std::as_bytes(std::span(result)),
                                   std::as_bytes(std::span(results.front()))));
  }
  return results.front();
}

float Random(int parameter, int replica, std::int64_t step, std::size_t i) {
  return Philox(7, "gradient/" + std::to_string(parameter * 100 + replica))
             .Uniform(i, static_cast<std::uint64_t>(step)) -
         0.5F;
}

// What SumOfUpdates is without any loss, in double.
std::vector<double> Exact(const Experiment& e, const GradientFn& gradient) {
  std::vector<double> sums;
  for (std::size_t p = 0; p < e.shapes.size(); ++p) {
    for (std::int64_t i = 0; i < e.shapes[p].elements(); ++i) {
      double sum = 0;
      for (std::int64_t step = 1; step <= e.steps; ++step) {
        for (int r = 0; r < e.processes * e.replicas; ++r) {
          sum += gradient(static_cast<int>(p), r, step, static_cast<std::size_t>(i));
        }
      }
      sums.push_back(sum);
    }
  }
  return sums;
}

double LargestError(const std::vector<float>& got, const std::vector<double>& expected) {
  double error = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    error = std::max(error, std::abs(static_cast<double>(got.at(i)) - expected[i]));
  }
  return error;
}

double Norm(const std::vector<double>& values) {
  double squares = 0;
  for (const double value : values) {
    squares += value * value;
  }
  return std::sqrt(squares);
}

TEST(Compression, ErrsByNoMoreThanARoundingOfEachProcessesPart) {
  for (const int processes : {2, 3, 4}) {
    SCOPED_TRACE(processes);
    const Experiment e{
        .processes = processes, .shapes = {{40, 30}, {30}, {7}}, .bucket_bytes = 256};
    const std::vector<double> exact = Exact(e, Random);
    // Parts are below 0.5, sums below 2: half a unit in the last place of 8 (11) bits for each
    // part, and for each rounded sum where there are more than two processes.
    const double roundings = processes == 2 ? 2 * 0.25 : processes * 0.25 + (processes - 1) * 1.0;
    const auto bf16 = SumOfUpdates(
        e, [] { return MakeCompressionHook({.dtype = DType::kBFloat16}); }, Random);
    EXPECT_LE(LargestError(bf16, exact), roundings / 256);
    EXPECT_GT(LargestError(bf16, exact), 0);
    const auto fp16 = SumOfUpdates(
        e, [] { return MakeCompressionHook({.dtype = DType::kFloat16}); }, Random);
    EXPECT_LE(LargestError(fp16, exact), roundings / 2048 + 1e-6);
  }
}

TEST(Compression, ErrorFeedbackMakesTheLongRunSumRight) {
  const std::pair<DType, double> types[] = {{DType::kBFloat16, 1.0 / 128},
                                            {DType::kFloat16, 1.0 / 1024}};
  for (const auto& [dtype, unit] : types) {  // the unit in the last place of 1
    SCOPED_TRACE(DTypeName(dtype));
    // One and three eighths of a unit more than 1: both are 1 in that type.
    const GradientFn constant = [unit = unit](int, int replica, std::int64_t, std::size_t) {
      return 1.0F + static_cast<float>(unit) * static_cast<float>(1 + 2 * replica) / 8;
    };
    const Experiment e{.processes = 2, .shapes = {{9}, {5, 4}}, .steps = 64};
    const std::vector<double> exact = Exact(e, constant);
    const auto hook = [dtype = dtype](bool feedback) -> MakeHook {
      return [=] { return MakeCompressionHook({.dtype = dtype, .error_feedback = feedback}); };
    };
    const auto with = SumOfUpdates(e, hook(true), constant);
    EXPECT_LE(LargestError(with, exact), 2 * unit);  // what the last step kept
    const auto without = SumOfUpdates(e, hook(false), constant);
    EXPECT_NEAR(LargestError(without, exact), 64 * unit / 2, 1e-6);
  }
}

TEST(Compression, FeedbackOfALargeBatchDoesNotSwampASmallOne) {
  const GradientFn constant = [](int, int, std::int64_t, std::size_t) { return 1 + 1.0F / 1024; };
  const Experiment e{.processes = 2,
                     .shapes = {{9}},
                     .steps = 64,
                     .weights = {64, 1},
                     .loss_scale = LossScale::kGlobalMean};
  const auto got = SumOfUpdates(
      e, [] { return MakeCompressionHook(); }, constant);
  EXPECT_NEAR(got[0], 64 * (1 + 1.0 / 1024), 1.0 / 64);
}

TEST(Compression, BrokenGradientsShow) {
  const Experiment e{.processes = 2, .shapes = {{4}}, .steps = 1};
  const auto result = SumOfUpdates(
      e, [] { return MakeCompressionHook({.dtype = DType::kFloat16}); },
      [](int, int replica, std::int64_t, std::size_t i) {
        return i == 0 && replica == 1 ? NAN : i == 1 ? 1e6F : 1.0F;
      });
  EXPECT_TRUE(std::isnan(result[0]));
  EXPECT_TRUE(std::isinf(result[1]));  // beyond float16
  EXPECT_EQ(result[2], 2);
  EXPECT_THROW((void)MakeCompressionHook({.dtype = DType::kInt32}), ContractError);
}

TEST(PowerSgd, OfFullRankReproducesTheGradient) {
  for (const int processes : {2, 3}) {
    const Experiment e{.processes = processes,
                       .replicas = 2,
                       .shapes = {{6, 5}, {3, 2, 4}, {17}, {5, 6}},
                       .steps = 4,
                       .bucket_bytes = 128};
    const std::vector<double> exact = Exact(e, Random);
    const auto got = SumOfUpdates(
        e, [] { return MakePowerSgdHook({.rank = 6, .start_step = 1}); }, Random);
    EXPECT_LE(LargestError(got, exact), 1e-4);
  }
}

TEST(PowerSgd, OfTheGradientsOwnRankLosesNothing) {
  // Columns are multiples of one, the same for all replicas: the sum has rank 1.
  const GradientFn outer = [](int, int replica, std::int64_t step, std::size_t i) {
    const auto row = static_cast<float>(i / 30);
    const auto column = static_cast<float>(i % 30);
    return std::sin(row) * std::cos(column) * static_cast<float>(replica + 1) *
           static_cast<float>(step);
  };
  const Experiment e{.processes = 2, .shapes = {{40, 30}}, .steps = 5};
  const auto got = SumOfUpdates(
      e, [] { return MakePowerSgdHook({.rank = 1, .start_step = 1}); }, outer);
  EXPECT_LE(LargestError(got, Exact(e, outer)), 1e-3);
}

TEST(PowerSgd, BeginsAtItsStartStep) {
  Experiment e{.processes = 2, .shapes = {{40, 30}}, .steps = 4};
  const MakeHook from_step_five = [] { return MakePowerSgdHook({.rank = 1, .start_step = 5}); };
  EXPECT_LE(LargestError(SumOfUpdates(e, from_step_five, Random), Exact(e, Random)), 1e-5);
  e.steps = 5;
  EXPECT_GT(LargestError(SumOfUpdates(e, from_step_five, Random), Exact(e, Random)), 0.1);
}

TEST(PowerSgd, ErrorFeedbackMakesTheLongRunSumRight) {
  // The same gradient of rank 2 in every step, through rank 1.
  const GradientFn constant = [](int, int, std::int64_t, std::size_t i) {
    const auto row = static_cast<float>(i / 20);
    const auto column = static_cast<float>(i % 20);
    return std::sin(row) * std::cos(column) + 0.8F * std::cos(2 * row) * std::sin(3 * column);
  };
  const auto relative = [&](std::int64_t steps, bool feedback) {
    const Experiment e{.processes = 2, .shapes = {{30, 20}}, .steps = steps};
    const std::vector<double> exact = Exact(e, constant);
    const std::vector<float> got = SumOfUpdates(
        e,
        [&] { return MakePowerSgdHook({.rank = 1, .start_step = 1, .error_feedback = feedback}); },
        constant);
    std::vector<double> error;
    for (std::size_t i = 0; i < exact.size(); ++i) {
      error.push_back(static_cast<double>(got[i]) - exact[i]);
    }
    return Norm(error) / Norm(exact);
  };
  EXPECT_GT(relative(64, false), 0.3);
  EXPECT_LT(relative(64, true), 0.1);
  EXPECT_LT(relative(256, true), relative(64, true) / 2);
}

// Each step begins with the factor that the last one ended with: a gradient that stays the same is
// met better from step to step, and at last as well as any matrix of that rank can.
TEST(PowerSgd, BeginsWithTheLastStepsFactor) {
  constexpr std::int64_t kColumns = 20;
  // Rank 2: two blocks that share no row and no column, one a quarter as large as the other.
  const GradientFn blocks = [](int, int, std::int64_t, std::size_t i) {
    const auto row = static_cast<std::int64_t>(i) / kColumns;
    const auto column = static_cast<std::int64_t>(i) % kColumns;
    return row % 2 != column % 2 ? 0.0F : row % 2 == 0 ? 1.0F : 0.25F;
  };
  const double best = 0.25 / std::sqrt(1.0625);  // all of the smaller block, of both
  for (const std::uint64_t seed : {1, 2, 3}) {
    SCOPED_TRACE(seed);
    const auto updates = [&](std::int64_t steps) {
      const Experiment e{.processes = 2, .shapes = {{30, kColumns}}, .steps = steps};
      return SumOfUpdates(
          e,
          [&] {
            return MakePowerSgdHook(
                {.rank = 1, .start_step = 1, .error_feedback = false, .seed = seed});
          },
          blocks);
    };
    const std::vector<double> exact =
        Exact({.processes = 2, .shapes = {{30, kColumns}}, .steps = 1}, blocks);
    // Of one step's update: what it added to the one before.
    const auto error_of = [&](std::int64_t step) {
      std::vector<float> before(exact.size());
      if (step > 1) {
        before = updates(step - 1);
      }
      const std::vector<float> after = updates(step);
      std::vector<double> error;
      for (std::size_t i = 0; i < exact.size(); ++i) {
        error.push_back(static_cast<double>(after[i]) - before[i] - exact[i]);
      }
      return Norm(error) / Norm(exact);
    };
    const double first = error_of(1);
    const double fifth = error_of(5);
    EXPECT_GE(first, best - 1e-3);
    EXPECT_LT(fifth, first);
    EXPECT_NEAR(fifth, best, 1e-3);
  }
}

TEST(PowerSgd, BrokenGradientsShow) {
  const Experiment e{.processes = 2, .shapes = {{40, 30}}, .steps = 2};
  const auto got = SumOfUpdates(
      e, [] { return MakePowerSgdHook({.rank = 2, .start_step = 1}); },
      [](int p, int replica, std::int64_t step, std::size_t i) {
        return i == 5 && replica == 0 ? NAN : Random(p, replica, step, i);
      });
  EXPECT_TRUE(std::ranges::any_of(got, [](float value) { return std::isnan(value); }));
}

// All-reduces, and keeps what it was given.
class Recorder final : public BucketHook {
 public:
  struct Seen {
    std::mutex mutex;
    std::vector<std::string> lines;
  };
  explicit Recorder(Seen& seen) : seen_(seen) {}
  std::string name() const override { return "recorder"; }
  Status Bind(const ParameterSet&, Communicator&) override { return {}; }
  Communicator::Pending Launch(const GradientBucket& bucket) override {
    if (bucket.communicator.rank() == 0) {
      std::string line = std::to_string(bucket.step) + ":" + std::to_string(bucket.index) +
                         " weight " + std::to_string(static_cast<int>(bucket.weight));
      for (const BucketPart& part : bucket.parts) {
        line += " p" + std::to_string(part.parameter) + "@" + std::to_string(part.begin);
      }
      const std::lock_guard lock(seen_.mutex);
      seen_.lines.push_back(line + " of " + std::to_string(bucket.values.size()));
    }
    return AllReduceBucket(bucket);
  }

 private:
  Seen& seen_;
};

TEST(Hook, SeesEveryBucketInOrderWithoutTheHeader) {
  Recorder::Seen seen;
  const Experiment e{.processes = 2,
                     .replicas = 2,
                     .shapes = {{16}, {20}, {32}},
                     .steps = 2,
                     .bucket_bytes = 200,
                     .weights = {3},
                     .loss_scale = LossScale::kGlobalMean};
  const GradientFn integers = [](int p, int replica, std::int64_t, std::size_t i) {
    return static_cast<float>(p + replica) + static_cast<float>(i % 5);
  };
  const auto got = SumOfUpdates(
      e, [&] { return std::make_unique<Recorder>(seen); }, integers);
  std::vector<double> mean = Exact(e, integers);
  for (double& value : mean) {
    value /= 4;  // replicas
  }
  EXPECT_LE(LargestError(got, mean), 1e-5);
  EXPECT_THAT(seen.lines,
              ::testing::ElementsAre("1:0 weight 6 p2@0 of 32", "1:1 weight 6 p1@0 p0@32 of 48",
                                     "2:0 weight 6 p2@0 of 32", "2:1 weight 6 p1@0 p0@32 of 48"));
}

class Thrower final : public BucketHook {
 public:
  explicit Thrower(int bucket) : bucket_(bucket) {}

  std::string name() const override { return "thrower"; }
  Status Bind(const ParameterSet&, Communicator&) override { return {}; }
  Communicator::Pending Launch(const GradientBucket& bucket) override {
    if (bucket.index == bucket_) {
      throw std::runtime_error("it breaks");
    }
    return AllReduceBucket(bucket);
  }

 private:
  const int bucket_;
};

// The step function must not have the last word: the step is no step.
TEST(Hook, WhoseExceptionTheStepFunctionTakesEndsTheStep) {
  constexpr int kParameters = 3;
  for (int bucket = 0; bucket < kParameters; ++bucket) {
    auto communicators = MakeLocalCommunicators(2);
    const auto statuses = RunRanks(2, [&](int process) -> Status {
      StrategyOptions options;
      options.first_bucket_bytes = 4;
      options.communication.bytes_per_pack = 4;
      options.make_bucket_hook = [bucket] { return std::make_unique<Thrower>(bucket); };
      SynchronousParts parts;
      parts.communicator = std::move(communicators[static_cast<std::size_t>(process)]);
      COHORT_ASSIGN_OR_RETURN(const auto strategy,
                              MakeSynchronousStrategy(std::move(parts), options));
      ParameterSet parameters;
      for (int p = 0; p < kParameters; ++p) {
        parameters.Add("p" + std::to_string(p), {4}, nullptr);
      }
      parameters.Build();
      COHORT_RETURN_IF_ERROR(strategy->Bind(parameters, Sgd({})));
      DistributedBatch batch;
      batch.replicas.assign(1, {.size = 1, .features = {}});
      int thrown = 0;
      const auto result = strategy->Step(batch, [&](ReplicaContext& context, const data::Batch&) {
        for (int p = context.parameters.size() - 1; p >= 0; --p) {
          try {
            context.gradients.Ready(p);
          } catch (const std::runtime_error&) {
            ++thrown;
          }
        }
        return Result<ReplicaResult>({.loss_sum = 0, .weight = 1});
      });
      EXPECT_EQ(thrown, 1);
      EXPECT_EQ(strategy->step(), 0);
      return result.status();
    });
    for (const Status& status : statuses) {
      EXPECT_EQ(status.code(), StatusCode::kInternal) << status.ToString();
      EXPECT_THAT(status.message(), HasSubstr("bucket " + std::to_string(bucket) + " ("));
    }
  }
}

// Ends between its answer to who has waited for long enough and the next question.
class EndsAtTheDeadline final : public Work {
 public:
  explicit EndsAtTheDeadline(Status outcome) : outcome_(std::move(outcome)) {}
  bool done() const override { return done_; }
  Status Wait(Deadline /*deadline*/) override {
    done_ = true;
    return DeadlineExceeded("still under way");
  }
  Status Wait() override {
    done_ = true;
    return outcome_;
  }
  void Order(Stream& /*stream*/) override {}

 private:
  const Status outcome_;
  bool done_ = false;
};

TEST(Then, WhatEndsAsTheDeadlineComesEndsAsItDid) {
  int runs = 0;
  const auto after = [&](const Status& outcome) {
    const auto work = Then(std::make_unique<EndsAtTheDeadline>(outcome), [&runs]() -> Status {
      ++runs;
      return {};
    });
    const Status status = work->Wait(DeadlineAfter(std::chrono::milliseconds(1)));
    EXPECT_EQ(work->Wait(), status) << "it has one outcome";
    return status;
  };
  EXPECT_EQ(after(OkStatus()), OkStatus());
  EXPECT_EQ(runs, 1);
  EXPECT_EQ(after(Unavailable("gone")), Unavailable("gone"));
  EXPECT_EQ(runs, 1);
}

TEST(Hook, ThatDiffersBetweenProcessesIsNamed) {
  auto communicators = MakeLocalCommunicators(2);
  const auto statuses = RunRanks(2, [&](int process) -> Status {
    StrategyOptions options;
    options.make_bucket_hook = [process] { return MakePowerSgdHook({.rank = 2 + process}); };
    SynchronousParts parts;
    parts.communicator = std::move(communicators[static_cast<std::size_t>(process)]);
    COHORT_ASSIGN_OR_RETURN(const auto strategy,
                            MakeSynchronousStrategy(std::move(parts), options));
    ParameterSet parameters;
    parameters.Add("p", {3}, nullptr);
    parameters.Build();
    return strategy->Bind(parameters, Sgd({}));
  });
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(status.message(), HasSubstr("PowerSGD of rank 2"));
    EXPECT_THAT(status.message(), HasSubstr("PowerSGD of rank 3"));
  }
}

}  // namespace
}  // namespace cohort
