#include <cmath>

#include "cuda/column_sums.cuh"
#include "cuda/cuda_kernels.h"
#include "cuda/row_groups.cuh"

namespace cohort::cuda {
namespace {

template <typename T>
struct LayerNormRow {
  static constexpr int kKept = 1;
  const float* x;
  const float* scale;
  const float* offset;
  float* mean;
  float* inverse_deviation;
  T* y;
  float epsilon;

  template <typename Row, typename Group>
  __device__ void operator()(const Group& group, std::int64_t r, std::int64_t columns,
                             Row (&kept)[kKept]) const {
    constexpr int V = Row::kWidth;
    const float* const in = x + r * columns;
    T* const out = y + r * columns;
    const float share = columns == 0 ? 0.0F : 1.0F / static_cast<float>(columns);
    kept[0].From(in);
    float sum = 0;
    Row::Slots(group, columns, [&](int k, std::int64_t c) {
      const Floats<V> value = Load<V>(in + c);
      kept[0].Set(k, c, value);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        sum += value.v[i];
      }
    });
    const float center = group.Sum(sum) * share;
    float squares = 0;
    Row::Slots(group, columns, [&](int k, std::int64_t c) {
      const Floats<V> value = kept[0].Get(k, c);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float d = value.v[i] - center;
        squares += d * d;
      }
    });
    const float inverse = 1.0F / sqrtf(group.Sum(squares) * share + epsilon);
    Row::Slots(group, columns, [&](int k, std::int64_t c) {
      Floats<V> value = kept[0].Get(k, c);
      const Floats<V> slope = Load<V>(scale + c);
      const Floats<V> base = Load<V>(offset + c);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        value.v[i] = (value.v[i] - center) * inverse * slope.v[i] + base.v[i];
      }
      Store<V>(out + c, value);
    });
    if (group.thread() == 0) {
      mean[r] = center;
      inverse_deviation[r] = inverse;
    }
  }
};

template <typename T>
struct LayerNormGradient {
  const float* x;
  const float* scale;
  const float* mean;
  const float* inverse_deviation;
  const T* dy;
  float* dx;  // nullptr: not wanted
};

// dx of one row: inverse * (g - mean(g) - xhat * mean(g * xhat)), g = dy * scale. What the rows
// kept are in the end: xhat, dy.
template <typename T, typename Row, typename Group>
__device__ __forceinline__ void LayerNormRowBackward(const LayerNormGradient<T>& n,
                                                     const Group& group, std::int64_t r,
                                                     std::int64_t columns, Row (&kept)[2]) {
  constexpr int V = Row::kWidth;
  const float* const in = n.x + r * columns;
  const T* const gradient = n.dy + r * columns;
  const float center = n.mean[r];
  const float inverse = n.inverse_deviation[r];
  kept[0].From(in);
  kept[1].From(gradient);
  float g_sum = 0;
  float gx_sum = 0;
  Row::Slots(group, columns, [&](int k, std::int64_t c) {
    const Floats<V> value = Load<V>(in + c);
    const Floats<V> g = Load<V>(gradient + c);
    const Floats<V> slope = Load<V>(n.scale + c);
    kept[0].Set(k, c, value);
    kept[1].Set(k, c, g);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float scaled = g.v[i] * slope.v[i];
      g_sum += scaled;
      gx_sum += scaled * ((value.v[i] - center) * inverse);
    }
  });
  if (n.dx == nullptr) {
    return;
  }
  const float share = 1.0F / static_cast<float>(columns);
  const float g_mean = group.Sum(g_sum) * share;
  const float gx_mean = group.Sum(gx_sum) * share;
  Row::Slots(group, columns, [&](int k, std::int64_t c) {
    const Floats<V> value = kept[0].Get(k, c);
    const Floats<V> g = kept[1].Get(k, c);
    const Floats<V> slope = Load<V>(n.scale + c);
    Floats<V> out;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float xhat = (value.v[i] - center) * inverse;
      out.v[i] = inverse * (g.v[i] * slope.v[i] - g_mean - xhat * gx_mean);
    }
    Store<V>(n.dx + r * columns + c, out);
  });
}

template <typename T>
struct LayerNormBackwardRow {
  static constexpr int kKept = 2;
  LayerNormGradient<T> n;
  template <typename Row, typename Group>
  __device__ void operator()(const Group& group, std::int64_t r, std::int64_t columns,
                             Row (&kept)[kKept]) const {
    LayerNormRowBackward(n, group, r, columns, kept);
  }
};

