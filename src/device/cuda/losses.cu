// Losses are first written by row, times the row's weight, and then added up in double, in one
// order. Cross-entropy keeps nothing for its gradient, which computes the softmax again from the
// row that it has read.

#include <cfloat>
#include <cmath>

#include "cuda/cuda_kernels.h"
#include "cuda/row_groups.cuh"

namespace cohort::cuda {
namespace {

constexpr std::int64_t kMostPartials = 256;

struct Labels {
  const void* data;  // nullptr: targets
  bool wide;
  __device__ std::int64_t At(std::int64_t r) const {
    return wide ? static_cast<const std::int64_t*>(data)[r]
                : static_cast<std::int64_t>(static_cast<const std::int32_t*>(data)[r]);
  }
};

__device__ __forceinline__ float WeightOf(const float* weights, std::int64_t r) {
  return weights == nullptr ? 1.0F : weights[r];
}

// What a gradient is scaled by: dloss / sum of weights, times the row's own.
struct GradientScale {
  const float* loss;
  const float* dloss;
  const float* weights;
  __device__ float Of(std::int64_t r) const {
    const float factor = loss[1] == 0.0F ? 0.0F : dloss[0] / loss[1];
    return factor * WeightOf(weights, r);
  }
};

struct LogSumExp {
  float maximum;
  float log_sum;  // of exp(x - maximum)
};

// Of the group's row, in one pass that keeps the row; also `also(c, V)` for each run. A thread's
// sum is around the largest element that it has seen so far.
template <typename Row, typename Group, typename T, typename Also>
__device__ __forceinline__ LogSumExp LogSum(const Group& group, const T* x, std::int64_t columns,
                                            Row& kept, const Also& also) {
  constexpr int V = Row::kWidth;
  kept.From(x);
  // Finite, so that elements of -infinity weigh 0.
  float maximum = -FLT_MAX;
  float sum = 0;
  Row::Slots(group, columns, [&](int k, std::int64_t c) {
    const Floats<V> value = Load<V>(x + c);
    kept.Set(k, c, value);
    also(c);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      // exp(-|d|) is what the sum so far shrinks by, or what the element adds to it: no branch, so
      // that the loads of further runs are under way.
      const float d = value.v[i] - maximum;
      const float e = expf(-fabsf(d));
      sum = d > 0.0F ? sum * e + 1.0F : sum + e;
      maximum = fmaxf(maximum, value.v[i]);
    }
  });
  const float of_row = group.Max(maximum);
  sum = group.Sum(sum * expf(maximum - of_row));
  return {of_row, logf(sum)};
}

template <typename T>
struct SoftmaxCrossEntropyRow {
  static constexpr int kKept = 0;
  const T* x;
  Labels labels;
  std::int64_t classes_end;
  const float* targets;
  const float* weights;
  double* row_losses;
  DataError* error;

  template <typename Row, typename Group>
  __device__ void operator()(const Group& group, std::int64_t r, std::int64_t columns,
                             Row (&kept)[1]) const {
    constexpr int V = Row::kWidth;
    const T* const in = x + r * columns;
    const float weight = WeightOf(weights, r);
    std::int64_t label = 0;
    bool absent = weight == 0.0F;
    if (labels.data != nullptr) {
      label = labels.At(r);
      if (label < 0 || label >= classes_end) {
        absent = true;
        if (group.thread() == 0) {
          ReportDataError(error, DataErrorKind::kLabel, r, label, classes_end);
        }
      }
    }
    // A row of weight 0 is absent, whatever its loss (it may be infinite).
    if (absent) {
      if (group.thread() == 0) {
        row_losses[r] = 0;
      }
      return;
    }
    const LogSumExp z = LogSum(group, in, columns, kept[0], [](std::int64_t) {});
    float loss = 0;
    if (labels.data != nullptr) {
      loss = z.log_sum - (ToFloat(in[label]) - z.maximum);
    } else {
      const float* const target = targets + r * columns;
      Row::Slots(group, columns, [&](int k, std::int64_t c) {
        const Floats<V> value = kept[0].Get(k, c);
        const Floats<V> t = Load<V>(target + c);
#pragma unroll
        for (int i = 0; i < V; ++i) {
          loss += t.v[i] == 0.0F ? 0.0F : t.v[i] * (z.log_sum - (value.v[i] - z.maximum));
        }
      });
      loss = group.Sum(loss);
    }
    if (group.thread() == 0) {
      row_losses[r] = static_cast<double>(weight) * loss;
    }
  }
};

template <typename T>
struct SoftmaxCrossEntropyBackwardRow {
  static constexpr int kKept = 1;
  const T* x;
  Labels labels;
  const float* targets;
  GradientScale scales;
  T* dx;
  DataError* error;

