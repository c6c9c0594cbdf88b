// Kernels whose threads share a row: softmax, layer norm, cross-entropy.
//
// A group of threads (a warp, or a block) has one row at a time. It reads the row once and keeps
// it: in registers up to 1024 columns (a warp) or 8192 (a block of 256), in shared memory as far as
// that goes (a block of 1024), beyond it not at all: then each pass reads it again. Every thread
// gets back the elements that it stored itself, so that no pass waits for another thread.
//
// An algorithm is a class with `kKept` rows to keep and
//   template <typename Row, typename Group>
//   __device__ void operator()(const Group& group, std::int64_t r, std::int64_t columns,
//                              Row (&kept)[max(kKept, 1)]) const;
// in which Row::Slots(group, columns, f) calls f(k, c) for each run of Row::kWidth columns of this
// thread, and Get(k, c) and Set(k, c, value) reach what is kept of it. Before the first Get,
// `From(x)` names where the row lies.

#pragma once

#include <cstdint>

#include "cuda/launch.cuh"

namespace cohort::cuda {

class WarpGroup {
 public:
  static constexpr int kSize = 32;
  static constexpr int kBlock = kThreads;
  static constexpr int kPerBlock = kBlock / kSize;
  static constexpr int kShared = 1;  // floats of shared memory
  __device__ explicit WarpGroup(float* /*shared*/) {}
  __device__ static int thread() { return static_cast<int>(threadIdx.x) % kSize; }
  __device__ static std::int64_t place() {
    return static_cast<std::int64_t>(blockIdx.x) * kPerBlock + threadIdx.x / kSize;
  }
  __device__ float Sum(float value) const { return WarpSum(value); }
  __device__ float Max(float value) const { return WarpMax(value); }
};

template <int kThreadsOfRow>
class BlockGroup {
 public:
  static constexpr int kSize = kThreadsOfRow;
  static constexpr int kBlock = kSize;
  static constexpr int kPerBlock = 1;
  static constexpr int kShared = kSize / 32;
  __device__ explicit BlockGroup(float* shared) : shared_(shared) {}
  __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ static std::int64_t place() { return blockIdx.x; }
  __device__ float Sum(float value) const { return BlockSum<kSize>(value, shared_); }
  __device__ float Max(float value) const { return BlockMax<kSize>(value, shared_); }

 private:
  float* shared_;
};

// kRuns runs of V columns in registers.
template <int V, int kRuns>
class RegisterRow {
 public:
  static constexpr int kWidth = V;
  static constexpr bool kInShared = false;
  template <typename Group, typename F>
  __device__ static void Slots(const Group& group, std::int64_t columns, const F& f) {
    const int end = static_cast<int>(columns);
#pragma unroll
    for (int k = 0; k < kRuns; ++k) {
      const int c = (k * Group::kSize + group.thread()) * V;
      if (c < end) {
        f(k, c);
      }
    }
  }
  template <typename T>
  __device__ void From(const T* /*x*/) {}
  __device__ Floats<V> Get(int k, std::int64_t /*c*/) const { return runs_[k]; }
  __device__ void Set(int k, std::int64_t /*c*/, const Floats<V>& value) { runs_[k] = value; }

 private:
  Floats<V> runs_[kRuns];
};

// In shared memory, or nowhere.
template <int V, bool kShared>
class MemoryRow {
 public:
  static constexpr int kWidth = V;
  static constexpr bool kInShared = kShared;
  template <typename Group, typename F>
  __device__ static void Slots(const Group& group, std::int64_t columns, const F& f) {
#pragma unroll 8
    for (std::int64_t c = group.thread() * V; c < columns; c += Group::kSize * V) {
      f(0, c);
    }
  }
  template <typename T>
  __device__ void From(const T* x) {
    x_ = x;
    type_ = std::is_same_v<T, float> ? 0 : std::is_same_v<T, BFloat> ? 1 : 2;
  }
  __device__ void Keep(float* shared) { shared_ = shared; }
  __device__ Floats<V> Get(int /*k*/, std::int64_t c) const {
    if constexpr (kShared) {
      return Load<V>(shared_ + c);
    } else {
      return type_ == 0   ? Load<V>(static_cast<const float*>(x_) + c)
             : type_ == 1 ? Load<V>(static_cast<const BFloat*>(x_) + c)
                          : Load<V>(static_cast<const Half*>(x_) + c);
    }
  }
  __device__ void Set(int /*k*/, std::int64_t c, const Floats<V>& value) {
    if constexpr (kShared) {
      Store<V>(shared_ + c, value);
    }
  }

