#include <cohort/optim/schedule.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

namespace cohort {

Schedule Schedule::Step(double rate, std::int64_t steps, double factor) {
  Schedule s(rate);
  s.kind = Kind::kStep;
  s.steps = steps;
  s.factor = factor;
  return s;
}

Schedule Schedule::Exponential(double rate, std::int64_t steps, double factor) {
  Schedule s = Step(rate, steps, factor);
  s.kind = Kind::kExponential;
  return s;
}

Schedule Schedule::Cosine(double rate, std::int64_t steps, double final_rate) {
  Schedule s(rate);
  s.kind = Kind::kCosine;
  s.steps = steps;
  s.final_rate = final_rate;
  return s;
}

Schedule Schedule::WithWarmUp(std::int64_t steps_of_ramp) const {
  Schedule s = *this;
  s.warm_up_steps = steps_of_ramp;
  return s;
}

double Schedule::At(std::int64_t step) const {
  Require(step >= 1, "updates count from 1");
  const double ramp =
      warm_up_steps > 0
          ? std::min(1.0, static_cast<double>(step) / static_cast<double>(warm_up_steps))
          : 1.0;
  const std::int64_t t = std::max<std::int64_t>(0, step - 1 - warm_up_steps);
  const double progress = steps > 0 ? static_cast<double>(t) / static_cast<double>(steps) : 0.0;
  switch (kind) {
    case Kind::kConstant:
      return ramp * rate;
    case Kind::kStep:
      return ramp * rate * std::pow(factor, std::floor(progress));
    case Kind::kExponential:
      return ramp * rate * std::pow(factor, progress);
    case Kind::kCosine:
      return ramp *
             (final_rate +
              (rate - final_rate) * (1 + std::cos(std::numbers::pi * std::min(1.0, progress))) / 2);
  }
  return rate;
}

Status Schedule::Check() const {
  const auto bad = [](std::string_view field, const std::string& is, std::string_view rule) {
    return InvalidArgument(std::string(field) + " is " + is + " [" + std::string(rule) + "]");
  };
  if (!(rate >= 0) || !std::isfinite(rate)) {
    return bad("rate", std::to_string(rate), "a finite number, not negative");
  }
  if (!(final_rate >= 0) || !std::isfinite(final_rate)) {
    return bad("final_rate", std::to_string(final_rate), "a finite number, not negative");
  }
  if (warm_up_steps < 0) {
    return bad("warm_up_steps", std::to_string(warm_up_steps), "0 for none");
  }
  if (kind != Kind::kConstant && steps < 1) {
    return bad("steps", std::to_string(steps), "at least 1");
  }
  if (!(factor > 0 && factor <= 1)) {
    return bad("factor", std::to_string(factor), "above 0, at most 1");
  }
  return {};
}

}  // namespace cohort
