// Pools over images in [batch, height, width, channels]: plain loops over channels, which lie
// together. oneDNN 2.6 has no fast one for this order without AVX-512, and its largest element
// loses NaNs.

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cpu/parallel.h"
#include "cpu/pooling.h"

namespace cohort::cpu {
namespace {

// The part of a window that lies inside of the image: input indices, and the first one's place in
// the window.
struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t first = 0;
};

Range Inside(std::int64_t out, std::int64_t stride, std::int64_t pad, std::int64_t window,
             std::int64_t size) {
  const std::int64_t start = out * stride - pad;
  const std::int64_t begin = std::max<std::int64_t>(start, 0);
  return {begin, std::min(start + window, size), begin - start};
}

// What the kinds of pools share: the walk over windows.
struct Geometry {
  explicit Geometry(const PoolSpec& spec)
      : s(spec),
        out_h(spec.out_height()),
        out_w(spec.out_width()),
        exact(spec.stride_h == spec.window_h && spec.stride_w == spec.window_w &&
              out_h * spec.stride_h == spec.height && out_w * spec.stride_w == spec.width) {}

  PoolSpec s;
  std::int64_t out_h, out_w;
  bool exact;  // windows lie side by side and cover the image

  std::int64_t inputs() const { return s.batch * s.height * s.width * s.channels; }
  std::int64_t outputs() const { return s.batch * out_h * out_w * s.channels; }
  bool empty() const { return inputs() == 0 || outputs() == 0; }

  // visit(input offset, place in the window) for the elements of window (row, column) of an image
  // that begins at `image`, in row order.
  template <typename Visit>
  void ForWindow(std::int64_t image, const Range& rows, const Range& columns,
                 const Visit& visit) const {
    for (std::int64_t h = rows.begin; h < rows.end; ++h) {
      const std::int64_t place = (rows.first + h - rows.begin) * s.window_w + columns.first;
      for (std::int64_t w = columns.begin; w < columns.end; ++w) {
        visit(image + (h * s.width + w) * s.channels, place + w - columns.begin);
      }
    }
  }

  // body(image offset, rows, columns, output offset) for the windows of output rows [begin, end),
  // counted over the whole batch.
  template <typename Body>
  void ForWindows(std::int64_t begin, std::int64_t end, const Body& body) const {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t image = row / out_h * s.height * s.width * s.channels;
      const Range rows = Inside(row % out_h, s.stride_h, s.pad_top, s.window_h, s.height);
      for (std::int64_t column = 0; column < out_w; ++column) {
        body(image, rows, Inside(column, s.stride_w, s.pad_left, s.window_w, s.width),
             (row * out_w + column) * s.channels);
      }
    }
  }
};

// Eight channels at a time; GCC's and clang's vector types, since neither vectorises a choice of
// two things by one comparison.
constexpr std::int64_t kLanes = 8;
using Floats = float __attribute__((vector_size(kLanes * sizeof(float))));
using Places = std::int32_t __attribute__((vector_size(kLanes * sizeof(std::int32_t))));

// The first `lanes` elements; the others are 0.
template <typename Vector, typename T>
Vector Load(const T* from, std::int64_t lanes) {
  using Narrow [[gnu::vector_size(kLanes * sizeof(T))]] = T;
  Narrow loaded = {};
  if (lanes == kLanes) {
    std::memcpy(&loaded, from, sizeof(loaded));
  } else {
    std::memcpy(&loaded, from, static_cast<std::size_t>(lanes) * sizeof(T));
  }
  return __builtin_convertvector(loaded, Vector);
}

template <typename T, typename Vector>
void Store(const Vector& vector, T* to, std::int64_t lanes) {
  using Narrow [[gnu::vector_size(kLanes * sizeof(T))]] = T;
  const Narrow narrow = __builtin_convertvector(vector, Narrow);
  if (lanes == kLanes) {
    std::memcpy(to, &narrow, sizeof(narrow));
  } else {
    std::memcpy(to, &narrow, static_cast<std::size_t>(lanes) * sizeof(T));
  }
}

// part(c, lanes) over the channels.
template <typename Part>
void ForChannels(std::int64_t channels, const Part& part) {
  std::int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    part(c, std::integral_constant<std::int64_t, kLanes>());
  }
  if (c < channels) {
    part(c, channels - c);
  }
}

// The largest element of a window, the first of equal ones; a NaN is larger than all. `Place` holds
// its place in the window.
template <typename Place>
class MaxPool final : public PoolPlan {
 public:
  MaxPool(int threads, const PoolSpec& spec) : threads_(threads), g_(spec) {}

  std::int64_t workspace_bytes() const override {
    return g_.outputs() * static_cast<std::int64_t>(sizeof(Place));
  }

  void Forward(Stream& stream, const float* x, float* y, std::byte* workspace) override {
    stream.Enqueue([=, this]() -> Status {
      const OmpThreads scope(threads_);
      if (g_.empty()) {
        return {};
      }
      auto* const places = reinterpret_cast<Place*>(workspace);
      ParallelFor(
          g_.s.batch * g_.out_h, RowGrain(g_.out_w * g_.s.channels),
          [&](std::int64_t begin, std::int64_t end, int) {
            g_.ForWindows(
                begin, end,
                [&](std::int64_t image, const Range& rows, const Range& columns, std::int64_t out) {
                  ForChannels(g_.s.channels, [&](std::int64_t c, auto lanes) {
                    Largest(x + c, image, rows, columns, y + out + c, places + out + c, lanes);
                  });
                });
          });
      return {};
    });
  }