// The same together with the sums down columns of the block's chunk of rows: partial [block, 2,
// columns] = dy, dy * xhat. Each group adds up its rows in order, then the groups of the block.
// Four rows in registers are too many for a second block on a processor where they are long.
constexpr int kBlocksOfProcessor = 2;
template <int kColumnsOfThread>
constexpr int kResident = kColumnsOfThread <= 24 ? kBlocksOfProcessor : 1;

template <typename Group, int V, int kRuns, typename T>
__global__ void __launch_bounds__(kThreads, (kResident<V * kRuns>))
    LayerNormBackwardKernel(std::int64_t rows, std::int64_t columns, std::int64_t chunk_rows,
                            LayerNormGradient<T> n, float* partial) {
  using Row = RegisterRow<V, kRuns>;
  constexpr int kGroups = Group::kPerBlock;
  __shared__ float shared[Group::kShared];
  const Group group(shared);
  const int of_block = static_cast<int>(threadIdx.x) / Group::kSize;
  const std::int64_t begin = blockIdx.x * chunk_rows;
  const std::int64_t end = min(rows, begin + chunk_rows);
  Row offset_sums;
  Row scale_sums;
#pragma unroll
  for (int k = 0; k < kRuns; ++k) {
    offset_sums.Set(k, 0, {});
    scale_sums.Set(k, 0, {});
  }
  for (std::int64_t r = begin + of_block; r < end; r += kGroups) {
    Row kept[2];
    LayerNormRowBackward(n, group, r, columns, kept);
    const float center = n.mean[r];
    const float inverse = n.inverse_deviation[r];
    Row::Slots(group, columns, [&](int k, std::int64_t c) {
      const Floats<V> value = kept[0].Get(k, c);
      const Floats<V> g = kept[1].Get(k, c);
      Floats<V> offset_sum = offset_sums.Get(k, c);
      Floats<V> scale_sum = scale_sums.Get(k, c);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        offset_sum.v[i] += g.v[i];
        scale_sum.v[i] += g.v[i] * ((value.v[i] - center) * inverse);
      }
      offset_sums.Set(k, c, offset_sum);
      scale_sums.Set(k, c, scale_sum);
    });
  }
  float* const sums = partial + static_cast<std::int64_t>(blockIdx.x) * 2 * columns;
  if constexpr (kGroups == 1) {
    Row::Slots(group, columns, [&](int k, std::int64_t c) {
      Store<V>(sums + c, offset_sums.Get(k, c));
      Store<V>(sums + columns + c, scale_sums.Get(k, c));
    });
  } else {
    __shared__ __align__(16) float of_groups[2][kWarpColumns];
    for (int i = 0; i < kGroups; ++i) {
      if (of_block == i) {
        Row::Slots(group, columns, [&](int k, std::int64_t c) {
          Floats<V> offset_sum = offset_sums.Get(k, c);
          Floats<V> scale_sum = scale_sums.Get(k, c);
          if (i > 0) {
            const Floats<V> offset_before = Load<V>(&of_groups[0][c]);
            const Floats<V> scale_before = Load<V>(&of_groups[1][c]);
#pragma unroll
            for (int j = 0; j < V; ++j) {
              offset_sum.v[j] += offset_before.v[j];
              scale_sum.v[j] += scale_before.v[j];
            }
          }
          Store<V>(&of_groups[0][c], offset_sum);
          Store<V>(&of_groups[1][c], scale_sum);
        });
      }
      __syncthreads();
    }
    for (std::int64_t c = threadIdx.x; c < columns; c += kThreads) {
      sums[c] = of_groups[0][c];
      sums[columns + c] = of_groups[1][c];
    }
  }
}

