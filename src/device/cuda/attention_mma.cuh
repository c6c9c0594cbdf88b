// Attention on tensor cores: the passes of attention.cu's plan over an arithmetic M, which is TF32
// (attention_tf32.cu) or 16 bits (attention_half.cu); sums are float32.
//
// A block is four warps. A warp has strips of 16 rows (queries; keys in the pass for dk and dv) of
// all products, and goes over the other side, 32 columns at a time of a tile of 64 in shared
// memory. Its scores stay in registers, where the next product takes them as its operand.
//
// M has Element, of which operands and results in memory are, and Shared, of which tiles are, of
// kTileElements; kVector, how many elements LoadTile takes at once where it may; Operand, the
// fragments of 16 rows of a tile; and the functions of which attention_tf32.cu tells what they do.

#pragma once

#include <cmath>

#include "cuda/attention.cuh"

namespace cohort::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kBlock = 32 * kWarps;
constexpr int kStrip = 16;  // rows of a fragment
constexpr int kTile = 64;   // rows of a tile in shared memory
constexpr int kChunk = 32;  // of which scores are in registers at a time
constexpr int kHead = 64;   // elements of a head; what is beyond head_size is zeros
constexpr int kForwardStrips = 2;
constexpr int kForwardRows = kWarps * kForwardStrips * kStrip;
constexpr int kBackwardRows = kWarps * kStrip;
constexpr float kLog2E = 1.44269504F;
static_assert(kBackwardRows == kTile && kForwardRows % kTile == 0);

// --- fragments

// A lane has rows Group() and Group() + 8 of a strip; of each eight columns of a result it has
// 2 Place() and the next: element 2 half + side of four.
__device__ __forceinline__ int Group() { return static_cast<int>(threadIdx.x) % 32 / 4; }
__device__ __forceinline__ int Place() { return static_cast<int>(threadIdx.x) % 4; }
__device__ __forceinline__ int Warp() { return static_cast<int>(threadIdx.x) / 32; }

using Scores = float[kChunk / 8][4];  // 16 x kChunk
using Sums = float[kHead / 8][4];     // 16 x kHead

// Writes rows first .. first + 15, times `factors` of a lane's two.
template <typename M>
__device__ __forceinline__ void StoreStrip(const AttentionGeometry& g, const Sums& sums,
                                           std::int64_t first, const float (&factors)[2],
                                           const HeadRows<typename M::Element>& to) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::int64_t row = first + Group() + 8 * half;
    if (row >= g.length) {
      continue;
    }
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n) {
      const int column = 8 * n + 2 * Place();
      auto* const out = to.data + row * to.stride + column;
      const Floats<2> values = {sums[n][2 * half] * factors[half],
                                sums[n][2 * half + 1] * factors[half]};
      if (g.vectors) {
        if (column < g.head_size) {
          Store<2>(out, values);
        }
      } else {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          if (column + side < g.head_size) {
            out[side] = RoundedTo<typename M::Element>(values.v[side]);
          }
        }
      }
    }
  }
}

// Over the four lanes that share rows.
__device__ __forceinline__ float RowMax(float value) {
  value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, 1));
  return fmaxf(value, __shfl_xor_sync(kAllLanes, value, 2));
}
__device__ __forceinline__ float RowSum(float value) {
  value += __shfl_xor_sync(kAllLanes, value, 1);
  return value + __shfl_xor_sync(kAllLanes, value, 2);
}

// How many of the keys from first_key on count for query q; at most kChunk.
__device__ __forceinline__ int KeysThatCount(const AttentionGeometry& g, std::int64_t q,
                                             std::int64_t first_key) {
  const std::int64_t end = g.causal && q + 1 < g.length ? q + 1 : g.length;
  const std::int64_t count = end - first_key;
  return count < kChunk ? static_cast<int>(count) : kChunk;
}

// --- the passes

