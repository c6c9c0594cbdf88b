// Sums over rows, over a middle axis, and of squares.

#include "cuda/column_sums.cuh"
#include "cuda/cuda_kernels.h"

namespace cohort::cuda {
namespace {

template <typename T>
struct ReluBackwardRows {
  const T* y;
  T* dy;
  std::int64_t columns;
  template <int V>
  __device__ void At(std::int64_t r, std::int64_t c, Floats<V> (&values)[1]) const {
    const std::int64_t at = r * columns + c;
    const Floats<V> out = Load<V>(y + at);
    values[0] = Load<V>(dy + at);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      values[0].v[k] = out.v[k] > 0.0F ? values[0].v[k] : 0.0F;
    }
    Store<V>(dy + at, values[0]);
  }
};

// With kBoth, the sum of differences and of their squares; otherwise of squares.
template <typename T, typename Center, bool kBoth>
struct SquaresAround {
  const T* x;
  const Center* center;
  std::int64_t columns;
  template <int V>
  __device__ auto Of(std::int64_t c) const {
    const Floats<V> middle = Load<V>(center + c);
    return [from = x + c, stride = columns, middle](std::int64_t r, auto& values) {
      values[0] = Load<V>(from + r * stride);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const float d = values[0].v[k] - middle.v[k];
        if constexpr (kBoth) {
          values[0].v[k] = d;
          values[1].v[k] = d * d;
        } else {
          values[0].v[k] = d * d;
        }
      }
    };
  }
};

// From the sums of (x - x[0]) and of its square over `rows` rows.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    AroundMeanKernel(std::int64_t columns, float rows, const T* first, const float* sums,
                     float* mean, float* square_sums) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; c < columns;
       c += step) {
    const float shift = sums[c] / rows;
    mean[c] = ToFloat(first[c]) + shift;
    square_sums[c] = fmaxf(sums[columns + c] - sums[c] * shift, 0.0F);
  }
}

// One thread for each output: for short sums.
template <typename T>
struct ShortMiddle {
  template <int V>
  struct Tile {
    const T* x;
    float* y;
    std::int64_t middle, inner;
    float scale;
    __device__ void operator()(std::int64_t o, std::int64_t c) const {
      Floats<V> sum = {};
      const T* from = x + o * middle * inner + c;
#pragma unroll 8
      for (std::int64_t m = 0; m < middle; ++m) {
        const Floats<V> value = Load<V>(from + m * inner);
#pragma unroll
        for (int k = 0; k < V; ++k) {
          sum.v[k] += value.v[k];
        }
      }
#pragma unroll
      for (int k = 0; k < V; ++k) {
        sum.v[k] *= scale;
      }
      Store<V>(y + o * inner + c, sum);
    }
  };
};

template <typename T>
struct SpreadMiddle {
  template <int V>
  struct Tile {
    const float* dy;
    T* dx;
    std::int64_t middle, inner;
    float scale;
    __device__ void operator()(std::int64_t r, std::int64_t c) const {
      Floats<V> value = Load<V>(dy + r / middle * inner + c);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        value.v[k] *= scale;
      }
      Store<V>(dx + r * inner + c, value);
    }
  };
};

// partial[b] = the sum of squares of the elements that block b has; with x = partial and kSquare
// false, their sum.
template <bool kSquare, typename T>
__global__ void __launch_bounds__(kThreads) SumKernel(std::int64_t n, const T* x, double* partial) {
  __shared__ double shared[kThreads / 32];
  double sum = 0;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
#pragma unroll 8
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += step) {
    const auto value = static_cast<double>(x[i]);
    sum += kSquare ? value * value : value;
  }
  sum = BlockSum<kThreads>(sum, shared);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
  }
}

}  // namespace

void CudaKernels::SumRows(Stream& stream, RowsOf size, ConstElements x, FloatSpan sums) {
  WithType(x.dtype(), [&]<typename T>(T* type) {
    SumColumns<1>(stream, "SumRows", processors_, {1, size.rows, size.columns}, 1.0F,
                  Aligned16(x.raw()), sums.data(), PlainRows<T>{DataOf(x, type), size.columns},
                  [this](std::int64_t count) { return Scratch<float>(count); });
  });
}

