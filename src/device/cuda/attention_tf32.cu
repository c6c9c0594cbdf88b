// Attention on tensor cores: the plan of attention.cu, with the operands of products rounded to
// TF32 and their sums in float32.
//
// A block is four warps. A warp has strips of 16 rows (queries; keys in the pass for dk and dv) of
// all products, and goes over the other side, 32 columns at a time of a tile of 64 in shared
// memory. Its scores stay in registers: what mma.m16n8k8 leaves as columns 2 t and 2 t + 1 of a
// result, it takes as columns t and t + 4 of an operand, so that the next product is fed in that
// order, of both of its operands. Rows in shared memory are four floats longer than they need be:
// then neither a fragment along rows nor one across them meets a bank twice.

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
constexpr int kStride = kHead + 4;
constexpr int kTileFloats = kTile * kStride;
constexpr int kForwardStrips = 2;
constexpr int kForwardRows = kWarps * kForwardStrips * kStrip;
constexpr int kBackwardRows = kWarps * kStrip;
constexpr float kLog2E = 1.44269504F;
static_assert(kBackwardRows == kTile && kForwardRows % kTile == 0);

// --- the instructions

__device__ __forceinline__ unsigned Rounded(float value) {
  unsigned bits = 0;
#if __CUDA_ARCH__ >= 800  // MakeTf32Attention makes none for less
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#else
  __trap();
#endif
  return bits;
}

// sums [16 x 8] += a [16 x 8] times b [8 x 8].
__device__ __forceinline__ void MultiplyAdd(float (&sums)[4], const unsigned (&a)[4], unsigned b0,
                                            unsigned b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();
#endif
}

// --- fragments

// A lane has rows Group() and Group() + 8 of a strip; of each eight columns of a result it has
// 2 Place() and the next: element 2 half + side of four.
__device__ __forceinline__ int Group() { return static_cast<int>(threadIdx.x) % 32 / 4; }
__device__ __forceinline__ int Place() { return static_cast<int>(threadIdx.x) % 4; }
__device__ __forceinline__ int Warp() { return static_cast<int>(threadIdx.x) / 32; }

using Operand = unsigned[kHead / 8][4];  // 16 x kHead
using Scores = float[kChunk / 8][4];     // 16 x kChunk
using Sums = float[kHead / 8][4];        // 16 x kHead

// Rows first .. first + 63 into a tile, rounded, zeros where there are none.
__device__ __forceinline__ void LoadTile(const AttentionGeometry& g,
                                         const HeadRows<const float>& from, std::int64_t first,
                                         float* tile) {
  constexpr int kPerRow = kHead / 4;
#pragma unroll 4
  for (int e = static_cast<int>(threadIdx.x); e < kTile * kPerRow; e += kBlock) {
    const int row = e / kPerRow;
    const int d = e % kPerRow * 4;
    const float* const source = from.data + (first + row) * from.stride + d;
    Floats<4> values = {};
    if (first + row < g.length) {
      if (g.vectors) {
        if (d < g.head_size) {
          values = Load<4>(source);
        }
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          values.v[i] = d + i < g.head_size ? source[i] : 0.0F;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values.v[i] = __uint_as_float(Rounded(values.v[i]));
    }
    Store<4>(tile + row * kStride + d, values);
  }
}

// Rows first .. first + 15 of a tile.
__device__ __forceinline__ void LoadOperand(const float* tile, int first, Operand& a) {
  const float* const rows = tile + (first + Group()) * kStride + Place();
#pragma unroll
  for (int k = 0; k < kHead / 8; ++k) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      a[k][e] = __float_as_uint(rows[e % 2 * 8 * kStride + 8 * k + e / 2 * 4]);
    }
  }
}

// scores[s] = rows a[s] times the transpose of rows first .. first + 31 of a tile.
template <int kStrips>
__device__ __forceinline__ void Dots(const Operand (&a)[kStrips], const float* tile, int first,
                                     Scores (&scores)[kStrips]) {
#pragma unroll
  for (int s = 0; s < kStrips; ++s) {
#pragma unroll
    for (int n = 0; n < kChunk / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        scores[s][n][e] = 0.0F;
      }
    }
  }
  const float* const rows = tile + (first + Group()) * kStride + Place();
#pragma unroll
  for (int k = 0; k < kHead / 8; ++k) {
#pragma unroll
    for (int n = 0; n < kChunk / 8; ++n) {
      const float* const b = rows + 8 * n * kStride + 8 * k;
      const unsigned b0 = __float_as_uint(b[0]);
      const unsigned b1 = __float_as_uint(b[4]);
#pragma unroll
      for (int s = 0; s < kStrips; ++s) {
        MultiplyAdd(scores[s][n], a[s][k], b0, b1);
      }
    }
  }
}

