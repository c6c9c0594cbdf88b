// Sums down columns, the shape of every bias and statistics gradient.
//
// Rows are cut into chunks. A block sums a chunk: each thread at most kRowsPerThread rows one after
// the other, then the threads of a column as a tree. The sums of chunks are added up, in double, by
// the same kernel. Which rows meet in which order depends on the sizes, the GPU, and whether memory
// is aligned to 16 bytes.

#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/launch.cuh"

namespace cohort::cuda {

constexpr std::int64_t kRowsPerThread = 64;

// `outer` matrices of `rows` x `columns` that lie behind one another, each summed by itself.
struct SumShape {
  std::int64_t outer = 1;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
};

// For chunk k of matrix o: sums[((o * chunks + k) * kSums + s) * columns + c] = scale * the sum of
// what f.At<V>(o * rows + r, c, values) gives as values[s]; or, of an f that reads something by
// column, f.Of<V>(c)(o * rows + r, values). Blocks are `across` x `down` threads,
// both powers of two, of kThreads in all. V divides `columns`.
template <typename Sum, int kSums, int V, typename F>
__global__ void __launch_bounds__(kThreads)
    ColumnSumsKernel(SumShape size, std::int64_t chunks, std::int64_t chunk_rows, float scale,
                     float* sums, F f) {
  __shared__ Sum shared[kSums][V][kThreads];
  const int across = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.y) * across + static_cast<int>(threadIdx.x);
  for (std::int64_t b = blockIdx.x; b < size.outer * chunks; b += gridDim.x) {
    const std::int64_t first = b / chunks * size.rows;
    const std::int64_t begin = b % chunks * chunk_rows;
    const std::int64_t end = min(size.rows, begin + chunk_rows);
    for (std::int64_t tile = blockIdx.y; tile * across * V < size.columns; tile += gridDim.y) {
      const std::int64_t c = (tile * across + threadIdx.x) * V;
      Sum sum[kSums][V] = {};
      if (c < size.columns) {
        const auto add = [&](const auto& value_of) {
#pragma unroll 4
          for (std::int64_t r = begin + threadIdx.y; r < end; r += blockDim.y) {
            Floats<V> values[kSums];
            value_of(first + r, values);
#pragma unroll
            for (int s = 0; s < kSums; ++s) {
#pragma unroll
              for (int k = 0; k < V; ++k) {
                sum[s][k] += values[s].v[k];
              }
            }
          }
        };
        if constexpr (requires { f.template Of<V>(c); }) {
          add(f.template Of<V>(c));
        } else {
          add([&](std::int64_t r, auto& values) { f.template At<V>(r, c, values); });
        }
      }
#pragma unroll
      for (int s = 0; s < kSums; ++s) {
#pragma unroll
        for (int k = 0; k < V; ++k) {
          shared[s][k][thread] = sum[s][k];
        }
      }
      __syncthreads();
      for (int half = static_cast<int>(blockDim.y) / 2; half > 0; half /= 2) {
        if (static_cast<int>(threadIdx.y) < half) {
#pragma unroll
          for (int s = 0; s < kSums; ++s) {
#pragma unroll
            for (int k = 0; k < V; ++k) {
              shared[s][k][thread] += shared[s][k][thread + half * across];
            }
          }
        }
        __syncthreads();
      }
      if (threadIdx.y == 0 && c < size.columns) {
#pragma unroll
        for (int s = 0; s < kSums; ++s) {
          Floats<V> out;
#pragma unroll
          for (int k = 0; k < V; ++k) {
            out.v[k] = static_cast<float>(shared[s][k][thread]) * scale;
          }
          Store<V>(sums + (b * kSums + s) * size.columns + c, out);
        }
      }
      __syncthreads();
    }
  }
}

// A matrix as it lies.
template <typename T>
struct PlainRows {
  const T* x;
  std::int64_t columns;
  template <int V>
  __device__ void At(std::int64_t r, std::int64_t c, Floats<V> (&values)[1]) const {
    values[0] = Load<V>(x + r * columns + c);
  }
};

// How one launch is cut.
struct SumPlan {
  dim3 block;
  std::int64_t tiles = 1;
  std::int64_t chunk_rows = 1;
  std::int64_t chunks = 1;
};

