// How a digit is drawn.
//
// A glyph's points are jittered and its curves cut into short segments; an affine map (size, slant,
// rotation, place) and a slow wave bend them onto the 28 x 28 grid. Ink is a function of a pixel's
// distance to the nearest segment. One or two stray strokes are drawn in the same way, a gap is
// wiped out, and a slow shade and the noise of each pixel are added.

#include <cohort/data/digits.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <numbers>

#include <cohort/core/random.h>

#include "sources/glyphs.h"

namespace cohort::data {
namespace {

constexpr int kSide = 28;
constexpr std::size_t kPixels = 784;
constexpr int kCurveSteps = 4;  // segments between two points of a curve
// Part of the fingerprint: to be changed with anything that changes a pixel.
constexpr std::uint64_t kDrawingVersion = 1;

// The random numbers of one example, in the order of their use.
class Draws {
 public:
  Draws(std::uint64_t seed, std::int64_t index)
      : philox_(seed, "data/digits"), index_(static_cast<std::uint64_t>(index)) {}

  float Uniform(float low, float high) {
    return low + (high - low) * philox_.Uniform(next_++, index_);
  }
  float Normal() { return philox_.Normal(next_++, kNormals | index_); }
  int Below(int bound) { return static_cast<int>(Uniform(0, static_cast<float>(bound))); }
  bool Chance(float probability) { return Uniform(0, 1) < probability; }
  // Four words of noise; `i` counts on its own.
  Philox::Block Noise(std::uint64_t i) const { return philox_.At(i, kNoise | index_); }

 private:
  static constexpr std::uint64_t kNormals = std::uint64_t{1} << 62;
  static constexpr std::uint64_t kNoise = std::uint64_t{1} << 63;
  Philox philox_;
  std::uint64_t index_;
  std::uint64_t next_ = 0;
};

struct Segment {
  Point from;
  Point to;
};

// Catmull-Rom: passes through b at t = 0 and c at t = 1.
Point CurvePoint(Point a, Point b, Point c, Point d, float t) {
  const auto axis = [t](float p, float q, float r, float s) {
    return 0.5F * (2 * q + (r - p) * t + (2 * p - 5 * q + 4 * r - s) * t * t +
                   (3 * q - p - 3 * r + s) * t * t * t);
  };
  return {axis(a.x, b.x, c.x, d.x), axis(a.y, b.y, c.y, d.y)};
}

void AddSegments(const Stroke& stroke, std::vector<Segment>& segments) {
  const std::vector<Point>& p = stroke.points;
  for (std::size_t i = 0; i + 1 < p.size(); ++i) {
    if (!stroke.smooth) {
      segments.push_back({p[i], p[i + 1]});
      continue;
    }
    const Point before = p[i == 0 ? 0 : i - 1];
    const Point after = p[std::min(i + 2, p.size() - 1)];
    Point from = p[i];
    for (int step = 1; step <= kCurveSteps; ++step) {
      const float t = static_cast<float>(step) / kCurveSteps;
      const Point to = CurvePoint(before, p[i], p[i + 1], after, t);
      segments.push_back({from, to});
      from = to;
    }
  }
}

// From the unit square of glyphs to pixels.
class Placement {
 public:
  explicit Placement(Draws& draws) {
    const float angle = draws.Uniform(-0.25F, 0.25F);
    const float slant = draws.Uniform(-0.3F, 0.3F);
    const float width = draws.Uniform(10.5F, 16);
    const float height = draws.Uniform(15.5F, 20.5F);
    const float c = std::cos(angle);
    const float s = std::sin(angle);
    xx_ = c * width;
    xy_ = c * -slant * width - s * height;
    yx_ = s * width;
    yy_ = s * -slant * width + c * height;
    x_ = kSide / 2.0F + draws.Uniform(-2.4F, 2.4F);
    y_ = kSide / 2.0F + draws.Uniform(-2.4F, 2.4F);
    wave_ = draws.Uniform(0, 1);
    wave_phase_ = draws.Uniform(0, 2 * std::numbers::pi_v<float>);
    wave_length_ = draws.Uniform(10, 20);
  }

