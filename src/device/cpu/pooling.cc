// Pools over images in [batch, height, width, channels]: plain loops over channels, which lie
// together. oneDNN 2.6 has no fast one for this order without AVX-512, and its largest element
// loses NaNs.

#include <algorithm>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/pooling.h"

namespace cohort::cpu {
namespace {

// An element of a window: where its channels begin in the input, and its place in the window.
struct Tap {
  std::int64_t offset;
  std::int32_t place;
};

// The walk over windows.
struct Geometry {
  explicit Geometry(const PoolSpec& spec)
      : s(spec),
        out_h(spec.out_height()),
        out_w(spec.out_width()),
        exact(spec.stride_h == spec.window_h && spec.stride_w == spec.window_w &&
              spec.pad_top == 0 && spec.pad_left == 0 && out_h * spec.stride_h == spec.height &&
              out_w * spec.stride_w == spec.width) {}

  PoolSpec s;
  std::int64_t out_h, out_w;
  bool exact;  // windows lie side by side and cover the image

  std::int64_t image() const { return s.height * s.width * s.channels; }
  std::int64_t outputs() const { return s.batch * out_h * out_w * s.channels; }
  bool empty() const { return s.batch * image() == 0 || outputs() == 0; }

  // body(taps, output offset) for each window of the output rows [begin, end), counted over the
  // whole batch. The taps are those inside of the image, in row order.
  template <typename Body>
  void ForWindows(std::int64_t begin, std::int64_t end, const Body& body) const {
    std::vector<Tap> taps;
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t first = row / out_h * image();
      const std::int64_t top = row % out_h * s.stride_h - s.pad_top;
      const std::int64_t bottom = std::min(top + s.window_h, s.height);
      for (std::int64_t column = 0; column < out_w; ++column) {
        const std::int64_t left = column * s.stride_w - s.pad_left;
        const std::int64_t right = std::min(left + s.window_w, s.width);
        taps.clear();
        for (std::int64_t h = std::max<std::int64_t>(top, 0); h < bottom; ++h) {
          for (std::int64_t w = std::max<std::int64_t>(left, 0); w < right; ++w) {
            taps.push_back({first + (h * s.width + w) * s.channels,
                            static_cast<std::int32_t>((h - top) * s.window_w + w - left)});
          }
        }
        body(std::span<const Tap>(taps), (row * out_w + column) * s.channels);
      }
    }
  }

