// Pools: a thread for each element of the output, backwards for each element of the input, which
// gathers from the windows that cover it: no order of additions is left to chance. The rules are
// cpu/pooling.cc's.

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cuda/cuda_common.h"
#include "cuda/launch.cuh"
#include "cuda/plans.h"

namespace cohort::cuda {
namespace {

unsigned Blocks(std::int64_t elements) {
  constexpr std::int64_t kMost = 65536;
  return static_cast<unsigned>(
      std::clamp<std::int64_t>((elements + kThreads - 1) / kThreads, 1, kMost));
}

__device__ inline std::int64_t First() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline std::int64_t Step() { return static_cast<std::int64_t>(gridDim.x) * blockDim.x; }

// The sizes, with `Int` wide enough for every offset: 32 bits where they do, since divisions by
// what is known at run time are what these kernels cost.
template <typename Int>
struct Geometry {
  Int batch, height, width, channels;
  Int out_h, out_w;
  Int window_h, window_w, stride_h, stride_w, pad_top, pad_left;
  Int inputs, outputs;
};

template <typename Int>
Geometry<Int> GeometryOf(const PoolSpec& s) {
  const auto i = [](std::int64_t value) { return static_cast<Int>(value); };
  return {i(s.batch),
          i(s.height),
          i(s.width),
          i(s.channels),
          i(s.out_height()),
          i(s.out_width()),
          i(s.window_h),
          i(s.window_w),
          i(s.stride_h),
          i(s.stride_w),
          i(s.pad_top),
          i(s.pad_left),
          i(s.batch * s.height * s.width * s.channels),
          i(s.batch * s.out_height() * s.out_width() * s.channels)};
}

// An element's place in [batch, rows, columns, channels].
template <typename Int>
struct PlaceOf {
  __device__ PlaceOf(Int i, Int rows, Int columns, Int channels) {
    c = i % channels;
    i /= channels;
    w = i % columns;
    i /= columns;
    h = i % rows;
    b = i / rows;
  }
  Int b, h, w, c;
};

// The part of a window that is inside of the image.
template <typename Int>
struct Window {
  __device__ Window(const Geometry<Int>& g, Int h, Int w)
      : top(h * g.stride_h - g.pad_top),
        left(w * g.stride_w - g.pad_left),
        h_begin(top > 0 ? top : 0),
        h_end(top + g.window_h < g.height ? top + g.window_h : g.height),
        w_begin(left > 0 ? left : 0),
        w_end(left + g.window_w < g.width ? left + g.window_w : g.width) {}
  __device__ Int count() const { return (h_end - h_begin) * (w_end - w_begin); }
  Int top, left, h_begin, h_end, w_begin, w_end;
};

// The windows along one axis that cover `at`: [begin, end).
template <typename Int>
struct Covering {
  __device__ Covering(Int at, Int pad, Int window, Int stride, Int out) {
    const Int first = at + pad - window;  // the last window that ends before `at` begins here
    begin = first < 0 ? 0 : first / stride + 1;
    end = (at + pad) / stride + 1;
    end = end < out ? end : out;
  }
  Int begin, end;
};

template <typename T, typename Place, typename Int>
__global__ void __launch_bounds__(kThreads)
    MaxForward(Geometry<Int> g, const T* __restrict__ x, T* __restrict__ y,
               Place* __restrict__ places) {
  for (std::int64_t index = First(); index < g.outputs; index += Step()) {
    const auto i = static_cast<Int>(index);
    const PlaceOf<Int> p(i, g.out_h, g.out_w, g.channels);
    const Window<Int> window(g, p.h, p.w);
    float best = 0;
    Int at = -1;
    for (Int h = window.h_begin; h < window.h_end; ++h) {
      for (Int w = window.w_begin; w < window.w_end; ++w) {
        const float value = ToFloat(x[((p.b * g.height + h) * g.width + w) * g.channels + p.c]);
        // The first of equal ones; a NaN is larger than all.
        if (at < 0 || value > best || value != value) {
          best = value;
          at = (h - window.top) * g.window_w + w - window.left;
        }
      }
    }
    y[i] = RoundedTo<T>(best);
    places[i] = static_cast<Place>(at);
  }
}

template <typename T, typename Place, typename Int>
__global__ void __launch_bounds__(kThreads)
    MaxBackward(Geometry<Int> g, const T* __restrict__ dy, const Place* __restrict__ places,
                T* __restrict__ dx) {
  for (std::int64_t index = First(); index < g.inputs; index += Step()) {
    const auto i = static_cast<Int>(index);
    const PlaceOf<Int> p(i, g.height, g.width, g.channels);
    const Covering<Int> rows(p.h, g.pad_top, g.window_h, g.stride_h, g.out_h);
    const Covering<Int> columns(p.w, g.pad_left, g.window_w, g.stride_w, g.out_w);
    float sum = 0;
    for (Int h = rows.begin; h < rows.end; ++h) {
      for (Int w = columns.begin; w < columns.end; ++w) {
        const Int o = ((p.b * g.out_h + h) * g.out_w + w) * g.channels + p.c;
        const Int place =
            (p.h - (h * g.stride_h - g.pad_top)) * g.window_w + p.w - (w * g.stride_w - g.pad_left);
        if (static_cast<Int>(places[o]) == place) {
          sum += ToFloat(dy[o]);
        }
      }
    }
    dx[i] = RoundedTo<T>(sum);
  }
}

template <typename T, typename Int>
__global__ void __launch_bounds__(kThreads)
    AverageForward(Geometry<Int> g, const T* __restrict__ x, T* __restrict__ y) {
  for (std::int64_t index = First(); index < g.outputs; index += Step()) {
    const auto i = static_cast<Int>(index);
    const PlaceOf<Int> p(i, g.out_h, g.out_w, g.channels);
    const Window<Int> window(g, p.h, p.w);
    float sum = 0;
    for (Int h = window.h_begin; h < window.h_end; ++h) {
      for (Int w = window.w_begin; w < window.w_end; ++w) {
        sum += ToFloat(x[((p.b * g.height + h) * g.width + w) * g.channels + p.c]);
      }
    }
    y[i] = RoundedTo<T>(sum / static_cast<float>(window.count()));
  }
}

template <typename T, typename Int>
__global__ void __launch_bounds__(kThreads)
    AverageBackward(Geometry<Int> g, const T* __restrict__ dy, T* __restrict__ dx) {
  for (std::int64_t index = First(); index < g.inputs; index += Step()) {
    const auto i = static_cast<Int>(index);
    const PlaceOf<Int> p(i, g.height, g.width, g.channels);
    const Covering<Int> rows(p.h, g.pad_top, g.window_h, g.stride_h, g.out_h);
    const Covering<Int> columns(p.w, g.pad_left, g.window_w, g.stride_w, g.out_w);
    float sum = 0;
    for (Int h = rows.begin; h < rows.end; ++h) {
      for (Int w = columns.begin; w < columns.end; ++w) {
        const float share = 1.0F / static_cast<float>(Window<Int>(g, h, w).count());
        sum += ToFloat(dy[((p.b * g.out_h + h) * g.out_w + w) * g.channels + p.c]) * share;
      }
    }
    dx[i] = RoundedTo<T>(sum);
  }
}

template <typename Place, typename Int>
class CudaPool final : public PoolPlan {
 public:
  explicit CudaPool(const PoolSpec& spec)
      : max_(spec.max), type_(spec.type), g_(GeometryOf<Int>(spec)) {}

