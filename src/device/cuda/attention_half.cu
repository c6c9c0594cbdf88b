// Attention of bfloat16 and float16: attention_mma.cuh.
//
// What mma.m16n8k16 leaves as a result of two times eight columns is its operand of 16. Fragments
// come from shared memory by ldmatrix, which takes eight rows of 16 bytes at a time: rows are 16
// bytes longer than they need be, so that eight of them use all banks once.

#include <cstring>

#include "cuda/attention_mma.cuh"

namespace cohort::cuda {
namespace {

constexpr int kStride = kHead + 8;

// Four matrices of 8 x 8; a lane gives the address of one row (lanes 0 to 7 of the first matrix,
// and so on), and gets elements 2 Place() and the next of row Group() of each.
__device__ __forceinline__ void LoadMatrices(unsigned (&m)[4], const void* row) {
#if __CUDA_ARCH__ >= 800  // MakeMmaAttention makes none for less
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
#else
  __trap();
#endif
}

// The same of their transposes: rows 2 Place() and the next of column Group().
__device__ __forceinline__ void LoadTransposed(unsigned (&m)[4], const void* row) {
#if __CUDA_ARCH__ >= 800
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
#else
  __trap();
#endif
}

// sums [16 x 8] += a [16 x 16] times b [16 x 8].
__device__ __forceinline__ void MultiplyAdd(BFloat /*type*/, float (&sums)[4],
                                            const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();
#endif
}
__device__ __forceinline__ void MultiplyAdd(Half /*type*/, float (&sums)[4], const unsigned (&a)[4],
                                            unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();
#endif
}

template <typename T>
struct Halves {
  using Element = T;
  using Shared = T;
  using Operand = unsigned[kHead / 16][4];  // 16 x kHead
  static constexpr int kVector = 8;
  static constexpr int kTileElements = kTile * kStride;

  // Two neighbours of a row of an operand.
  __device__ __forceinline__ static unsigned Pair(float first, float second) {
    const Vec<T, 2> pair = {{RoundedTo<T>(first), RoundedTo<T>(second)}};
    unsigned bits = 0;
    memcpy(&bits, &pair, sizeof(bits));
    return bits;
  }

  __device__ __forceinline__ static void LoadTile(const AttentionGeometry& g,
                                                  const HeadRows<const T>& from, std::int64_t first,
                                                  T* tile) {
    constexpr int kPerRow = kHead / kVector;
#pragma unroll 4
    for (int e = static_cast<int>(threadIdx.x); e < kTile * kPerRow; e += kBlock) {
      const int row = e / kPerRow;
      const int d = e % kPerRow * kVector;
      const T* const source = from.data + (first + row) * from.stride + d;
      uint4 values = {};
      if (first + row < g.length) {
        if (g.vectors) {
          if (d < g.head_size) {
            values = *reinterpret_cast<const uint4*>(source);
          }
        } else {
          Vec<T, kVector> elements;
#pragma unroll
          for (int i = 0; i < kVector; ++i) {
            elements.v[i] = d + i < g.head_size ? source[i] : RoundedTo<T>(0.0F);
          }
          memcpy(&values, &elements, sizeof(values));
        }
      }
      *reinterpret_cast<uint4*>(tile + row * kStride + d) = values;
    }
  }

  // A lane's matrix, of four, and row of that.
  __device__ __forceinline__ static int Matrix() { return static_cast<int>(threadIdx.x) % 32 / 8; }
  __device__ __forceinline__ static int Row() { return static_cast<int>(threadIdx.x) % 8; }

  __device__ __forceinline__ static void LoadOperand(const T* tile, int first, Operand& a) {
    const T* const row = tile + (first + Matrix() % 2 * 8 + Row()) * kStride + Matrix() / 2 * 8;
#pragma unroll
    for (int k = 0; k < kHead / 16; ++k) {
      LoadMatrices(a[k], row + 16 * k);
    }
  }

  template <int kStrips>
  __device__ __forceinline__ static void Dots(const Operand (&a)[kStrips], const T* tile, int first,
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
    // Of two times eight rows of the tile, 16 columns.
    const T* const row = tile + (first + Matrix() / 2 * 8 + Row()) * kStride + Matrix() % 2 * 8;
#pragma unroll
    for (int k = 0; k < kHead / 16; ++k) {
#pragma unroll
      for (int n = 0; n < kChunk / 8; n += 2) {
        unsigned b[4];
        LoadMatrices(b, row + 8 * n * kStride + 16 * k);
#pragma unroll
        for (int s = 0; s < kStrips; ++s) {
          MultiplyAdd(T(), scores[s][n], a[s][k], b[0], b[1]);
          MultiplyAdd(T(), scores[s][n + 1], a[s][k], b[2], b[3]);
        }
      }
    }
  }

  template <int kStrips>
  __device__ __forceinline__ static void AddProducts(const Scores (&scores)[kStrips], const T* tile,
                                                     int first, Sums (&sums)[kStrips]) {
    // Of 16 rows of the tile, two times eight columns.
    const T* const row = tile + (first + Matrix() % 2 * 8 + Row()) * kStride + Matrix() / 2 * 8;
#pragma unroll
    for (int k = 0; k < kChunk / 16; ++k) {
      unsigned a[kStrips][4];
#pragma unroll
      for (int s = 0; s < kStrips; ++s) {
        const float(&left)[4] = scores[s][2 * k];
        const float(&right)[4] = scores[s][2 * k + 1];
        a[s][0] = Pair(left[0], left[1]);
        a[s][1] = Pair(left[2], left[3]);
        a[s][2] = Pair(right[0], right[1]);
        a[s][3] = Pair(right[2], right[3]);
      }
#pragma unroll
      for (int n = 0; n < kHead / 8; n += 2) {
        unsigned b[4];
        LoadTransposed(b, row + 16 * k * kStride + 8 * n);
#pragma unroll
        for (int s = 0; s < kStrips; ++s) {
          MultiplyAdd(T(), sums[s][n], a[s], b[0], b[1]);
          MultiplyAdd(T(), sums[s][n + 1], a[s], b[2], b[3]);
        }
      }
    }
  }
};

}  // namespace

std::unique_ptr<AttentionPlan> MakeHalfAttention(Libraries& libraries, const AttentionSpec& spec) {
  return spec.type == DType::kBFloat16 ? MakeMmaAttention<Halves<BFloat>>(libraries, spec)
                                       : MakeMmaAttention<Halves<Half>>(libraries, spec);
}

}  // namespace cohort::cuda