  template <typename Row, typename Group>
  __device__ void operator()(const Group& group, std::int64_t r, std::int64_t columns,
                             Row (&kept)[kKept]) const {
    constexpr int V = Row::kWidth;
    const T* const in = x + r * columns;
    T* const out = dx + r * columns;
    float scale = scales.Of(r);
    std::int64_t label = -1;
    if (labels.data != nullptr) {
      label = labels.At(r);
      if (label < 0 || label >= columns) {
        scale = 0.0F;
        if (group.thread() == 0) {
          ReportDataError(error, DataErrorKind::kLabel, r, label, columns);
        }
      }
    }
    if (scale == 0.0F) {
      Row::Slots(group, columns, [&](int, std::int64_t c) { Store<V>(out + c, Floats<V>{}); });
      return;
    }
    // sum(targets) * softmax - targets; a class label is a row of targets that sums to 1.
    const float* const target = labels.data == nullptr ? targets + r * columns : nullptr;
    float total = 0.0F;
    const LogSumExp z = LogSum(group, in, columns, kept[0], [&](std::int64_t c) {
      if (target != nullptr) {
        const Floats<V> t = Load<V>(target + c);
#pragma unroll
        for (int i = 0; i < V; ++i) {
          total += t.v[i];
        }
      }
    });
    total = target == nullptr ? 1.0F : group.Sum(total);
    Row::Slots(group, columns, [&](int k, std::int64_t c) {
      Floats<V> value = kept[0].Get(k, c);
      const Floats<V> t = target == nullptr ? Floats<V>{} : Load<V>(target + c);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float p = expf(value.v[i] - z.maximum - z.log_sum);
        value.v[i] = scale * (total * p - (c + i == label ? 1.0F : t.v[i]));
      }
      Store<V>(out + c, value);
    });
  }
};

// max(x, 0) - x t + log(1 + exp(-|x|)): finite for every finite x.
struct SigmoidLoss {
  __device__ double operator()(float x, float target) const {
    return fmaxf(x, 0.0F) - x * target + log1pf(expf(-fabsf(x)));
  }
};
struct SquaredLoss {
  __device__ double operator()(float x, float target) const {
    const double error = static_cast<double>(x) - target;
    return error * error;
  }
};

// row_losses[r] = weight * the mean over columns of Loss()(x, target); kLanes threads for a row.
template <int kLanes, typename Loss>
__global__ void __launch_bounds__(kThreads)
    MeanLossKernel(std::int64_t rows, std::int64_t columns, const float* x, const float* targets,
                   const float* weights, double* row_losses) {
  __shared__ double shared[kThreads / 32];
  constexpr int kRows = kThreads / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kRows;
  for (std::int64_t r = static_cast<std::int64_t>(blockIdx.x) * kRows + threadIdx.x / kLanes;
       r < rows; r += step) {
    double sum = 0;
#pragma unroll 4
    for (std::int64_t c = lane; c < columns; c += kLanes) {
      sum += Loss()(x[r * columns + c], targets[r * columns + c]);
    }
    if constexpr (kLanes == 32) {
      sum = WarpSum(sum);
    } else if constexpr (kLanes == kThreads) {
      sum = BlockSum<kThreads>(sum, shared);
    }
    if (lane == 0) {
      const double weight = WeightOf(weights, r);
      row_losses[r] =
          weight == 0.0 || columns == 0 ? 0.0 : weight * (sum / static_cast<double>(columns));
    }
  }
}