// saved[head, q] = log2 of the sum of exp of q's scores.
template <typename M>
__global__ void __launch_bounds__(kBlock, 2)
    ForwardKernel(AttentionGeometry g, const typename M::Element* qkv, typename M::Element* y,
                  float* saved) {
  extern __shared__ float4 memory[];
  using Shared = typename M::Shared;
  using Operand = typename M::Operand;
  auto* const keys = reinterpret_cast<Shared*>(memory);
  Shared* const values = keys + M::kTileElements;
  const AttentionPlace place = AttentionPlaceOf(g.tiles, true);
  const std::int64_t first_query = place.tile * kForwardRows;
  const std::int64_t of_warp = first_query + Warp() * kForwardStrips * kStrip;
  const auto q_rows = g.Packed(qkv, place.head, 0);
  const auto k_rows = g.Packed(qkv, place.head, 1);
  const auto v_rows = g.Packed(qkv, place.head, 2);
  // Two tiles of queries, where keys and values come later.
  M::LoadTile(g, q_rows, first_query, keys);
  M::LoadTile(g, q_rows, first_query + kTile, values);
  __syncthreads();
  Operand queries[kForwardStrips];
#pragma unroll
  for (int s = 0; s < kForwardStrips; ++s) {
    M::LoadOperand(keys, (Warp() * kForwardStrips + s) * kStrip, queries[s]);
  }

  float maximum[kForwardStrips][2];
  float sum[kForwardStrips][2] = {};  // of this lane's columns, around the row's maximum
  Sums out[kForwardStrips] = {};
#pragma unroll
  for (int s = 0; s < kForwardStrips; ++s) {
    maximum[s][0] = maximum[s][1] = -INFINITY;
  }
  const float scale = g.scale * kLog2E;
  const std::int64_t last_query = first_query + kForwardRows - 1;
  const std::int64_t end = g.causal && last_query + 1 < g.length ? last_query + 1 : g.length;
  for (std::int64_t first_tile = 0; first_tile < end; first_tile += kTile) {
    __syncthreads();
    M::LoadTile(g, k_rows, first_tile, keys);
    M::LoadTile(g, v_rows, first_tile, values);
    __syncthreads();
#pragma unroll 1
    for (int first = 0; first < kTile; first += kChunk) {
      const std::int64_t first_key = first_tile + first;
      if (first_key >= g.length || (g.causal && first_key >= of_warp + kForwardStrips * kStrip)) {
        break;
      }
      Scores p[kForwardStrips];
      M::Dots(queries, keys, first, p);
#pragma unroll
      for (int s = 0; s < kForwardStrips; ++s) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          // Rows behind the last query are computed as if they were there, and not written.
          const int count = KeysThatCount(g, of_warp + s * kStrip + Group() + 8 * half, first_key);
          float largest = maximum[s][half];
#pragma unroll
          for (int n = 0; n < kChunk / 8; ++n) {
#pragma unroll
            for (int side = 0; side < 2; ++side) {
              float& score = p[s][n][2 * half + side];
              score = 8 * n + 2 * Place() + side < count ? score * scale : -INFINITY;
              largest = fmaxf(largest, score);
            }
          }
          largest = RowMax(largest);
          const float correction = exp2f(maximum[s][half] - largest);
          maximum[s][half] = largest;
          sum[s][half] *= correction;
#pragma unroll
          for (int n = 0; n < kChunk / 8; ++n) {
#pragma unroll
            for (int side = 0; side < 2; ++side) {
              float& score = p[s][n][2 * half + side];
              score = exp2f(score - largest);
              sum[s][half] += score;
            }
          }
#pragma unroll
          for (int n = 0; n < kHead / 8; ++n) {
            out[s][n][2 * half] *= correction;
            out[s][n][2 * half + 1] *= correction;
          }
        }
      }
      M::AddProducts(p, values, first, out);
    }
  }
  const auto y_rows = g.Plain(y, place.head);
