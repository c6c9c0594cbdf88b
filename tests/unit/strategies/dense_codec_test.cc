// Values on the wire in 16 and 8 bits, and what rounding takes of gradients.

#include "parameter_server/frames/dense_codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include <cohort/core/random.h>

namespace cohort::ps {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> RandomValues(std::size_t n) {
  Philox random(7);
  std::vector<float> values(n);
  for (std::size_t i = 0; i < n; ++i) {
    values[i] = (random.Uniform(i) - 0.5F) * 100;
  }
  return values;
}

// Half the distance of two neighbours near `value`, at most.
float Rounding(DType wire, float value) {
  if (wire == DType::kUInt8) {
    return 50.0F / 254 + 1e-5F;  // of the greatest of 256
  }
  return std::abs(value) * (wire == DType::kFloat16 ? 0x1p-11F : 0x1p-8F) + 1e-7F;
}

TEST(DenseCodecTest, ValuesArriveRounded) {
  for (const DType wire : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kUInt8}) {
    for (const std::size_t n : {std::size_t{0}, std::size_t{1}, std::size_t{7}, std::size_t{8},
                                std::size_t{256}, std::size_t{5001}}) {
      const std::vector<float> values = RandomValues(n);
      std::vector<float> travels(EncodedFloats(wire, n));
      ASSERT_EQ(travels.size(), wire == DType::kFloat32 ? n
                                : wire == DType::kUInt8 ? (n + (n + 255) / 256 * 4 + 3) / 4
                                                        : (n + 1) / 2);
      ASSERT_TRUE(EncodeValues(wire, values, travels));
      std::vector<float> arrived(n);
      DecodeValues(wire, travels, arrived);
      for (std::size_t i = 0; i < n; ++i) {
        ASSERT_NEAR(arrived[i], values[i], wire == DType::kFloat32 ? 0 : Rounding(wire, values[i]))
            << DTypeName(wire) << " " << i << " of " << n;
      }
      EXPECT_EQ(WireOf(WireNumber(wire)), wire);
    }
  }
  EXPECT_FALSE(WireOf(4).has_value());
}

TEST(DenseCodecTest, WhatAFormatCannotHoldIsSaidAndWhatIsNotFiniteStaysSo) {
  for (const DType wire : {DType::kFloat16, DType::kBFloat16}) {
    std::vector<float> travels(5);
    std::vector<float> arrived(9);
    const float most = wire == DType::kFloat16 ? 65504.0F : 0x1.FEp127F;
    std::vector<float> values(9, most);
    EXPECT_TRUE(EncodeValues(wire, values, travels));
    DecodeValues(wire, travels, arrived);
    EXPECT_EQ(arrived, values);
    for (const std::size_t place : {0, 8}) {
      values[place] = wire == DType::kFloat16 ? 65520.0F : std::numeric_limits<float>::max();
      EXPECT_FALSE(EncodeValues(wire, values, travels)) << DTypeName(wire) << " " << place;
      values[place] = -kInfinity;
      EXPECT_TRUE(EncodeValues(wire, values, travels));
      DecodeValues(wire, travels, arrived);
      EXPECT_EQ(arrived[place], -kInfinity);
      values[place] = std::nanf("");
      EXPECT_TRUE(EncodeValues(wire, values, travels));
      DecodeValues(wire, travels, arrived);
      EXPECT_TRUE(std::isnan(arrived[place]));
      values[place] = 1;
    }
  }
}

// All that was to be sent has been, but for what is still kept; in steps of different weights, some
// of them clipped.
TEST(DenseCodecTest, WhatRoundingTakesIsSentLater) {
  for (const DType wire : {DType::kFloat16, DType::kBFloat16, DType::kUInt8}) {
    const std::size_t n = 4099;  // pieces, and an odd end
    const std::vector<float> mean = RandomValues(n);
    std::vector<float> residual(n, 0);
    std::vector<double> sent(n, 0);
    std::vector<float> travels(EncodedFloats(wire, n));
    std::vector<float> arrived(n);
    constexpr int kSteps = 50;
    for (int step = 0; step < kSteps; ++step) {
      const float scale = (step % 2 == 0 ? 1.0F : 0.125F) / static_cast<float>(step % 3 + 1);
      std::vector<float> gradient(n);
      for (std::size_t i = 0; i < n; ++i) {
        gradient[i] = mean[i] / scale;
      }
      ASSERT_TRUE(EncodeWithFeedback(wire, gradient, scale, residual, travels));
      DecodeValues(wire, travels, arrived);
      for (std::size_t i = 0; i < n; ++i) {
        sent[i] += arrived[i] * scale;
      }
    }
    for (std::size_t i = 0; i < n; ++i) {
      // One rounding, and not one for each step; the sums are in float.
      ASSERT_NEAR(sent[i], static_cast<double>(mean[i]) * kSteps,
                  2 * Rounding(wire, mean[i]) + std::abs(mean[i]) * 1e-4)
          << DTypeName(wire) << " " << i;
      ASSERT_NEAR(sent[i] + residual[i], static_cast<double>(mean[i]) * kSteps,
                  std::abs(mean[i]) * 1e-4 + 1e-5)
          << DTypeName(wire) << " " << i;
    }
  }
}

TEST(DenseCodecTest, InEightBitsEvery256ValuesHaveAScale) {
  std::vector<float> values(600, 0.001F);
  values[300] = 127;
  values[599] = -1e30F;
  std::vector<float> travels(EncodedFloats(DType::kUInt8, values.size()));
  std::vector<float> arrived(values.size());
  EXPECT_TRUE(EncodeValues(DType::kUInt8, values, travels)) << "no number is too large";
  DecodeValues(DType::kUInt8, travels, arrived);
  EXPECT_FLOAT_EQ(arrived[0], 0.001F);
  EXPECT_FLOAT_EQ(arrived[255], 0.001F);
  EXPECT_EQ(arrived[299], 0) << "beside a greater one";
  EXPECT_EQ(arrived[300], 127);
  EXPECT_FLOAT_EQ(arrived[599], -1e30F);
  values[10] = std::nanf("");
  EXPECT_TRUE(EncodeValues(DType::kUInt8, values, travels));
  DecodeValues(DType::kUInt8, travels, arrived);
  EXPECT_FALSE(std::isfinite(arrived[10]));
  EXPECT_EQ(arrived[300], 127);
}

TEST(DenseCodecTest, NothingIsKeptOfWhatIsNotFinite) {
  std::vector<float> residual(2, 0.5F);
  std::vector<float> travels(1);
  const std::vector<float> gradient = {std::nanf(""), kInfinity};
  EXPECT_TRUE(EncodeWithFeedback(DType::kBFloat16, gradient, 1, residual, travels));
  EXPECT_EQ(residual, (std::vector<float>{0, 0}));
}

TEST(DenseCodecTest, WhatIsNotAppliedIsNotFedBack) {
  std::vector<float> residual(2, 0.5F);
  std::vector<float> travels(1);
  const std::vector<float> gradient = {1, 2};
  EXPECT_TRUE(EncodeWithFeedback(DType::kBFloat16, gradient, 0, residual, travels));
  EXPECT_EQ(residual, (std::vector<float>{0.5F, 0.5F}));
}

}  // namespace
}  // namespace cohort::ps
