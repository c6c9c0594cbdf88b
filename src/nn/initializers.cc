#include <cohort/core/random.h>
#include <cohort/nn/initializers.h>

#include <algorithm>
#include <cmath>

namespace cohort::nn {
namespace {

// The limit of a uniform distribution around 0 with this variance.
float LimitOf(double variance) { return static_cast<float>(std::sqrt(3 * variance)); }

double GlorotVariance(const Shape& shape) {
  const Fans fans = FansOf(shape);
  return 2.0 / static_cast<double>(std::max<std::int64_t>(1, fans.in + fans.out));
}

double HeVariance(const Shape& shape) {
  return 2.0 / static_cast<double>(std::max<std::int64_t>(1, FansOf(shape).in));
}

Initializer UniformOf(double variance, std::uint64_t seed, std::string_view name) {
  const float limit = LimitOf(variance);
  return Uniform(-limit, limit, seed, name);
}

Initializer NormalOf(double variance, std::uint64_t seed, std::string_view name) {
  return Normal(0.0F, static_cast<float>(std::sqrt(variance)), seed, name);
}

}  // namespace

Fans FansOf(const Shape& shape) {
  const int rank = shape.rank();
  if (rank < 2) {
    return {shape.elements(), shape.elements()};
  }
  std::int64_t window = 1;
  for (int axis = 0; axis < rank - 2; ++axis) {
    window *= shape[axis];
  }
  return {window * shape[rank - 2], window * shape[rank - 1]};
}

Initializer Zeros() { return Constant(0.0F); }

Initializer Constant(float value) {
  return [value](std::uint64_t /*element*/) { return value; };
}

Initializer Uniform(float low, float high, std::uint64_t seed, std::string_view name) {
  Require(low <= high, "a uniform distribution's low end is not above its high end");
  return [random = Philox(seed, name), low, span = high - low](std::uint64_t element) {
    return low + span * random.Uniform(element);
  };
}

Initializer Normal(float mean, float deviation, std::uint64_t seed, std::string_view name) {
  Require(deviation >= 0, "a deviation is not negative");
  return [random = Philox(seed, name), mean, deviation](std::uint64_t element) {
    return mean + deviation * random.Normal(element);
  };
}

Initializer GlorotUniform(const Shape& shape, std::uint64_t seed, std::string_view name) {
  return UniformOf(GlorotVariance(shape), seed, name);
}
Initializer GlorotNormal(const Shape& shape, std::uint64_t seed, std::string_view name) {
  return NormalOf(GlorotVariance(shape), seed, name);
}
Initializer HeUniform(const Shape& shape, std::uint64_t seed, std::string_view name) {
  return UniformOf(HeVariance(shape), seed, name);
}
Initializer HeNormal(const Shape& shape, std::uint64_t seed, std::string_view name) {
  return NormalOf(HeVariance(shape), seed, name);
}

}  // namespace cohort::nn