  Point operator()(Point p) const {
    const float u = p.x - 0.5F;
    const float v = p.y - 0.5F;
    const float x = xx_ * u + xy_ * v;
    const float y = yx_ * u + yy_ * v;
    const float turn = 2 * std::numbers::pi_v<float> / wave_length_;
    return {x_ + x + wave_ * std::sin(turn * y + wave_phase_),
            y_ + y + wave_ * std::cos(turn * x + wave_phase_)};
  }

 private:
  float xx_, xy_, yx_, yy_;  // the linear map
  float x_, y_;              // the centre
  float wave_, wave_phase_, wave_length_;
};

using Canvas = std::array<float, kPixels>;

std::size_t PixelAt(int x, int y) {
  return static_cast<std::size_t>(y) * kSide + static_cast<std::size_t>(x);
}

// Ink of strokes `radius` wide to each side: `ink` in the middle, fading over one pixel.
void Draw(const std::vector<Segment>& segments, float radius, float ink, Canvas& canvas) {
  const float reach = radius + 0.5F;
  for (const Segment& s : segments) {
    const auto low = [reach](float a, float b) {
      return std::clamp(static_cast<int>(std::floor(std::min(a, b) - reach)), 0, kSide);
    };
    const auto high = [reach](float a, float b) {
      return std::clamp(static_cast<int>(std::ceil(std::max(a, b) + reach)) + 1, 0, kSide);
    };
    const float dx = s.to.x - s.from.x;
    const float dy = s.to.y - s.from.y;
    const float length = std::max(dx * dx + dy * dy, 1e-6F);
    const int right = high(s.from.x, s.to.x);
    const int bottom = high(s.from.y, s.to.y);
    for (int y = low(s.from.y, s.to.y); y < bottom; ++y) {
      for (int x = low(s.from.x, s.to.x); x < right; ++x) {
        const float px = static_cast<float>(x) - s.from.x;
        const float py = static_cast<float>(y) - s.from.y;
        const float t = std::clamp((px * dx + py * dy) / length, 0.0F, 1.0F);
        const float ex = px - t * dx;
        const float ey = py - t * dy;
        const float distance = std::sqrt(ex * ex + ey * ey);
        const float value = ink * std::clamp(reach - distance, 0.0F, 1.0F);
        float& pixel = canvas[PixelAt(x, y)];
        pixel = std::max(pixel, value);
      }
    }
  }
}

void DrawGlyph(int label, Draws& draws, Canvas& canvas) {
  const std::vector<Glyph>& styles = DigitGlyphs()[static_cast<std::size_t>(label)];
  Glyph glyph = styles[static_cast<std::size_t>(draws.Below(static_cast<int>(styles.size())))];
  std::vector<Segment> segments;
  for (Stroke& stroke : glyph) {
    for (Point& point : stroke.points) {
      point.x += 0.03F * draws.Normal();
      point.y += 0.03F * draws.Normal();
    }
    AddSegments(stroke, segments);
  }
  const Placement place(draws);
  for (Segment& segment : segments) {
    segment = {place(segment.from), place(segment.to)};
  }
  const float radius = draws.Uniform(0.6F, 1.5F);
  Draw(segments, radius, draws.Uniform(0.6F, 1), canvas);
}

// Short strokes that belong to no digit.
void DrawStray(Draws& draws, Canvas& canvas) {
  const int strokes = draws.Below(3);
  for (int i = 0; i < strokes; ++i) {
    const Point from = {draws.Uniform(0, kSide), draws.Uniform(0, kSide)};
    const float angle = draws.Uniform(0, 2 * std::numbers::pi_v<float>);
    const float length = draws.Uniform(2, 7);
    const Point to = {from.x + length * std::cos(angle), from.y + length * std::sin(angle)};
    const float radius = draws.Uniform(0.2F, 0.9F);
    Draw({{from, to}}, radius, draws.Uniform(0.3F, 0.8F), canvas);
  }
}

// Wipes out a small rectangle of some images.
void WipeGap(Draws& draws, Canvas& canvas) {
  if (!draws.Chance(0.25F)) {
    return;
  }
  const int width = 2 + draws.Below(3);
  const int height = 2 + draws.Below(3);
  const int left = 4 + draws.Below(kSide - 8 - width);
  const int top = 4 + draws.Below(kSide - 8 - height);
  for (int y = top; y < top + height; ++y) {
    std::fill_n(&canvas[PixelAt(left, y)], width, 0.0F);
  }
}

}  // namespace

Digit DrawDigit(std::uint64_t seed, std::int64_t index) {
  Draws draws(seed, index);
  Digit digit;
  digit.label = draws.Below(10);
  Canvas canvas = {};
  DrawGlyph(digit.label, draws, canvas);
  DrawStray(draws, canvas);
  WipeGap(draws, canvas);

  // A plane of light from one side, and noise: the sum of a word's bytes is close to normal.
  const float shade = draws.Uniform(0, 0.15F);
  const float shade_x = draws.Uniform(-0.15F, 0.15F) / kSide;
  const float shade_y = draws.Uniform(-0.15F, 0.15F) / kSide;
  const float noise = draws.Uniform(0.02F, 0.09F);
  constexpr float kMean = 4 * 127.5F;
  constexpr float kDeviation = 147.8F;  // of the sum of four bytes: sqrt(4 * (256^2 - 1) / 12)
  Philox::Block words = {};
  for (std::size_t p = 0; p < kPixels; ++p) {
    if (p % words.size() == 0) {
      words = draws.Noise(p);
    }
    const std::uint32_t w = words[p % words.size()];
    const std::uint32_t sum = (w & 255) + ((w >> 8) & 255) + ((w >> 16) & 255) + (w >> 24);
    const std::size_t row = p / kSide;
    const float value = canvas[p] + shade + shade_x * static_cast<float>(p % kSide) +
                        shade_y * static_cast<float>(row) +
                        noise * (static_cast<float>(sum) - kMean) / kDeviation;
    digit.pixels[p] = static_cast<std::uint8_t>(std::lround(255 * std::clamp(value, 0.0F, 1.0F)));
  }
  return digit;
}

namespace {

class DigitsSource final : public Source {
 public:
  explicit DigitsSource(const DigitsOptions& options)
      : options_(options),
        drawn_(std::make_unique<Drawn[]>(static_cast<std::size_t>(options.count))) {}

