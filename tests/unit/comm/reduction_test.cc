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

// Every count up to a few blocks of eight and a rest.
TEST(Reduction, HalfTypesOfEveryCount) {
  for (std::size_t count = 0; count < 40; ++count) {
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

// One element by the scalar types, in float.
float Scalar(ReduceOp op, float a, float b) {
  switch (op) {
    case ReduceOp::kSum:
    case ReduceOp::kMean:
      return a + b;
    case ReduceOp::kProduct:
      return a * b;
    case ReduceOp::kMin:
      return std::isnan(a) || std::isnan(b) ? NAN : b < a ? b : a;
    case ReduceOp::kMax:
      return std::isnan(a) || std::isnan(b) ? NAN : b > a ? b : a;
  }
  return 0;
}

template <typename T>
T FromBits(std::uint16_t bits) {
  T value;
  value.bits = bits;
  return value;
}

// Every one of the 65536 values with every one of these: zeros, denormals, the smallest and the
// largest, infinities, NaNs of either sign and kind, values that make ties, and ordinary ones.
template <typename T>
void ExpectTheScalarTypesBits(const std::vector<std::uint16_t>& others) {
  std::vector<T> all;
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    all.push_back(FromBits<T>(static_cast<std::uint16_t>(bits)));
  }
  for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kMin, ReduceOp::kMax, ReduceOp::kProduct}) {
    for (const std::uint16_t other : others) {
      const std::vector<T> second(all.size(), FromBits<T>(other));
      const std::vector<T> results = Combined(op, all, second);
      int wrong = 0;
      for (std::size_t i = 0; i < all.size(); ++i) {
        const T expected(Scalar(op, static_cast<float>(all[i]), static_cast<float>(second[i])));
        // Which operand's NaN it is, nobody says; that it is one, does not change.
        const bool nan = std::isnan(static_cast<float>(expected));
        wrong +=
            (nan ? std::isnan(static_cast<float>(results[i])) : results[i] == expected) ? 0 : 1;
      }
      EXPECT_EQ(wrong, 0) << DTypeName(DTypeOf<T>::value) << " " << ReduceOpName(op) << " with 0x"
                          << std::hex << other;
    }
  }
  for (const int ranks : {2, 3, 7}) {
    const std::vector<T> results = Averaged(all, ranks);
    for (std::size_t i = 0; i < all.size(); ++i) {
      const T expected(static_cast<float>(all[i]) / static_cast<float>(ranks));
      ASSERT_EQ(results[i].bits, expected.bits) << i << " / " << ranks;  // NaNs keep sign and kind
    }
  }
}

TEST(Reduction, HalfTypesHaveTheBitsOfTheScalarTypes) {
  const std::vector<std::uint16_t> kFloat16 = {
      0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x0400, 0x3c00, 0xbc00, 0x1001, 0x3c01, 0x7bff,
      0xfbff, 0x7c00, 0xfc00, 0x7e00, 0xfe00, 0x7c01, 0x7fff, 0x3555, 0xd640, 0x6801};
  const std::vector<std::uint16_t> kBFloat16 = {
      0x0000, 0x8000, 0x0001, 0x8001, 0x007f, 0x0080, 0x3f80, 0xbf80, 0x3b80, 0x3b81, 0x7f7f,
      0xff7f, 0x7f80, 0xff80, 0x7fc0, 0xffc0, 0x7f81, 0x7fff, 0x3eab, 0xc2c8, 0x7300};
  ExpectTheScalarTypesBits<Float16>(kFloat16);
  ExpectTheScalarTypesBits<BFloat16>(kBFloat16);
}

template <typename T>
std::vector<const std::byte*> Pointers(const std::vector<std::vector<T>>& sources) {
  std::vector<const std::byte*> pointers;
  for (const std::vector<T>& source : sources) {
    pointers.push_back(reinterpret_cast<const std::byte*>(source.data()));
  }
  return pointers;
}

// Sizes around the blocks; the destination apart from the sources, and each of them.
TEST(Reduction, ManyOperandsHaveTheBitsOfPairs) {
  for (const std::size_t count : {0U, 1U, 7U, 2048U, 2049U, 5000U}) {
    for (std::size_t operands = 1; operands <= 6; ++operands) {
      std::vector<std::vector<BFloat16>> sources(operands);
      for (std::size_t s = 0; s < operands; ++s) {
        for (std::size_t i = 0; i < count; ++i) {
          sources[s].emplace_back(0.37F * static_cast<float>(i % 91 + 1) /
                                  static_cast<float>(s + 1));
        }
      }
      std::vector<BFloat16> expected = sources[0];
      for (std::size_t s = 1; s < operands; ++s) {
        expected = Combined(ReduceOp::kSum, expected, sources[s]);
      }
      const Reduction reduction(DType::kBFloat16, ReduceOp::kSum);
      std::vector<BFloat16> to(count);
      reduction.CombineAll(reinterpret_cast<std::byte*>(to.data()), Pointers(sources), count * 2);
      EXPECT_EQ(to, expected);
      for (std::size_t s = 0; s < operands; ++s) {
        std::vector<std::vector<BFloat16>> copy = sources;
        reduction.CombineAll(reinterpret_cast<std::byte*>(copy[s].data()), Pointers(copy),
                             count * 2);
        EXPECT_EQ(copy[s], expected) << "in place over source " << s << " of " << operands;
      }
    }
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
  constexpr auto kMost = std::numeric_limits<std::int32_t>::max();
  constexpr auto kLeast = std::numeric_limits<std::int32_t>::min();
  EXPECT_EQ(Averaged<std::int32_t>({kMost, kLeast, kMost - 1, -1, 8}, 3),
            (std::vector<std::int32_t>{kMost / 3, kLeast / 3, (kMost - 1) / 3, 0, 2}));
  constexpr auto kLongest = std::numeric_limits<std::int64_t>::min();
  for (const int ranks : {1, 2, 3, 8}) {
    EXPECT_EQ(Averaged<std::int64_t>({kLongest, -9, -8, -1, 0, 1, 8, 9}, ranks),
              (std::vector<std::int64_t>{kLongest / ranks, -9 / ranks, -8 / ranks, -1 / ranks, 0,
                                         1 / ranks, 8 / ranks, 9 / ranks}));
  }
  EXPECT_EQ(Averaged<std::uint8_t>({250}, 3), (std::vector<std::uint8_t>{83}));
  EXPECT_EQ(Averaged<BFloat16>({BFloat16(3.0F)}, 2), (std::vector<BFloat16>{BFloat16(1.5F)}));
}

}  // namespace
}  // namespace cohort
