#include "parameter_server/request_counts.h"

#include <algorithm>
#include <string>

namespace cohort::ps {
namespace {

constexpr std::size_t kMostTables = 255;  // a family may have 256 series

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

void RequestCounts::Shown::Show(std::uint64_t value) {
  std::uint64_t before = shown.load(std::memory_order_relaxed);
  while (before < value) {
    if (shown.compare_exchange_weak(before, value, std::memory_order_relaxed)) {
      counter.Add(static_cast<double>(value - before));
      return;
    }
  }
}

void RequestCounts::Tables(const RowStore& rows) {
  const std::vector<TableCounts> counts = rows.counts();
  if (counts.empty()) {
    return;
  }
  std::call_once(tables_made_, [&] { MakeTables(counts); });
  for (std::size_t t = 0; t < std::min(tables_.size(), counts.size()); ++t) {
    tables_[t]->evicted.Show(counts[t].evicted);
    tables_[t]->dropped.Show(counts[t].dropped);
    tables_[t]->skipped.Show(counts[t].skipped);
    tables_[t]->refused.Show(counts[t].refused);
  }
}

void RequestCounts::MakeTables(const std::vector<TableCounts>& counts) {
  for (std::size_t t = 0; t < counts.size(); ++t) {
    const Metrics::Labels table = {{"table", t < kMostTables ? counts[t].name : "(others)"}};
    const auto shown = [&](const char* name, const char* help) -> Counter& {
      return metrics_.AddCounter(name, help, table);
    };
    tables_.push_back(std::make_unique<OfTable>(
        shown("cohort_ps_rows_evicted_total", "Rows that went, by capacity and time to live."),
        shown("cohort_ps_gradients_dropped_total", "Gradients of ids that were not admitted."),
        shown("cohort_ps_gradients_skipped_total", "Gradients of rows that were not finite."),
        shown("cohort_ps_row_pushes_refused_total",
              "Messages with gradients of rows that had no effect.")));
  }
}

}  // namespace cohort::ps