template <int V, typename T>
void LaunchLayerNormBackward(Stream& stream, std::int64_t rows, std::int64_t columns,
                             std::int64_t blocks, std::int64_t chunk_rows,
                             const LayerNormGradient<T>& n, float* partial) {
  const cudaStream_t native = Native(stream);
  const auto launch = [&]<typename Group>(Group*) {
    const std::int64_t each = CeilDiv(columns, Group::kSize);
    const auto grid = static_cast<unsigned>(blocks);
    if (each <= 8) {
      LayerNormBackwardKernel<Group, V, 8 / V>
          <<<grid, kThreads, 0, native>>>(rows, columns, chunk_rows, n, partial);
    } else if (each <= 16) {
      LayerNormBackwardKernel<Group, V, 16 / V>
          <<<grid, kThreads, 0, native>>>(rows, columns, chunk_rows, n, partial);
    } else if (each <= 24) {
      LayerNormBackwardKernel<Group, V, 24 / V>
          <<<grid, kThreads, 0, native>>>(rows, columns, chunk_rows, n, partial);
    } else {
      LayerNormBackwardKernel<Group, V, 32 / V>
          <<<grid, kThreads, 0, native>>>(rows, columns, chunk_rows, n, partial);
    }
  };
  if (columns <= kWarpColumns) {
    launch(static_cast<WarpGroup*>(nullptr));
  } else {
    launch(static_cast<BlockGroup<kThreads>*>(nullptr));
  }
  Launched(stream, "LayerNormBackward");
}

// dy * xhat, where rows have their own moments.
template <typename T>
struct GradientTimesXhat {
  const float* x;
  const float* mean;
  const float* inverse_deviation;
  const T* dy;
  std::int64_t columns;
  template <int V>
  __device__ void At(std::int64_t r, std::int64_t c, Floats<V> (&values)[1]) const {
    const Floats<V> g = Load<V>(dy + r * columns + c);
    const Floats<V> value = Load<V>(x + r * columns + c);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      values[0].v[k] = g.v[k] * ((value.v[k] - mean[r]) * inverse_deviation[r]);
    }
  }
};

__global__ void __launch_bounds__(kThreads)
    DivideKernel(std::int64_t n, const float* sums, const float* count, float* y) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += step) {
    y[i] = count[0] == 0.0F ? 0.0F : sums[i] / count[0];
  }
}

struct FinishingMoments {
  const float* mean;
  const float* square_sums;
  const float* count;
  float epsilon, momentum;
  float* inverse_deviation;
  float* running_mean;  // nullptr: none
  float* running_variance;
};

__global__ void __launch_bounds__(kThreads)
    MomentsKernel(std::int64_t columns, FinishingMoments m) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  const float count = m.count[0];
  for (std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; c < columns;
       c += step) {
    const float variance = count == 0.0F ? 1.0F : m.square_sums[c] / count;
    m.inverse_deviation[c] = 1.0F / sqrtf(variance + m.epsilon);
    if (m.running_mean == nullptr || count == 0.0F) {
      continue;
    }
    const float unbiased = count > 1.0F ? m.square_sums[c] / (count - 1.0F) : variance;
    m.running_mean[c] = m.momentum * m.running_mean[c] + (1.0F - m.momentum) * m.mean[c];
    m.running_variance[c] = m.momentum * m.running_variance[c] + (1.0F - m.momentum) * unbiased;
  }
}

// --- batch norm: what a thread knows of V columns

template <int V>
struct ColumnMoments {
  Floats<V> mean, slope, offset;
  __device__ ColumnMoments(const float* means, const float* inverse_deviations, const float* scales,
                           const float* offsets, std::int64_t c)
      : mean(Load<V>(means + c)), slope(Load<V>(inverse_deviations + c)), offset{} {
    const Floats<V> scale = Load<V>(scales + c);
    if (offsets != nullptr) {
      offset = Load<V>(offsets + c);
    }
#pragma unroll
    for (int k = 0; k < V; ++k) {
      slope.v[k] *= scale.v[k];
    }
  }
  // What forward and backward must agree on to the bit: where relu lets through.
  __device__ float Normalised(int k, float x) const {
    return fmaf(x - mean.v[k], slope.v[k], offset.v[k]);
  }
};

template <typename T>
struct BatchNormColumns {
  const T* x;
  const float* mean;
  const float* inverse_deviation;
  const float* scale;
  const float* offset;
  const T* added;  // or nullptr
  T* y;
  bool relu;
  template <int V>
  __device__ auto Of(std::int64_t c) const {
    const ColumnMoments<V> of(mean, inverse_deviation, scale, offset, c);
    return [n = *this, of](std::int64_t at) {
      Floats<V> value = Load<V>(n.x + at);
      Floats<V> more = {};
      if (n.added != nullptr) {
        more = Load<V>(n.added + at);
      }
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const float sum = of.Normalised(k, value.v[k]) + more.v[k];
        value.v[k] = n.relu && sum < 0.0F ? 0.0F : sum;
      }
      Store<V>(n.y + at, value);
    };
  }
};

