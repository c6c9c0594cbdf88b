// Schedule: the learning rate as a function of the update's number. A value: copy and compare.
//
// With s = 1 for the first update, w = warm_up_steps and t = max(0, s - 1 - w), the rate is
//
//   ramp(s) * decay(t),   ramp(s) = min(1, s / w)  (1 without warm-up)
//
//   kConstant     decay(t) = rate
//   kStep         decay(t) = rate * factor^floor(t / steps)
//   kExponential  decay(t) = rate * factor^(t / steps)
//   kCosine       decay(t) = final_rate + (rate - final_rate) * c(min(1, t / steps)),
//                 c(x) = (1 + cos(pi * x)) / 2
//
// so that a decay begins where the warm-up ends. Cosine without restarts: Loshchilov and Hutter,
// "SGDR: Stochastic gradient descent with warm restarts", ICLR 2017. Linear warm-up: Goyal et al.,
// "Accurate, large minibatch SGD", 2017.

#pragma once

#include <cstdint>

#include <cohort/core/status.h>

namespace cohort {

struct Schedule {
  enum class Kind { kConstant, kStep, kExponential, kCosine };

  Schedule(double constant_rate) : rate(constant_rate) {}  // NOLINT: a number is a schedule
  static Schedule Constant(double rate) { return {rate}; }
  static Schedule Step(double rate, std::int64_t steps, double factor);
  static Schedule Exponential(double rate, std::int64_t steps, double factor);
  static Schedule Cosine(double rate, std::int64_t steps, double final_rate = 0);
  // This schedule, after a linear ramp over the first `steps` updates.
  Schedule WithWarmUp(std::int64_t steps) const;

  // The rate of update `step`, which counts from 1.
  double At(std::int64_t step) const;
  // InvalidArgument names the field: rates finite and not negative, steps at least 1, factor in
  // (0, 1].
  Status Check() const;

  friend bool operator==(const Schedule&, const Schedule&) = default;

  Kind kind = Kind::kConstant;
  double rate = 0;
  std::int64_t steps = 0;  // kStep, kExponential, kCosine
  double factor = 1;       // kStep, kExponential
  double final_rate = 0;   // kCosine
  std::int64_t warm_up_steps = 0;
};

}  // namespace cohort
