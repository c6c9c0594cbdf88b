#include <string>

#include "cpu/cpu_kernels.h"

namespace cohort::cpu {
namespace {

template <typename Half>
void CompressTo(Half* y, ConstFloatSpan x, double weight, FloatSpan residual) {
  const auto factor = static_cast<float>(weight);
  const float unit = weight > 0 ? static_cast<float>(1 / weight) : 0.0F;
  const float* const from = x.data();
  float* const kept = residual.data();
  const auto size = static_cast<std::int64_t>(x.size());
  if (residual.empty()) {
    ParallelFor(size, kGrain, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t i = begin; i < end; ++i) {
        y[i] = Half(from[i]);
      }
    });
    return;
  }
  ParallelFor(size, kGrain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) {
      const float value = from[i] + kept[i] * factor;
      y[i] = Half(value);
      const float lost = value - static_cast<float>(y[i]);
      if (unit > 0) {
        kept[i] = lost - lost == 0 ? lost * unit : 0.0F;
      }
    }
  });
}

}  // namespace

void CpuKernels::Compress(Stream& stream, ConstFloatSpan x, double weight, FloatSpan residual,
                          Elements y) {
  Require(IsHalf(y.dtype()) && x.size() == y.size(),
          "Compress to as many elements of 16 bits, not of " + std::string(DTypeName(y.dtype())));
  Require(residual.empty() || residual.size() == x.size(), "Compress with a residual of each");
  Put(stream, [=] {
    if (y.dtype() == DType::kBFloat16) {
      CompressTo(static_cast<BFloat16*>(y.raw()), x, weight, residual);
    } else {
      CompressTo(static_cast<Float16*>(y.raw()), x, weight, residual);
    }
  });
}

}  // namespace cohort::cpu
