#include <cohort/device/kernels.h>
#include <cohort/nn/initializers.h>
#include <cohort/nn/layers.h>

#include <cmath>
#include <limits>

#include "oracles.h"

namespace cohort::nn {
namespace {

using testing::DistinctTensor;
using testing::RandomTensor;

Initializer Random(std::uint64_t seed) { return Uniform(-1.0F, 1.0F, seed, "test"); }

struct Case {
  std::int64_t batch, height, width, in, out;
  std::array<std::int64_t, 2> kernel, stride;
  bool same;
  std::int64_t groups = 1;
  Activation activation = Activation::kNone;
  bool bias = true;
  int threads = 1;
};

class ConvTest : public ::testing::TestWithParam<Case> {
 protected:
  static Conv2DOptions Options() {
    const Case& c = GetParam();
    return {.kernel = c.kernel,
            .stride = c.stride,
            .padding = c.same ? Padding::kSame : Padding::kValid,
            .groups = c.groups,
            .activation = c.activation,
            .bias = c.bias,
            .kernel_initializer = Random(1),
            .bias_initializer = Random(2)};
  }
};

Doubles NaiveConv(const Case& c, const Doubles& x, std::span<const float> kernel,
                  std::span<const float> bias) {
  const std::int64_t oh = WindowCount(c.height, c.kernel[0], c.stride[0], c.same);
  const std::int64_t ow = WindowCount(c.width, c.kernel[1], c.stride[1], c.same);
  const std::int64_t gi = c.in / c.groups;
  const std::int64_t go = c.out / c.groups;
  Doubles y;
  for (std::int64_t b = 0; b < c.batch; ++b) {
    for (std::int64_t i = 0; i < oh; ++i) {
      for (std::int64_t j = 0; j < ow; ++j) {
        for (std::int64_t o = 0; o < c.out; ++o) {
          double sum = bias.empty() ? 0 : bias[static_cast<std::size_t>(o)];
          for (std::int64_t u = 0; u < c.kernel[0]; ++u) {
            for (std::int64_t v = 0; v < c.kernel[1]; ++v) {
              const auto r = WindowStart(i, c.height, c.kernel[0], c.stride[0], c.same) + u;
              const auto s = WindowStart(j, c.width, c.kernel[1], c.stride[1], c.same) + v;
              if (r < 0 || r >= c.height || s < 0 || s >= c.width) {
                continue;
              }
              for (std::int64_t k = 0; k < gi; ++k) {
                const auto from = ((b * c.height + r) * c.width + s) * c.in + o / go * gi + k;
                const auto weight = ((u * c.kernel[1] + v) * gi + k) * c.out + o;
                sum += x[static_cast<std::size_t>(from)] * kernel[static_cast<std::size_t>(weight)];
              }
            }
          }
          y.push_back(c.activation == Activation::kRelu ? std::max(sum, 0.0) : sum);
        }
      }
    }
  }
  return y;
}

TEST_P(ConvTest, IsTheNaiveConvolution) {
  const Case& c = GetParam();
  Bench bench;
  const Conv2D conv(bench.parameters, "c", c.in, c.out, Options());
  bench.parameters.Build();
  const Tensor x = RandomTensor({c.batch, c.height, c.width, c.in}, 3);
  const Tensor y = bench.Run({x}, [&](Tape&, const auto& in) { return conv(in[0]); },
                             {.intra_op_threads = c.threads});
  ExpectNear(y.data<float>(), NaiveConv(c, AsDoubles(x), bench.parameters.value(0),
                                        c.bias ? bench.parameters.value(1) : std::span<float>()));
}

TEST_P(ConvTest, HasTheGradientsOfFiniteDifferences) {
  const Case& c = GetParam();
  ParameterSet parameters;
  const Conv2D conv(parameters, "c", c.in, c.out, Options());
  parameters.Build();
  testing::ExpectGradients(parameters, {RandomTensor({c.batch, c.height, c.width, c.in}, 4)},
                           [&](Tape&, const auto& in) { return conv(in[0]); },
                           {.epsilon = 1e-3, .tape = {.intra_op_threads = c.threads}});
}

INSTANTIATE_TEST_SUITE_P(
    Variants, ConvTest,
    ::testing::Values(Case{2, 5, 4, 3, 2, {3, 3}, {1, 1}, true},
                      Case{1, 6, 7, 1, 16, {3, 3}, {1, 1}, true, 1, Activation::kRelu},
                      Case{2, 6, 5, 4, 3, {3, 2}, {2, 2}, true},
                      Case{2, 7, 7, 2, 4, {3, 3}, {2, 1}, false, 1, Activation::kRelu, false},
                      Case{1, 5, 5, 4, 6, {3, 3}, {1, 1}, true, 2},
                      Case{2, 4, 4, 6, 6, {3, 3}, {1, 1}, true, 6},
                      Case{3, 4, 4, 16, 16, {1, 1}, {1, 1}, false, 1, Activation::kNone, true, 2},
                      Case{2, 6, 6, 4, 8, {1, 1}, {2, 2}, true, 1, Activation::kNone, false},
                      Case{2, 5, 6, 5, 12, {1, 1}, {2, 2}, true},
                      Case{1, 3, 3, 2, 2, {3, 3}, {1, 1}, false},
                      Case{1, 5, 6, 2, 3, {2, 4}, {1, 1}, true},
                      Case{0, 4, 4, 2, 2, {3, 3}, {1, 1}, true, 1, Activation::kRelu}));

struct PoolCase {
  std::int64_t batch, height, width, channels;
  std::array<std::int64_t, 2> window, stride;
  bool same;
};

class PoolTest : public ::testing::TestWithParam<PoolCase> {
 protected:
  static Pool2DOptions Options() {
    const PoolCase& c = GetParam();
    return {.window = c.window,
            .stride = c.stride,
            .padding = c.same ? Padding::kSame : Padding::kValid};
  }
  static Shape Input() {
    const PoolCase& c = GetParam();
    return {c.batch, c.height, c.width, c.channels};
  }
  static Doubles Naive(const Doubles& x, bool max) {
    const PoolCase& c = GetParam();
    Doubles y;
    for (std::int64_t b = 0; b < c.batch; ++b) {
      for (std::int64_t i = 0; i < WindowCount(c.height, c.window[0], c.stride[0], c.same); ++i) {
        for (std::int64_t j = 0; j < WindowCount(c.width, c.window[1], c.stride[1], c.same); ++j) {
          for (std::int64_t k = 0; k < c.channels; ++k) {
            double sum = 0, largest = -1e30, count = 0;
            for (std::int64_t u = 0; u < c.window[0]; ++u) {
              for (std::int64_t v = 0; v < c.window[1]; ++v) {
                const auto r = WindowStart(i, c.height, c.window[0], c.stride[0], c.same) + u;
                const auto s = WindowStart(j, c.width, c.window[1], c.stride[1], c.same) + v;
                if (r < 0 || r >= c.height || s < 0 || s >= c.width) {
                  continue;
                }
                const auto from = ((b * c.height + r) * c.width + s) * c.channels + k;
                sum += x[static_cast<std::size_t>(from)];
                largest = std::max(largest, x[static_cast<std::size_t>(from)]);
                ++count;
              }
            }
            y.push_back(max ? largest : sum / count);
          }
        }
      }
    }
    return y;
  }
};

TEST_P(PoolTest, MaxIsTheNaiveOne) {
  const Tensor x = DistinctTensor(Input(), 1);
  Bench bench;
  const Tensor y =
      bench.Run({x}, [&](Tape&, const auto& in) { return MaxPool2D(in[0], Options()); });
  ExpectNear(y.data<float>(), Naive(AsDoubles(x), true));
}

TEST_P(PoolTest, AverageIsTheNaiveOne) {
  const Tensor x = RandomTensor(Input(), 1);
  Bench bench;
  const Tensor y =
      bench.Run({x}, [&](Tape&, const auto& in) { return AvgPool2D(in[0], Options()); });
  ExpectNear(y.data<float>(), Naive(AsDoubles(x), false));
}

TEST_P(PoolTest, MaxHasTheGradientsOfFiniteDifferences) {
  ParameterSet none;
  none.Build();
  testing::ExpectGradients(none, {DistinctTensor(Input(), 2)},
                           [&](Tape&, const auto& in) { return MaxPool2D(in[0], Options()); });
}

TEST_P(PoolTest, AverageHasTheGradientsOfFiniteDifferences) {
  ParameterSet none;
  none.Build();
  testing::ExpectGradients(none, {RandomTensor(Input(), 3)},
                           [&](Tape&, const auto& in) { return AvgPool2D(in[0], Options()); });
}

INSTANTIATE_TEST_SUITE_P(Variants, PoolTest,
                         ::testing::Values(PoolCase{2, 4, 6, 3, {2, 2}, {2, 2}, false},
                                           PoolCase{1, 5, 5, 16, {2, 2}, {2, 2}, true},
                                           PoolCase{1, 7, 5, 1, {3, 3}, {2, 2}, true},
                                           PoolCase{2, 5, 4, 2, {3, 2}, {1, 1}, false},
                                           PoolCase{1, 4, 2, 11, {2, 2}, {2, 2}, false},
                                           PoolCase{1, 5, 3, 9, {2, 1}, {3, 2}, false},
                                           PoolCase{1, 18, 17, 1, {17, 17}, {1, 1}, false},
                                           PoolCase{0, 4, 4, 2, {2, 2}, {2, 2}, false}));

TEST(MaxPool2D, OfEqualElementsTheFirstAndANaNBeforeAll) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Tensor x =
      Tensor::Of<float>({4, 2, 2, 1}, std::vector<float>{1, 2, 2, 1,                  //
                                                         -kInf, -kInf, -kInf, -kInf,  //
                                                         3, nan, 4, 5,                //
                                                         0, 7, kInf, 1});
  Bench bench;
  const Tensor y = bench.Run({x}, [&](Tape&, const auto& in) { return MaxPool2D(in[0], {}); });
  const auto values = y.data<float>();
  EXPECT_EQ(values[0], 2);
  EXPECT_EQ(values[1], -kInf);
  EXPECT_TRUE(std::isnan(values[2]));
  EXPECT_EQ(values[3], kInf);

