#include "cuda/cuda_kernels.h"
#include "cuda/launch.cuh"

namespace cohort::cuda {
namespace {

// Shared memory that a block may have without asking.
constexpr std::int64_t kSharedBytes = 48 * 1024;

__device__ constexpr std::int64_t Pairs(std::int64_t rows) { return rows * (rows - 1) / 2; }

// An example's rows, of which the first lies apart. In shared memory (where they fit) they are
// together, with an odd stride, so that threads of neighbouring rows use different banks.
struct Rows {
  const float* first;
  const float* rest;
  std::int64_t stride;
  __device__ const float* operator[](std::int64_t row) const {
    return row == 0 ? first : rest + (row - 1) * stride;
  }
};

template <bool kShared>
__device__ Rows TakeRows(const Rows& from, std::int64_t rows, std::int64_t columns, float* shared) {
  if constexpr (!kShared) {
    return from;
  }
  const std::int64_t stride = columns | 1;
  for (std::int64_t i = threadIdx.x; i < rows * columns; i += kThreads) {
    shared[i / columns * stride + i % columns] = from[i / columns][i % columns];
  }
  __syncthreads();
  return {shared, shared + stride, stride};
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
    InteractionKernel(std::int64_t batch, std::int64_t rows, std::int64_t columns,
                      const float* first, const float* rest, float* y) {
  extern __shared__ float shared[];
  for (std::int64_t b = blockIdx.x; b < batch; b += gridDim.x) {
    const Rows in = TakeRows<kShared>(
        {first + b * columns, rest + b * (rows - 1) * columns, columns}, rows, columns, shared);
    float* const out = y + b * (columns + Pairs(rows));
    for (std::int64_t c = threadIdx.x; c < columns; c += kThreads) {
      out[c] = in[0][c];
    }
    for (std::int64_t p = threadIdx.x; p < Pairs(rows); p += kThreads) {
      const std::int64_t i = PairRow(p);
      const float* left = in[i];
      const float* right = in[p - i * (i - 1) / 2];
      float sum = 0;
      for (std::int64_t c = 0; c < columns; ++c) {
        sum += left[c] * right[c];
      }
      out[columns + p] = sum;
    }
    __syncthreads();
  }
}

// Rows [from, until) of the gradient.
template <bool kShared>
__global__ void __launch_bounds__(kThreads)
    InteractionBackwardKernel(std::int64_t batch, std::int64_t rows, std::int64_t columns,
                              const float* first, const float* rest, const float* dy, float* dfirst,
                              float* drest, std::int64_t from, std::int64_t until) {
  extern __shared__ float shared[];
  for (std::int64_t b = blockIdx.x; b < batch; b += gridDim.x) {
    const Rows in = TakeRows<kShared>(
        {first + b * columns, rest + b * (rows - 1) * columns, columns}, rows, columns, shared);
    const float* const of_first = dy + b * (columns + Pairs(rows));
    const float* const g = of_first + columns;
    for (std::int64_t e = from * columns + threadIdx.x; e < until * columns; e += kThreads) {
      const std::int64_t i = e / columns;
      const std::int64_t c = e % columns;
      float sum = 0;
      for (std::int64_t j = 0; j < i; ++j) {
        sum += g[i * (i - 1) / 2 + j] * in[j][c];
      }
      for (std::int64_t j = i + 1; j < rows; ++j) {
        sum += g[j * (j - 1) / 2 + i] * in[j][c];
      }
      if (i == 0) {
        dfirst[b * columns + c] = sum + of_first[c];
      } else {
        drest[(b * (rows - 1) + i - 1) * columns + c] = sum;
      }
    }
    __syncthreads();
  }
}

}  // namespace

void CudaKernels::Interaction(Stream& stream, std::int64_t batch, RowsOf size, ConstFloatSpan first,
                              ConstFloatSpan rest, FloatSpan y) {
  if (batch == 0) {
    return;
  }
  const cudaStream_t native = Native(stream);
  const std::int64_t bytes = size.rows * (size.columns | 1) * std::int64_t{sizeof(float)};
  if (bytes <= kSharedBytes) {
    InteractionKernel<true>
        <<<Blocks(batch, 1), kThreads, static_cast<std::size_t>(bytes), native>>>(
            batch, size.rows, size.columns, first.data(), rest.data(), y.data());
  } else {
    InteractionKernel<false><<<Blocks(batch, 1), kThreads, 0, native>>>(
        batch, size.rows, size.columns, first.data(), rest.data(), y.data());
  }
  Launched(stream, "Interaction");
}

void CudaKernels::InteractionBackward(Stream& stream, std::int64_t batch, RowsOf size,
                                      ConstFloatSpan first, ConstFloatSpan rest, ConstFloatSpan dy,
                                      FloatSpan dfirst, FloatSpan drest) {
  const std::int64_t from = dfirst.empty() ? 1 : 0;
  const std::int64_t until = drest.empty() ? 1 : size.rows;
  if (batch == 0 || size.columns == 0 || from >= until) {
    return;
  }
  const cudaStream_t native = Native(stream);
  const std::int64_t bytes = size.rows * (size.columns | 1) * std::int64_t{sizeof(float)};
  if (bytes <= kSharedBytes) {
    InteractionBackwardKernel<true>
        <<<Blocks(batch, 1), kThreads, static_cast<std::size_t>(bytes), native>>>(
            batch, size.rows, size.columns, first.data(), rest.data(), dy.data(), dfirst.data(),
            drest.data(), from, until);
  } else {
    InteractionBackwardKernel<false><<<Blocks(batch, 1), kThreads, 0, native>>>(
        batch, size.rows, size.columns, first.data(), rest.data(), dy.data(), dfirst.data(),
        drest.data(), from, until);
  }
  Launched(stream, "InteractionBackward");
}

}  // namespace cohort::cuda