// sums[s] += scores[s] times rows first .. first + 31 of a tile.
template <int kStrips>
__device__ __forceinline__ void AddProducts(const Scores (&scores)[kStrips], const float* tile,
                                            int first, Sums (&sums)[kStrips]) {
  const float* const rows = tile + (first + 2 * Place()) * kStride + Group();
#pragma unroll
  for (int k = 0; k < kChunk / 8; ++k) {
    unsigned a[kStrips][4];
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
      a[s][0] = Rounded(scores[s][k][0]);
      a[s][1] = Rounded(scores[s][k][2]);
      a[s][2] = Rounded(scores[s][k][1]);
      a[s][3] = Rounded(scores[s][k][3]);
    }
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n) {
      const float* const b = rows + 8 * k * kStride + 8 * n;
      const unsigned b0 = __float_as_uint(b[0]);
      const unsigned b1 = __float_as_uint(b[kStride]);
#pragma unroll
      for (int s = 0; s < kStrips; ++s) {
        MultiplyAdd(sums[s][n], a[s], b0, b1);
      }
    }
  }
}

// Writes rows first .. first + 15, times `factors` of a lane's two.
__device__ __forceinline__ void StoreStrip(const AttentionGeometry& g, const Sums& sums,
                                           std::int64_t first, const float (&factors)[2],
                                           const HeadRows<float>& to) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::int64_t row = first + Group() + 8 * half;
    if (row >= g.length) {
      continue;
    }
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n) {
      const int column = 8 * n + 2 * Place();
      float* const out = to.data + row * to.stride + column;
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
            out[side] = values.v[side];
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
__global__ void __launch_bounds__(kBlock, 2)
    ForwardKernel(AttentionGeometry g, const float* qkv, float* y, float* saved) {
  extern __shared__ float4 memory[];
  float* const keys = reinterpret_cast<float*>(memory);
  float* const values = keys + kTileFloats;
  const AttentionPlace place = AttentionPlaceOf(g.tiles, true);
  const std::int64_t first_query = place.tile * kForwardRows;
  const std::int64_t of_warp = first_query + Warp() * kForwardStrips * kStrip;
  const auto q_rows = g.Packed(qkv, place.head, 0);
  const auto k_rows = g.Packed(qkv, place.head, 1);
  const auto v_rows = g.Packed(qkv, place.head, 2);
  // Two tiles of queries, where keys and values come later.
  LoadTile(g, q_rows, first_query, keys);
  LoadTile(g, q_rows, first_query + kTile, values);
  __syncthreads();
  Operand queries[kForwardStrips];
#pragma unroll
  for (int s = 0; s < kForwardStrips; ++s) {
    LoadOperand(keys, (Warp() * kForwardStrips + s) * kStrip, queries[s]);
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
    LoadTile(g, k_rows, first_tile, keys);
    LoadTile(g, v_rows, first_tile, values);
    __syncthreads();
#pragma unroll 1
    for (int first = 0; first < kTile; first += kChunk) {
      const std::int64_t first_key = first_tile + first;
      if (first_key >= g.length || (g.causal && first_key >= of_warp + kForwardStrips * kStrip)) {
        break;
      }
      Scores p[kForwardStrips];
      Dots(queries, keys, first, p);
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
      AddProducts(p, values, first, out);
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
    StoreStrip(g, out[s], first, inverse, y_rows);
  }
}

__global__ void __launch_bounds__(kBlock, 2)
    KeyValueGradientKernel(AttentionGeometry g, const float* qkv, const float* saved,
                           const float* deltas, const float* dy, float* dqkv) {
  extern __shared__ float4 memory[];
  float* const queries = reinterpret_cast<float*>(memory);
  float* const gradients = queries + kTileFloats;
  float* const of_queries = gradients + kTileFloats;  // what was saved, then deltas
  const AttentionPlace place = AttentionPlaceOf(g.tiles, false);
  const std::int64_t first_key = place.tile * kTile;
  const std::int64_t of_warp = first_key + Warp() * kStrip;
  const auto q_rows = g.Packed(qkv, place.head, 0);
  const auto dy_rows = g.Plain(dy, place.head);
  // Keys and values, where queries and gradients come later.
  LoadTile(g, g.Packed(qkv, place.head, 1), first_key, queries);
  LoadTile(g, g.Packed(qkv, place.head, 2), first_key, gradients);
  __syncthreads();
  Operand keys[1];
  Operand values[1];
  LoadOperand(queries, Warp() * kStrip, keys[0]);
  LoadOperand(gradients, Warp() * kStrip, values[0]);
  Sums dk[1] = {};
  Sums dv[1] = {};
  const float scale = g.scale * kLog2E;
  for (std::int64_t first_tile = g.causal ? first_key : 0; first_tile < g.length;
       first_tile += kTile) {
    __syncthreads();
    LoadTile(g, q_rows, first_tile, queries);
    LoadTile(g, dy_rows, first_tile, gradients);
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
      Dots(keys, queries, first, p);
      Dots(values, gradients, first, ds);
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
            ds[0][n][e] = p[0][n][e] * (ds[0][n][e] - delta);
          }
        }
      }
      AddProducts(p, gradients, first, dv);
      AddProducts(ds, queries, first, dk);
    }
  }
  const float scales[2] = {g.scale, g.scale};
  const float ones[2] = {1.0F, 1.0F};
  StoreStrip(g, dk[0], of_warp, scales, g.Packed(dqkv, place.head, 1));
  StoreStrip(g, dv[0], of_warp, ones, g.Packed(dqkv, place.head, 2));
}

