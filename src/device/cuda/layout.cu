#include "cuda/cuda_common.h"
#include "cuda/launch.cuh"
#include "cuda/layout.h"

#include <algorithm>

namespace cohort::cuda {
namespace {

constexpr int kTile = 32;
constexpr int kTileRows = 8;

// Blocks of kThreads for a loop with a stride of the grid.
unsigned Blocks(std::int64_t elements) {
  constexpr std::int64_t kMost = 65536;
  return static_cast<unsigned>(
      std::clamp<std::int64_t>((elements + kThreads - 1) / kThreads, 1, kMost));
}

__device__ inline std::int64_t First() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline std::int64_t Step() { return static_cast<std::int64_t>(gridDim.x) * blockDim.x; }

__device__ inline float Activated(float x, bool relu) {
  // A NaN stays one.
  return relu && x < 0.0F ? 0.0F : x;
}

// A tile of kTile x kTile for each block, over a line of tiles (blockIdx.x) of the batch (y).
template <typename From, typename To>
__global__ void __launch_bounds__(kTile* kTileRows)
    TransposeKernel(std::int64_t batch, std::int64_t rows, std::int64_t columns,
                    std::int64_t row_tiles, std::int64_t column_tiles,
                    const From* __restrict__ from, To* __restrict__ to) {
  __shared__ float tile[kTile][kTile + 1];
  const std::int64_t tiles = row_tiles * column_tiles;
  for (std::int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
    const From* const source = from + b * rows * columns;
    To* const target = to + b * rows * columns;
    for (std::int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
      const std::int64_t row = t / column_tiles * kTile;
      const std::int64_t column = t % column_tiles * kTile;
      for (int i = threadIdx.y; i < kTile; i += kTileRows) {
        if (row + i < rows && column + threadIdx.x < columns) {
          tile[i][threadIdx.x] = ToFloat(source[(row + i) * columns + column + threadIdx.x]);
        }
      }
      __syncthreads();
      for (int i = threadIdx.y; i < kTile; i += kTileRows) {
        if (column + i < columns && row + threadIdx.x < rows) {
          target[(column + i) * rows + row + threadIdx.x] = RoundedTo<To>(tile[threadIdx.x][i]);
        }
      }
      __syncthreads();
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    FillRowsKernel(std::int64_t elements, std::int64_t columns, const T* bias, bool relu, T* y) {
  for (std::int64_t i = First(); i < elements; i += Step()) {
    y[i] = RoundedTo<T>(bias == nullptr ? 0.0F : Activated(ToFloat(bias[i % columns]), relu));
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    AddBiasKernel(std::int64_t elements, std::int64_t columns, const T* bias, bool relu, T* y) {
  for (std::int64_t i = First(); i < elements; i += Step()) {
    const float sum = bias == nullptr ? ToFloat(y[i]) : ToFloat(y[i]) + ToFloat(bias[i % columns]);
    y[i] = RoundedTo<T>(Activated(sum, relu));
  }
}

// Over the elements of the padded images: written, or those inside read.
template <bool kPad>
__global__ void __launch_bounds__(kThreads)
    PadKernel(Padding p, std::int64_t elements, const float* __restrict__ from,
              float* __restrict__ to) {
  for (std::int64_t i = First(); i < elements; i += Step()) {
    const std::int64_t c = i % p.channels;
    const std::int64_t w = i / p.channels % p.padded_width() - p.left;
    const std::int64_t line = i / p.channels / p.padded_width();
    const std::int64_t h = line % p.padded_height() - p.top;
    const std::int64_t b = line / p.padded_height();
    const bool inside = h >= 0 && h < p.height && w >= 0 && w < p.width;
    const std::int64_t inner = ((b * p.height + h) * p.width + w) * p.channels + c;
    if (kPad) {
      to[i] = inside ? from[inner] : 0.0F;
    } else if (inside) {
      to[inner] = from[i];
    }
  }
}

template <bool kPad>
void LaunchPad(Stream& stream, const char* what, const Padding& p, const float* from, float* to) {
  const std::int64_t elements = p.batch * p.padded_height() * p.padded_width() * p.channels;
  if (elements == 0) {
    return;
  }
  PadKernel<kPad><<<Blocks(elements), kThreads, 0, Native(stream)>>>(p, elements, from, to);
  Launched(stream, what);
}

}  // namespace

cudaError_t FindKernels() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, FillRowsKernel<float>);
}

void Transpose(Stream& stream, std::int64_t batch, std::int64_t rows, std::int64_t columns,
               const void* from, DType from_type, void* to, DType to_type) {
  Require(from_type == to_type || to_type == DType::kFloat32,
          "a transposition keeps the type, or widens");
  if (batch == 0 || rows == 0 || columns == 0) {
    return;
  }
  const std::int64_t row_tiles = (rows + kTile - 1) / kTile;
  const std::int64_t column_tiles = (columns + kTile - 1) / kTile;
  const dim3 grid(static_cast<unsigned>(std::min<std::int64_t>(row_tiles * column_tiles, 65536)),
                  static_cast<unsigned>(std::min<std::int64_t>(batch, 65535)));
  WithType(from_type, [&]<typename From>(From* /*type*/) {
    const auto launch = [&]<typename To>(To* target) {
      TransposeKernel<<<grid, dim3(kTile, kTileRows), 0, Native(stream)>>>(
          batch, rows, columns, row_tiles, column_tiles, static_cast<const From*>(from), target);
    };
    if (to_type == DType::kFloat32) {
      launch(static_cast<float*>(to));
    } else {
      launch(static_cast<From*>(to));
    }
  });
  Launched(stream, "a transposition");
}

void FillRows(Stream& stream, std::int64_t rows, std::int64_t columns, const void* bias,
              Activation activation, void* y, DType type) {
  if (rows == 0 || columns == 0) {
    return;
  }
  WithType(type, [&]<typename T>(T* /*type*/) {
    FillRowsKernel<T><<<Blocks(rows * columns), kThreads, 0, Native(stream)>>>(
        rows * columns, columns, static_cast<const T*>(bias), activation == Activation::kRelu,
        static_cast<T*>(y));
  });
  Launched(stream, "an empty product");
}

void AddBias(Stream& stream, std::int64_t rows, std::int64_t columns, const void* bias,
             Activation activation, void* y, DType type) {
  if (rows == 0 || columns == 0) {
    return;
  }
  WithType(type, [&]<typename T>(T* /*type*/) {
    AddBiasKernel<T><<<Blocks(rows * columns), kThreads, 0, Native(stream)>>>(
        rows * columns, columns, static_cast<const T*>(bias), activation == Activation::kRelu,
        static_cast<T*>(y));
  });
  Launched(stream, "a convolution's bias");
}

void Pad(Stream& stream, const Padding& padding, const float* from, float* to) {
  LaunchPad<true>(stream, "padding", padding, from, to);
}

void Crop(Stream& stream, const Padding& padding, const float* from, float* to) {
  LaunchPad<false>(stream, "taking padding off", padding, from, to);
}

}  // namespace cohort::cuda