  std::int64_t size() const override { return options_.count; }
  const std::vector<FeatureSpec>& features() const override { return features_; }

  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    Drawn& drawn = drawn_[static_cast<std::size_t>(index)];
    std::call_once(drawn.once,
                   [&] { drawn.digit = DrawDigit(options_.seed, options_.first + index); });
    auto* out = reinterpret_cast<float*>(rows[0]);
    for (std::size_t p = 0; p < kPixels; ++p) {
      out[p] = static_cast<float>(drawn.digit.pixels[p]) / 255.0F;
    }
    const std::int64_t label = drawn.digit.label;
    std::memcpy(rows[1], &label, sizeof(label));
    return {};
  }

  std::string Where(std::int64_t index) const override {
    return "generated digit " + std::to_string(options_.first + index) + " of seed " +
           std::to_string(options_.seed);
  }
  std::uint64_t Fingerprint() const override {
    const std::uint64_t words[] = {kDrawingVersion, options_.seed,
                                   static_cast<std::uint64_t>(options_.first),
                                   static_cast<std::uint64_t>(options_.count)};
    return Hash64({reinterpret_cast<const char*>(words), sizeof(words)});
  }

 private:
  struct Drawn {
    std::once_flag once;
    Digit digit;
  };

  DigitsOptions options_;
  std::unique_ptr<Drawn[]> drawn_;  // each written once, by the first to read it
  std::vector<FeatureSpec> features_ = {{"image", DType::kFloat32, {kSide, kSide, 1}},
                                        {"label", DType::kInt64, Shape()}};
};

}  // namespace

Dataset GeneratedDigits(const DigitsOptions& options) {
  Require(options.count >= 0 && options.first >= 0, "generated digits have indices from 0");
  return Dataset(std::make_shared<DigitsSource>(options));
}

ImageClassification GenerateImageClassification(std::int64_t train, std::int64_t test,
                                                std::uint64_t seed) {
  return {GeneratedDigits({.count = train, .seed = seed}),
          GeneratedDigits({.count = test, .seed = seed, .first = train}), 10};
}

}  // namespace cohort::data
