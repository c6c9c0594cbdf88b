// Attention that never holds the scores: a block has 64 queries and goes over the keys, 64 at a
// time, with a running maximum and sum of exp for each query (Dao, "FlashAttention-2", 2023). All
// arithmetic is float32.
//
// The backward pass computes the scores again, twice: a block with 64 keys goes over the queries
// for dk and dv, and a block with 64 queries over the keys for dq. Each output has one writer, so
// that sums have one order.
//
// A block is 16 x 16 threads. Thread (x, y) has rows 4 y .. 4 y + 3 of a product, and its columns
// x, x + 16, x + 32, x + 48 (of scores) or a run of neighbouring ones (of outputs). Rows of tiles
// in shared memory are four floats longer than they need be, so that sixteen threads that read four
// floats each, a row apart, use all banks. The scores of a row are written and read by the same
// half of a warp.

#include <cmath>

#include "cuda/attention.cuh"

namespace cohort::cuda {
namespace {

constexpr int kTile = 64;
constexpr int kSide = 16;             // of a block of threads
constexpr int kRows = kTile / kSide;  // of a thread
constexpr int kScoreStride = kTile + 4;
constexpr int kScoreFloats = kTile * kScoreStride;
static_assert(kSide * kSide == kThreads);

// For heads of up to D elements; what is beyond head_size is zeros.
template <int D>
constexpr int kTileStride = D + 4;
template <int D>
constexpr int kTileFloats = kTile* kTileStride<D>;

// Rows first .. first + 63 into a tile, zeros where there are none.
template <int D>
__device__ void LoadTile(const AttentionGeometry& g, const HeadRows<const float>& from,
                         std::int64_t first, float* tile) {
  const int width = g.vectors ? 4 : 1;
  const int per_row = D / width;
  for (int e = static_cast<int>(threadIdx.x); e < kTile * per_row; e += kThreads) {
    const int row = e / per_row;
    const int d = e % per_row * width;
    const bool inside = first + row < g.length && d < g.head_size;
    const float* const source = from.data + (first + row) * from.stride + d;
    float* const to = tile + row * kTileStride<D> + d;
    if (g.vectors) {
      Store<4>(to, inside ? Load<4>(source) : Floats<4>{});
    } else {
      *to = inside ? *source : 0.0F;
    }
  }
}

__device__ __forceinline__ int ThreadX() { return static_cast<int>(threadIdx.x) % kSide; }
__device__ __forceinline__ int ThreadY() { return static_cast<int>(threadIdx.x) / kSide; }

// dots[i][j] = row 4 y + i of a times row x + 16 j of b.
template <int D>
__device__ __forceinline__ void Dots(const float* a, const float* b, float (&dots)[kRows][kRows]) {
  const float* const rows = a + kRows * ThreadY() * kTileStride<D>;
  const float* const columns = b + ThreadX() * kTileStride<D>;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      dots[i][j] = 0.0F;
    }
  }
#pragma unroll 4
  for (int d = 0; d < D; d += 4) {
    Floats<4> left[kRows];
    Floats<4> right[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      left[i] = Load<4>(rows + i * kTileStride<D> + d);
      right[i] = Load<4>(columns + i * kSide * kTileStride<D> + d);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
          dots[i][j] += left[i].v[k] * right[j].v[k];
        }
      }
    }
  }
}

// A thread's columns of an output: kRuns runs of kWidth, kSide * kWidth apart.
template <int D>
struct Columns {
  static constexpr int kCount = D / kSide;
  static constexpr int kWidth = kCount < 4 ? kCount : 4;
  static constexpr int kRuns = kCount / kWidth;
  __device__ static int Of(int run) { return (run * kSide + ThreadX()) * kWidth; }
};

template <int D>
using Sums = float[kRows][Columns<D>::kCount];

// sums += scores [64 x 64] times tile [64 x D].
template <int D>
__device__ __forceinline__ void AddProducts(const float* scores, const float* tile, Sums<D>& sums) {
  using C = Columns<D>;
  const float* const rows = scores + kRows * ThreadY() * kScoreStride;
#pragma unroll 4
  for (int k = 0; k < kTile; k += 4) {
    Floats<4> left[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      left[i] = Load<4>(rows + i * kScoreStride + k);
    }
#pragma unroll
    for (int l = 0; l < 4; ++l) {
#pragma unroll
      for (int run = 0; run < C::kRuns; ++run) {
        const auto right = Load<C::kWidth>(tile + (k + l) * kTileStride<D> + C::Of(run));
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int w = 0; w < C::kWidth; ++w) {
            sums[i][run * C::kWidth + w] += left[i].v[l] * right.v[w];
          }
        }
      }
    }
  }
}

