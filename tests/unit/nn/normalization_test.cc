#include <cohort/nn/initializers.h>
#include <cohort/nn/layers.h>
#include <cohort/nn/losses.h>
#include <cohort/nn/operations.h>
#include <gmock/gmock.h>

#include <cmath>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "oracles.h"

namespace cohort::nn {
namespace {

using testing::CollectingSink;
using testing::ExpectGradients;
using testing::RandomTensor;

// (x - mean) / sqrt(var + epsilon) over groups of elements that `group` numbers.
template <typename Group>
Doubles Standardise(const Doubles& x, std::size_t groups, double epsilon, const Group& group) {
  Doubles count(groups), mean(groups), variance(groups), y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    count[group(i)] += 1;
    mean[group(i)] += x[i];
  }
  for (std::size_t i = 0; i < x.size(); ++i) {
    variance[group(i)] += std::pow(x[i] - mean[group(i)] / count[group(i)], 2);
  }
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::size_t g = group(i);
    y[i] = (x[i] - mean[g] / count[g]) / std::sqrt(variance[g] / count[g] + epsilon);
  }
  return y;
}

void Randomise(ParameterSet& parameters) {
  for (const int p : {0, 1}) {
    const Tensor values = RandomTensor(parameters[p].shape, 50 + static_cast<std::uint64_t>(p));
    std::copy_n(values.data<float>().begin(), values.elements(), parameters.value(p).begin());
  }
}

TEST(LayerNorm, IsTheFormula) {
  Bench bench;
  const LayerNorm norm(bench.parameters, "n", 13);
  bench.parameters.Build();
  Randomise(bench.parameters);
  const Tensor x = RandomTensor({3, 5, 13}, 1, 4, 6);
  Doubles want = Standardise(AsDoubles(x), 15, 1e-5, [](std::size_t i) { return i / 13; });
  for (std::size_t i = 0; i < want.size(); ++i) {
    want[i] = want[i] * bench.parameters.value(0)[i % 13] + bench.parameters.value(1)[i % 13];
  }
  ExpectNear(bench.Run({x}, [&](Tape&, const auto& in) { return norm(in[0]); }).data<float>(), want,
             2e-5);
}

TEST(LayerNorm, HasTheGradientsOfFiniteDifferences) {
  for (const std::int64_t batch : {0, 1, 6}) {
    ParameterSet parameters;
    const LayerNorm norm(parameters, "n", 7);
    parameters.Build();
    Randomise(parameters);
    ExpectGradients(parameters, {RandomTensor({batch, 7}, 2)},
                    [&](Tape&, const auto& in) { return norm(in[0]); });
  }
}

TEST(BatchNorm, NormalisesByColumnInTraining) {
  Bench bench;
  const BatchNorm norm(bench.parameters, "n", 3);
  bench.parameters.Build();
  Randomise(bench.parameters);
  // A mean far larger than the deviation: squares alone would lose the variance.
  const Tensor x = RandomTensor({200, 2, 3}, 1, 1000, 1001);
  Doubles want = Standardise(AsDoubles(x), 3, 1e-3, [](std::size_t i) { return i % 3; });
  for (std::size_t i = 0; i < want.size(); ++i) {
    want[i] = want[i] * bench.parameters.value(0)[i % 3] + bench.parameters.value(1)[i % 3];
  }
  ExpectNear(
      bench.Run({x}, [&](Tape&, const auto& in) { return norm(in[0]); }, {.intra_op_threads = 2})
          .data<float>(),
      want, 1e-3);
}

TEST(BatchNorm, HasTheGradientsOfFiniteDifferences) {
  for (const std::int64_t batch : {0, 1, 6}) {
    ParameterSet parameters;
    const BatchNorm norm(parameters, "n", 3, {.epsilon = 0.1F});
    parameters.Build();
    Randomise(parameters);
    ExpectGradients(parameters, {RandomTensor({batch, 2, 3}, 2)},
                    [&](Tape&, const auto& in) { return norm(in[0]); });
  }
}