// Which elements of dy count.
enum class Counting {
  kAll,
  kAboveZero,  // where what `offset` and the others make of x is above 0
  kKept,       // where y is above 0; the others are set to 0
};

template <typename T, Counting kCounting>
struct BatchNormBackwardRows {
  const T* x;
  const float* mean;
  const float* inverse_deviation;
  const float* scale;
  const float* offset;
  const T* y;
  T* dy;
  std::int64_t columns;
  template <int V>
  __device__ auto Of(std::int64_t c) const {
    const ColumnMoments<V> of(mean, inverse_deviation, scale, offset, c);
    return
        [n = *this, of, inverse = Load<V>(inverse_deviation + c), c](std::int64_t r, auto& values) {
          const std::int64_t at = r * n.columns + c;
          const Floats<V> value = Load<V>(n.x + at);
          Floats<V> g = Load<V>(n.dy + at);
          if constexpr (kCounting == Counting::kKept) {
            const Floats<V> out = Load<V>(n.y + at);
#pragma unroll
            for (int k = 0; k < V; ++k) {
              g.v[k] = out.v[k] > 0.0F ? g.v[k] : 0.0F;
            }
            Store<V>(n.dy + at, g);
          }
#pragma unroll
          for (int k = 0; k < V; ++k) {
            if constexpr (kCounting == Counting::kAboveZero) {
              g.v[k] = of.Normalised(k, value.v[k]) > 0.0F ? g.v[k] : 0.0F;
            }
            values[0].v[k] = g.v[k];
            values[1].v[k] = g.v[k] * ((value.v[k] - of.mean.v[k]) * inverse.v[k]);
          }
        };
  }
};

template <typename T, Counting kCounting>
struct BatchNormBackwardColumns {
  const T* x;
  const float* mean;
  const float* inverse_deviation;
  const float* scale;
  const float* offset;
  const T* dy;
  const float* sums;   // of `columns` and `columns`
  const float* count;  // nullptr: the statistics were constants
  T* dx;
  std::int64_t columns;
  template <int V>
  __device__ auto Of(std::int64_t c) const {
    const ColumnMoments<V> of(mean, inverse_deviation, scale, offset, c);
    Floats<V> dy_mean = {};
    Floats<V> dyx_mean = {};
    if (count != nullptr && count[0] > 0.0F) {
      const Floats<V> inverse = Load<V>(inverse_deviation + c);
      dy_mean = Load<V>(sums + c);
      dyx_mean = Load<V>(sums + columns + c);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        dy_mean.v[k] /= count[0];
        dyx_mean.v[k] = dyx_mean.v[k] / count[0] * inverse.v[k];
      }
    }
    return [n = *this, of, dy_mean, dyx_mean](std::int64_t at) {
      const Floats<V> value = Load<V>(n.x + at);
      Floats<V> g = Load<V>(n.dy + at);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        if constexpr (kCounting == Counting::kAboveZero) {
          g.v[k] = of.Normalised(k, value.v[k]) > 0.0F ? g.v[k] : 0.0F;
        }
        g.v[k] =
            of.slope.v[k] * (g.v[k] - dy_mean.v[k] - (value.v[k] - of.mean.v[k]) * dyx_mean.v[k]);
      }
      Store<V>(n.dx + at, g);
    };
  }
};

}  // namespace

void CudaKernels::LayerNorm(Stream& stream, const NormArguments& n) {
  WithType(n.y.dtype(), [&]<typename T>(T* type) {
    LaunchRows(stream, "LayerNorm",
               Aligned16(n.x.floats(), n.scale.data(), n.offset.data(), n.y.raw()), n.rows,
               n.columns, shared_bytes_,
               LayerNormRow<T>{n.x.floats(), n.scale.data(), n.offset.data(), n.mean.data(),
                               n.inverse_deviation.data(), DataOf(n.y, type), n.epsilon});
  });
}

