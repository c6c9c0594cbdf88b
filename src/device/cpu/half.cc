#include "cpu/half.h"

#include "cpu/parallel.h"

namespace cohort::cpu {
namespace {

template <typename Half>
void WidenFrom(const Half* from, std::size_t size, float* to) {
  ParallelFor(static_cast<std::int64_t>(size), kGrain,
              [&](std::int64_t begin, std::int64_t end, int) {
                for (std::int64_t i = begin; i < end; ++i) {
                  to[i] = static_cast<float>(from[i]);
                }
              });
}

template <typename Half>
void RoundTo(const float* from, std::size_t size, Half* to) {
  ParallelFor(static_cast<std::int64_t>(size), kGrain,
              [&](std::int64_t begin, std::int64_t end, int) {
                for (std::int64_t i = begin; i < end; ++i) {
                  to[i] = Half(from[i]);
                }
              });
}

}  // namespace

void Widen(ConstElements from, float* to) {
  if (from.dtype() == DType::kBFloat16) {
    WidenFrom(static_cast<const BFloat16*>(from.raw()), from.size(), to);
  } else {
    WidenFrom(static_cast<const Float16*>(from.raw()), from.size(), to);
  }
}

void Round(const float* from, Elements to) {
  if (to.dtype() == DType::kBFloat16) {
    RoundTo(from, to.size(), static_cast<BFloat16*>(to.raw()));
  } else {
    RoundTo(from, to.size(), static_cast<Float16*>(to.raw()));
  }
}

}  // namespace cohort::cpu