#pragma unroll
  for (int s = 0; s < kForwardStrips; ++s) {
    const std::int64_t first = of_warp + s * kStrip;
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = RowSum(sum[s][half]);
      inverse[half] = 1.0F / total;
      const std::int64_t q = first + Group() + 8 * half;
      if (Place() == 0 && q < g.length) {
        saved[place.head * g.length + q] = maximum[s][half] + log2f(total);
      }
    }
    StoreStrip<M>(g, out[s], first, inverse, y_rows);
  }
}

// The scale of scores is in their gradients, too: of 16 bits, before these are rounded, which may
// be too large without it.
template <typename M>
constexpr bool kOf16Bits = sizeof(typename M::Element) == 2;
template <typename M>
__device__ __forceinline__ float ScaleBefore(const AttentionGeometry& g) {
  return kOf16Bits<M> ? g.scale : 1.0F;
}
template <typename M>
__device__ __forceinline__ float ScaleBehind(const AttentionGeometry& g) {
  return kOf16Bits<M> ? 1.0F : g.scale;
}

template <typename M>
__global__ void __launch_bounds__(kBlock, 2)
    KeyValueGradientKernel(AttentionGeometry g, const typename M::Element* qkv, const float* saved,
                           const float* deltas, const typename M::Element* dy,
                           typename M::Element* dqkv) {
  extern __shared__ float4 memory[];
  using Shared = typename M::Shared;
  using Operand = typename M::Operand;
  auto* const queries = reinterpret_cast<Shared*>(memory);
  Shared* const gradients = queries + M::kTileElements;
  // What was saved, then deltas.
  auto* const of_queries = reinterpret_cast<float*>(gradients + M::kTileElements);
  const AttentionPlace place = AttentionPlaceOf(g.tiles, false);
  const std::int64_t first_key = place.tile * kTile;
  const std::int64_t of_warp = first_key + Warp() * kStrip;
  const auto q_rows = g.Packed(qkv, place.head, 0);
  const auto dy_rows = g.Plain(dy, place.head);
  // Keys and values, where queries and gradients come later.
  M::LoadTile(g, g.Packed(qkv, place.head, 1), first_key, queries);
  M::LoadTile(g, g.Packed(qkv, place.head, 2), first_key, gradients);
  __syncthreads();
  Operand keys[1];
  Operand values[1];
  M::LoadOperand(queries, Warp() * kStrip, keys[0]);
  M::LoadOperand(gradients, Warp() * kStrip, values[0]);
  Sums dk[1] = {};
  Sums dv[1] = {};
  const float scale = g.scale * kLog2E;
  for (std::int64_t first_tile = g.causal ? first_key : 0; first_tile < g.length;
       first_tile += kTile) {
    __syncthreads();
    M::LoadTile(g, q_rows, first_tile, queries);
    M::LoadTile(g, dy_rows, first_tile, gradients);
    if (static_cast<int>(threadIdx.x) < kTile) {
      const std::int64_t q = first_tile + threadIdx.x;
      const bool inside = q < g.length;
      // A query that is not there has no probabilities.
      of_queries[threadIdx.x] = inside ? saved[place.head * g.length + q] : INFINITY;
      of_queries[kTile + threadIdx.x] = inside ? deltas[place.head * g.length + q] : 0.0F;
    }
    __syncthreads();
#pragma unroll 1
    for (int first = 0; first < kTile; first += kChunk) {
      const std::int64_t first_query = first_tile + first;
      if (first_query >= g.length || (g.causal && first_query + kChunk <= of_warp)) {
        continue;
      }
      Scores p[1];
      Scores ds[1];
      M::Dots(keys, queries, first, p);
      M::Dots(values, gradients, first, ds);
      // The column at which the key of a lane's first row begins to count.
      const std::int64_t diagonal = of_warp + Group() - first_query;
      const int begin = g.causal && diagonal > -kStrip ? static_cast<int>(diagonal) : -kStrip;
#pragma unroll
      for (int n = 0; n < kChunk / 8; ++n) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const int column = 8 * n + 2 * Place() + side;
          const float log_sum = of_queries[first + column];
          const float delta = of_queries[kTile + first + column];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int e = 2 * half + side;
            const bool counts = column >= begin + 8 * half;
            p[0][n][e] = counts ? exp2f(p[0][n][e] * scale - log_sum) : 0.0F;
            ds[0][n][e] = p[0][n][e] * (ds[0][n][e] - delta) * ScaleBefore<M>(g);
          }
        }
      }
      M::AddProducts(p, gradients, first, dv);
      M::AddProducts(ds, queries, first, dk);
    }
  }
  const float scales[2] = {ScaleBehind<M>(g), ScaleBehind<M>(g)};
  const float ones[2] = {1.0F, 1.0F};
  StoreStrip<M>(g, dk[0], of_warp, scales, g.Packed(dqkv, place.head, 1));
  StoreStrip<M>(g, dv[0], of_warp, ones, g.Packed(dqkv, place.head, 2));
}

