// What a communicator counts of the operations that are done, for CommunicatorOptions::metrics:
//
//   cohort_allreduce_operations_total{algorithm="ring"}
//   cohort_allreduce_bytes_total{algorithm="ring"}     of buffers: of all ranks' parts together
//
// and so for each operation, by its name in lower case; Barrier and Split have no bytes. Series
// come with the first operation that they count.
//
// Thread rules: one thread at a time. Costs two relaxed additions an operation.

#pragma once

#include <cohort/comm/operation_kind.h>
#include <cohort/core/metrics.h>

#include <cstdint>
#include <vector>

#include "algorithms/choose.h"

namespace cohort {

class CollectiveCounts {
 public:
  // nullptr: counts nothing. `metrics` lives until Stop, or outlives this.
  explicit CollectiveCounts(Metrics* metrics) : metrics_(metrics) {}

  // Counts nothing from here on, and leaves `metrics` alone.
  void Stop() { metrics_ = nullptr; }

  void Done(OperationKind kind, Algorithm algorithm, std::uint64_t bytes) {
    if (metrics_ != nullptr) {
      Count(kind, algorithm, bytes);
    }
  }

 private:
  struct Series {
    Counter* operations = nullptr;  // nullptr: not asked for yet
    Counter* bytes = nullptr;       // nullptr: has none
  };

  void Count(OperationKind kind, Algorithm algorithm, std::uint64_t bytes);
  Series SeriesOf(OperationKind kind, Algorithm algorithm) const;

  Metrics* metrics_;
  std::vector<std::vector<Series>> series_;  // by kind and algorithm
};

}  // namespace cohort
