// Records that were looked at for damage: cohort_data_records_total.

#pragma once

#include <cstdint>

#include <cohort/core/metrics.h>

namespace cohort::data {

// nullptr: for nobody.
inline void CountRecords(Metrics* metrics, std::int64_t ok, std::int64_t corrupt) {
  if (metrics == nullptr) {
    return;
  }
  const auto add = [metrics](const char* result, std::int64_t count) {
    metrics
        ->AddCounter("cohort_data_records_total",
                     "Records that were looked at for damage; corrupt ones are left out.",
                     {{"result", result}})
        .Add(static_cast<double>(count));
  };
  add("ok", ok);
  add("corrupt", corrupt);
}

}  // namespace cohort::data