__device__ __forceinline__ void StoreScores(const float (&values)[kRows][kRows], float* scores) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      scores[(kRows * ThreadY() + i) * kScoreStride + ThreadX() + j * kSide] = values[i][j];
    }
  }
}

// Writes the thread's part of rows first .. first + 63.
template <int D>
__device__ void StoreRows(const AttentionGeometry& g, const Sums<D>& sums, std::int64_t first,
                          const HeadRows<float>& to) {
  using C = Columns<D>;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const std::int64_t row = first + kRows * ThreadY() + i;
    if (row >= g.length) {
      continue;
    }
#pragma unroll
    for (int run = 0; run < C::kRuns; ++run) {
      const int column = C::Of(run);
      float* const out = to.data + row * to.stride + column;
      if (g.vectors) {
        if (column < g.head_size) {
          Floats<C::kWidth> value;
#pragma unroll
          for (int w = 0; w < C::kWidth; ++w) {
            value.v[w] = sums[i][run * C::kWidth + w];
          }
          Store<C::kWidth>(out, value);
        }
      } else {
#pragma unroll
        for (int w = 0; w < C::kWidth; ++w) {
          if (column + w < g.head_size) {
            out[w] = sums[i][run * C::kWidth + w];
          }
        }
      }
    }
  }
}

// Over the sixteen threads that share rows.
__device__ __forceinline__ float RowMax(float value) {
#pragma unroll
  for (int offset = kSide / 2; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}
__device__ __forceinline__ float RowSum(float value) {
#pragma unroll
  for (int offset = kSide / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

template <int D>
__global__ void __launch_bounds__(kThreads)
    ForwardKernel(AttentionGeometry g, const float* qkv, float* y, float* log_sums) {
  extern __shared__ float4 memory[];
  float* const queries = reinterpret_cast<float*>(memory);
  float* const keys = queries + kTileFloats<D>;
  float* const values = keys + kTileFloats<D>;
  float* const scores = values + kTileFloats<D>;
  const AttentionPlace place = AttentionPlaceOf(g.tiles, true);
  const std::int64_t first_query = place.tile * kTile;
  const auto k_rows = g.Packed(qkv, place.head, 1);
  const auto v_rows = g.Packed(qkv, place.head, 2);
  LoadTile<D>(g, g.Packed(qkv, place.head, 0), first_query, queries);

  float maximum[kRows];
  float sum[kRows] = {};  // of this thread's columns, around the row's maximum
  Sums<D> out = {};
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    maximum[i] = -INFINITY;
  }
  const std::int64_t tiles = g.causal ? place.tile + 1 : g.tiles;
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    const std::int64_t first_key = tile * kTile;
    __syncthreads();
    LoadTile<D>(g, k_rows, first_key, keys);
    LoadTile<D>(g, v_rows, first_key, values);
    __syncthreads();
    float p[kRows][kRows];
    Dots<D>(queries, keys, p);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const std::int64_t q = first_query + kRows * ThreadY() + i;
      float largest = maximum[i];
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        const std::int64_t k = first_key + ThreadX() + j * kSide;
        // Rows behind the last query are computed as if they were there, and not written.
        const bool counts = k < g.length && (!g.causal || k <= q);
        p[i][j] = counts ? p[i][j] * g.scale : -INFINITY;
        largest = fmaxf(largest, p[i][j]);
      }
      largest = RowMax(largest);
      const float correction = expf(maximum[i] - largest);
      maximum[i] = largest;
      sum[i] *= correction;
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        p[i][j] = expf(p[i][j] - largest);
        sum[i] += p[i][j];
      }
#pragma unroll
      for (int c = 0; c < Columns<D>::kCount; ++c) {
        out[i][c] *= correction;
      }
    }
    StoreScores(p, scores);
    __syncwarp();
    AddProducts<D>(scores, values, out);
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const float total = RowSum(sum[i]);
    const float inverse = 1.0F / total;
