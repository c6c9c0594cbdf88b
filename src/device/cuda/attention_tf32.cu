// Attention with the operands of products rounded to TF32: attention_mma.cuh.
//
// What mma.m16n8k8 leaves as columns 2 t and 2 t + 1 of a result, it takes as columns t and t + 4
// of an operand: scores are fed to the next product in that order, of both of its operands. Rows in
// shared memory are four floats longer than they need be: then neither a fragment along rows nor
// one across them meets a bank twice.

#include "cuda/attention_mma.cuh"

namespace cohort::cuda {
namespace {

constexpr int kStride = kHead + 4;

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

struct Tf32 {
  using Element = float;
  using Shared = float;
  using Operand = unsigned[kHead / 8][4];  // 16 x kHead
  static constexpr int kVector = 4;
  static constexpr int kTileElements = kTile * kStride;

  // Rows first .. first + 63 into a tile, rounded, zeros where there are none.
  __device__ __forceinline__ static void LoadTile(const AttentionGeometry& g,
                                                  const HeadRows<const float>& from,
                                                  std::int64_t first, float* tile) {
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
  __device__ __forceinline__ static void LoadOperand(const float* tile, int first, Operand& a) {
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
  __device__ __forceinline__ static void Dots(const Operand (&a)[kStrips], const float* tile,
                                              int first, Scores (&scores)[kStrips]) {
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
  __device__ __forceinline__ static void AddProducts(const Scores (&scores)[kStrips],
                                                     const float* tile, int first,
                                                     Sums (&sums)[kStrips]) {
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
};

}  // namespace

std::unique_ptr<AttentionPlan> MakeTf32Attention(Libraries& libraries, const AttentionSpec& spec) {
  return MakeMmaAttention<Tf32>(libraries, spec);
}

}  // namespace cohort::cuda
