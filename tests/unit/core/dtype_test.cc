#include <cohort/core/dtype.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace cohort {
namespace {

// Every one of the 65,536 patterns: to float and back is the identity, NaNs stay NaNs.
template <typename Half>
void ExpectRoundTrip() {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    Half half;
    half.bits = static_cast<std::uint16_t>(bits);
    const auto value = static_cast<float>(half);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(static_cast<float>(Half(value)))) << bits;
    } else {
      ASSERT_EQ(Half(value).bits, bits);
    }
  }
}

TEST(Float16, RoundTripsEveryValue) { ExpectRoundTrip<Float16>(); }
TEST(BFloat16, RoundTripsEveryValue) { ExpectRoundTrip<BFloat16>(); }

TEST(Float16, RoundsToNearestEven) {
  EXPECT_EQ(static_cast<float>(Float16(2049.0F)), 2048.0F);
  EXPECT_EQ(static_cast<float>(Float16(2051.0F)), 2052.0F);
  EXPECT_EQ(static_cast<float>(Float16(65519.0F)), 65504.0F);
  EXPECT_TRUE(std::isinf(static_cast<float>(Float16(65520.0F))));
  EXPECT_EQ(Float16(0x1p-25F).bits, 0);  // halfway to the least subnormal: to even
  EXPECT_EQ(Float16(0x1.8p-25F).bits, 1);
  EXPECT_EQ(Float16(-0.0F).bits, 0x8000);
}

TEST(BFloat16, RoundsToNearestEven) {
  EXPECT_EQ(static_cast<float>(BFloat16(257.0F)), 256.0F);
  EXPECT_EQ(static_cast<float>(BFloat16(259.0F)), 260.0F);
  EXPECT_TRUE(std::isinf(static_cast<float>(BFloat16(std::numeric_limits<float>::max()))));
}

TEST(DType, SizesAndNames) {
  EXPECT_EQ(SizeOf(DType::kBFloat16), 2U);
  EXPECT_EQ(SizeOf(DType::kInt64), 8U);
  EXPECT_EQ(DTypeName(DType::kFloat32), "float32");
}

}  // namespace
}  // namespace cohort
