#include "reduction.h"

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

namespace cohort {
namespace {

struct Sum {
  template <typename T>
  static T Of(T a, T b) {
    return a + b;
  }
};
struct Product {
  template <typename T>
  static T Of(T a, T b) {
    return a * b;
  }
};
// a != a holds for NaN only; for integers it folds away.
struct Min {
  template <typename T>
  static T Of(T a, T b) {
    return (b < a) | (b != b) ? b : a;
  }
};
struct Max {
  template <typename T>
  static T Of(T a, T b) {
    return (b > a) | (b != b) ? b : a;
  }
};

// What an element is computed in: integers wrap, so sums and products are unsigned.
template <typename T, typename Op>
using Arithmetic =
    typename std::conditional_t<std::is_integral_v<T> &&
                                    (std::is_same_v<Op, Sum> || std::is_same_v<Op, Product>),
                                std::make_unsigned<T>, std::type_identity<T>>::type;

// Buffers come from callers and the wire: memcpy makes every load and store unaligned-safe, and the
// compiler vectorises it.
template <typename T, typename Op>
void CombineLoop(std::byte* to, const std::byte* lhs, const std::byte* rhs, std::size_t bytes) {
  using A = Arithmetic<T, Op>;
  const std::size_t count = bytes / sizeof(T);
#pragma GCC ivdep  // `to` is lhs, rhs or apart from both
  for (std::size_t i = 0; i < count; ++i) {
    A a;
    A b;
    std::memcpy(&a, lhs + i * sizeof(T), sizeof(T));
    std::memcpy(&b, rhs + i * sizeof(T), sizeof(T));
    const A c = static_cast<A>(Op::Of(a, b));
    std::memcpy(to + i * sizeof(T), &c, sizeof(T));
  }
}

// Half types: eight at a time in float. Load and Store convert as the scalar types do, bit by bit.
constexpr std::size_t kEight = 8;

__m256 Load(const std::byte* p, Float16 /*type*/) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
__m256 Load(const std::byte* p, BFloat16 /*type*/) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
void Store(std::byte* p, __m256 value, Float16 /*type*/) {
  // One NaN of each sign, as Float16 has it; the conversion would keep the payload.
  const __m256 sign = _mm256_and_ps(value, _mm256_set1_ps(-0.0F));
  const __m256 nan = _mm256_or_ps(sign, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)));
  const __m256 kept = _mm256_blendv_ps(value, nan, _mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(kept, _MM_FROUND_TO_NEAREST_INT));
}
void Store(std::byte* p, __m256 value, BFloat16 /*type*/) {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i upper = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
  const __m256i half = _mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(half, odd), 16);
  const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  const __m256i result = _mm256_blendv_epi8(rounded, quiet, is_nan);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1)));
}

// `block(to, lhs, rhs)` for every eight elements; the last ones in a block of their own.
template <typename T, typename F>
void ForEachEight(std::byte* to, const std::byte* lhs, const std::byte* rhs, std::size_t bytes,
                  F block) {
  constexpr std::size_t kBlockBytes = kEight * sizeof(T);
  std::size_t at = 0;
  for (; at + kBlockBytes <= bytes; at += kBlockBytes) {
    block(to + at, lhs + at, rhs + at);
  }
  if (at < bytes) {
    std::byte a[kBlockBytes] = {};
    std::byte b[kBlockBytes] = {};
    std::memcpy(a, lhs + at, bytes - at);
    std::memcpy(b, rhs + at, bytes - at);
    block(a, a, b);
    std::memcpy(to + at, a, bytes - at);
  }
}

template <typename T, typename Op>
void CombineHalf(std::byte* to, const std::byte* lhs, const std::byte* rhs, std::size_t bytes) {
  ForEachEight<T>(to, lhs, rhs, bytes, [](std::byte* out, const std::byte* a, const std::byte* b) {
    Store(out, Op::Of(Load(a, T()), Load(b, T())), T());
  });
}

template <typename T>
constexpr bool kIsHalf = std::is_same_v<T, Float16> || std::is_same_v<T, BFloat16>;

// Integers truncate toward zero. Those of up to 32 bits are divided as doubles, which vectorise: a
// quotient that is no integer is at least 1 / ranks away from one, and rounds by far less.
template <typename T>
T Quotient(T value, int ranks) {
  if constexpr (std::is_floating_point_v<T>) {
    return value / static_cast<T>(ranks);
  } else if constexpr (sizeof(T) <= 4) {
    return static_cast<T>(
        static_cast<std::int32_t>(static_cast<double>(value) / static_cast<double>(ranks)));
  } else {
    return value / ranks;
  }
}

