#include "synchronous/bucket_tuner.h"

#include <algorithm>
#include <cmath>

namespace cohort {
namespace {

constexpr double kWorthwhile = 1.5;

}  // namespace

void BucketTuner::AddBucket(std::int64_t bytes, double seconds) {
  const auto [at, first] = buckets_.try_emplace(bytes, seconds);
  if (!first) {
    at->second = std::min(at->second, seconds);
  }
}

void BucketTuner::AddLatency(double seconds) {
  latency_ = std::min(latency_.value_or(seconds), seconds);
}

std::optional<BucketLimits> BucketTuner::Propose(const BucketLimits& now,
                                                 std::int64_t gradient_bytes) {
  if (!latency_.has_value() || buckets_.empty()) {
    return std::nullopt;
  }
  double bytes = 0;
  double seconds = 0;
  for (const auto& [size, time] : buckets_) {
    if (time > *latency_) {
      bytes += static_cast<double>(size);
      seconds += time - *latency_;
    }
  }
  const double latency = *latency_;
  buckets_.clear();
  latency_.reset();
  if (seconds <= 0) {
    return std::nullopt;
  }
  const double best = std::sqrt(latency * (bytes / seconds) * static_cast<double>(gradient_bytes));
  const auto size = std::clamp(static_cast<std::int64_t>(best), kSmallest, kLargest);
  const double ratio = static_cast<double>(size) / static_cast<double>(now.bytes);
  if (ratio < kWorthwhile && ratio > 1 / kWorthwhile) {
    return std::nullopt;
  }
  return BucketLimits{.first_bytes = std::min(size, kFirstLargest), .bytes = size};
}

}  // namespace cohort