template <typename M>
__global__ void __launch_bounds__(kBlock, 2)
    QueryGradientKernel(AttentionGeometry g, const typename M::Element* qkv, const float* saved,
                        const float* deltas, const typename M::Element* dy,
                        typename M::Element* dqkv) {
  extern __shared__ float4 memory[];
  using Shared = typename M::Shared;
  using Operand = typename M::Operand;
  auto* const keys = reinterpret_cast<Shared*>(memory);
  Shared* const values = keys + M::kTileElements;
  const AttentionPlace place = AttentionPlaceOf(g.tiles, true);
  const std::int64_t first_query = place.tile * kTile;
  const std::int64_t of_warp = first_query + Warp() * kStrip;
  const auto k_rows = g.Packed(qkv, place.head, 1);
  const auto v_rows = g.Packed(qkv, place.head, 2);
  // Queries and gradients, where keys and values come later.
  M::LoadTile(g, g.Packed(qkv, place.head, 0), first_query, keys);
  M::LoadTile(g, g.Plain(dy, place.head), first_query, values);
  __syncthreads();
  Operand queries[1];
  Operand gradients[1];
  M::LoadOperand(keys, Warp() * kStrip, queries[0]);
  M::LoadOperand(values, Warp() * kStrip, gradients[0]);
  float log_sum[2];
  float delta[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::int64_t q = of_warp + Group() + 8 * half;
    log_sum[half] = q < g.length ? saved[place.head * g.length + q] : INFINITY;
    delta[half] = q < g.length ? deltas[place.head * g.length + q] : 0.0F;
  }
  Sums dq[1] = {};
  const float scale = g.scale * kLog2E;
  const std::int64_t end =
      g.causal && first_query + kTile < g.length ? first_query + kTile : g.length;
  for (std::int64_t first_tile = 0; first_tile < end; first_tile += kTile) {
    __syncthreads();
    M::LoadTile(g, k_rows, first_tile, keys);
    M::LoadTile(g, v_rows, first_tile, values);
    __syncthreads();
#pragma unroll 1
    for (int first = 0; first < kTile; first += kChunk) {
      const std::int64_t first_key = first_tile + first;
      if (first_key >= g.length || (g.causal && first_key >= of_warp + kStrip)) {
        break;
      }
      Scores s[1];
      Scores ds[1];
      M::Dots(queries, keys, first, s);
      M::Dots(gradients, values, first, ds);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int count = KeysThatCount(g, of_warp + Group() + 8 * half, first_key);
#pragma unroll
        for (int n = 0; n < kChunk / 8; ++n) {
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            const int e = 2 * half + side;
            const bool counts = 8 * n + 2 * Place() + side < count;
            const float p = counts ? exp2f(s[0][n][e] * scale - log_sum[half]) : 0.0F;
            ds[0][n][e] = p * (ds[0][n][e] - delta[half]) * ScaleBefore<M>(g);
          }
        }
      }
      M::AddProducts(ds, keys, first, dq);
    }
  }
  const float scales[2] = {ScaleBehind<M>(g), ScaleBehind<M>(g)};
  StoreStrip<M>(g, dq[0], of_warp, scales, g.Packed(dqkv, place.head, 0));
}

