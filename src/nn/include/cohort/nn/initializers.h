// First values of parameters.
//
// Each is a pure function of (seed, the parameter's name, the element's index), so any process, and
// any cut of a parameter over servers, starts from the same bits, whatever is declared besides.
//
// Fans: how many inputs feed one output element, and the reverse. By shape:
//
//   [in, out]                          dense:        in, out
//   [height, width, in / groups, out]  convolution:  height width in / groups, height width out
//   [n]                                              n, n
//   []                                               1, 1
//
// Any rank above 2 counts as a convolution: all axes but the last two are its window.

#pragma once

#include <cstdint>
#include <string_view>

#include <cohort/core/tensor.h>
#include <cohort/optim/parameter_set.h>

namespace cohort::nn {

struct Fans {
  std::int64_t in = 1;
  std::int64_t out = 1;
  friend bool operator==(const Fans&, const Fans&) = default;
};
Fans FansOf(const Shape& shape);

Initializer Zeros();
Initializer Constant(float value);

// Uniform in [low, high); normal with this mean and deviation. ContractError if low > high or the
// deviation is negative.
Initializer Uniform(float low, float high, std::uint64_t seed, std::string_view name);
Initializer Normal(float mean, float deviation, std::uint64_t seed, std::string_view name);

// Variance 2 / (fan in + fan out): uniform in +-sqrt(6 / (in + out)), or normal. Glorot, Bengio,
// "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010.
Initializer GlorotUniform(const Shape& shape, std::uint64_t seed, std::string_view name);
Initializer GlorotNormal(const Shape& shape, std::uint64_t seed, std::string_view name);

// Variance 2 / fan in, for layers before a Relu: uniform in +-sqrt(6 / in), or normal. He, Zhang,
// Ren, Sun, "Delving deep into rectifiers", ICCV 2015.
Initializer HeUniform(const Shape& shape, std::uint64_t seed, std::string_view name);
Initializer HeNormal(const Shape& shape, std::uint64_t seed, std::string_view name);

}  // namespace cohort::nn
