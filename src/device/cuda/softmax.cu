#include <cmath>

#include "cuda/cuda_kernels.h"
#include "cuda/row_groups.cuh"

namespace cohort::cuda {
namespace {

struct SoftmaxRow {
  static constexpr int kKept = 1;
  const float* x;
  float* y;

  template <typename Row, typename Group>
  __device__ void operator()(const Group& group, std::int64_t r, std::int64_t columns,
                             Row (&kept)[kKept]) const {
    constexpr int V = Row::kWidth;
    const float* const in = x + r * columns;
    float* const out = y + r * columns;
    kept[0].From(in);
    float maximum = -INFINITY;
    Row::Slots(group, columns, [&](int k, std::int64_t c) {
      const Floats<V> value = Load<V>(in + c);
      kept[0].Set(k, c, value);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        maximum = fmaxf(maximum, value.v[i]);
      }
    });
    maximum = group.Max(maximum);
    float sum = 0;
    Row::Slots(group, columns, [&](int k, std::int64_t c) {
      Floats<V> value = kept[0].Get(k, c);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        sum += expf(value.v[i] - maximum);
      }
    });
    const float inverse = 1.0F / group.Sum(sum);
    Row::Slots(group, columns, [&](int k, std::int64_t c) {
      Floats<V> value = kept[0].Get(k, c);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        value.v[i] = expf(value.v[i] - maximum) * inverse;
      }
      Store<V>(out + c, value);
    });
  }
};

struct SoftmaxBackwardRow {
  static constexpr int kKept = 2;
  const float* y;
  const float* dy;
  float* dx;

  template <typename Row, typename Group>
  __device__ void operator()(const Group& group, std::int64_t r, std::int64_t columns,
                             Row (&kept)[kKept]) const {
    constexpr int V = Row::kWidth;
    const float* const out = y + r * columns;
    const float* const gradient = dy + r * columns;
    float* const in = dx + r * columns;
    kept[0].From(out);
    kept[1].From(gradient);
    float dot = 0;
    Row::Slots(group, columns, [&](int k, std::int64_t c) {
      const Floats<V> p = Load<V>(out + c);
      const Floats<V> g = Load<V>(gradient + c);
      kept[0].Set(k, c, p);
      kept[1].Set(k, c, g);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        dot += p.v[i] * g.v[i];
      }
    });
    dot = group.Sum(dot);
    Row::Slots(group, columns, [&](int k, std::int64_t c) {
      Floats<V> p = kept[0].Get(k, c);
      const Floats<V> g = kept[1].Get(k, c);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        p.v[i] *= g.v[i] - dot;
      }
      Store<V>(in + c, p);
    });
  }
};

}  // namespace

void CudaKernels::Softmax(Stream& stream, RowsOf size, ConstFloatSpan x, FloatSpan y) {
  if (size.columns > 0) {
    LaunchRows(stream, "Softmax", Aligned16(x.data(), y.data()), size.rows, size.columns,
               shared_bytes_, SoftmaxRow{x.data(), y.data()});
  }
}

void CudaKernels::SoftmaxBackward(Stream& stream, RowsOf size, ConstFloatSpan y, ConstFloatSpan dy,
                                  FloatSpan dx) {
  if (size.columns > 0) {
    LaunchRows(stream, "SoftmaxBackward", Aligned16(y.data(), dy.data(), dx.data()), size.rows,
               size.columns, shared_bytes_, SoftmaxBackwardRow{y.data(), dy.data(), dx.data()});
  }
}

}  // namespace cohort::cuda