template <typename Loss>
void LaunchMeanLoss(Stream& stream, const char* what, const LossArguments& l, double* row_losses) {
  if (l.rows == 0) {
    return;
  }
  const cudaStream_t native = Native(stream);
  const float* const weights = l.weights.empty() ? nullptr : l.weights.data();
  const auto launch = [&]<int kLanes>(std::integral_constant<int, kLanes>) {
    MeanLossKernel<kLanes, Loss><<<Blocks(l.rows, kThreads / kLanes), kThreads, 0, native>>>(
        l.rows, l.columns, l.x.floats(), l.targets.data(), weights, row_losses);
  };
  if (l.columns < 16) {
    launch(std::integral_constant<int, 1>());
  } else if (l.columns <= 4096) {
    launch(std::integral_constant<int, 32>());
  } else {
    launch(std::integral_constant<int, kThreads>());
  }
  Launched(stream, what);
}

template <int V>
struct SigmoidLossGradient {
  const float* x;
  const float* targets;
  GradientScale scales;
  float* dx;
  std::int64_t columns;
  __device__ void operator()(std::int64_t r, std::int64_t c) const {
    const float scale = scales.Of(r);
    Floats<V> value = Load<V>(x + r * columns + c);
    const Floats<V> target = Load<V>(targets + r * columns + c);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const float p = 1.0F / (1.0F + expf(-value.v[k]));
      value.v[k] = scale == 0.0F ? 0.0F : scale * ((p - target.v[k]) / static_cast<float>(columns));
    }
    Store<V>(dx + r * columns + c, value);
  }
};

template <int V>
struct SquaredLossGradient {
  const float* x;
  const float* targets;
  GradientScale scales;
  float* dx;
  std::int64_t columns;
  __device__ void operator()(std::int64_t r, std::int64_t c) const {
    const float scale = scales.Of(r);
    const float of_mean = 2.0F / static_cast<float>(columns);
    Floats<V> value = Load<V>(x + r * columns + c);
    const Floats<V> target = Load<V>(targets + r * columns + c);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      value.v[k] = scale == 0.0F ? 0.0F : scale * (of_mean * (value.v[k] - target.v[k]));
    }
    Store<V>(dx + r * columns + c, value);
  }
};

// Sums of `losses` and `weights` (1 each where nullptr), by blocks: partial[2 b], partial[2 b + 1].
// The last launch, of one block, is given those as losses with kPairs, and writes `loss`.
template <bool kPairs>
__global__ void __launch_bounds__(kThreads)
    LossSumKernel(std::int64_t n, const double* losses, const float* weights, double* partial,
                  float* loss) {
  __shared__ double shared[kThreads / 32];
  double sum = 0;
  double weight = 0;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n;
       i += step) {
    if constexpr (kPairs) {
      sum += losses[2 * i];
      weight += losses[2 * i + 1];
    } else {
      sum += losses[i];
      weight += WeightOf(weights, i);
    }
  }
  sum = BlockSum<kThreads>(sum, shared);
  weight = BlockSum<kThreads>(weight, shared);
  if (threadIdx.x == 0) {
    if constexpr (kPairs) {
      loss[0] = static_cast<float>(weight == 0.0 ? 0.0 : sum / weight);
      loss[1] = static_cast<float>(weight);
    } else {
      partial[2 * blockIdx.x] = sum;
      partial[2 * blockIdx.x + 1] = weight;
    }
  }
}

// Scratch: a loss for each row, and two sums for each block.
std::int64_t LossScratch(const LossArguments& l) { return l.rows + 2 * kMostPartials; }

}  // namespace

void CudaKernels::FinishLoss(Stream& stream, const LossArguments& l, double* row_losses,
                             FloatSpan loss) {
  const std::int64_t blocks = std::clamp<std::int64_t>(CeilDiv(l.rows, kThreads), 1, kMostPartials);
  double* const partial = row_losses + l.rows;
  const cudaStream_t native = Native(stream);
  LossSumKernel<false><<<static_cast<unsigned>(blocks), kThreads, 0, native>>>(
      l.rows, row_losses, l.weights.empty() ? nullptr : l.weights.data(), partial, nullptr);
  Launched(stream, "the sum of a loss");
  LossSumKernel<true><<<1, kThreads, 0, native>>>(blocks, partial, nullptr, nullptr, loss.data());
  Launched(stream, "the sum of a loss");
}

