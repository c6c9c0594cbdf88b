#include <cohort/device/kernels.h>

#include <cohort/core/random.h>
#include <cohort/core/thread_pool.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <vector>

namespace cohort {
namespace {

using ::testing::ElementsAre;

std::vector<float> Random(std::size_t n, std::uint64_t seed) {
  std::vector<float> v(n);
  for (std::size_t i = 0; i < n; ++i) {
    v[i] = Philox(seed).Uniform(i) * 2 - 1;
  }
  return v;
}

struct KernelsTest : ::testing::Test {
  std::unique_ptr<Stream> stream = MakeInlineStream();
  void Finish() {
    EXPECT_EQ(stream->Synchronize(DeadlineAfter(std::chrono::seconds(30))), OkStatus());
  }
};

TEST_F(KernelsTest, OneThreadPerAvailableCoreUnlessToldOtherwise) {
  EXPECT_EQ(MakeCpuKernels(0)->threads(), AvailableCores());
  EXPECT_EQ(MakeCpuKernels(3)->threads(), 3);
  EXPECT_THROW(MakeCpuKernels(-1), ContractError);
}

// Padding shifts windows that lie side by side: the last row is in none of them.
TEST_F(KernelsTest, APoolsGradientIsZeroWhereNoWindowReaches) {
  const auto kernels = MakeCpuKernels(1);
  const PoolSpec spec{.batch = 1,
                      .height = 4,
                      .width = 1,
                      .channels = 1,
                      .window_h = 2,
                      .window_w = 1,
                      .stride_h = 2,
                      .pad_top = 1};
  PoolPlan& plan = kernels->Pool(spec);
  const std::vector<float> x = {1, 2, 3, 4};
  const std::vector<float> dy = {10, 20};
  std::vector<float> y(2);
  std::vector<float> dx(4, -1.0F);
  std::vector<std::byte> workspace(static_cast<std::size_t>(plan.workspace_bytes()));
  plan.Forward(*stream, x.data(), y.data(), workspace.data());
  plan.Backward(*stream, dy.data(), workspace.data(), dx.data());
  Finish();
  EXPECT_THAT(y, ElementsAre(1, 3));
  EXPECT_THAT(dx, ElementsAre(10, 0, 20, 0));
}

TEST_F(KernelsTest, MatMulTransposesWhatLiesInMemory) {
  const std::int64_t m = 85, n = 19, k = 33;
  const auto a = Random(static_cast<std::size_t>(m * k), 1);
  const auto b = Random(static_cast<std::size_t>(k * n), 2);
  const auto bias = Random(static_cast<std::size_t>(n), 3);
  const auto kernels = MakeCpuKernels(1);
  for (const bool ta : {false, true}) {
    for (const bool tb : {false, true}) {
      for (const bool relu : {false, true}) {
        const MatMulSpec spec{.m = m,
                              .n = n,
                              .k = k,
                              .transpose_a = ta,
                              .transpose_b = tb,
                              .bias = relu,
                              .activation = relu ? Activation::kRelu : Activation::kNone};
        std::vector<float> c(static_cast<std::size_t>(m * n));
        kernels->MatMul(spec).Run(*stream, a.data(), b.data(), bias.data(), c.data());
        Finish();
        for (std::int64_t i = 0; i < m; ++i) {
          for (std::int64_t j = 0; j < n; ++j) {
            double sum = relu ? bias[static_cast<std::size_t>(j)] : 0;
            for (std::int64_t l = 0; l < k; ++l) {
              sum += static_cast<double>(a[static_cast<std::size_t>(ta ? l * m + i : i * k + l)]) *
                     b[static_cast<std::size_t>(tb ? j * k + l : l * n + j)];
            }
            ASSERT_NEAR(c[static_cast<std::size_t>(i * n + j)], relu ? std::max(sum, 0.0) : sum,
                        1e-5);
          }
        }
        EXPECT_EQ(&kernels->MatMul(spec), &kernels->MatMul(spec)) << "made once";
      }
    }
  }
}

TEST_F(KernelsTest, MatMulOverNothingIsTheBias) {
  const auto kernels = MakeCpuKernels(1);
  std::vector<float> c(4, 9.0F);
  kernels->MatMul({.m = 2, .n = 2, .k = 0}).Run(*stream, nullptr, nullptr, nullptr, c.data());
  EXPECT_THAT(c, ElementsAre(0, 0, 0, 0));
  const std::vector<float> bias = {-1, 2};
  kernels->MatMul({.m = 2, .n = 2, .k = 0, .bias = true, .activation = Activation::kRelu})
      .Run(*stream, nullptr, nullptr, bias.data(), c.data());
  EXPECT_THAT(c, ElementsAre(0, 2, 0, 2));
  kernels->MatMul({.m = 0, .n = 2, .k = 3}).Run(*stream, nullptr, nullptr, nullptr, nullptr);
  Finish();
}

// Plain float addition of so many equal terms would stop growing at 2^24.
TEST_F(KernelsTest, SumsOfManyRowsKeepTheirDigits) {
  const std::size_t rows = 40'000'000;
  const std::vector<float> ones(rows, 1.0F);
  for (const int threads : {1, 2}) {
    float sum = 0;
    MakeCpuKernels(threads)->SumRows(*stream, {static_cast<std::int64_t>(rows), 1}, ones,
                                     {&sum, 1});
    Finish();
    EXPECT_EQ(sum, 40'000'000.0F);
  }
}

TEST_F(KernelsTest, ReluBackwardMasksInPlaceAndSums) {
  const std::vector<float> y = {1, 0, 2, 3, 0, 0};
  std::vector<float> dy = {1, 2, 3, 4, 5, 6};
  std::vector<float> sums(2);
  const auto kernels = MakeCpuKernels(1);
  kernels->ReluBackwardSumRows(*stream, {3, 2}, y, std::span(dy), sums);
  EXPECT_THAT(dy, ElementsAre(1, 0, 3, 4, 0, 0));
  EXPECT_THAT(sums, ElementsAre(4, 4));
  kernels->ReluBackwardSumRows(*stream, {3, 2}, y, std::span(dy), {});
  EXPECT_THAT(dy, ElementsAre(1, 0, 3, 4, 0, 0));
  Finish();
}

TEST_F(KernelsTest, WhatOneDnnCannotDoIsAContractError) {
  const auto kernels = MakeCpuKernels(1);
  EXPECT_THROW(kernels->Conv({.batch = 1,
                              .height = 4,
                              .width = 4,
                              .in = 3,
                              .kernel_h = 3,
                              .kernel_w = 3,
                              .out = 4,
                              .groups = 2}),
               ContractError);
  EXPECT_THROW(kernels->MatMul({.m = 1, .n = 1, .k = 1, .activation = Activation::kTanh}),
               ContractError);
  EXPECT_THROW(kernels->MatMul({.m = 1, .n = 1, .k = 1, .gradient_of = Activation::kRelu}),
               ContractError);
  EXPECT_THROW(kernels->MatMul({.m = 1, .n = 1, .k = 1, .keeps_before = true}), ContractError);
  EXPECT_THROW(
      kernels->MatMul({.m = 1, .n = 1, .k = 1, .bias = true, .gradient_of = Activation::kGelu}),
      ContractError);
}

TEST_F(KernelsTest, ResultsAreThereForManyThreads) {
  const auto a = Random(300 * 70, 1);
  const auto b = Random(70 * 90, 2);
  std::vector<float> one(300 * 90);
  std::vector<float> four(300 * 90);
  const MatMulSpec spec{.m = 300, .n = 90, .k = 70};
  MakeCpuKernels(1)->MatMul(spec).Run(*stream, a.data(), b.data(), nullptr, one.data());
  const auto kernels = MakeCpuKernels(4);
  kernels->MatMul(spec).Run(*stream, a.data(), b.data(), nullptr, four.data());
  Finish();
  for (std::size_t i = 0; i < one.size(); ++i) {
    ASSERT_NEAR(one[i], four[i], 1e-5);
  }
}

}  // namespace
}  // namespace cohort