 private:
  const void* x_ = nullptr;
  int type_ = 0;
  float* shared_ = nullptr;
};

template <typename Group, typename Row, typename Algorithm>
__global__ void __launch_bounds__(Group::kBlock)
    RowKernel(std::int64_t rows, std::int64_t columns, Algorithm algorithm) {
  __shared__ float shared[Group::kShared];
  extern __shared__ float4 kept_rows[];
  const Group group(shared);
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * Group::kPerBlock;
  for (std::int64_t r = group.place(); r < rows; r += step) {
    Row kept[Algorithm::kKept > 0 ? Algorithm::kKept : 1];
    if constexpr (Row::kInShared) {
      const std::int64_t stride = (columns + 3) / 4 * 4;
#pragma unroll
      for (int i = 0; i < Algorithm::kKept; ++i) {
        kept[i].Keep(reinterpret_cast<float*>(kept_rows) + i * stride);
      }
    }
    algorithm(group, r, columns, kept);
  }
}

constexpr std::int64_t kWarpColumns = 32 * 32;
constexpr std::int64_t kBlockColumns = 32 * kThreads;
constexpr int kWideBlock = 1024;

template <typename Group, typename Row, typename Algorithm>
void LaunchRowKernel(Stream& stream, const char* what, std::int64_t rows, std::int64_t columns,
                     std::int64_t shared_bytes, std::int64_t most_shared_bytes,
                     const Algorithm& algorithm) {
  const cudaStream_t native = Native(stream);
  if constexpr (Row::kInShared) {
    // The kernel's limit, which is all threads' and streams': never this call's own size.
    Check(cudaFuncSetAttribute(RowKernel<Group, Row, Algorithm>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(most_shared_bytes)),
          what);
  }
  RowKernel<Group, Row, Algorithm>
      <<<Blocks(rows, Group::kPerBlock), Group::kBlock, static_cast<std::size_t>(shared_bytes),
         native>>>(rows, columns, algorithm);
  Launched(stream, what);
}

template <int V, typename Algorithm>
void LaunchRowsOf(Stream& stream, const char* what, std::int64_t rows, std::int64_t columns,
                  std::int64_t most_shared_bytes, const Algorithm& algorithm) {
  const auto in_registers = [&]<typename Group>(Group*) {
    const std::int64_t each = CeilDiv(columns, Group::kSize);
    if (each <= 8) {
      LaunchRowKernel<Group, RegisterRow<V, 8 / V>>(stream, what, rows, columns, 0,
                                                    most_shared_bytes, algorithm);
    } else if (each <= 16) {
      LaunchRowKernel<Group, RegisterRow<V, 16 / V>>(stream, what, rows, columns, 0,
                                                     most_shared_bytes, algorithm);
    } else {
      LaunchRowKernel<Group, RegisterRow<V, 32 / V>>(stream, what, rows, columns, 0,
                                                     most_shared_bytes, algorithm);
    }
  };
  using Wide = BlockGroup<kWideBlock>;
  const std::int64_t bytes =
      Algorithm::kKept * CeilDiv(columns, 4) * 4 * std::int64_t{sizeof(float)};
  if (columns <= kWarpColumns) {
    in_registers(static_cast<WarpGroup*>(nullptr));
  } else if (columns <= kBlockColumns) {
    in_registers(static_cast<BlockGroup<kThreads>*>(nullptr));
  } else if (Algorithm::kKept > 0 && bytes <= most_shared_bytes) {
    if constexpr (Algorithm::kKept > 0) {
      LaunchRowKernel<Wide, MemoryRow<V, true>>(stream, what, rows, columns, bytes,
                                                most_shared_bytes, algorithm);
    }
  } else {
    LaunchRowKernel<Wide, MemoryRow<V, false>>(stream, what, rows, columns, 0, most_shared_bytes,
                                               algorithm);
  }
}

// Runs the algorithm on every row. `aligned`: the first row of each matrix is, to 16 bytes.
template <typename Algorithm>
void LaunchRows(Stream& stream, const char* what, bool aligned, std::int64_t rows,
                std::int64_t columns, std::int64_t most_shared_bytes, const Algorithm& algorithm) {
  if (rows == 0) {
    return;
  }
  if (aligned && columns % 4 == 0) {
    LaunchRowsOf<4>(stream, what, rows, columns, most_shared_bytes, algorithm);
  } else {
    LaunchRowsOf<1>(stream, what, rows, columns, most_shared_bytes, algorithm);
  }
}

}  // namespace cohort::cuda
