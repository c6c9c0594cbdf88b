#include "reduction.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace cohort {
namespace {

template <typename T>
std::vector<T> Combined(ReduceOp op, const std::vector<T>& a, const std::vector<T>& b) {
  std::vector<T> to(a.size());
  Reduction(DTypeOf<T>::value, op)
      .Combine(reinterpret_cast<std::byte*>(to.data()),
               reinterpret_cast<const std::byte*>(a.data()),
               reinterpret_cast<const std::byte*>(b.data()), a.size() * sizeof(T));
  return to;
}

template <typename T>
std::vector<T> Averaged(std::vector<T> values, int ranks) {
  Reduction(DTypeOf<T>::value, ReduceOp::kMean)
      .Finish(reinterpret_cast<std::byte*>(values.data()), values.size() * sizeof(T), ranks);
  return values;
}

TEST(Reduction, HalfTypesAreCombinedInFloatAndRoundedOnce) {
  // Every count up to two blocks of eight and a rest.
  for (std::size_t count = 0; count < 20; ++count) {
    std::vector<Float16> a, b, sum;
    std::vector<BFloat16> p, q, product;
    for (std::size_t i = 0; i < count; ++i) {
      const float x = 0.1F * static_cast<float>(i + 1);
      const float y = 3.3F - static_cast<float>(i);
      a.emplace_back(x);
      b.emplace_back(y);
      sum.emplace_back(static_cast<float>(a[i]) + static_cast<float>(b[i]));
      p.emplace_back(x);
      q.emplace_back(y);
      product.emplace_back(static_cast<float>(p[i]) * static_cast<float>(q[i]));
    }
    EXPECT_EQ(Combined(ReduceOp::kSum, a, b), sum);
    EXPECT_EQ(Combined(ReduceOp::kProduct, p, q), product);
  }
}

TEST(Reduction, InPlaceOverEitherOperand) {
  const Reduction reduction(DType::kInt32, ReduceOp::kSum);
  std::vector<std::int32_t> a(100, 3);
  std::vector<std::int32_t> b(100, 4);
  const auto bytes = [](std::vector<std::int32_t>& v) {
    return reinterpret_cast<std::byte*>(v.data());
  };
  reduction.Combine(bytes(a), bytes(a), bytes(b), 400);
  EXPECT_EQ(a, std::vector<std::int32_t>(100, 7));
  reduction.Combine(bytes(b), bytes(a), bytes(b), 400);
  EXPECT_EQ(b, std::vector<std::int32_t>(100, 11));
}

TEST(Reduction, UnalignedBuffers) {
  std::vector<std::byte> memory(4 * 33 + 1);
  const float values[2] = {1.5F, 2.0F};
  std::memcpy(memory.data() + 1, values, sizeof(values));
  Reduction(DType::kFloat32, ReduceOp::kMax)
      .Combine(memory.data() + 1, memory.data() + 1, memory.data() + 5, 4);
  float result;
  std::memcpy(&result, memory.data() + 1, 4);
  EXPECT_EQ(result, 2.0F);
}

TEST(Reduction, IntegersWrap) {
  constexpr auto kMax = std::numeric_limits<std::int32_t>::max();
  EXPECT_EQ(Combined<std::int32_t>(ReduceOp::kSum, {kMax}, {1})[0],
            std::numeric_limits<std::int32_t>::min());
  EXPECT_EQ(Combined<std::uint8_t>(ReduceOp::kProduct, {200}, {2})[0], 144);
}

TEST(Reduction, MinAndMaxKeepNaN) {
  const float nan = std::nanf("");
  for (const ReduceOp op : {ReduceOp::kMin, ReduceOp::kMax}) {
    const std::vector<float> result = Combined<float>(op, {nan, 1, nan}, {1, nan, nan});
    for (const float value : result) {
      EXPECT_TRUE(std::isnan(value)) << ReduceOpName(op);
    }
  }
}

TEST(Reduction, MeanDividesAndIntegersTruncateTowardZero) {
  EXPECT_EQ(Averaged<float>({7, -7}, 2), (std::vector<float>{3.5F, -3.5F}));
  EXPECT_EQ(Averaged<std::int64_t>({7, -7}, 2), (std::vector<std::int64_t>{3, -3}));
  EXPECT_EQ(Averaged<std::uint8_t>({250}, 3), (std::vector<std::uint8_t>{83}));
  EXPECT_EQ(Averaged<BFloat16>({BFloat16(3.0F)}, 2), (std::vector<BFloat16>{BFloat16(1.5F)}));
}

}  // namespace
}  // namespace cohort