void CudaKernels::LayerNormBackward(Stream& stream, const NormBackwardArguments& n) {
  if (n.columns == 0) {
    return;
  }
  if (n.rows == 0) {
    Fill(stream, n.dscale, 0.0F);
    Fill(stream, n.doffset, 0.0F);
    return;
  }
  WithType(n.dy.dtype(), [&]<typename T>(T* type) {
    const T* const dy = DataOf(n.dy, type);
    const float* const x = n.x.floats();
    const LayerNormGradient<T> gradient{x,
                                        n.scale.data(),
                                        n.mean.data(),
                                        n.inverse_deviation.data(),
                                        dy,
                                        n.dx.empty() ? nullptr : n.dx.floats()};
    const bool aligned = Aligned16(x, n.scale.data(), dy, gradient.dx);
    const auto scratch = [this](std::int64_t count) { return Scratch<float>(count); };
    if (n.columns > kBlockColumns) {
      if (gradient.dx != nullptr) {
        LaunchRows(stream, "LayerNormBackward", aligned, n.rows, n.columns, shared_bytes_,
                   LayerNormBackwardRow<T>{gradient});
      }
      const SumShape size{1, n.rows, n.columns};
      SumColumns<1>(stream, "LayerNormBackward", processors_, size, 1.0F, aligned, n.doffset.data(),
                    PlainRows<T>{dy, n.columns}, scratch);
      SumColumns<1>(
          stream, "LayerNormBackward", processors_, size, 1.0F, aligned, n.dscale.data(),
          GradientTimesXhat<T>{x, n.mean.data(), n.inverse_deviation.data(), dy, n.columns},
          scratch);
      return;
    }
    const std::int64_t groups = n.columns <= kWarpColumns ? kThreads / 32 : 1;
    // All blocks at once, so that none runs beside idle processors at the end.
    const std::int64_t rows_of_group = std::clamp<std::int64_t>(
        CeilDiv(n.rows, groups * kBlocksOfProcessor * processors_), 1, kRowsPerThread);
    const std::int64_t chunk_rows = groups * rows_of_group;
    const std::int64_t blocks = CeilDiv(n.rows, chunk_rows);
    Require(blocks <= kMostBlocks, "LayerNormBackward on a GPU: fewer rows");
    float* const partial = Scratch<float>(blocks * 2 * n.columns);
    if (aligned && n.columns % 4 == 0) {
      LaunchLayerNormBackward<4>(stream, n.rows, n.columns, blocks, chunk_rows, gradient, partial);
    } else {
      LaunchLayerNormBackward<1>(stream, n.rows, n.columns, blocks, chunk_rows, gradient, partial);
    }
    const SumShape of_blocks{1, blocks, n.columns};
    LaunchSums<double, 1, 1>(stream, "LayerNormBackward", of_blocks,
                             PlanSums(of_blocks, 1, kAcrossOfChunks), 1.0F, n.doffset.data(),
                             PlainRows<float>{partial, 2 * n.columns});
    LaunchSums<double, 1, 1>(stream, "LayerNormBackward", of_blocks,
                             PlanSums(of_blocks, 1, kAcrossOfChunks), 1.0F, n.dscale.data(),
                             PlainRows<float>{partial + n.columns, 2 * n.columns});
  });
}

void CudaKernels::DivideByCount(Stream& stream, ConstFloatSpan sums, ConstFloatSpan count,
                                FloatSpan y) {
  const auto n = static_cast<std::int64_t>(y.size());
  if (n == 0) {
    return;
  }
  DivideKernel<<<Blocks(n, kThreads), kThreads, 0, Native(stream)>>>(n, sums.data(), count.data(),
                                                                     y.data());
  Launched(stream, "DivideByCount");
}

void CudaKernels::FinishMoments(Stream& stream, const MomentsArguments& m) {
  const auto columns = static_cast<std::int64_t>(m.mean.size());
  if (columns == 0) {
    return;
  }
  const bool running = !m.running_mean.empty();
  MomentsKernel<<<Blocks(columns, kThreads), kThreads, 0, Native(stream)>>>(
      columns, FinishingMoments{.mean = m.mean.data(),
                                .square_sums = m.square_sums.data(),
                                .count = m.count.data(),
                                .epsilon = m.epsilon,
                                .momentum = m.momentum,
                                .inverse_deviation = m.inverse_deviation.data(),
                                .running_mean = running ? m.running_mean.data() : nullptr,
                                .running_variance = running ? m.running_variance.data() : nullptr});
  Launched(stream, "FinishMoments");
}

