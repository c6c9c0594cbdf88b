#include "reduction.h"

#include <immintrin.h>

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

__m256 LoadEight(const std::byte* p, Float16 /*type*/) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
__m256 LoadEight(const std::byte* p, BFloat16 /*type*/) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

// Eight at a time in float; F16C is part of the baseline.
template <typename T, typename Op>
void CombineHalf(std::byte* to, const std::byte* lhs, const std::byte* rhs, std::size_t bytes) {
  constexpr std::size_t kBlock = 8;
  const std::size_t count = bytes / sizeof(T);
  for (std::size_t i = 0; i < count; i += kBlock) {
    const std::size_t n = count - i < kBlock ? count - i : kBlock;
    std::byte in[2][kBlock * sizeof(T)] = {};
    std::memcpy(in[0], lhs + i * sizeof(T), n * sizeof(T));
    std::memcpy(in[1], rhs + i * sizeof(T), n * sizeof(T));
    alignas(32) float a[kBlock];
    alignas(32) float b[kBlock];
    _mm256_store_ps(a, LoadEight(in[0], T()));
    _mm256_store_ps(b, LoadEight(in[1], T()));
    for (std::size_t j = 0; j < kBlock; ++j) {
      a[j] = Op::Of(a[j], b[j]);
    }
    T out[kBlock];
    if constexpr (std::is_same_v<T, Float16>) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                       _mm256_cvtps_ph(_mm256_load_ps(a), _MM_FROUND_TO_NEAREST_INT));
    } else {
      for (std::size_t j = 0; j < kBlock; ++j) {
        out[j] = T(a[j]);
      }
    }
    std::memcpy(to + i * sizeof(T), out, n * sizeof(T));
  }
}

template <typename T>
void DivideLoop(std::byte* data, std::size_t bytes, int ranks) {
  constexpr bool kHalf = std::is_same_v<T, Float16> || std::is_same_v<T, BFloat16>;
  const std::size_t count = bytes / sizeof(T);
  for (std::size_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, data + i * sizeof(T), sizeof(T));
    if constexpr (kHalf) {
      value = T(static_cast<float>(value) / static_cast<float>(ranks));
    } else if constexpr (std::is_floating_point_v<T>) {
      value /= static_cast<T>(ranks);
    } else {
      value = static_cast<T>(static_cast<std::int64_t>(value) / ranks);
    }
    std::memcpy(data + i * sizeof(T), &value, sizeof(T));
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
  if constexpr (std::is_same_v<T, Float16> || std::is_same_v<T, BFloat16>) {
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

void Reduction::Finish(std::byte* data, std::size_t bytes, int ranks) const {
  if (divide_ != nullptr) {
    divide_(data, bytes, ranks);
  }
}

}  // namespace cohort
