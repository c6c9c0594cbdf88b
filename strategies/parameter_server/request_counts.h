// What a server counts of the frames that it answers: cohort_ps_requests_total and
// cohort_ps_staleness_steps; and of its tables, what has become of rows and their gradients. It is
// ready when a worker has got, or given, something.
//
// Thread rules: Answered and Tables from any thread.

#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include <cohort/core/metrics.h>

#include "parameter_server/frames/frame_stream.h"
#include "parameter_server/rows/row_store.h"

namespace cohort::ps {

class RequestCounts {
 public:
  explicit RequestCounts(Metrics& metrics);

  void Answered(FrameMethod method, const FrameHeader& reply);
  // What `rows` has counted by now (TableCounts): always those of the same server.
  void Tables(const RowStore& rows);

 private:
  // A counter that shows a number which is counted elsewhere, and only grows.
  struct Shown {
    explicit Shown(Counter& as) : counter(as) {}
    void Show(std::uint64_t value);
    Counter& counter;
    std::atomic<std::uint64_t> shown{0};
  };
  struct OfTable {
    OfTable(Counter& evicted_rows, Counter& dropped_gradients, Counter& skipped_gradients,
            Counter& refused_pushes)
        : evicted(evicted_rows),
          dropped(dropped_gradients),
          skipped(skipped_gradients),
          refused(refused_pushes) {}
    Shown evicted;
    Shown dropped;
    Shown skipped;
    Shown refused;
  };

  void MakeTables(const std::vector<TableCounts>& counts);
  Counter& CounterOf(FrameMethod method, const std::string& code);

  Metrics& metrics_;
  Histogram& staleness_;
  std::array<Counter*, kFrameMethods> good_ = {};  // by method, from the first
  std::once_flag tables_made_;
  std::vector<std::unique_ptr<OfTable>> tables_;
};

}  // namespace cohort::ps
