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

// Half types: sixteen at a time in float, as two vectors. Load and Store convert as the scalar
// types do, bit by bit. NaNs take a path of their own: one comparison finds both vectors' at once.
constexpr std::size_t kSixteen = 16;
struct Floats {
  __m256 first;
  __m256 second;
};

// The first and the second half.
Floats Load(const std::byte* p, Float16 /*type*/) {
  const auto* const halves = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
// The even and the odd elements: nothing has to change its place.
Floats Load(const std::byte* p, BFloat16 /*type*/) {
  const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(all, 16)),
          _mm256_castsi256_ps(_mm256_and_si256(all, _mm256_set1_epi32(-65536)))};
}

bool AnyNaN(const Floats& values) {
  return _mm256_movemask_ps(_mm256_cmp_ps(values.first, values.second, _CMP_UNORD_Q)) != 0;
}
__m256 IsNaN(__m256 values) { return _mm256_cmp_ps(values, values, _CMP_UNORD_Q); }

// One NaN of each sign, as Float16 has it; the conversion would keep the payload.
__m256 WithPlainNaNs(__m256 values) {
  const __m256 sign = _mm256_and_ps(values, _mm256_set1_ps(-0.0F));
  const __m256 nan = _mm256_or_ps(sign, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)));
  return _mm256_blendv_ps(values, nan, IsNaN(values));
}
void Store(std::byte* p, Floats values, Float16 /*type*/) {
  if (AnyNaN(values)) [[unlikely]] {
    values = {WithPlainNaNs(values.first), WithPlainNaNs(values.second)};
  }
  auto* const halves = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(halves, _mm256_cvtps_ph(values.first, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(halves + 1, _mm256_cvtps_ph(values.second, _MM_FROUND_TO_NEAREST_INT));
}

// The upper 16 bits are the rounded value; the lower ones are of no use.
__m256i RoundedUpperBits(__m256 values) {
  const __m256i bits = _mm256_castps_si256(values);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
}
__m256i WithQuietNaNs(__m256i rounded, __m256 values) {
  const __m256i quiet = _mm256_or_si256(_mm256_castps_si256(values), _mm256_set1_epi32(0x400000));
  return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(IsNaN(values)));
}
void Store(std::byte* p, Floats values, BFloat16 /*type*/) {
  __m256i even = RoundedUpperBits(values.first);
  __m256i odd = RoundedUpperBits(values.second);
  if (AnyNaN(values)) [[unlikely]] {
    even = WithQuietNaNs(even, values.first);
    odd = WithQuietNaNs(odd, values.second);
  }
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa));
}

// `block(to, lhs, rhs)` for every sixteen elements; the last ones in a block of their own.
template <typename T, typename F>
void ForEachSixteen(std::byte* to, const std::byte* lhs, const std::byte* rhs, std::size_t bytes,
                    F block) {
  constexpr std::size_t kBytes = kSixteen * sizeof(T);
  std::size_t at = 0;
  for (; at + kBytes <= bytes; at += kBytes) {
    block(to + at, lhs + at, rhs + at);
  }
  if (at < bytes) {
    std::byte a[kBytes] = {};
    std::byte b[kBytes] = {};
    std::memcpy(a, lhs + at, bytes - at);
    std::memcpy(b, rhs + at, bytes - at);
    block(a, a, b);
    std::memcpy(to + at, a, bytes - at);
  }
}

template <typename T, typename Op>
void CombineHalf(std::byte* to, const std::byte* lhs, const std::byte* rhs, std::size_t bytes) {
  ForEachSixteen<T>(to, lhs, rhs, bytes,
                    [](std::byte* out, const std::byte* lhs_block, const std::byte* rhs_block) {
                      const Floats a = Load(lhs_block, T());
                      const Floats b = Load(rhs_block, T());
                      Store(out, {Op::Of(a.first, b.first), Op::Of(a.second, b.second)}, T());
                    });
}

template <typename T>
constexpr bool kIsHalf = std::is_same_v<T, Float16> || std::is_same_v<T, BFloat16>;

// Integers truncate toward zero. Those of up to 32 bits are divided in floating point, which
// vectorises: a quotient that is no integer is at least 1 / ranks away from one, and rounds by far
// less.
template <typename T>
T Quotient(T value, int ranks) {
  if constexpr (std::is_floating_point_v<T>) {
    return value / static_cast<T>(ranks);
  } else if constexpr (sizeof(T) == 1) {
    return static_cast<T>(
        static_cast<std::int32_t>(static_cast<float>(value) / static_cast<float>(ranks)));
  } else if constexpr (sizeof(T) == 4) {
    return static_cast<T>(static_cast<double>(value) / static_cast<double>(ranks));
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
    ForEachSixteen<T>(
        data, data, data, bytes,
        [divisor](std::byte* out, const std::byte* in, const std::byte* /*same*/) {
          const Floats values = Load(in, T());
          Store(out, {_mm256_div_ps(values.first, divisor), _mm256_div_ps(values.second, divisor)},
                T());
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
