#include "parameter_server/frames/dense_codec.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include <cohort/core/status.h>

#include "parameter_server/frames/row_codec.h"

namespace cohort::ps {
namespace {

constexpr std::size_t kPiece = 2048;  // values that are encoded out of the first cache

// float16 as rows have it: one row.
constexpr TableSpec::Wire kHalf = TableSpec::Wire::kFloat16;

// kUInt8 as rows of so many values have int8; the last one is shorter.
constexpr TableSpec::Wire kBytes = TableSpec::Wire::kInt8;
constexpr std::size_t kRow = 256;
static_assert(kPiece % kRow == 0);

// fn(dim, values, travels) for the whole rows, and for the rest.
template <typename Values, typename Travels, typename Fn>
void ForRows(std::span<Values> values, std::span<Travels> travels, const Fn& fn) {
  const std::size_t whole = values.size() / kRow * kRow;
  const std::size_t floats = EncodedFloats(DType::kUInt8, whole);
  if (whole > 0) {
    fn(kRow, values.first(whole), travels.first(floats));
  }
  if (whole < values.size()) {
    fn(values.size() - whole, values.subspan(whole), travels.subspan(floats));
  }
}

void EncodeBFloats(std::span<const float> values, std::uint16_t* to) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    to[i] = BFloat16(values[i]).bits;
  }
}

bool BFloatsFit(std::span<const float> values) {
  constexpr std::uint32_t kInfinity = 0x7F800000;
  constexpr std::uint32_t kTooLarge = 0x7F7F8000;  // rounds to infinity, as all beyond do
  std::uint32_t lost = 0;
  for (const float value : values) {
    const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(value) & 0x7FFFFFFF;
    lost |= static_cast<std::uint32_t>(magnitude >= kTooLarge && magnitude < kInfinity);
  }
  return lost == 0;
}

}  // namespace

std::uint32_t WireNumber(DType wire) {
  switch (wire) {
    case DType::kFloat16:
      return 1;
    case DType::kUInt8:
      return 2;
    case DType::kBFloat16:
      return 3;
    default:
      Require(wire == DType::kFloat32, "values travel as float32, float16, bfloat16 or uint8");
      return 0;
  }
}

std::optional<DType> WireOf(std::uint32_t number) {
  switch (number) {
    case 0:
      return DType::kFloat32;
    case 1:
      return DType::kFloat16;
    case 2:
      return DType::kUInt8;
    case 3:
      return DType::kBFloat16;
    default:
      return std::nullopt;
  }
}

std::size_t EncodedFloats(DType wire, std::size_t values) {
  if (wire == DType::kUInt8) {
    const std::size_t rest = values % kRow;
    return (values / kRow * EncodedRowBytes(kBytes, kRow) +
            (rest == 0 ? 0 : EncodedRowBytes(kBytes, rest)) + sizeof(float) - 1) /
           sizeof(float);
  }
  return wire == DType::kFloat32 ? values : (values + 1) / 2;
}

bool EncodeValues(DType wire, std::span<const float> values, std::span<float> to) {
  if (wire == DType::kFloat32) {
    std::ranges::copy(values, to.begin());
    return true;
  }
  if (values.empty()) {
    return true;
  }
  to.back() = 0;  // also the last bytes where values do not fill it
  if (wire == DType::kUInt8) {
    ForRows(values, to, [](std::size_t dim, std::span<const float> rows, std::span<float> travels) {
      static_cast<void>(EncodeRows(kBytes, dim, rows, std::as_writable_bytes(travels)));
    });
    return true;  // the scale of a row holds all numbers
  }
  if (wire == DType::kFloat16) {
    return !EncodeRows(kHalf, values.size(), values, std::as_writable_bytes(to)).has_value();
  }
  EncodeBFloats(values, reinterpret_cast<std::uint16_t*>(to.data()));
  return BFloatsFit(values);
}

void DecodeValues(DType wire, std::span<const float> from, std::span<float> values) {
  if (wire == DType::kFloat32) {
    std::ranges::copy(from, values.begin());
  } else if (wire == DType::kUInt8) {
    ForRows(values, from,
            [](std::size_t dim, std::span<float> rows, std::span<const float> travels) {
              DecodeRows(kBytes, dim, std::as_bytes(travels), rows);
            });
  } else if (wire == DType::kFloat16) {
    if (!values.empty()) {
      DecodeRows(kHalf, values.size(), std::as_bytes(from), values);
    }
  } else {
    const auto* const halves = reinterpret_cast<const std::uint16_t*>(from.data());
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = std::bit_cast<float>(std::uint32_t{halves[i]} << 16);
    }
  }
}

bool EncodeWithFeedback(DType wire, std::span<const float> values, float scale,
                        std::span<float> residual, std::span<float> to) {
  const float per_scale = 1 / scale;
  if (!std::isfinite(per_scale)) {
    return EncodeValues(wire, values, to);
  }
  std::array<float, kPiece> sums;
  std::array<float, kPiece> arrived;
  bool fits = true;
  for (std::size_t begin = 0; begin < values.size(); begin += kPiece) {
    const std::size_t n = std::min(kPiece, values.size() - begin);
    const std::span<float> sum = std::span(sums).first(n);
    const std::span<float> rest = residual.subspan(begin, n);
    for (std::size_t i = 0; i < n; ++i) {
      sum[i] = values[begin + i] + rest[i] * per_scale;
    }
    const std::span<float> piece = to.subspan(EncodedFloats(wire, begin), EncodedFloats(wire, n));
    fits &= EncodeValues(wire, sum, piece);
    DecodeValues(wire, piece, std::span(arrived).first(n));
    for (std::size_t i = 0; i < n; ++i) {
      const float lost = (sum[i] - arrived[i]) * scale;
      rest[i] = std::abs(lost) <= std::numeric_limits<float>::max() ? lost : 0.0F;
    }
  }
  return fits;
}

}  // namespace cohort::ps
