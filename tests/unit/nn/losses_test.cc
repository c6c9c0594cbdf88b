#include <cohort/nn/layers.h>
#include <cohort/nn/losses.h>
#include <gmock/gmock.h>

#include <cmath>

#include "oracles.h"

namespace cohort::nn {
namespace {

using testing::CollectingSink;
using testing::ExpectGradients;
using testing::RandomTensor;

Tensor Int64s(const std::vector<std::int64_t>& v) {
  return Tensor::Of<std::int64_t>({static_cast<std::int64_t>(v.size())}, v);
}
Tensor Floats32(const Shape& shape, const std::vector<float>& v) {
  return Tensor::Of<float>(shape, v);
}

double NaiveSoftmaxCrossEntropy(const Doubles& x, const Doubles& targets, const Doubles& weights,
                                std::size_t rows, std::size_t columns) {
  double sum = 0, weight = 0;
  for (std::size_t r = 0; r < rows; ++r) {
    double z = 0;
    for (std::size_t c = 0; c < columns; ++c) {
      z += std::exp(x[r * columns + c]);
    }
    for (std::size_t c = 0; c < columns; ++c) {
      sum -= weights[r] * targets[r * columns + c] * (x[r * columns + c] - std::log(z));
    }
    weight += weights[r];
  }
  return sum / weight;
}

const std::vector<std::int64_t> kLabels = {2, 0, 3, 1, 2};
const std::vector<float> kWeights = {1, 0.5F, 0, 2, 3};

TEST(SoftmaxCrossEntropy, IsTheFormula) {
  const Tensor x = RandomTensor({5, 4}, 1, -3, 3);
  Doubles one_hot(20);
  for (std::size_t r = 0; r < 5; ++r) {
    one_hot[r * 4 + static_cast<std::size_t>(kLabels[r])] = 1;
  }
  const std::vector<float> dense(one_hot.begin(), one_hot.end());
  std::vector<std::int32_t> narrow(kLabels.begin(), kLabels.end());
  Bench bench;
  const auto loss = [&](const Tensor& labels, const Tensor& weights) {
    return bench
        .Run({x},
             [&](Tape&, const auto& in) { return SoftmaxCrossEntropy(in[0], labels, weights); })
        .data<float>()[0];
  };
  const double plain = NaiveSoftmaxCrossEntropy(AsDoubles(x), one_hot, Doubles(5, 1.0), 5, 4);
  EXPECT_NEAR(loss(Int64s(kLabels), {}), plain, 1e-6);
  EXPECT_NEAR(loss(Tensor::Of<std::int32_t>({5}, narrow), {}), plain, 1e-6);
  EXPECT_NEAR(loss(Floats32({5, 4}, dense), {}), plain, 1e-6);
  EXPECT_NEAR(loss(Int64s(kLabels), Floats32({5}, kWeights)),
              NaiveSoftmaxCrossEntropy(AsDoubles(x), one_hot, {1, 0.5, 0, 2, 3}, 5, 4), 1e-6);
}

TEST(SoftmaxCrossEntropy, HasTheGradientsOfFiniteDifferences) {
  ParameterSet none;
  none.Build();
  const Tensor x = RandomTensor({5, 4}, 1, -2, 2);
  for (const Tensor& weights : {Tensor(), Floats32({5}, kWeights)}) {
    ExpectGradients(none, {x}, [&](Tape&, const auto& in) {
      return SoftmaxCrossEntropy(in[0], Int64s(kLabels), weights);
    });
    const Tensor soft = RandomTensor({5, 4}, 7, 0, 1);  // need not sum to 1
    ExpectGradients(none, {x}, [&](Tape&, const auto& in) {
      return SoftmaxCrossEntropy(in[0], soft, weights);
    });
  }
}

TEST(SoftmaxCrossEntropy, StaysFiniteForConfidentLogits) {
  const Tensor x = Floats32({2, 2}, {1000, -1000, -1000, 1000});
  Bench bench;
  const Tensor loss = bench.Run({x}, [](Tape&, const auto& in) {
    return SoftmaxCrossEntropy(in[0], Int64s({0, 0}));
  });
  EXPECT_FLOAT_EQ(loss.data<float>()[0], 1000);
}

TEST(SoftmaxCrossEntropy, NamesTheExampleWhoseLabelIsOutOfRange) {
  Bench bench;
  bench.parameters.Build();
  for (const std::int64_t bad : {std::int64_t{4}, std::int64_t{-1}}) {
    Tape tape(bench.parameters, *bench.stream, bench.workspace, {.intra_op_threads = 1});
    const Variable x = tape.Input(RandomTensor({3, 4}, 1), true);
    CollectingSink sink(bench.parameters);
    tape.Backward(SoftmaxCrossEntropy(x, Int64s({0, bad, 1})), sink);
    const Status status = tape.Finish();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(), "label " + std::to_string(bad) +
                                    " of example 1 is not one of 4 classes [labels must be in [0, "
                                    "4)]");
  }
}

TEST(SoftmaxCrossEntropy, RejectsLabelsThatDoNotFit) {
  Bench bench;
  const auto run = [&](const Tensor& labels, const Tensor& weights) {
    bench.Run({RandomTensor({3, 4}, 1)},
              [&](Tape&, const auto& in) { return SoftmaxCrossEntropy(in[0], labels, weights); });
  };
  EXPECT_THROW(run(Int64s({1, 2}), {}), ContractError);
  EXPECT_THROW(run(RandomTensor({3, 3}, 1), {}), ContractError);
  EXPECT_THROW(run(Tensor(DType::kUInt8, {3}), {}), ContractError);
  EXPECT_THROW(run(Int64s({1, 2, 3}), RandomTensor({2}, 1)), ContractError);
}

TEST(SigmoidCrossEntropy, IsTheFormula) {
  const Tensor x = RandomTensor({4, 3}, 1, -4, 4);
  const Tensor t = RandomTensor({4, 3}, 2, 0, 1);
  const std::vector<float> weights = {1, 2, 0, 4};
  double sum = 0;
  for (std::size_t i = 0; i < 12; ++i) {
    const double p = 1 / (1 + std::exp(-AsDoubles(x)[i]));
    const double target = AsDoubles(t)[i];
    sum -= weights[i / 3] * (target * std::log(p) + (1 - target) * std::log(1 - p)) / 3;
  }
  Bench bench;
  const Tensor loss = bench.Run({x}, [&](Tape&, const auto& in) {
    return SigmoidCrossEntropy(in[0], t, Floats32({4}, weights));
  });
  EXPECT_NEAR(loss.data<float>()[0], sum / 7, 1e-6);
  ParameterSet none;
  none.Build();
  ExpectGradients(none, {x}, [&](Tape&, const auto& in) {
    return SigmoidCrossEntropy(in[0], t, Floats32({4}, weights));
  });
}

TEST(SigmoidCrossEntropy, StaysFiniteFarOut) {
  Bench bench;
  const Tensor loss = bench.Run({Floats32({2}, {-1000, 1000})}, [](Tape&, const auto& in) {
    return SigmoidCrossEntropy(in[0], Floats32({2}, {1, 1}));
  });
  EXPECT_FLOAT_EQ(loss.data<float>()[0], 500);
}

TEST(MeanSquaredError, IsTheFormula) {
  const Tensor x = RandomTensor({4, 3}, 1);
  const Tensor t = RandomTensor({4, 3}, 2);
  double sum = 0;
  for (std::size_t i = 0; i < 12; ++i) {
    sum += std::pow(AsDoubles(x)[i] - AsDoubles(t)[i], 2) / 12;
  }
  Bench bench;
  const Tensor loss =
      bench.Run({x}, [&](Tape&, const auto& in) { return MeanSquaredError(in[0], t); });
  EXPECT_NEAR(loss.data<float>()[0], sum, 1e-6);
  ParameterSet none;
  none.Build();
  ExpectGradients(none, {x}, [&](Tape&, const auto& in) {
    return MeanSquaredError(in[0], t, Floats32({4}, {1, 0, 2, 3}));
  });
}

// Gradients of a mean over n examples with seed n are exactly sums over examples.
TEST(Losses, ASeedOfTheBatchSizeGivesExactSums) {
  for (const std::int64_t batch : {1, 3, 7, 49}) {
    ParameterSet parameters;
    const Dense dense(parameters, "d", 1, 1,
                      {.bias = false, .kernel_initializer = [](auto) { return 2.0F; }});
    parameters.Build();
    const auto stream = MakeInlineStream();
    Workspace workspace;
    Tape tape(parameters, *stream, workspace, {.intra_op_threads = 1});
    Tensor x(DType::kFloat32, {batch, 1});
    float sum = 0;
    for (std::int64_t i = 0; i < batch; ++i) {
      x.data<float>()[static_cast<std::size_t>(i)] = static_cast<float>(i % 5);
      sum += 2.0F * static_cast<float>(i % 5) * 2.0F * static_cast<float>(i % 5);
    }
    CollectingSink sink(parameters, static_cast<float>(batch));
    const Variable loss =
        MeanSquaredError(dense(tape.Input(x)), Tensor(DType::kFloat32, {batch, 1}));
    tape.Backward(loss, sink);
    ASSERT_EQ(tape.Finish(), OkStatus());
    EXPECT_EQ(sink.gradient(0)[0], sum);
  }
}

TEST(Losses, NoExamplesOrNoWeightIsZeroNotNaN) {
  using LossFunction = Variable (*)(const Variable&, const Tensor&, const Tensor&);
  const LossFunction softmax = [](const Variable& logits, const Tensor& labels,
                                  const Tensor& weights) {
    return SoftmaxCrossEntropy(logits, labels, weights);
  };
  for (const LossFunction f : {softmax, SigmoidCrossEntropy, MeanSquaredError}) {
    for (const std::int64_t batch : {0, 2}) {
      ParameterSet parameters;
      const Dense dense(parameters, "d", 3, 2);
      parameters.Build();
      const auto stream = MakeInlineStream();
      Workspace workspace;
      Tape tape(parameters, *stream, workspace, {.intra_op_threads = 1});
      CollectingSink sink(parameters, 0.0F);
      const Variable loss = f(dense(tape.Input(RandomTensor({batch, 3}, 1))),
                              RandomTensor({batch, 2}, 2), Tensor(DType::kFloat32, {batch}));
      tape.Backward(loss, sink);
      ASSERT_EQ(tape.Finish(), OkStatus());
      EXPECT_EQ(loss.value(), 0.0F);
      EXPECT_THAT(sink.gradient(0), ::testing::Each(0.0F));
      EXPECT_THAT(sink.gradient(1), ::testing::Each(0.0F));
      EXPECT_EQ(sink.ready().size(), 2U);
    }
  }
}

}  // namespace
}  // namespace cohort::nn