#pragma unroll
    for (int c = 0; c < Columns<D>::kCount; ++c) {
      out[i][c] *= inverse;
    }
    const std::int64_t q = first_query + kRows * ThreadY() + i;
    if (ThreadX() == 0 && q < g.length) {
      log_sums[place.head * g.length + q] = maximum[i] + logf(total);
    }
  }
  StoreRows<D>(g, out, first_query, g.Plain(y, place.head));
}

// deltas[head, q] = the dot product of dy and y of that query; a warp each.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    DeltaKernel(AttentionGeometry g, std::int64_t rows, const T* y, const T* dy, float* deltas) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * (kThreads / 32);
  for (std::int64_t r = static_cast<std::int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
       r < rows; r += step) {
    float sum = 0;
    for (int d = static_cast<int>(threadIdx.x) % 32; d < g.head_size; d += 32) {
      sum += ToFloat(y[r * g.head_size + d]) * ToFloat(dy[r * g.head_size + d]);
    }
    sum = WarpSum(sum);
    // Row r of y is (example, q, head).
    const std::int64_t q = r / g.heads % g.length;
    const std::int64_t head = r / (g.heads * g.length) * g.heads + r % g.heads;
    if (threadIdx.x % 32 == 0) {
      deltas[head * g.length + q] = sum;
    }
  }
}

// The score of key k for query q counts.
__device__ __forceinline__ bool Counts(const AttentionGeometry& g, std::int64_t q, std::int64_t k) {
  return q < g.length && k < g.length && (!g.causal || k <= q);
}

// Of a score and the gradient of its probability: the probability, and the score's gradient.
struct Probability {
  float p, gradient;
};
__device__ __forceinline__ Probability Again(const AttentionGeometry& g, std::int64_t q,
                                             std::int64_t k, float score, float dp, float log_sum,
                                             float delta) {
  if (!Counts(g, q, k)) {
    return {0.0F, 0.0F};
  }
  const float p = expf(score * g.scale - log_sum);
  return {p, p * (dp - delta) * g.scale};
}

template <int D>
__global__ void __launch_bounds__(kThreads)
    KeyValueGradientKernel(AttentionGeometry g, const float* qkv, const float* log_sums,
                           const float* deltas, const float* dy, float* dqkv) {
  extern __shared__ float4 memory[];
  float* const keys = reinterpret_cast<float*>(memory);
  float* const values = keys + kTileFloats<D>;
  float* const queries = values + kTileFloats<D>;
  float* const gradients = queries + kTileFloats<D>;
  float* const scores = gradients + kTileFloats<D>;
  float* const of_queries = scores + kScoreFloats;  // log sums, then deltas
  const AttentionPlace place = AttentionPlaceOf(g.tiles, false);
  const std::int64_t first_key = place.tile * kTile;
  const auto q_rows = g.Packed(qkv, place.head, 0);
  const auto dy_rows = g.Plain(dy, place.head);
  LoadTile<D>(g, g.Packed(qkv, place.head, 1), first_key, keys);
  LoadTile<D>(g, g.Packed(qkv, place.head, 2), first_key, values);
  Sums<D> dk = {};
  Sums<D> dv = {};
  for (std::int64_t tile = g.causal ? place.tile : 0; tile < g.tiles; ++tile) {
    const std::int64_t first_query = tile * kTile;
    __syncthreads();
    LoadTile<D>(g, q_rows, first_query, queries);
    LoadTile<D>(g, dy_rows, first_query, gradients);
    if (threadIdx.x < 2 * kTile) {
      const int place_of = static_cast<int>(threadIdx.x) % kTile;
      const float* const from = threadIdx.x < kTile ? log_sums : deltas;
      const std::int64_t q = first_query + place_of;
      of_queries[threadIdx.x] = q < g.length ? from[place.head * g.length + q] : 0.0F;
    }
    __syncthreads();
    float p[kRows][kRows];
    float ds[kRows][kRows];
    Dots<D>(keys, queries, p);
    Dots<D>(values, gradients, ds);
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const int column = ThreadX() + j * kSide;
      const float log_sum = of_queries[column];
      const float delta = of_queries[kTile + column];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const Probability again = Again(g, first_query + column, first_key + kRows * ThreadY() + i,
                                        p[i][j], ds[i][j], log_sum, delta);
        p[i][j] = again.p;
        ds[i][j] = again.gradient;
      }
    }
    StoreScores(p, scores);
    __syncwarp();
    AddProducts<D>(scores, gradients, dv);
    __syncwarp();
    StoreScores(ds, scores);
    __syncwarp();
    AddProducts<D>(scores, queries, dk);
  }
  StoreRows<D>(g, dk, first_key, g.Packed(dqkv, place.head, 1));
  StoreRows<D>(g, dv, first_key, g.Packed(dqkv, place.head, 2));
}