inline SumPlan PlanSums(const SumShape& size, int width, std::int64_t most_across) {
  const std::int64_t vectors = CeilDiv(size.columns, width);
  std::int64_t across = 1;
  while (across < most_across && across < vectors) {
    across *= 2;
  }
  SumPlan plan;
  plan.block = dim3(static_cast<unsigned>(across), static_cast<unsigned>(kThreads / across));
  plan.tiles = CeilDiv(vectors, across);
  plan.chunk_rows = std::max<std::int64_t>(size.rows, 1);
  return plan;
}

template <typename Sum, int kSums, int V, typename F>
void LaunchSums(Stream& stream, const char* what, const SumShape& size, const SumPlan& plan,
                float scale, float* sums, const F& f) {
  const dim3 grid(Blocks(size.outer * plan.chunks, 1),
                  static_cast<unsigned>(std::min(plan.tiles, kMostBlocksY)));
  ColumnSumsKernel<Sum, kSums, V>
      <<<grid, plan.block, 0, Native(stream)>>>(size, plan.chunks, plan.chunk_rows, scale, sums, f);
  Launched(stream, what);
}

// How few threads lie side by side where the sums of chunks are added up: a sector of memory. There
// are few columns, and the rows are to be shared by many threads.
constexpr std::int64_t kAcrossOfChunks = 8;

// sums [outer, kSums, columns] = scale * the sums over rows of f. `vectors`: f may be asked for
// kWidest columns at once where that divides them, or 4. scratch(count) gives that many floats of
// scratch memory, aligned to 16; sums of nullptr are put there. Returns where they are.
template <int kSums, int kWidest = 4, typename F, typename Scratch>
float* SumColumns(Stream& stream, const char* what, int processors, const SumShape& size,
                  float scale, bool vectors, float* sums, const F& f, const Scratch& scratch) {
  if (size.outer == 0 || size.columns == 0) {
    return sums;
  }
  const int width = !vectors || size.columns % 4 != 0 ? 1
                    : size.columns % kWidest != 0     ? 4
                                                      : kWidest;
  const bool wide = width > 1;
  SumPlan plan = PlanSums(size, width, 32);
  const std::int64_t down = plan.block.y;
  const std::int64_t wanted =
      CeilDiv(std::int64_t{8} * processors, std::max<std::int64_t>(plan.tiles * size.outer, 1));
  plan.chunk_rows =
      std::clamp(CeilDiv(CeilDiv(size.rows, wanted), down) * down, 4 * down, kRowsPerThread * down);
  plan.chunks = std::max<std::int64_t>(1, CeilDiv(size.rows, plan.chunk_rows));
  const std::int64_t columns = kSums * size.columns;
  const bool inside = sums == nullptr;
  const std::int64_t of_sums = inside ? CeilDiv(size.outer * columns, 4) * 4 : 0;
  const std::int64_t of_chunks = plan.chunks == 1 ? 0 : size.outer * plan.chunks * columns;
  float* const memory = of_sums + of_chunks == 0 ? nullptr : scratch(of_sums + of_chunks);
  if (inside) {
    sums = memory;
  }
  float* const partial = plan.chunks == 1 ? sums : memory + of_sums;
  const float first_scale = plan.chunks == 1 ? scale : 1.0F;
  if (width == kWidest && Aligned16(partial)) {
    LaunchSums<float, kSums, kWidest>(stream, what, size, plan, first_scale, partial, f);
  } else if (wide && Aligned16(partial)) {
    LaunchSums<float, kSums, 4>(stream, what, size, plan, first_scale, partial, f);
  } else if (wide) {
    SumPlan narrow = PlanSums(size, 1, 32);
    narrow.chunks = plan.chunks;
    narrow.chunk_rows = plan.chunk_rows;
    LaunchSums<float, kSums, 1>(stream, what, size, narrow, first_scale, partial, f);
  } else {
    LaunchSums<float, kSums, 1>(stream, what, size, plan, first_scale, partial, f);
  }
  if (plan.chunks > 1) {
    const SumShape chunks{size.outer, plan.chunks, columns};
    LaunchSums<double, 1, 1>(stream, what, chunks, PlanSums(chunks, 1, kAcrossOfChunks), scale,
                             sums, PlainRows<float>{partial, columns});
  }
  return sums;
}

}  // namespace cohort::cuda