  // The same for all windows of a part of the images, or of the output rows where they may be
  // worked on apart.
  template <typename Body>
  void ForRows(const Body& body) const {
    ParallelFor(s.batch * out_h, RowGrain(out_w * s.channels),
                [&](std::int64_t begin, std::int64_t end, int) { ForWindows(begin, end, body); });
  }
  template <typename Body>
  void ForImages(const Body& body) const {
    ParallelFor(s.batch, RowGrain(image()), [&](std::int64_t begin, std::int64_t end, int) {
      ForWindows(begin * out_h, end * out_h, body);
    });
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

// part(c, lanes, taps) over the channels of a window; the most usual numbers are constants to the
// compiler.
template <typename Part>
void ForChannels(std::int64_t channels, std::span<const Tap> taps, const Part& part) {
  using Lanes = std::integral_constant<std::int64_t, kLanes>;
  std::int64_t c = 0;
  if (taps.size() == 4) {
    for (; c + kLanes <= channels; c += kLanes) {
      part(c, Lanes(), taps.first<4>());
    }
  } else {
    for (; c + kLanes <= channels; c += kLanes) {
      part(c, Lanes(), taps);
    }
  }
  if (c < channels) {
    part(c, channels - c, taps);
  }
}

class Pool : public PoolPlan {
 protected:
  Pool(int threads, const PoolSpec& spec) : threads_(threads), g_(spec) {}

  template <typename Work>
  void Put(Stream& stream, Work work) const {
    stream.Enqueue([threads = threads_, work = std::move(work)]() -> Status {
      const OmpThreads scope(threads);
      work();
      return {};
    });
  }

 private:
  const int threads_;

 protected:
  const Geometry g_;
};

// The largest element of a window, the first of equal ones; a NaN is larger than all. `Place` holds
// its place in the window.
template <typename Place>
class MaxPool final : public Pool {
 public:
  MaxPool(int threads, const PoolSpec& spec) : Pool(threads, spec) {}

  std::int64_t workspace_bytes() const override {
    return g_.outputs() * static_cast<std::int64_t>(sizeof(Place));
  }

  void Forward(Stream& stream, const void* in, void* out_data, std::byte* workspace) override {
    Put(stream, [=, this, x = static_cast<const float*>(in), y = static_cast<float*>(out_data)] {
      if (g_.empty()) {
        return;
      }
      auto* const places = reinterpret_cast<Place*>(workspace);
      g_.ForRows([&](std::span<const Tap> window, std::int64_t out) {
        ForChannels(g_.s.channels, window, [&](std::int64_t c, auto lanes, auto taps) {
          Largest(taps, x + c, y + out + c, places + out + c, lanes);
        });
      });
    });
  }

  void Backward(Stream& stream, const void* gradient, const std::byte* workspace,
                void* out_data) override {
    Put(stream,
        [=, this, dy = static_cast<const float*>(gradient), dx = static_cast<float*>(out_data)] {
          if (g_.empty() || !g_.exact) {
            std::fill_n(dx, g_.s.batch * g_.image(), 0.0F);
          }
          if (g_.empty()) {
            return;
          }
          const auto* const places = reinterpret_cast<const Place*>(workspace);
          g_.ForImages([&](std::span<const Tap> window, std::int64_t out) {
            ForChannels(g_.s.channels, window, [&](std::int64_t c, auto lanes, auto taps) {
              Spread(taps, dy + out + c, places + out + c, dx + c, lanes);
            });
          });
        });
  }

 private:
  template <typename Taps>
  static void Largest(Taps taps, const float* x, float* y, Place* place, std::int64_t lanes) {
    auto best = Load<Floats>(x + taps[0].offset, lanes);
    Places at = Places{} + taps[0].place;
    for (std::size_t t = 1; t < taps.size(); ++t) {
      const auto from = Load<Floats>(x + taps[t].offset, lanes);
      const Places larger = (from > best) | (from != from);
      best = larger ? from : best;
      at = larger ? Places{} + taps[t].place : at;
    }
    Store(best, y, lanes);
    Store(at, place, lanes);
  }

  template <typename Taps>
  void Spread(Taps taps, const float* dy, const Place* place, float* dx, std::int64_t lanes) const {
    const auto gradient = Load<Floats>(dy, lanes);
    const auto at = Load<Places>(place, lanes);
    for (std::size_t t = 0; t < taps.size(); ++t) {
      float* const to = dx + taps[t].offset;
      const Floats share = at == Places{} + taps[t].place ? gradient : Floats{};
      Store(g_.exact ? share : Load<Floats>(to, lanes) + share, to, lanes);
    }
  }
};

class AveragePool final : public Pool {
 public:
  AveragePool(int threads, const PoolSpec& spec) : Pool(threads, spec) {}

  std::int64_t workspace_bytes() const override { return 0; }

  void Forward(Stream& stream, const void* in, void* out_data, std::byte* /*workspace*/) override {
    Put(stream, [=, this, x = static_cast<const float*>(in), y = static_cast<float*>(out_data)] {
      if (g_.empty()) {
        return;
      }
      g_.ForRows([&](std::span<const Tap> window, std::int64_t out) {
        ForChannels(g_.s.channels, window, [&](std::int64_t c, auto lanes, auto taps) {
          Floats sum = {};
          for (std::size_t t = 0; t < taps.size(); ++t) {
            sum += Load<Floats>(x + taps[t].offset + c, lanes);
          }
          Store(sum / static_cast<float>(taps.size()), y + out + c, lanes);
        });
      });
    });
  }

  void Backward(Stream& stream, const void* gradient, const std::byte* /*workspace*/,
                void* out_data) override {
    Put(stream,
        [=, this, dy = static_cast<const float*>(gradient), dx = static_cast<float*>(out_data)] {
          std::fill_n(dx, g_.s.batch * g_.image(), 0.0F);
          if (g_.empty()) {
            return;
          }
          g_.ForImages([&](std::span<const Tap> window, std::int64_t out) {
            const float share = 1.0F / static_cast<float>(window.size());
            for (const Tap& tap : window) {
              for (std::int64_t c = 0; c < g_.s.channels; ++c) {
                dx[tap.offset + c] += dy[out + c] * share;
              }
            }
          });
        });
  }
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