template <int D>
__global__ void __launch_bounds__(kThreads)
    QueryGradientKernel(AttentionGeometry g, const float* qkv, const float* log_sums,
                        const float* deltas, const float* dy, float* dqkv) {
  extern __shared__ float4 memory[];
  float* const queries = reinterpret_cast<float*>(memory);
  float* const gradients = queries + kTileFloats<D>;
  float* const keys = gradients + kTileFloats<D>;
  float* const values = keys + kTileFloats<D>;
  float* const scores = values + kTileFloats<D>;
  const AttentionPlace place = AttentionPlaceOf(g.tiles, true);
  const std::int64_t first_query = place.tile * kTile;
  const auto k_rows = g.Packed(qkv, place.head, 1);
  const auto v_rows = g.Packed(qkv, place.head, 2);
  LoadTile<D>(g, g.Packed(qkv, place.head, 0), first_query, queries);
  LoadTile<D>(g, g.Plain(dy, place.head), first_query, gradients);
  float log_sum[kRows];
  float delta[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const std::int64_t q = first_query + kRows * ThreadY() + i;
    log_sum[i] = q < g.length ? log_sums[place.head * g.length + q] : 0.0F;
    delta[i] = q < g.length ? deltas[place.head * g.length + q] : 0.0F;
  }
  Sums<D> dq = {};
  const std::int64_t tiles = g.causal ? place.tile + 1 : g.tiles;
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    const std::int64_t first_key = tile * kTile;
    __syncthreads();
    LoadTile<D>(g, k_rows, first_key, keys);
    LoadTile<D>(g, v_rows, first_key, values);
    __syncthreads();
    float s[kRows][kRows];
    float ds[kRows][kRows];
    Dots<D>(queries, keys, s);
    Dots<D>(gradients, values, ds);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        ds[i][j] = Again(g, first_query + kRows * ThreadY() + i, first_key + ThreadX() + j * kSide,
                         s[i][j], ds[i][j], log_sum[i], delta[i])
                       .gradient;
      }
    }
    StoreScores(ds, scores);
    __syncwarp();
    AddProducts<D>(scores, keys, dq);
  }
  StoreRows<D>(g, dq, first_query, g.Packed(dqkv, place.head, 0));
}

