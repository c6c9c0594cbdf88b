// What a server counts of the frames that it answers: cohort_ps_requests_total and
// cohort_ps_staleness_steps. It is ready when a worker has got, or given, something.
//
// Thread rules: Answered from any thread.

#pragma once

#include <array>
#include <cstddef>

#include <cohort/core/metrics.h>

#include "parameter_server/frames/frame_stream.h"

namespace cohort::ps {

class RequestCounts {
 public:
  explicit RequestCounts(Metrics& metrics);

  void Answered(FrameMethod method, const FrameHeader& reply);

 private:
  Counter& CounterOf(FrameMethod method, const std::string& code);

  Metrics& metrics_;
  Histogram& staleness_;
  std::array<Counter*, kFrameMethods> good_ = {};  // by method, from the first
};

}  // namespace cohort::ps
