#include <cohort/strategies/grad_scaler.h>

#include <algorithm>
#include <cmath>
#include <string>

namespace cohort {
namespace {

// The loss of a global batch, times its weight and the scale, is float32.
constexpr double kLeastScale = 0x1p-64;
constexpr double kMostScale = 0x1p64;

bool IsPowerOfTwo(double value) {
  int exponent = 0;
  return std::isfinite(value) && value > 0 && std::frexp(value, &exponent) == 0.5;
}

bool IsScale(double value) {
  return IsPowerOfTwo(value) && kLeastScale <= value && value <= kMostScale;
}

}  // namespace

Status GradScaler::Check(const GradScalerOptions& options) {
  const auto wrong = [](const char* name, double value, const char* range) {
    return InvalidArgument("grad_scaler: " + std::string(name) + " is " + std::to_string(value) +
                           " [" + range + "]");
  };
  if (!IsScale(options.init_scale)) {
    return wrong("init_scale", options.init_scale, "a power of two from 2^-64 to 2^64");
  }
  if (!IsPowerOfTwo(options.growth_factor) || options.growth_factor < 1) {
    return wrong("growth_factor", options.growth_factor, "a power of two of at least 1");
  }
  if (!IsPowerOfTwo(options.backoff_factor) || options.backoff_factor >= 1) {
    return wrong("backoff_factor", options.backoff_factor, "a power of two below 1");
  }
  if (options.growth_interval < 1) {
    return wrong("growth_interval", static_cast<double>(options.growth_interval), "at least 1");
  }
  return {};
}

GradScaler::GradScaler(const GradScalerOptions& options)
    : options_(options), state_{.scale = options.init_scale} {
  OrThrow(Check(options));
}

Status GradScaler::SetState(const State& state) {
  if (!IsScale(state.scale) || state.good_steps < 0 || state.skipped < 0) {
    return InvalidArgument("grad_scaler: scale " + std::to_string(state.scale) + " after " +
                           std::to_string(state.good_steps) + " good and " +
                           std::to_string(state.skipped) +
                           " skipped steps [a power of two, and counts of at least 0]");
  }
  state_ = state;
  return {};
}

void GradScaler::Update(bool finite) {
  if (!finite) {
    ++state_.skipped;
    state_.good_steps = 0;
    state_.scale = std::max(kLeastScale, state_.scale * options_.backoff_factor);
  } else if (++state_.good_steps >= options_.growth_interval) {
    state_.good_steps = 0;
    state_.scale = std::min(kMostScale, state_.scale * options_.growth_factor);
  }
}

}  // namespace cohort