__global__ void __launch_bounds__(kBlock, 2)
    QueryGradientKernel(AttentionGeometry g, const float* qkv, const float* saved,
                        const float* deltas, const float* dy, float* dqkv) {
  extern __shared__ float4 memory[];
  float* const keys = reinterpret_cast<float*>(memory);
  float* const values = keys + kTileFloats;
  const AttentionPlace place = AttentionPlaceOf(g.tiles, true);
  const std::int64_t first_query = place.tile * kTile;
  const std::int64_t of_warp = first_query + Warp() * kStrip;
  const auto k_rows = g.Packed(qkv, place.head, 1);
  const auto v_rows = g.Packed(qkv, place.head, 2);
  // Queries and gradients, where keys and values come later.
  LoadTile(g, g.Packed(qkv, place.head, 0), first_query, keys);
  LoadTile(g, g.Plain(dy, place.head), first_query, values);
  __syncthreads();
  Operand queries[1];
  Operand gradients[1];
  LoadOperand(keys, Warp() * kStrip, queries[0]);
  LoadOperand(values, Warp() * kStrip, gradients[0]);
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
    LoadTile(g, k_rows, first_tile, keys);
    LoadTile(g, v_rows, first_tile, values);
    __syncthreads();
#pragma unroll 1
    for (int first = 0; first < kTile; first += kChunk) {
      const std::int64_t first_key = first_tile + first;
      if (first_key >= g.length || (g.causal && first_key >= of_warp + kStrip)) {
        break;
      }
      Scores s[1];
      Scores ds[1];
      Dots(queries, keys, first, s);
      Dots(gradients, values, first, ds);
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
            ds[0][n][e] = p * (ds[0][n][e] - delta[half]);
          }
        }
      }
      AddProducts(ds, keys, first, dq);
    }
  }
  const float scales[2] = {g.scale, g.scale};
  StoreStrip(g, dq[0], of_warp, scales, g.Packed(dqkv, place.head, 0));
}

// --- the plan

class Tf32Attention final : public AttentionPlan {
 public:
  Tf32Attention(Libraries& libraries, const AttentionSpec& spec)
      : libraries_(libraries), spec_(spec) {
    geometry_.length = spec.length;
    geometry_.heads = spec.heads;
    geometry_.head_size = static_cast<int>(spec.head_size);
    geometry_.causal = spec.causal;
    geometry_.scale = 1.0F / std::sqrt(static_cast<float>(spec.head_size));
    Require(Blocks(kTile) <= kMostBlocks, "attention on a GPU: fewer blocks of 64 queries");
  }

  std::int64_t saved_elements() const override { return spec_.batch * spec_.heads * spec_.length; }

  void Forward(Stream& stream, const float* qkv, float* y, float* saved) override {
    if (saved_elements() == 0) {
      return;
    }
    AttentionGeometry g = geometry_;
    g.vectors = spec_.head_size % 4 == 0 && Aligned16(qkv, y);
    Launch(stream, "Attention", ForwardKernel, kForwardRows, g, qkv, y, saved);
  }

  void Backward(Stream& stream, const float* qkv, const float* y, const float* saved,
                const float* dy, float* dqkv) override {
    const std::int64_t rows = saved_elements();
    if (rows == 0) {
      return;
    }
    AttentionGeometry g = geometry_;
    g.vectors = spec_.head_size % 4 == 0 && Aligned16(qkv, dy, dqkv);
    auto* const deltas = reinterpret_cast<float*>(
        libraries_.Scratch(static_cast<std::size_t>(rows) * sizeof(float)));
    AttentionDeltas(stream, g, rows, y, dy, deltas);
    const float* const of_rows = deltas;
    Launch(stream, "Attention's gradient of keys and values", KeyValueGradientKernel, kBackwardRows,
           g, qkv, saved, of_rows, dy, dqkv);
    Launch(stream, "Attention's gradient of queries", QueryGradientKernel, kBackwardRows, g, qkv,
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
    constexpr std::size_t kBytes = (2 * kTileFloats + 2 * kTile) * sizeof(float);
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

}  // namespace

std::unique_ptr<AttentionPlan> MakeTf32Attention(Libraries& libraries, const AttentionSpec& spec) {
  int major = 0;
  Check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, libraries.ordinal()),
        "the GPU's compute capability");
  if (spec.head_size > kHead || major < 8) {
    return nullptr;
  }
  return std::make_unique<Tf32Attention>(libraries, spec);
}

}  // namespace cohort::cuda