// 64-bit integers by a power of two: the machine has no vector division for them, but it has
// shifts.
void ShiftLoop(std::byte* data, std::size_t bytes, int ranks) {
  const int shift = std::countr_zero(static_cast<unsigned>(ranks));
  const std::size_t count = bytes / sizeof(std::int64_t);
  for (std::size_t i = 0; i < count; ++i) {
    std::int64_t value;
    std::memcpy(&value, data + i * sizeof(value), sizeof(value));
    value = (value + (value < 0 ? ranks - 1 : 0)) >> shift;  // toward zero
    std::memcpy(data + i * sizeof(value), &value, sizeof(value));
  }
}

template <typename T>
void DivideLoop(std::byte* data, std::size_t bytes, int ranks) {
  if constexpr (kIsHalf<T>) {
    const __m256 divisor = _mm256_set1_ps(static_cast<float>(ranks));
    ForEachEight<T>(data, data, data, bytes,
                    [divisor](std::byte* out, const std::byte* a, const std::byte* /*same*/) {
                      Store(out, _mm256_div_ps(Load(a, T()), divisor), T());
                    });
  } else {
    if (std::is_same_v<T, std::int64_t> && std::has_single_bit(static_cast<unsigned>(ranks))) {
      return ShiftLoop(data, bytes, ranks);
    }
    const std::size_t count = bytes / sizeof(T);
    for (std::size_t i = 0; i < count; ++i) {
      T value;
      std::memcpy(&value, data + i * sizeof(T), sizeof(T));
      value = Quotient(value, ranks);
      std::memcpy(data + i * sizeof(T), &value, sizeof(T));
    }
  }
}

// Calls `f` with the C++ type of `dtype`.
template <typename F>
auto Dispatch(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(float());
    case DType::kFloat64:
      return f(double());
    case DType::kInt32:
      return f(std::int32_t());
    case DType::kInt64:
      return f(std::int64_t());
    case DType::kFloat16:
      return f(Float16());
    case DType::kBFloat16:
      return f(BFloat16());
    case DType::kUInt8:
      return f(std::uint8_t());
  }
  throw ContractError("a known element type");
}

template <typename T, typename Op>
constexpr auto Loop() {
  if constexpr (kIsHalf<T>) {
    return &CombineHalf<T, Op>;
  } else {
    return &CombineLoop<T, Op>;
  }
}

}  // namespace

Reduction::Reduction(DType dtype, ReduceOp op) : element_bytes_(SizeOf(dtype)), divide_(nullptr) {
  combine_ = Dispatch(dtype, [op](auto type) -> CombineFn {
    using T = decltype(type);
    switch (op) {
      case ReduceOp::kSum:
      case ReduceOp::kMean:
        return Loop<T, Sum>();
      case ReduceOp::kMin:
        return Loop<T, Min>();
      case ReduceOp::kMax:
        return Loop<T, Max>();
      case ReduceOp::kProduct:
        return Loop<T, Product>();
    }
    throw ContractError("a known reduction");
  });
  if (op == ReduceOp::kMean) {
    divide_ = Dispatch(dtype, [](auto type) -> DivideFn { return &DivideLoop<decltype(type)>; });
  }
}

// Block by block: the intermediate results never leave the first-level cache, so that memory sees
// each source read once and the destination written once. Only the last combination writes there,
// when the block of every source has been read: `to` may be any of them.
void Reduction::CombineAll(std::byte* to, std::span<const std::byte* const> sources,
                           std::size_t bytes) const {
  if (sources.size() == 1) {
    if (to != sources[0] && bytes > 0) {
      std::memmove(to, sources[0], bytes);
    }
    return;
  }
  alignas(64) std::byte sum[kBlockBytes];
  for (std::size_t at = 0; at < bytes; at += kBlockBytes) {
    const std::size_t n = std::min(kBlockBytes, bytes - at);
    const std::byte* left = sources[0] + at;
    for (std::size_t s = 1; s < sources.size(); ++s) {
      std::byte* const result = s + 1 == sources.size() ? to + at : sum;
      Combine(result, left, sources[s] + at, n);
      left = sum;
    }
  }
}

void Reduction::Finish(std::byte* data, std::size_t bytes, int ranks) const {
  if (divide_ != nullptr) {
    divide_(data, bytes, ranks);
  }
}

}  // namespace cohort
