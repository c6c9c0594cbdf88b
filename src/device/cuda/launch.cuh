// How kernels are laid over elements and over rows: grids, and accesses of four elements at once.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cohort/device/elements.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>

#include "cuda/cuda_common.h"

namespace cohort::cuda {

constexpr int kThreads = 256;
constexpr std::int64_t kMostBlocks = (std::int64_t{1} << 31) - 1;  // of a grid's first dimension
constexpr std::int64_t kMostBlocksY = 65535;

constexpr std::int64_t CeilDiv(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline unsigned Blocks(std::int64_t items, std::int64_t per_block) {
  return static_cast<unsigned>(std::clamp<std::int64_t>(CeilDiv(items, per_block), 1, kMostBlocks));
}

template <typename T, int V>
struct alignas(sizeof(T) * V) Vec {
  T v[V];
};
template <int V>
using Floats = Vec<float, V>;

// Of eight: floats are aligned to 16 bytes only.
template <int V>
__device__ __forceinline__ Floats<V> Load(const float* from) {
  if constexpr (V == 8) {
    Floats<8> value;
    *reinterpret_cast<Floats<4>*>(value.v) = *reinterpret_cast<const Floats<4>*>(from);
    *reinterpret_cast<Floats<4>*>(value.v + 4) = *reinterpret_cast<const Floats<4>*>(from + 4);
    return value;
  } else {
    return *reinterpret_cast<const Floats<V>*>(from);
  }
}
template <int V>
__device__ __forceinline__ void Store(float* to, const Floats<V>& value) {
  if constexpr (V == 8) {
    *reinterpret_cast<Floats<4>*>(to) = *reinterpret_cast<const Floats<4>*>(value.v);
    *reinterpret_cast<Floats<4>*>(to + 4) = *reinterpret_cast<const Floats<4>*>(value.v + 4);
  } else {
    *reinterpret_cast<Floats<V>*>(to) = value;
  }
}

// Elements of 16 bits are floats as soon as they are loaded, and rounded where they are stored.
using BFloat = __nv_bfloat16;
using Half = __half;

__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(BFloat x) { return __bfloat162float(x); }
__device__ __forceinline__ float ToFloat(Half x) { return __half2float(x); }

template <typename T>
__device__ __forceinline__ T RoundedTo(float x) {
  if constexpr (std::is_same_v<T, BFloat>) {
    return __float2bfloat16_rn(x);
  } else if constexpr (std::is_same_v<T, Half>) {
    return __float2half_rn(x);
  } else {
    return x;
  }
}

template <int V, typename T>
__device__ __forceinline__ Floats<V> LoadHalves(const T* from) {
  const Vec<T, V> halves = *reinterpret_cast<const Vec<T, V>*>(from);
  Floats<V> value;
#pragma unroll
  for (int k = 0; k < V; ++k) {
    value.v[k] = ToFloat(halves.v[k]);
  }
  return value;
}
template <int V>
__device__ __forceinline__ Floats<V> Load(const BFloat* from) {
  return LoadHalves<V>(from);
}
template <int V>
__device__ __forceinline__ Floats<V> Load(const Half* from) {
  return LoadHalves<V>(from);
}

template <int V, typename T>
__device__ __forceinline__ void StoreHalves(T* to, const Floats<V>& value) {
  Vec<T, V> halves;
#pragma unroll
  for (int k = 0; k < V; ++k) {
    halves.v[k] = RoundedTo<T>(value.v[k]);
  }
  *reinterpret_cast<Vec<T, V>*>(to) = halves;
}
template <int V>
__device__ __forceinline__ void Store(BFloat* to, const Floats<V>& value) {
  StoreHalves<V>(to, value);
}
template <int V>
__device__ __forceinline__ void Store(Half* to, const Floats<V>& value) {
  StoreHalves<V>(to, value);
}

// f with a null pointer of the type that the elements are of.
template <typename F>
void WithType(DType type, const F& f) {
  switch (type) {
    case DType::kBFloat16:
      f(static_cast<BFloat*>(nullptr));
      return;
    case DType::kFloat16:
      f(static_cast<Half*>(nullptr));
      return;
    default:
      f(static_cast<float*>(nullptr));
      return;
  }
}
template <typename T>
const T* DataOf(ConstElements x, const T* /*type*/) {
  return static_cast<const T*>(x.raw());
}
template <typename T>
T* DataOf(Elements x, const T* /*type*/) {
  return static_cast<T*>(x.raw());
}
inline void RequireType(bool same, const char* what) {
  Require(same, std::string(what) + " on a GPU: operands of types that it takes together");
}

// Whether four elements may be accessed at once at each of the addresses. nullptr may.
template <typename... Pointers>
bool Aligned16(const Pointers*... pointers) {
  return ((reinterpret_cast<std::uintptr_t>(pointers) % 16 == 0) && ...);
}

// How a block of kThreads covers a tile of rows: `across` threads side by side on columns (each
// with V elements), the others on further rows. Both are powers of two.
struct RowTiles {
  dim3 grid, block;
};

inline RowTiles TileRows(std::int64_t rows, std::int64_t columns, int width) {
  const std::int64_t vectors = CeilDiv(columns, width);
  unsigned across = 1;
  while (across < kThreads && across < vectors) {
    across *= 2;
  }
  const unsigned down = kThreads / across;
  return {dim3(Blocks(rows, down), static_cast<unsigned>(std::clamp<std::int64_t>(
                                       CeilDiv(vectors, across), 1, kMostBlocksY))),
          dim3(across, down)};
}

// body(r, c) for each group of V columns that this thread has; of a launch with TileRows. V divides
// `columns`.
template <int V, typename Body>
__device__ __forceinline__ void ForTile(std::int64_t rows, std::int64_t columns, const Body& body) {
  const std::int64_t row_step = static_cast<std::int64_t>(gridDim.x) * blockDim.y;
  const std::int64_t column_step = static_cast<std::int64_t>(gridDim.y) * blockDim.x * V;
  for (std::int64_t r = static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; r < rows;
       r += row_step) {
    for (std::int64_t c = (static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * V;
         c < columns; c += column_step) {
      body(r, c);
    }
  }
}

template <int V, typename Body>
__global__ void __launch_bounds__(kThreads)
    TileKernel(std::int64_t rows, std::int64_t columns, Body body) {
  ForTile<V>(rows, columns, body);
}

// Runs body.template operator()<V>... of each (row, group of columns). `Make<V>` is the functor's
// type: called with (r, c).
template <template <int> class Body, typename... Arguments>
void LaunchTile(Stream& stream, const char* what, bool vectors, std::int64_t rows,
                std::int64_t columns, const Arguments&... arguments) {
  if (rows == 0 || columns == 0) {
    return;
  }
  const cudaStream_t native = Native(stream);
  if (vectors && columns % 4 == 0) {
    const RowTiles tiles = TileRows(rows, columns, 4);
    TileKernel<4><<<tiles.grid, tiles.block, 0, native>>>(rows, columns, Body<4>{arguments...});
  } else {
    const RowTiles tiles = TileRows(rows, columns, 1);
    TileKernel<1><<<tiles.grid, tiles.block, 0, native>>>(rows, columns, Body<1>{arguments...});
  }
  Launched(stream, what);
}

// Every row of `columns`, by threads that keep to their columns: what is by column is read once.
// `body.template Of<V>(c)` gives what is called with the place of elements c .. c + V - 1 of a row.
template <int V, typename Body>
__global__ void __launch_bounds__(kThreads)
    ColumnsKernel(std::int64_t rows, std::int64_t columns, Body body) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.y;
  for (std::int64_t c = (static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * V;
       c < columns; c += static_cast<std::int64_t>(gridDim.y) * blockDim.x * V) {
    const auto of_columns = body.template Of<V>(c);
#pragma unroll 2
    for (std::int64_t r = static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
         r < rows; r += step) {
      of_columns(r * columns + c);
    }
  }
}

// kWidest columns at once where rows allow it, 4, or 1. `processors`: that the GPU has.
template <int kWidest, typename Body>
void LaunchColumns(Stream& stream, const char* what, bool vectors, int processors,
                   std::int64_t rows, std::int64_t columns, const Body& body) {
  if (rows == 0 || columns == 0) {
    return;
  }
  const auto launch = [&]<int V>(std::integral_constant<int, V>) {
    constexpr unsigned kBlocksOfProcessor = 16;
    RowTiles tiles = TileRows(rows, columns, V);
    tiles.grid.x = std::min(tiles.grid.x, kBlocksOfProcessor * static_cast<unsigned>(processors));
    ColumnsKernel<V><<<tiles.grid, tiles.block, 0, Native(stream)>>>(rows, columns, body);
  };
  if (vectors && columns % kWidest == 0) {
    launch(std::integral_constant<int, kWidest>());
  } else if (vectors && columns % 4 == 0) {
    launch(std::integral_constant<int, 4>());
  } else {
    launch(std::integral_constant<int, 1>());
  }
  Launched(stream, what);
}

// Elements of a type that are loaded at once.
template <typename T>
constexpr int kVectorOf = static_cast<int>(16 / sizeof(T));

// --- sums and maxima over the threads of a warp, and of a block

constexpr unsigned kAllLanes = 0xFFFFFFFFU;

template <typename T>
__device__ __forceinline__ T WarpSum(T value) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

__device__ __forceinline__ float WarpMax(float value) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

// The sum over a block of kSize threads, for all of them. Every thread must call it. `shared` has
// room for kSize / 32 values, and is free again when it returns.
template <int kSize, typename T>
__device__ __forceinline__ T BlockSum(T value, T* shared) {
  static_assert(kSize % 32 == 0 && kSize <= 1024);
  value = WarpSum(value);
  if (threadIdx.x % 32 == 0) {
    shared[threadIdx.x / 32] = value;
  }
  __syncthreads();
  value = threadIdx.x % 32 < kSize / 32 ? shared[threadIdx.x % 32] : T(0);
  value = WarpSum(value);
  __syncthreads();
  return value;
}

template <int kSize>
__device__ __forceinline__ float BlockMax(float value, float* shared) {
  value = WarpMax(value);
  if (threadIdx.x % 32 == 0) {
    shared[threadIdx.x / 32] = value;
  }
  __syncthreads();
  value = WarpMax(shared[threadIdx.x % 32 % (kSize / 32)]);
  __syncthreads();
  return value;
}

}  // namespace cohort::cuda