// Relu and what is added are the same as apart, bit by bit; what is added twice gets both
// gradients.
TEST(BatchNorm, AddsAndCutsInOnePass) {
  for (const bool adds : {false, true}) {
    ParameterSet apart_set;
    const BatchNorm apart(apart_set, "n", 3, {.epsilon = 0.1F});
    apart_set.Build();
    Randomise(apart_set);
    ParameterSet fused_set;
    const BatchNorm fused(fused_set, "n", 3, {.epsilon = 0.1F, .activation = Activation::kRelu});
    fused_set.Build();
    Randomise(fused_set);
    const Tensor x = RandomTensor({6, 2, 3}, 2);
    const Tensor added = RandomTensor({6, 2, 3}, 3);
    const auto both = [&](ParameterSet& parameters, const auto& forward) {
      const auto stream = MakeInlineStream();
      Workspace workspace;
      Tape tape(parameters, *stream, workspace);
      const std::vector<Variable> in = {tape.Input(x, true), tape.Input(added, true)};
      const Variable y = forward(in);
      const Variable loss = MeanSquaredError(y, RandomTensor({6, 2, 3}, 4));
      CollectingSink sink(parameters);
      tape.Backward(loss, sink);
      EXPECT_EQ(tape.Finish(), OkStatus());
      return std::vector<Tensor>{y.tensor(), tape.Gradient(in[0]), tape.Gradient(in[1])};
    };
    const auto want = both(apart_set, [&](const auto& in) {
      return adds ? Add(Relu(Add(apart(in[0]), in[1])), in[1]) : Add(Relu(apart(in[0])), in[1]);
    });
    const auto got = both(fused_set, [&](const auto& in) {
      return adds ? Add(fused(in[0], in[1]), in[1]) : Add(fused(in[0]), in[1]);
    });
    for (std::size_t i = 0; i < want.size(); ++i) {
      ASSERT_EQ(want[i].elements(), got[i].elements());
      for (std::int64_t e = 0; e < want[i].elements(); ++e) {
        EXPECT_NEAR(got[i].data<float>()[static_cast<std::size_t>(e)],
                    want[i].data<float>()[static_cast<std::size_t>(e)], 2e-6)
            << adds << ", result " << i << ", element " << e;
      }
    }
  }
  ParameterSet parameters;
  EXPECT_THROW(BatchNorm(parameters, "n", 3, {.activation = Activation::kTanh}), ContractError);
}

TEST(BatchNorm, NamesWhatDoesNotFitWhatIsAdded) {
  Bench bench;
  const BatchNorm norm(bench.parameters, "n", 3);
  bench.parameters.Build();
  try {
    bench.Run({RandomTensor({2, 3}, 1), RandomTensor({3, 3}, 2)},
              [&](Tape&, const auto& in) { return norm(in[0], in[1]); });
    FAIL() << "shapes that differ";
  } catch (const ContractError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("BatchNorm n"));
  }
}

TEST(BatchNorm, RunningAveragesAreUsedOutsideOfTraining) {
  Bench bench;
  const BatchNorm norm(bench.parameters, "n", 1, {.momentum = 0.75F, .epsilon = 0.0F});
  bench.parameters.Build();
  const auto apply = [&](Tape&, const auto& in) { return norm(in[0]); };
  const std::vector<float> batch = {2, 4, 6, 8};  // mean 5, unbiased variance 20/3
  const Tensor x = Tensor::Of<float>({4, 1}, batch);
  bench.Run({x}, apply, {.updates_averages = false});
  EXPECT_EQ(bench.parameters.value(2)[0], 0.0F);
  bench.Run({x}, apply);
  EXPECT_FLOAT_EQ(bench.parameters.value(2)[0], 0.25F * 5);
  EXPECT_FLOAT_EQ(bench.parameters.value(3)[0], 0.75F + 0.25F * 20 / 3);
  bench.Run({Tensor(DType::kFloat32, {0, 1})}, apply);
  EXPECT_FLOAT_EQ(bench.parameters.value(2)[0], 0.25F * 5);

  const float mean = bench.parameters.value(2)[0];
  const float variance = bench.parameters.value(3)[0];
  const Tensor y = bench.Run({x}, apply, {.training = false});
  EXPECT_EQ(bench.parameters.value(2)[0], mean);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_FLOAT_EQ(y.data<float>()[i], (batch[i] - mean) / std::sqrt(variance));
  }
}

