#include "cuda/cuda_kernels.h"
#include "cuda/launch.cuh"

namespace cohort::cuda {
namespace {

// Shared memory that a block may have without asking.
constexpr std::int64_t kSharedBytes = 48 * 1024;

__device__ constexpr std::int64_t Pairs(std::int64_t rows) { return rows * (rows - 1) / 2; }

// An example's rows, in shared memory (where they fit) with an odd stride, so that threads of
// neighbouring rows use different banks.
struct Rows {
  const float* data;
  std::int64_t stride;
};

template <bool kShared>
__device__ Rows TakeRows(const float* x, std::int64_t rows, std::int64_t columns, float* shared) {
  if constexpr (!kShared) {
    return {x, columns};
  }
  const std::int64_t stride = columns | 1;
  for (std::int64_t i = threadIdx.x; i < rows * columns; i += kThreads) {
    shared[i / columns * stride + i % columns] = x[i];
  }
  __syncthreads();
  return {shared, stride};
}

// The row i of pair p = i (i - 1) / 2 + j, j < i.
__device__ std::int64_t PairRow(std::int64_t p) {
  auto i = static_cast<std::int64_t>((1.0 + sqrt(1.0 + 8.0 * static_cast<double>(p))) / 2.0);
  while (i * (i - 1) / 2 > p) {
    --i;
  }
  while ((i + 1) * i / 2 <= p) {
    ++i;
  }
  return i;
}

template <bool kShared>
__global__ void __launch_bounds__(kThreads)
    PairDotsKernel(std::int64_t batch, std::int64_t rows, std::int64_t columns, const float* x,
                   float* y) {
  extern __shared__ float shared[];
  for (std::int64_t b = blockIdx.x; b < batch; b += gridDim.x) {
    const Rows in = TakeRows<kShared>(x + b * rows * columns, rows, columns, shared);
    for (std::int64_t p = threadIdx.x; p < Pairs(rows); p += kThreads) {
      const std::int64_t i = PairRow(p);
      const float* left = in.data + i * in.stride;
      const float* right = in.data + (p - i * (i - 1) / 2) * in.stride;
      float sum = 0;
      for (std::int64_t c = 0; c < columns; ++c) {
        sum += left[c] * right[c];
      }
      y[b * Pairs(rows) + p] = sum;
    }
    __syncthreads();
  }
}

template <bool kShared>
__global__ void __launch_bounds__(kThreads)
    PairDotsBackwardKernel(std::int64_t batch, std::int64_t rows, std::int64_t columns,
                           const float* x, const float* dy, float* dx) {
  extern __shared__ float shared[];
  for (std::int64_t b = blockIdx.x; b < batch; b += gridDim.x) {
    const Rows in = TakeRows<kShared>(x + b * rows * columns, rows, columns, shared);
    const float* g = dy + b * Pairs(rows);
    for (std::int64_t e = threadIdx.x; e < rows * columns; e += kThreads) {
      const std::int64_t i = e / columns;
      const std::int64_t c = e % columns;
      float sum = 0;
      for (std::int64_t j = 0; j < i; ++j) {
        sum += g[i * (i - 1) / 2 + j] * in.data[j * in.stride + c];
      }
      for (std::int64_t j = i + 1; j < rows; ++j) {
        sum += g[j * (j - 1) / 2 + i] * in.data[j * in.stride + c];
      }
      dx[b * rows * columns + e] = sum;
    }
    __syncthreads();
  }
}

}  // namespace

void CudaKernels::PairDots(Stream& stream, std::int64_t batch, RowsOf size, ConstFloatSpan x,
                           FloatSpan y) {
  if (batch == 0 || size.rows < 2) {
    return;
  }
  const cudaStream_t native = Native(stream);
  const std::int64_t bytes = size.rows * (size.columns | 1) * std::int64_t{sizeof(float)};
  if (bytes <= kSharedBytes) {
    PairDotsKernel<true>
        <<<Blocks(batch, 1), kThreads, static_cast<std::size_t>(bytes), native>>>(
            batch, size.rows, size.columns, x.data(), y.data());
  } else {
    PairDotsKernel<false><<<Blocks(batch, 1), kThreads, 0, native>>>(batch, size.rows, size.columns,
                                                                     x.data(), y.data());
  }
  Launched(stream, "PairDots");
}

void CudaKernels::PairDotsBackward(Stream& stream, std::int64_t batch, RowsOf size,
                                   ConstFloatSpan x, ConstFloatSpan dy, FloatSpan dx) {
  if (batch == 0 || size.rows == 0 || size.columns == 0) {
    return;
  }
  const cudaStream_t native = Native(stream);
  const std::int64_t bytes = size.rows * (size.columns | 1) * std::int64_t{sizeof(float)};
  if (bytes <= kSharedBytes) {
    PairDotsBackwardKernel<true>
        <<<Blocks(batch, 1), kThreads, static_cast<std::size_t>(bytes), native>>>(
            batch, size.rows, size.columns, x.data(), dy.data(), dx.data());
  } else {
    PairDotsBackwardKernel<false><<<Blocks(batch, 1), kThreads, 0, native>>>(
        batch, size.rows, size.columns, x.data(), dy.data(), dx.data());
  }
  Launched(stream, "PairDotsBackward");
}

}  // namespace cohort::cuda