void CudaKernels::BatchNorm(Stream& stream, const NormArguments& n) {
  RequireType(n.x.dtype() == n.y.dtype() && (n.added.empty() || n.added.dtype() == n.x.dtype()),
              "BatchNorm");
  WithType(n.x.dtype(), [&]<typename T>(T* type) {
    const BatchNormColumns<T> body{.x = DataOf(n.x, type),
                                   .mean = n.mean.data(),
                                   .inverse_deviation = n.inverse_deviation.data(),
                                   .scale = n.scale.data(),
                                   .offset = n.offset.data(),
                                   .added = n.added.empty() ? nullptr : DataOf(n.added, type),
                                   .y = DataOf(n.y, type),
                                   .relu = n.activation == Activation::kRelu};
    LaunchColumns<kVectorOf<T>>(stream, "BatchNorm",
                                Aligned16(body.x, body.mean, body.inverse_deviation, body.scale,
                                          body.offset, body.added, body.y),
                                processors_, n.rows, n.columns, body);
  });
}

void CudaKernels::BatchNormBackwardSums(Stream& stream, const NormBackwardArguments& n,
                                        FloatSpan sums) {
  RequireType(n.x.dtype() == n.dy.dtype() && (n.y.empty() || n.y.dtype() == n.x.dtype()),
              "BatchNormBackwardSums");
  WithType(n.x.dtype(), [&]<typename T>(T* type) {
    const auto run = [&]<Counting kCounting>(std::integral_constant<Counting, kCounting>) {
      const BatchNormBackwardRows<T, kCounting> f{
          .x = DataOf(n.x, type),
          .mean = n.mean.data(),
          .inverse_deviation = n.inverse_deviation.data(),
          .scale = n.scale.data(),
          .offset = n.offset.empty() ? nullptr : n.offset.data(),
          .y = n.y.empty() ? nullptr : DataOf(n.y, type),
          .dy = DataOf(n.dy, type),
          .columns = n.columns};
      SumColumns<2, kVectorOf<T>>(
          stream, "BatchNormBackwardSums", processors_, {1, n.rows, n.columns}, 1.0F,
          Aligned16(f.x, f.mean, f.inverse_deviation, f.scale, f.offset, f.y, f.dy), sums.data(), f,
          [this](std::int64_t count) { return Scratch<float>(count); });
    };
    if (n.activation != Activation::kRelu) {
      run(std::integral_constant<Counting, Counting::kAll>());
    } else if (n.y.empty()) {
      run(std::integral_constant<Counting, Counting::kAboveZero>());
    } else {
      run(std::integral_constant<Counting, Counting::kKept>());
    }
  });
}

void CudaKernels::BatchNormBackward(Stream& stream, const NormBackwardArguments& n,
                                    ConstFloatSpan sums, ConstFloatSpan count) {
  RequireType(n.x.dtype() == n.dy.dtype() && n.dx.dtype() == n.x.dtype(), "BatchNormBackward");
  WithType(n.x.dtype(), [&]<typename T>(T* type) {
    const auto run = [&]<Counting kCounting>(std::integral_constant<Counting, kCounting>) {
      const BatchNormBackwardColumns<T, kCounting> body{
          .x = DataOf(n.x, type),
          .mean = n.mean.data(),
          .inverse_deviation = n.inverse_deviation.data(),
          .scale = n.scale.data(),
          .offset = n.offset.empty() ? nullptr : n.offset.data(),
          .dy = DataOf(n.dy, type),
          .sums = sums.empty() ? nullptr : sums.data(),
          .count = count.empty() ? nullptr : count.data(),
          .dx = DataOf(n.dx, type),
          .columns = n.columns};
      LaunchColumns<kVectorOf<T>>(stream, "BatchNormBackward",
                                  Aligned16(body.x, body.mean, body.inverse_deviation, body.scale,
                                            body.offset, body.dy, body.sums, body.dx) &&
                                      (body.sums == nullptr || n.columns % 4 == 0),
                                  processors_, n.rows, n.columns, body);
    };
    if (n.activation == Activation::kRelu && n.y.empty()) {
      run(std::integral_constant<Counting, Counting::kAboveZero>());
    } else {
      run(std::integral_constant<Counting, Counting::kAll>());
    }
  });
}

}  // namespace cohort::cuda