  std::int64_t workspace_bytes() const override {
    return max_ ? static_cast<std::int64_t>(g_.outputs) * static_cast<std::int64_t>(sizeof(Place))
                : 0;
  }

  void Forward(Stream& stream, const void* in, void* out, std::byte* workspace) override {
    if (g_.inputs == 0 || g_.outputs == 0) {
      return;
    }
    const cudaStream_t native = Native(stream);
    WithType(type_, [&]<typename T>(T* /*type*/) {
      const T* const x = static_cast<const T*>(in);
      T* const y = static_cast<T*>(out);
      if (max_) {
        MaxForward<<<Blocks(g_.outputs), kThreads, 0, native>>>(
            g_, x, y, reinterpret_cast<Place*>(workspace));
      } else {
        AverageForward<<<Blocks(g_.outputs), kThreads, 0, native>>>(g_, x, y);
      }
    });
    Launched(stream, "a pool");
  }

  void Backward(Stream& stream, const void* gradient, const std::byte* workspace,
                void* out) override {
    if (g_.inputs == 0) {
      return;
    }
    // Without outputs no window covers an element: zeros.
    const cudaStream_t native = Native(stream);
    WithType(type_, [&]<typename T>(T* /*type*/) {
      const T* const dy = static_cast<const T*>(gradient);
      T* const dx = static_cast<T*>(out);
      if (max_) {
        MaxBackward<<<Blocks(g_.inputs), kThreads, 0, native>>>(
            g_, dy, reinterpret_cast<const Place*>(workspace), dx);
      } else {
        AverageBackward<<<Blocks(g_.inputs), kThreads, 0, native>>>(g_, dy, dx);
      }
    });
    Launched(stream, "a pool's gradient");
  }

 private:
  const bool max_;
  const DType type_;
  const Geometry<Int> g_;
};

template <typename Place>
std::unique_ptr<PoolPlan> MakeSized(const PoolSpec& s) {
  // Room for a window or a stride beyond the last element.
  constexpr std::int64_t kNarrow = std::int64_t{1} << 30;
  const bool narrow = s.batch * s.height * s.width * s.channels < kNarrow &&
                      s.batch * s.out_height() * s.out_width() * s.channels < kNarrow &&
                      s.window_h < kNarrow / s.window_w && s.stride_h < 65536 && s.stride_w < 65536;
  if (narrow) {
    return std::make_unique<CudaPool<Place, std::int32_t>>(s);
  }
  return std::make_unique<CudaPool<Place, std::int64_t>>(s);
}

}  // namespace

std::unique_ptr<PoolPlan> MakePool(const PoolSpec& s) {
  Require(s.pad_top < s.window_h && s.pad_bottom < s.window_h && s.pad_left < s.window_w &&
              s.pad_right < s.window_w,
          "a pool's padding is narrower than its window");
  if (s.max && s.window_h * s.window_w > 256) {
    return MakeSized<std::int32_t>(s);
  }
  return MakeSized<std::uint8_t>(s);
}

}  // namespace cohort::cuda
