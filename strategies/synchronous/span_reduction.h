// SpanReduction: the weighted mean of a program's own gradient spans over the processes.
//
// The spans, end to end, are cut into buckets whatever their own borders. A bucket is packed into
// staging memory (times the weight), all-reduced while the next one is packed, and unpacked
// (divided by the total weight). Two buckets of staging memory suffice, however large the model.
//
// Thread rules: one thread. Blocks until all processes have called, at most each bucket's deadline.

#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include <cohort/comm/communicator.h>
#include <cohort/core/status.h>

namespace cohort {

class SpanReduction {
 public:
  SpanReduction(Communicator& communicator, std::int64_t bucket_bytes,
                std::chrono::milliseconds timeout);

  // See Strategy::ReduceGradients. Spans whose bucket had not landed when it fails are untouched.
  Status Run(std::span<const std::span<float>> spans, double weight);

 private:
  class Pass;

  // Are the spans' sizes equal on all processes? Asked once for each set of sizes.
  Status AgreeOnSizes(std::span<const std::span<float>> spans);

  Communicator& communicator_;
  const std::size_t bucket_elements_;
  const std::chrono::milliseconds timeout_;
  std::vector<float> staging_[2];  // of even and odd buckets
  std::vector<std::int64_t> agreed_;
};

}  // namespace cohort