TEST(BatchNorm, AveragesAreParametersThatAreNotTrained) {
  ParameterSet parameters;
  const BatchNorm norm(parameters, "n", 2);
  EXPECT_TRUE(parameters[parameters.Find("n/scale")].trainable);
  EXPECT_FALSE(parameters[parameters.Find("n/mean")].trainable);
  EXPECT_FALSE(parameters[parameters.Find("n/variance")].trainable);
}

// Adds up spans of all replicas; each gets the sum.
class Summer {
 public:
  explicit Summer(int replicas) : replicas_(replicas) {}
  Status Sum(std::span<float> part) {
    std::unique_lock lock(mutex_);
    const int round = round_;
    sum_.resize(part.size());
    for (std::size_t i = 0; i < part.size(); ++i) {
      sum_[i] += part[i];
    }
    if (++arrived_ == replicas_) {
      result_ = std::exchange(sum_, {});
      arrived_ = 0;
      ++round_;
      condition_.notify_all();
    } else if (!condition_.wait_for(lock, std::chrono::seconds(30),
                                    [&] { return round_ != round; })) {
      return DeadlineExceeded("a replica did not come");
    }
    std::copy(result_.begin(), result_.end(), part.begin());
    return {};
  }

 private:
  const int replicas_;
  std::mutex mutex_;
  std::condition_variable condition_;
  std::vector<float> sum_, result_;
  int arrived_ = 0;
  int round_ = 0;
};

TEST(BatchNorm, SynchronisedReplicasEqualOne) {
  const Tensor x = RandomTensor({7, 3}, 1);
  const Tensor targets = RandomTensor({7, 3}, 2);
  struct Outcome {
    Doubles y, dx, dscale = Doubles(3), mean;
  };
  // Replica r gets the rows from cuts[r] to cuts[r + 1].
  const auto run = [&](const std::vector<std::int64_t>& cuts) {
    const std::size_t replicas = cuts.size() - 1;
    Summer summer(static_cast<int>(replicas));
    std::vector<Outcome> parts(replicas);
    std::vector<std::jthread> threads;
    for (std::size_t r = 0; r < replicas; ++r) {
      threads.emplace_back([&, r] {
        Bench bench;
        const BatchNorm norm(bench.parameters, "n", 3,
                             {.sum_over_replicas = [&](auto span) { return summer.Sum(span); }});
        bench.parameters.Build();
        Tape tape(bench.parameters, *bench.stream, bench.workspace, {.intra_op_threads = 1});
        const Variable in = tape.Input(x.Rows(cuts[r], cuts[r + 1]), true);
        const Variable out = norm(in);
        CollectingSink sink(bench.parameters, static_cast<float>(cuts[r + 1] - cuts[r]));
        tape.Backward(MeanSquaredError(out, targets.Rows(cuts[r], cuts[r + 1])), sink);
        EXPECT_EQ(tape.Finish(), OkStatus());
        const auto mean = bench.parameters.value(2);
        parts[r] = {AsDoubles(out.tensor()),
                    AsDoubles(tape.Gradient(in)),
                    {sink.gradient(0).begin(), sink.gradient(0).end()},
                    {mean.begin(), mean.end()}};
      });
    }
    threads.clear();
    Outcome all;
    for (const Outcome& part : parts) {
      all.y.insert(all.y.end(), part.y.begin(), part.y.end());
      all.dx.insert(all.dx.end(), part.dx.begin(), part.dx.end());
      for (std::size_t c = 0; c < 3; ++c) {
        all.dscale[c] += part.dscale[c];
      }
      EXPECT_TRUE(all.mean.empty() || all.mean == part.mean);
      all.mean = part.mean;
    }
    return all;
  };
  const auto expect_near = [](const Doubles& a, const Doubles& b) {
    ASSERT_EQ(a.size(), b.size());
    for (std::size_t i = 0; i < a.size(); ++i) {
      EXPECT_NEAR(a[i], b[i], 1e-5);
    }
  };
  const Outcome one = run({0, 7});
  const Outcome three = run({0, 2, 2, 7});  // the second is empty
  expect_near(one.y, three.y);
  expect_near(one.dx, three.dx);
  expect_near(one.dscale, three.dscale);
  expect_near(one.mean, three.mean);
}

}  // namespace
}  // namespace cohort::nn
