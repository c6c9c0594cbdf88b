// Rows on the wire: how far each format is off, and what it says of what it cannot hold.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include <cohort/core/dtype.h>
#include <cohort/core/random.h>

#include "parameter_server/frames/row_codec.h"

namespace cohort::ps {
namespace {

using Wire = TableSpec::Wire;

std::vector<float> RandomRows(std::size_t count, std::uint64_t seed) {
  const Philox random(seed, "rows");
  std::vector<float> rows(count);
  for (std::size_t i = 0; i < count; ++i) {
    rows[i] = random.Normal(i, 1) * std::pow(10.0F, static_cast<float>(random.Below(9, i, 2)) - 4);
  }
  return rows;
}

std::vector<float> ThereAndBack(Wire wire, std::size_t dim, const std::vector<float>& rows) {
  std::vector<std::byte> bytes(EncodedBytes(wire, dim, rows.size() / dim));
  EXPECT_FALSE(EncodeRows(wire, dim, rows, bytes).has_value());
  std::vector<float> back(rows.size());
  DecodeRows(wire, dim, bytes, back);
  std::vector<std::byte> again(bytes.size());
  EXPECT_FALSE(EncodeRows(wire, dim, back, again).has_value());
  EXPECT_EQ(again, bytes) << "rounding happens once";
  return back;
}

TEST(RowCodecTest, Float32IsExact) {
  const std::vector<float> rows = RandomRows(700, 1);
  EXPECT_EQ(ThereAndBack(Wire::kFloat32, 7, rows), rows);
  EXPECT_EQ(EncodedBytes(Wire::kFloat32, 7, 3), 84);
}

TEST(RowCodecTest, Float16IsTheNearestHalf) {
  for (const std::size_t dim : {1, 7, 8, 19}) {
    const std::vector<float> rows = RandomRows(100 * dim, dim);
    const std::vector<float> back = ThereAndBack(Wire::kFloat16, dim, rows);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      ASSERT_EQ(back[i], static_cast<float>(Float16(rows[i]))) << rows[i];
    }
  }
  EXPECT_EQ(EncodedBytes(Wire::kFloat16, 7, 3), 44);
}

TEST(RowCodecTest, BFloat16IsTheNearestUpperHalf) {
  for (const std::size_t dim : {1, 7, 8, 19}) {
    const std::vector<float> rows = RandomRows(100 * dim, dim);
    const std::vector<float> back = ThereAndBack(Wire::kBFloat16, dim, rows);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      ASSERT_EQ(back[i], static_cast<float>(BFloat16(rows[i]))) << rows[i];
    }
  }
  EXPECT_EQ(EncodedBytes(Wire::kBFloat16, 7, 3), 44);
}

TEST(RowCodecTest, Int8IsOffByAtMostHalfAStepOfTheRowsGreatest) {
  for (const std::size_t dim : {1, 7, 8, 19}) {
    const std::vector<float> rows = RandomRows(100 * dim, dim);
    const std::vector<float> back = ThereAndBack(Wire::kInt8, dim, rows);
    for (std::size_t r = 0; r < 100; ++r) {
      float greatest = 0;
      for (std::size_t k = 0; k < dim; ++k) {
        greatest = std::max(greatest, std::abs(rows[r * dim + k]));
      }
      for (std::size_t k = 0; k < dim; ++k) {
        const float value = rows[r * dim + k];
        ASSERT_NEAR(back[r * dim + k], value, greatest / 254 * 1.0001F);
        if (std::abs(value) == greatest) {
          ASSERT_EQ(back[r * dim + k], value);
        }
      }
    }
  }
  EXPECT_EQ(EncodedBytes(Wire::kInt8, 7, 3), 36);
}

TEST(RowCodecTest, Int8HoldsZerosAndTheSmallest) {
  const float smallest = std::numeric_limits<float>::denorm_min();
  const std::vector<float> rows = {0, 0, smallest, -smallest, 3 * smallest, 0};
  EXPECT_EQ(ThereAndBack(Wire::kInt8, 2, rows), rows);
}

TEST(RowCodecTest, WhatIsNotFiniteArrivesAsSuch) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (const Wire wire : {Wire::kFloat16, Wire::kBFloat16, Wire::kInt8}) {
    for (const float broken : {nan, infinity, -infinity}) {
      for (const std::size_t at : {0, 8}) {
        std::vector<float> rows(27, 1);
        rows[9 + at] = broken;
        std::vector<std::byte> bytes(EncodedBytes(wire, 9, 3));
        ASSERT_FALSE(EncodeRows(wire, 9, rows, bytes).has_value());
        DecodeRows(wire, 9, bytes, rows);
        EXPECT_FALSE(std::isfinite(rows[9 + at]));
        EXPECT_EQ(rows[at], 1) << "another row";
        EXPECT_EQ(rows[18 + at], 1);
      }
    }
  }
}

TEST(RowCodecTest, ARowThatTheFormatCannotHoldIsNamed) {
  for (const std::size_t at : {0, 8}) {
    std::vector<float> rows(27, 1);
    std::vector<std::byte> bytes(EncodedBytes(Wire::kFloat16, 9, 3));
    rows[9 + at] = -65519;
    EXPECT_FALSE(EncodeRows(Wire::kFloat16, 9, rows, bytes).has_value());
    rows[9 + at] = -65520;
    EXPECT_EQ(EncodeRows(Wire::kFloat16, 9, rows, bytes), 1);
    EXPECT_FALSE(EncodeRows(Wire::kBFloat16, 9, rows, bytes).has_value());
    rows[9 + at] = std::numeric_limits<float>::max();
    EXPECT_EQ(EncodeRows(Wire::kBFloat16, 9, rows, bytes), 1);
  }
}

}  // namespace
}  // namespace cohort::ps
