#include <cohort/nn/initializers.h>
#include <cohort/nn/layers.h>

#include <gmock/gmock.h>

#include "oracles.h"

namespace cohort::nn {
namespace {

using testing::RandomTensor;

Initializer Random(std::uint64_t seed) { return Uniform(-1.0F, 1.0F, seed, "test"); }

Doubles NaiveDense(const Doubles& x, const Doubles& w, const Doubles& b, std::int64_t rows,
                   std::int64_t in, std::int64_t out, bool relu) {
  Doubles y(static_cast<std::size_t>(rows * out));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t o = 0; o < out; ++o) {
      double sum = b.empty() ? 0 : b[static_cast<std::size_t>(o)];
      for (std::int64_t i = 0; i < in; ++i) {
        sum += x[static_cast<std::size_t>(r * in + i)] * w[static_cast<std::size_t>(i * out + o)];
      }
      y[static_cast<std::size_t>(r * out + o)] = relu ? std::max(sum, 0.0) : sum;
    }
  }
  return y;
}

struct Case {
  std::int64_t batch, in, out;
  Activation activation;
  bool bias;
  int threads = 1;
};

class DenseTest : public ::testing::TestWithParam<Case> {};

TEST_P(DenseTest, IsTheNaiveProduct) {
  const Case c = GetParam();
  Bench bench;
  const Dense dense(bench.parameters, "d", c.in, c.out,
                    {.activation = c.activation,
                     .bias = c.bias,
                     .kernel_initializer = Random(1),
                     .bias_initializer = Random(2)});
  bench.parameters.Build();
  const Tensor x = RandomTensor({c.batch, c.in}, 3);
  const Tensor y = bench.Run({x}, [&](Tape&, const auto& in) { return dense(in[0]); },
                             {.intra_op_threads = c.threads});
  EXPECT_EQ(y.shape(), Shape({c.batch, c.out}));
  const auto kernel = bench.parameters.value(0);
  Doubles bias;
  if (c.bias) {
    bias.assign(bench.parameters.value(1).begin(), bench.parameters.value(1).end());
  }
  ExpectNear(y.data<float>(), NaiveDense(AsDoubles(x), {kernel.begin(), kernel.end()}, bias,
                                         c.batch, c.in, c.out, c.activation == Activation::kRelu));
}

TEST_P(DenseTest, HasTheGradientsOfFiniteDifferences) {
  const Case c = GetParam();
  ParameterSet parameters;
  const Dense dense(parameters, "d", c.in, c.out,
                    {.activation = c.activation,
                     .bias = c.bias,
                     .kernel_initializer = Random(1),
                     .bias_initializer = Random(2)});
  parameters.Build();
  testing::ExpectGradients(parameters, {RandomTensor({c.batch, c.in}, 4)},
                           [&](Tape&, const auto& in) { return dense(in[0]); },
                           {.epsilon = 1e-3, .tape = {.intra_op_threads = c.threads}});
}

INSTANTIATE_TEST_SUITE_P(Shapes, DenseTest,
                         ::testing::Values(Case{4, 3, 5, Activation::kNone, true},
                                           Case{7, 13, 1, Activation::kRelu, true},
                                           Case{1, 17, 9, Activation::kRelu, false},
                                           Case{33, 5, 10, Activation::kNone, false, 2},
                                           Case{0, 3, 4, Activation::kRelu, true},
                                           Case{1, 1, 1, Activation::kNone, true}));

TEST(Dense, WorksOnTheLastAxisOfAnyRank) {
  Bench bench;
  const Dense dense(bench.parameters, "d", 3, 2, {.kernel_initializer = Random(1)});
  const Tensor y =
      bench.Run({RandomTensor({2, 4, 3}, 5)}, [&](Tape&, const auto& in) { return dense(in[0]); });
  EXPECT_EQ(y.shape(), Shape({2, 4, 2}));
}

TEST(Dense, OtherActivationsAreFused) {
  ParameterSet parameters;
  const Dense dense(parameters, "d", 3, 4,
                    {.activation = Activation::kTanh, .kernel_initializer = Random(1)});
  parameters.Build();
  testing::ExpectGradients(parameters, {RandomTensor({5, 3}, 6)},
                           [&](Tape&, const auto& in) { return dense(in[0]); });
}

TEST(FeedForward, HasTheGradientsOfFiniteDifferences) {
  for (const std::int64_t batch : {0, 1, 5}) {
    for (const bool bias : {true, false}) {
      ParameterSet parameters;
      const FeedForward layer(parameters, "up", "down", 4, 7, {.bias = bias}, {.bias = bias});
      parameters.Build();
      testing::ExpectGradients(parameters, {RandomTensor({batch, 4}, 2)},
                               [&](Tape&, const auto& in) { return layer(in[0]); });
    }
  }
}

TEST(FeedForward, IsTwoDenseLayersWithGeluBetween) {
  Bench together;
  const FeedForward layer(together.parameters, "up", "down", 4, 7);
  together.parameters.Build();
  Bench apart;
  const Dense up(apart.parameters, "up", 4, 7);
  const Dense down(apart.parameters, "down", 7, 4);
  apart.parameters.Build();
  const Tensor x = RandomTensor({3, 4}, 1);
  for (const bool training : {true, false}) {
    const Tensor want = apart.Run({x}, [&](Tape&, const auto& in) { return down(Gelu(up(in[0]))); },
                                  {.training = training});
    const Tensor got = together.Run({x}, [&](Tape&, const auto& in) { return layer(in[0]); },
                                    {.training = training});
    ExpectNear(got.data<float>(), AsDoubles(want), 1e-6);
  }
  EXPECT_THROW(
      together.Run({RandomTensor({2, 5}, 1)}, [&](Tape&, const auto& in) { return layer(in[0]); }),
      ContractError);
}

TEST(Dense, NamesItselfWhenTheInputDoesNotFit) {
  Bench bench;
  const Dense dense(bench.parameters, "hidden", 3, 2);
  try {
    bench.Run({RandomTensor({2, 4}, 1)}, [&](Tape&, const auto& in) { return dense(in[0]); });
    FAIL() << "no error";
  } catch (const ContractError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("Dense hidden: input [2,4], not [..., 3]"));
  }
}

}  // namespace
}  // namespace cohort::nn
