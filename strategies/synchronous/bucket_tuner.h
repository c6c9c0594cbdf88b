// BucketTuner: which bucket size the link between the processes wants.
//
// An all-reduce of S bytes takes about latency + S / bandwidth. With G bytes of gradients in
// buckets of S, what a step pays is the latency of each bucket, G / S of them, and the journey of
// the last one, which nothing hides: G / S * latency + S / bandwidth, which is least for
// S = sqrt(latency * bandwidth * G).
//
// Both are learnt from the step itself: from buckets that it waited for and that followed one
// another without a pause, or had the link for themselves, and from the few bytes behind them. The
// shortest time counts, since a peer that comes late makes times longer. (One that always comes
// later, or earlier, than rank 0 makes a bucket that has the link for itself look slower, or
// faster, than it is.) A step that waits for nothing teaches nothing, and has nothing to gain.
//
// A pure function of what it was told. Thread rules: one thread.

#pragma once

#include <cstdint>
#include <map>
#include <optional>

#include "synchronous/bucket_plan.h"

namespace cohort {

class BucketTuner {
 public:
  static constexpr std::int64_t kSmallest = std::int64_t{256} << 10;
  static constexpr std::int64_t kLargest = std::int64_t{128} << 20;
  static constexpr std::int64_t kFirstLargest = std::int64_t{1} << 20;

  void AddBucket(std::int64_t bytes, double seconds);
  void AddLatency(double seconds);

  // Other limits where they are worth a change: half as much again, or as little. What was learnt
  // is then forgotten.
  std::optional<BucketLimits> Propose(const BucketLimits& now, std::int64_t gradient_bytes);

 private:
  std::map<std::int64_t, double> buckets_;  // bytes to the shortest time
  std::optional<double> latency_;
};

}  // namespace cohort
