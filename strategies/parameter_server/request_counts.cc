#include "parameter_server/request_counts.h"

#include <string>

namespace cohort::ps {
namespace {

constexpr std::array kStaleness = {0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0};

}  // namespace

RequestCounts::RequestCounts(Metrics& metrics)
    : metrics_(metrics),
      staleness_(metrics.AddHistogram("cohort_ps_staleness_steps",
                                      "Updates by others that a pushed gradient's values lacked.",
                                      kStaleness)) {
  for (std::size_t i = 0; i < good_.size(); ++i) {
    good_[i] = &CounterOf(static_cast<FrameMethod>(i + 1), "OK");
  }
}

Counter& RequestCounts::CounterOf(FrameMethod method, const std::string& code) {
  return metrics_.AddCounter("cohort_ps_requests_total", "Requests that were answered.",
                             {{"method", NameOf(method)}, {"code", code}});
}

void RequestCounts::Answered(FrameMethod method, const FrameHeader& reply) {
  if (const Error::Kind kind = reply.error().kind(); kind != Error::NONE) {
    CounterOf(method, Error::Kind_Name(kind)).Add();
    return;
  }
  good_[static_cast<std::size_t>(method) - 1]->Add();
  if (method == FrameMethod::kPush) {
    staleness_.Observe(static_cast<double>(reply.staleness()));
  }
  if (method != FrameMethod::kAssign && method != FrameMethod::kPause &&
      method != FrameMethod::kEnter) {
    metrics_.SetReady();
  }
}

}  // namespace cohort::ps