template <int D>
class CudaAttention final : public AttentionPlan {
 public:
  CudaAttention(Libraries& libraries, const AttentionSpec& spec)
      : libraries_(libraries), spec_(spec) {
    geometry_.length = spec.length;
    geometry_.heads = spec.heads;
    geometry_.tiles = CeilDiv(spec.length, kTile);
    geometry_.head_size = static_cast<int>(spec.head_size);
    geometry_.causal = spec.causal;
    geometry_.scale = 1.0F / std::sqrt(static_cast<float>(spec.head_size));
    Require(blocks() <= kMostBlocks, "attention on a GPU: fewer blocks of 64 queries");
    int shared_bytes = 0;
    Check(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                 libraries.ordinal()),
          "the GPU's shared memory");
    Require(kBackwardFloats * static_cast<int>(sizeof(float)) <= shared_bytes,
            "attention on this GPU, of little shared memory: heads of at most 64 elements");
  }

  std::int64_t saved_elements() const override { return spec_.batch * spec_.heads * spec_.length; }

  void Forward(Stream& stream, const void* packed, void* out, float* saved) override {
    const auto* const qkv = static_cast<const float*>(packed);
    auto* const y = static_cast<float*>(out);
    if (blocks() == 0) {
      return;
    }
    AttentionGeometry g = geometry_;
    g.vectors = spec_.head_size % 4 == 0 && Aligned16(qkv, y);
    Launch(stream, "Attention", ForwardKernel<D>, 3 * kTileFloats<D> + kScoreFloats, g, qkv, y,
           saved);
  }

  void Backward(Stream& stream, const void* packed, const void* out, const float* saved,
                const void* gradient, void* dpacked) override {
    const auto* const qkv = static_cast<const float*>(packed);
    const auto* const y = static_cast<const float*>(out);
    const auto* const dy = static_cast<const float*>(gradient);
    auto* const dqkv = static_cast<float*>(dpacked);
    if (blocks() == 0) {
      return;
    }
    AttentionGeometry g = geometry_;
    g.vectors = spec_.head_size % 4 == 0 && Aligned16(qkv, dy, dqkv);
    const std::int64_t rows = saved_elements();
    auto* const deltas = reinterpret_cast<float*>(
        libraries_.Scratch(static_cast<std::size_t>(rows) * sizeof(float)));
    AttentionDeltas(stream, g, rows, y, dy, deltas);
    const float* const of_rows = deltas;
    Launch(stream, "Attention's gradient of keys and values", KeyValueGradientKernel<D>,
           kBackwardFloats, g, qkv, saved, of_rows, dy, dqkv);
    Launch(stream, "Attention's gradient of queries", QueryGradientKernel<D>, kBackwardFloats, g,
           qkv, saved, of_rows, dy, dqkv);
  }

 private:
  // Shared memory of a block of the backward pass, which takes more than forward.
  static constexpr int kBackwardFloats = 4 * kTileFloats<D> + kScoreFloats + 2 * kTile;

  std::int64_t blocks() const { return spec_.batch * spec_.heads * geometry_.tiles; }

  template <typename... Parameters, typename... Arguments>
  void Launch(Stream& stream, const char* what, void (*kernel)(Parameters...), int floats,
              const Arguments&... arguments) {
    const cudaStream_t native = Native(stream);
    const int bytes = floats * static_cast<int>(sizeof(float));
    Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), what);
    kernel<<<static_cast<unsigned>(blocks()), kThreads, static_cast<std::size_t>(bytes), native>>>(
        arguments...);
    Launched(stream, what);
  }

  Libraries& libraries_;
  const AttentionSpec spec_;
  AttentionGeometry geometry_ = {};
};

}  // namespace

template <typename T>
void AttentionDeltas(Stream& stream, const AttentionGeometry& geometry, std::int64_t rows,
                     const T* y, const T* dy, float* deltas) {
  DeltaKernel<<<Blocks(rows, kThreads / 32), kThreads, 0, Native(stream)>>>(geometry, rows, y, dy,
                                                                            deltas);
  Launched(stream, "Attention's gradient");
}

template void AttentionDeltas(Stream&, const AttentionGeometry&, std::int64_t, const float*,
                              const float*, float*);
template void AttentionDeltas(Stream&, const AttentionGeometry&, std::int64_t, const BFloat*,
                              const BFloat*, float*);
template void AttentionDeltas(Stream&, const AttentionGeometry&, std::int64_t, const Half*,
                              const Half*, float*);

std::unique_ptr<AttentionPlan> MakeAttention(Libraries& libraries, const AttentionSpec& spec) {
  Require(spec.batch >= 0 && spec.length >= 0 && spec.heads > 0 && spec.head_size > 0,
          "attention needs at least one head of at least one element");
  Require(spec.head_size <= 128, "attention on a GPU: heads of at most 128 elements");
  if (IsHalf(spec.type)) {
    RequireTypeOf(libraries, spec.type);
    auto plan = MakeHalfAttention(libraries, spec);
    return plan ? std::move(plan) : MakeWidenedAttention(libraries, spec);
  }
  if (libraries.tf32()) {
    if (auto plan = MakeTf32Attention(libraries, spec)) {
      return plan;
    }
  }
  if (spec.head_size <= 32) {
    return std::make_unique<CudaAttention<32>>(libraries, spec);
  }
  if (spec.head_size <= 64) {
    return std::make_unique<CudaAttention<64>>(libraries, spec);
  }
  return std::make_unique<CudaAttention<128>>(libraries, spec);
}

}  // namespace cohort::cuda
