// What the kernels of attention share: where the rows of a head are, and which block does what.

#pragma once

#include <cstdint>
#include <memory>

#include "cuda/cuda_kernels.h"
#include "cuda/launch.cuh"

namespace cohort::cuda {

// Rows of one head: `row(i)` is at data + i * stride.
template <typename Float>
struct HeadRows {
  Float* data;
  std::int64_t stride;
};

struct AttentionGeometry {
  std::int64_t length, heads;
  std::int64_t tiles;  // of queries, and of keys
  int head_size;
  bool causal;
  bool vectors;  // several elements at a time
  float scale;

  // Part 0, 1, 2 of packed [batch, length, 3, heads, head_size]: queries, keys, values.
  template <typename Float>
  __device__ HeadRows<Float> Packed(Float* qkv, std::int64_t head, int part) const {
    const std::int64_t stride = 3 * heads * head_size;
    return {qkv + head / heads * length * stride + (part * heads + head % heads) * head_size,
            stride};
  }
  // Of [batch, length, heads, head_size].
  template <typename Float>
  __device__ HeadRows<Float> Plain(Float* y, std::int64_t head) const {
    const std::int64_t stride = heads * head_size;
    return {y + head / heads * length * stride + head % heads * head_size, stride};
  }
};

// A block's head and tile; with a causal mask the tiles with most work come first.
struct AttentionPlace {
  std::int64_t head, tile;
};
__device__ __forceinline__ AttentionPlace AttentionPlaceOf(std::int64_t tiles, bool last_first) {
  const std::int64_t tile = blockIdx.x % tiles;
  return {blockIdx.x / tiles, last_first ? tiles - 1 - tile : tile};
}

// attention.cu: deltas[head, q] = the dot product of dy and y of that query; of float, BFloat,
// Half.
template <typename T>
void AttentionDeltas(Stream& stream, const AttentionGeometry& geometry, std::int64_t rows,
                     const T* y, const T* dy, float* deltas);

// attention_tf32.cu: heads of up to 64 elements, on tensor cores. nullptr where that cannot be.
std::unique_ptr<AttentionPlan> MakeTf32Attention(Libraries& libraries, const AttentionSpec& spec);
// attention_half.cu: the same of 16 bits.
std::unique_ptr<AttentionPlan> MakeHalfAttention(Libraries& libraries, const AttentionSpec& spec);

}  // namespace cohort::cuda