// --- the plan

template <typename M>
class MmaAttention final : public AttentionPlan {
 public:
  using Element = typename M::Element;

  MmaAttention(Libraries& libraries, const AttentionSpec& spec)
      : libraries_(libraries), spec_(spec) {
    geometry_.length = spec.length;
    geometry_.heads = spec.heads;
    geometry_.head_size = static_cast<int>(spec.head_size);
    geometry_.causal = spec.causal;
    geometry_.scale = 1.0F / std::sqrt(static_cast<float>(spec.head_size));
    Require(Blocks(kTile) <= kMostBlocks, "attention on a GPU: fewer blocks of 64 queries");
  }

  std::int64_t saved_elements() const override { return spec_.batch * spec_.heads * spec_.length; }

  void Forward(Stream& stream, const void* packed, void* out, float* saved) override {
    const auto* const qkv = static_cast<const Element*>(packed);
    auto* const y = static_cast<Element*>(out);
    if (saved_elements() == 0) {
      return;
    }
    AttentionGeometry g = geometry_;
    g.vectors = spec_.head_size % M::kVector == 0 && Aligned16(qkv, y);
    Launch(stream, "Attention", ForwardKernel<M>, kForwardRows, g, qkv, y, saved);
  }

  void Backward(Stream& stream, const void* packed, const void* out, const float* saved,
                const void* gradient, void* dpacked) override {
    const auto* const qkv = static_cast<const Element*>(packed);
    const auto* const y = static_cast<const Element*>(out);
    const auto* const dy = static_cast<const Element*>(gradient);
    auto* const dqkv = static_cast<Element*>(dpacked);
    const std::int64_t rows = saved_elements();
    if (rows == 0) {
      return;
    }
    AttentionGeometry g = geometry_;
    g.vectors = spec_.head_size % M::kVector == 0 && Aligned16(qkv, dy, dqkv);
    auto* const deltas = reinterpret_cast<float*>(
        libraries_.Scratch(static_cast<std::size_t>(rows) * sizeof(float)));
    AttentionDeltas(stream, g, rows, y, dy, deltas);
    const float* const of_rows = deltas;
    Launch(stream, "Attention's gradient of keys and values", KeyValueGradientKernel<M>,
           kBackwardRows, g, qkv, saved, of_rows, dy, dqkv);
    Launch(stream, "Attention's gradient of queries", QueryGradientKernel<M>, kBackwardRows, g, qkv,
           saved, of_rows, dy, dqkv);
  }

 private:
  std::int64_t Blocks(int rows) const {
    return spec_.batch * spec_.heads * CeilDiv(spec_.length, rows);
  }

  template <typename... Parameters, typename... Arguments>
  void Launch(Stream& stream, const char* what, void (*kernel)(Parameters...), int rows,
              AttentionGeometry g, const Arguments&... arguments) {
    // Two tiles and, backward, two numbers of each query: less than any GPU's 48 KiB.
    constexpr std::size_t kBytes =
        2 * M::kTileElements * sizeof(typename M::Shared) + 2 * kTile * sizeof(float);
    static_assert(kBytes <= std::size_t{48} << 10);
    g.tiles = CeilDiv(spec_.length, rows);
    kernel<<<static_cast<unsigned>(Blocks(rows)), kBlock, kBytes, Native(stream)>>>(g,
                                                                                    arguments...);
    Launched(stream, what);
  }

  Libraries& libraries_;
  const AttentionSpec spec_;
  AttentionGeometry geometry_ = {};
};

// Heads of up to kHead elements; nullptr where that cannot be.
template <typename M>
std::unique_ptr<AttentionPlan> MakeMmaAttention(Libraries& libraries, const AttentionSpec& spec) {
  if (spec.head_size > kHead || libraries.compute_capability() < 80) {
    return nullptr;
  }
  return std::make_unique<MmaAttention<M>>(libraries, spec);
}

}  // namespace
}  // namespace cohort::cuda