void CudaKernels::SoftmaxCrossEntropy(Stream& stream, const LossArguments& l, FloatSpan loss) {
  auto* const row_losses = Scratch<double>(LossScratch(l));
  WithType(l.x.dtype(), [&]<typename T>(T* type) {
    LaunchRows(stream, "SoftmaxCrossEntropy", Aligned16(l.x.raw(), l.targets.data()), l.rows,
               l.columns, shared_bytes_,
               SoftmaxCrossEntropyRow<T>{DataOf(l.x, type),
                                         {l.classes, l.wide_classes},
                                         l.classes_end > 0 ? l.classes_end : l.columns,
                                         l.targets.data(),
                                         l.weights.empty() ? nullptr : l.weights.data(),
                                         row_losses,
                                         ErrorSlot(stream)});
  });
  FinishLoss(stream, l, row_losses, loss);
}

void CudaKernels::SoftmaxCrossEntropyBackward(Stream& stream, const LossArguments& l,
                                              ConstFloatSpan loss, ConstFloatSpan dloss,
                                              Elements dx) {
  RequireType(l.x.dtype() == dx.dtype(), "SoftmaxCrossEntropyBackward");
  WithType(dx.dtype(), [&]<typename T>(T* type) {
    LaunchRows(stream, "SoftmaxCrossEntropyBackward",
               Aligned16(l.x.raw(), l.targets.data(), dx.raw()), l.rows, l.columns, shared_bytes_,
               SoftmaxCrossEntropyBackwardRow<T>{
                   DataOf(l.x, type),
                   {l.classes, l.wide_classes},
                   l.targets.data(),
                   {loss.data(), dloss.data(), l.weights.empty() ? nullptr : l.weights.data()},
                   DataOf(dx, type),
                   ErrorSlot(stream)});
  });
}

void CudaKernels::SigmoidCrossEntropy(Stream& stream, const LossArguments& l, FloatSpan loss) {
  auto* const row_losses = Scratch<double>(LossScratch(l));
  LaunchMeanLoss<SigmoidLoss>(stream, "SigmoidCrossEntropy", l, row_losses);
  FinishLoss(stream, l, row_losses, loss);
}

void CudaKernels::SigmoidCrossEntropyBackward(Stream& stream, const LossArguments& l,
                                              ConstFloatSpan loss, ConstFloatSpan dloss,
                                              FloatSpan dx) {
  const GradientScale scales{loss.data(), dloss.data(),
                             l.weights.empty() ? nullptr : l.weights.data()};
  LaunchTile<SigmoidLossGradient>(
      stream, "SigmoidCrossEntropyBackward", Aligned16(l.x.floats(), l.targets.data(), dx.data()),
      l.rows, l.columns, l.x.floats(), l.targets.data(), scales, dx.data(), l.columns);
}

void CudaKernels::MeanSquaredError(Stream& stream, const LossArguments& l, FloatSpan loss) {
  auto* const row_losses = Scratch<double>(LossScratch(l));
  LaunchMeanLoss<SquaredLoss>(stream, "MeanSquaredError", l, row_losses);
  FinishLoss(stream, l, row_losses, loss);
}

void CudaKernels::MeanSquaredErrorBackward(Stream& stream, const LossArguments& l,
                                           ConstFloatSpan loss, ConstFloatSpan dloss,
                                           FloatSpan dx) {
  const GradientScale scales{loss.data(), dloss.data(),
                             l.weights.empty() ? nullptr : l.weights.data()};
  LaunchTile<SquaredLossGradient>(
      stream, "MeanSquaredErrorBackward", Aligned16(l.x.floats(), l.targets.data(), dx.data()),
      l.rows, l.columns, l.x.floats(), l.targets.data(), scales, dx.data(), l.columns);
}

}  // namespace cohort::cuda