  void Backward(Stream& stream, const float* dy, const std::byte* workspace, float* dx) override {
    stream.Enqueue([=, this]() -> Status {
      const OmpThreads scope(threads_);
      if (g_.empty() || !g_.exact) {
        std::fill_n(dx, g_.inputs(), 0.0F);
      }
      if (g_.empty()) {
        return {};
      }
      const auto* const places = reinterpret_cast<const Place*>(workspace);
      const std::int64_t image_size = g_.s.height * g_.s.width * g_.s.channels;
      ParallelFor(g_.s.batch, RowGrain(image_size), [&](std::int64_t begin, std::int64_t end, int) {
        g_.ForWindows(
            begin * g_.out_h, end * g_.out_h,
            [&](std::int64_t image, const Range& rows, const Range& columns, std::int64_t out) {
              g_.ForWindow(image, rows, columns, [&](std::int64_t in, std::int64_t k) {
                ForChannels(g_.s.channels, [&](std::int64_t c, auto lanes) {
                  Spread(dy + out + c, places + out + c, k, dx + in + c, lanes);
                });
              });
            });
      });
      return {};
    });
  }

 private:
  void Largest(const float* x, std::int64_t image, const Range& rows, const Range& columns,
               float* y, Place* place, std::int64_t lanes) const {
    Floats best = {};
    Places at = {};
    bool first = true;  // not -inf: all elements may be
    g_.ForWindow(image, rows, columns, [&](std::int64_t in, std::int64_t k) {
      const auto from = Load<Floats>(x + in, lanes);
      const Places here = Places{} + static_cast<std::int32_t>(k);
      const Places larger = first ? Places{} - 1 : (from > best) | (from != from);
      best = larger ? from : best;
      at = larger ? here : at;
      first = false;
    });
    Store(best, y, lanes);
    Store(at, place, lanes);
  }

  void Spread(const float* dy, const Place* place, std::int64_t k, float* dx,
              std::int64_t lanes) const {
    const Places here = Places{} + static_cast<std::int32_t>(k);
    const Floats share = Load<Places>(place, lanes) == here ? Load<Floats>(dy, lanes) : Floats{};
    Store(g_.exact ? share : Load<Floats>(dx, lanes) + share, dx, lanes);
  }

  const int threads_;
  const Geometry g_;
};

class AveragePool final : public PoolPlan {
 public:
  AveragePool(int threads, const PoolSpec& spec) : threads_(threads), g_(spec) {}

  std::int64_t workspace_bytes() const override { return 0; }

  void Forward(Stream& stream, const float* x, float* y, std::byte* /*workspace*/) override {
    stream.Enqueue([=, this]() -> Status {
      const OmpThreads scope(threads_);
      if (g_.empty()) {
        return {};
      }
      ParallelFor(g_.s.batch * g_.out_h, RowGrain(g_.out_w * g_.s.channels),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    g_.ForWindows(begin, end,
                                  [&](std::int64_t image, const Range& rows, const Range& columns,
                                      std::int64_t out) {
                                    ForChannels(g_.s.channels, [&](std::int64_t c, auto lanes) {
                                      Mean(x + c, image, rows, columns, y + out + c, lanes);
                                    });
                                  });
                  });
      return {};
    });
  }

  void Backward(Stream& stream, const float* dy, const std::byte* /*workspace*/,
                float* dx) override {
    stream.Enqueue([=, this]() -> Status {
      const OmpThreads scope(threads_);
      std::fill_n(dx, g_.inputs(), 0.0F);
      if (g_.empty()) {
        return {};
      }
      const std::int64_t image_size = g_.s.height * g_.s.width * g_.s.channels;
      ParallelFor(g_.s.batch, RowGrain(image_size), [&](std::int64_t begin, std::int64_t end, int) {
        g_.ForWindows(
            begin * g_.out_h, end * g_.out_h,
            [&](std::int64_t image, const Range& rows, const Range& columns, std::int64_t out) {
              const float share = 1.0F / Count(rows, columns);
              g_.ForWindow(image, rows, columns, [&](std::int64_t in, std::int64_t) {
                for (std::int64_t c = 0; c < g_.s.channels; ++c) {
                  dx[in + c] += dy[out + c] * share;
                }
              });
            });
      });
      return {};
    });
  }

 private:
  static float Count(const Range& rows, const Range& columns) {
    return static_cast<float>((rows.end - rows.begin) * (columns.end - columns.begin));
  }

  void Mean(const float* x, std::int64_t image, const Range& rows, const Range& columns, float* y,
            std::int64_t lanes) const {
    Floats sum = {};
    g_.ForWindow(image, rows, columns,
                 [&](std::int64_t in, std::int64_t) { sum += Load<Floats>(x + in, lanes); });
    Store(sum / Count(rows, columns), y, lanes);
  }

  const int threads_;
  const Geometry g_;
};

}  // namespace

std::unique_ptr<PoolPlan> MakePool(int threads, const PoolSpec& s) {
  Require(s.pad_top < s.window_h && s.pad_bottom < s.window_h && s.pad_left < s.window_w &&
              s.pad_right < s.window_w,
          "a pool's padding is narrower than its window");
  if (!s.max) {
    return std::make_unique<AveragePool>(threads, s);
  }
  if (s.window_h * s.window_w <= 256) {
    return std::make_unique<MaxPool<std::uint8_t>>(threads, s);
  }
  return std::make_unique<MaxPool<std::int32_t>>(threads, s);
}

}  // namespace cohort::cpu
