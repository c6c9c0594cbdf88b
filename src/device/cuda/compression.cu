// Gradients rounded to 16 bits for their way to other processes. Each product and sum is rounded by
// itself, so that the bits are the CPU's.

#include "cuda/cuda_kernels.h"
#include "cuda/launch.cuh"

namespace cohort::cuda {
namespace {

struct Compression {
  float weight = 0;
  float unit = 0;  // 1 / weight; 0: the residual stays
};

// V elements from i on.
template <int V, bool kFeedback, typename T>
__device__ __forceinline__ void CompressAt(std::int64_t i, const float* x, Compression c,
                                           float* residual, T* y) {
  Floats<V> value = Load<V>(x + i);
  if constexpr (kFeedback) {
    Floats<V> kept = Load<V>(residual + i);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      value.v[k] = __fadd_rn(value.v[k], __fmul_rn(kept.v[k], c.weight));
      const float lost = __fsub_rn(value.v[k], ToFloat(RoundedTo<T>(value.v[k])));
      kept.v[k] = lost - lost == 0.0F ? __fmul_rn(lost, c.unit) : 0.0F;
    }
    if (c.unit > 0.0F) {
      Store<V>(residual + i, kept);
    }
  }
  Store<V>(y + i, value);
}

// A thread has groups of V elements; the first block's have what is left over.
template <int V, bool kFeedback, typename T>
__global__ void __launch_bounds__(kThreads)
    CompressKernel(std::int64_t n, const float* x, Compression c, float* residual, T* y) {
  const std::int64_t groups = n / V;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t g = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; g < groups;
       g += step) {
    CompressAt<V, kFeedback>(g * V, x, c, residual, y);
  }
  if constexpr (V > 1) {
    const std::int64_t i = groups * V + threadIdx.x;
    if (blockIdx.x == 0 && i < n) {
      CompressAt<1, kFeedback>(i, x, c, residual, y);
    }
  }
}

template <bool kFeedback, typename T>
void LaunchCompress(Stream& stream, std::int64_t n, const float* x, Compression c, float* residual,
                    T* y) {
  constexpr int kWide = 8;  // 16 bytes of y
  const cudaStream_t native = Native(stream);
  if (Aligned16(x, residual, y)) {
    CompressKernel<kWide, kFeedback>
        <<<Blocks(n, kWide * kThreads), kThreads, 0, native>>>(n, x, c, residual, y);
  } else {
    CompressKernel<1, kFeedback>
        <<<Blocks(n, kThreads), kThreads, 0, native>>>(n, x, c, residual, y);
  }
  Launched(stream, "Compress");
}

}  // namespace

void CudaKernels::Compress(Stream& stream, ConstFloatSpan x, double weight, FloatSpan residual,
                           Elements y) {
  RequireType(IsHalf(y.dtype()) && x.size() == y.size(), "Compress");
  Require(residual.empty() || residual.size() == x.size(), "Compress with a residual of each");
  const auto n = static_cast<std::int64_t>(x.size());
  if (n == 0) {
    return;
  }
  const Compression c{.weight = static_cast<float>(weight),
                      .unit = weight > 0 ? static_cast<float>(1 / weight) : 0.0F};
  const auto launch = [&]<typename T>(T* to) {
    if (residual.empty()) {
      LaunchCompress<false>(stream, n, x.data(), c, static_cast<float*>(nullptr), to);
    } else {
      LaunchCompress<true>(stream, n, x.data(), c, residual.data(), to);
    }
  };
  if (y.dtype() == DType::kBFloat16) {
    launch(static_cast<BFloat*>(y.raw()));
  } else {
    launch(static_cast<Half*>(y.raw()));
  }
}

}  // namespace cohort::cuda