  const std::unique_ptr<Kernels> kernels = MakeCpuKernels(1);
  const std::unique_ptr<Stream> stream = MakeInlineStream();
  PoolPlan& plan = kernels->Pool({.max = true,
                                  .batch = 4,
                                  .height = 2,
                                  .width = 2,
                                  .channels = 1,
                                  .window_h = 2,
                                  .window_w = 2,
                                  .stride_h = 2,
                                  .stride_w = 2});
  std::vector<std::byte> places(static_cast<std::size_t>(plan.workspace_bytes()));
  std::vector<float> out(4), dx(16);
  const std::vector<float> dy = {1, 2, 3, 4};
  plan.Forward(*stream, x.data<float>().data(), out.data(), places.data());
  plan.Backward(*stream, dy.data(), places.data(), dx.data());
  EXPECT_EQ(dx, (std::vector<float>{0, 1, 0, 0, 2, 0, 0, 0, 0, 3, 0, 0, 0, 0, 4, 0}));
}

TEST(GlobalAvgPool2D, IsTheMeanOfEachChannel) {
  const Tensor x = RandomTensor({2, 3, 5, 4}, 1);
  Doubles want(8);
  for (std::size_t i = 0; i < 120; ++i) {
    want[i / 60 * 4 + i % 4] += AsDoubles(x)[i] / 15;
  }
  Bench bench;
  ExpectNear(
      bench.Run({x}, [](Tape&, const auto& in) { return GlobalAvgPool2D(in[0]); }).data<float>(),
      want);
  ParameterSet none;
  none.Build();
  testing::ExpectGradients(none, {x}, [](Tape&, const auto& in) { return GlobalAvgPool2D(in[0]); });
}

}  // namespace
}  // namespace cohort::nn
