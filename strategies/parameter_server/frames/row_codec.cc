#include "parameter_server/frames/row_codec.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include <cohort/core/dtype.h>

namespace cohort::ps {
namespace {

using Wire = TableSpec::Wire;

constexpr float kSteps = 127;
constexpr std::size_t kEight = 8;   // values of a vector
constexpr float kTooLarge = 65520;  // rounds to infinity, as all beyond do

// False: a value becomes infinite that is not.
bool EncodeHalves(std::span<const float> row, std::byte* to) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const __m256 sign = _mm256_set1_ps(-0.0F);
  __m256 lost = _mm256_setzero_ps();
  std::size_t i = 0;
  for (; i + kEight <= row.size(); i += kEight) {
    const __m256 values = _mm256_loadu_ps(row.data() + i);
    const __m256 magnitudes = _mm256_andnot_ps(sign, values);
    lost = _mm256_or_ps(
        lost, _mm256_and_ps(_mm256_cmp_ps(magnitudes, _mm256_set1_ps(kTooLarge), _CMP_GE_OQ),
                            _mm256_cmp_ps(magnitudes, _mm256_set1_ps(kInfinity), _CMP_LT_OQ)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * sizeof(std::uint16_t)),
                     _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
  }
  bool fits = _mm256_movemask_ps(lost) == 0;
  for (; i < row.size(); ++i) {
    const Float16 half(row[i]);
    fits &= std::abs(row[i]) < kTooLarge || !std::isfinite(row[i]);
    std::memcpy(to + i * sizeof(half.bits), &half.bits, sizeof(half.bits));
  }
  return fits;
}

void DecodeHalves(const std::byte* from, std::span<float> row) {
  std::size_t i = 0;
  for (; i + kEight <= row.size(); i += kEight) {
    const __m128i halves =
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * sizeof(std::uint16_t)));
    _mm256_storeu_ps(row.data() + i, _mm256_cvtph_ps(halves));
  }
  for (; i < row.size(); ++i) {
    Float16 half;
    std::memcpy(&half.bits, from + i * sizeof(half.bits), sizeof(half.bits));
    row[i] = static_cast<float>(half);
  }
}

bool EncodeUpperHalves(std::span<const float> row, std::byte* to) {
  bool fits = true;
  for (std::size_t i = 0; i < row.size(); ++i) {
    const BFloat16 half(row[i]);
    fits &= std::isfinite(static_cast<float>(half)) || !std::isfinite(row[i]);
    std::memcpy(to + i * sizeof(half.bits), &half.bits, sizeof(half.bits));
  }
  return fits;
}

void DecodeUpperHalves(const std::byte* from, std::span<float> row) {
  for (std::size_t i = 0; i < row.size(); ++i) {
    BFloat16 half;
    std::memcpy(&half.bits, from + i * sizeof(half.bits), sizeof(half.bits));
    row[i] = static_cast<float>(half);
  }
}

void EncodeBytes(std::span<const float> row, std::byte* to) {
  float greatest = 0;
  bool finite = true;
  for (const float value : row) {
    greatest = std::max(greatest, std::abs(value));
    finite &= std::isfinite(value);
  }
  if (!finite) {
    greatest = std::numeric_limits<float>::quiet_NaN();
  }
  std::memcpy(to, &greatest, sizeof(greatest));
  to += sizeof(greatest);
  if (!finite || greatest < std::numeric_limits<float>::min() * kSteps) {
    for (const float value : row) {  // the factor below would be infinite
      const double part = finite && greatest > 0 ? static_cast<double>(value) / greatest : 0;
      *to++ = static_cast<std::byte>(static_cast<std::int8_t>(std::nearbyint(part * kSteps)));
    }
    return;
  }
  const float factor = kSteps / greatest;
  for (const float value : row) {
    *to++ = static_cast<std::byte>(static_cast<std::int8_t>(std::nearbyint(value * factor)));
  }
}

void DecodeBytes(const std::byte* from, std::span<float> row) {
  float greatest = 0;
  std::memcpy(&greatest, from, sizeof(greatest));
  from += sizeof(greatest);
  for (float& value : row) {
    value = greatest * (static_cast<float>(static_cast<std::int8_t>(*from++)) / kSteps);
  }
}

}  // namespace

std::string_view WireName(Wire wire) {
  switch (wire) {
    case Wire::kFloat16:
      return "float16";
    case Wire::kInt8:
      return "int8";
    case Wire::kBFloat16:
      return "bfloat16";
    case Wire::kFloat32:
      break;
  }
  return "float32";
}

std::size_t EncodedRowBytes(Wire wire, std::size_t dim) {
  switch (wire) {
    case Wire::kFloat32:
      break;
    case Wire::kFloat16:
    case Wire::kBFloat16:
      return dim * sizeof(std::uint16_t);
    case Wire::kInt8:
      return dim + sizeof(float);
  }
  return dim * sizeof(float);
}

std::uint64_t EncodedBytes(Wire wire, std::size_t dim, std::uint64_t rows) {
  return (EncodedRowBytes(wire, dim) * rows + 3) / 4 * 4;
}

std::optional<std::size_t> EncodeRows(Wire wire, std::size_t dim, std::span<const float> rows,
                                      std::span<std::byte> to) {
  if (wire == Wire::kFloat32) {
    std::memcpy(to.data(), rows.data(), rows.size_bytes());
    return std::nullopt;
  }
  const std::size_t bytes = EncodedRowBytes(wire, dim);
  const std::size_t count = rows.size() / dim;
  for (std::size_t i = 0; i < count; ++i) {
    const std::span<const float> row = rows.subspan(i * dim, dim);
    if (wire == Wire::kInt8) {
      EncodeBytes(row, to.data() + i * bytes);
    } else if (!(wire == Wire::kFloat16 ? EncodeHalves : EncodeUpperHalves)(
                   row, to.data() + i * bytes)) {
      return i;
    }
  }
  std::fill(to.begin() + static_cast<std::ptrdiff_t>(count * bytes), to.end(), std::byte{0});
  return std::nullopt;
}

void DecodeRows(Wire wire, std::size_t dim, std::span<const std::byte> from,
                std::span<float> rows) {
  if (wire == Wire::kFloat32) {
    std::memcpy(rows.data(), from.data(), rows.size_bytes());
    return;
  }
  const std::size_t bytes = EncodedRowBytes(wire, dim);
  for (std::size_t i = 0; i < rows.size() / dim; ++i) {
    const std::span<float> row = rows.subspan(i * dim, dim);
    const auto decode = wire == Wire::kInt8      ? DecodeBytes
                        : wire == Wire::kFloat16 ? DecodeHalves
                                                 : DecodeUpperHalves;
    decode(from.data() + i * bytes, row);
  }
}

}  // namespace cohort::ps