void CudaKernels::ReluBackwardSumRows(Stream& stream, RowsOf size, ConstElements y, Elements dy,
                                      FloatSpan sums) {
  RequireType(y.dtype() == dy.dtype(), "ReluBackwardSumRows");
  if (sums.empty()) {
    ActivateBackward(stream, Activation::kRelu, {}, y, dy, dy);
    return;
  }
  WithType(y.dtype(), [&]<typename T>(T* type) {
    SumColumns<1>(stream, "ReluBackwardSumRows", processors_, {1, size.rows, size.columns}, 1.0F,
                  Aligned16(y.raw(), dy.raw()), sums.data(),
                  ReluBackwardRows<T>{DataOf(y, type), DataOf(dy, type), size.columns},
                  [this](std::int64_t count) { return Scratch<float>(count); });
  });
}

void CudaKernels::SumSquaresRows(Stream& stream, RowsOf size, ConstElements x,
                                 ConstFloatSpan center, FloatSpan sums) {
  WithType(x.dtype(), [&]<typename T>(T* type) {
    SumColumns<1, kVectorOf<T>>(
        stream, "SumSquaresRows", processors_, {1, size.rows, size.columns}, 1.0F,
        Aligned16(x.raw(), center.data()), sums.data(),
        SquaresAround<T, float, false>{DataOf(x, type), center.data(), size.columns},
        [this](std::int64_t count) { return Scratch<float>(count); });
  });
}

void CudaKernels::Moments(Stream& stream, RowsOf size, ConstElements x, FloatSpan mean,
                          FloatSpan square_sums) {
  if (size.columns == 0) {
    return;
  }
  if (size.rows == 0) {
    Fill(stream, mean, 0.0F);
    Fill(stream, square_sums, 0.0F);
    return;
  }
  WithType(x.dtype(), [&]<typename T>(T* type) {
    // Around the first row, which is near enough to the mean that squares keep their digits.
    const T* const first = DataOf(x, type);
    const float* const sums = SumColumns<2, kVectorOf<T>>(
        stream, "Moments", processors_, {1, size.rows, size.columns}, 1.0F, Aligned16(first),
        nullptr, SquaresAround<T, T, true>{first, first, size.columns},
        [this](std::int64_t count) { return Scratch<float>(count); });
    AroundMeanKernel<<<Blocks(size.columns, kThreads), kThreads, 0, Native(stream)>>>(
        size.columns, static_cast<float>(size.rows), first, sums, mean.data(), square_sums.data());
    Launched(stream, "Moments");
  });
}

void CudaKernels::SumMiddle(Stream& stream, const MiddleOf& size, float scale, ConstElements x,
                            FloatSpan y) {
  WithType(x.dtype(), [&]<typename T>(T* type) {
    const T* const from = DataOf(x, type);
    if (size.middle <= kRowsPerThread) {
      LaunchTile<ShortMiddle<T>::template Tile>(stream, "SumMiddle", Aligned16(from, y.data()),
                                                size.outer, size.inner, from, y.data(), size.middle,
                                                size.inner, scale);
      return;
    }
    SumColumns<1>(stream, "SumMiddle", processors_, {size.outer, size.middle, size.inner}, scale,
                  Aligned16(from), y.data(), PlainRows<T>{from, size.inner},
                  [this](std::int64_t count) { return Scratch<float>(count); });
  });
}

void CudaKernels::SumMiddleBackward(Stream& stream, const MiddleOf& size, float scale,
                                    ConstFloatSpan dy, Elements dx) {
  WithType(dx.dtype(), [&]<typename T>(T* type) {
    T* const to = DataOf(dx, type);
    LaunchTile<SpreadMiddle<T>::template Tile>(
        stream, "SumMiddleBackward", Aligned16(dy.data(), to), size.outer * size.middle, size.inner,
        dy.data(), to, size.middle, size.inner, scale);
  });
}

void CudaKernels::SumSquares(Stream& stream, ConstFloatSpan x, std::span<double> sum) {
  const auto n = static_cast<std::int64_t>(x.size());
  // Of a size's own: so that a sum does not depend on the GPU.
  const std::int64_t blocks = std::clamp<std::int64_t>(CeilDiv(n, 8 * kThreads), 1, 2048);
  auto* const partial = Scratch<double>(blocks);
  const cudaStream_t native = Native(stream);
  SumKernel<true><<<static_cast<unsigned>(blocks), kThreads, 0, native>>>(n, x.data(), partial);
  Launched(stream, "SumSquares");
  SumKernel<false>
      <<<1, kThreads, 0, native>>>(blocks, static_cast<const double*>(partial), sum.data());
  Launched(stream, "SumSquares");
}

}  // namespace cohort::cuda
