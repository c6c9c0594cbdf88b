// CostModel: by which algorithm "auto" runs an operation.
//
// The parameters (cohort/comm/cost.h) are measured once for each communicator, by all its ranks
// together, inside the first operation that has a choice and is large enough for it to matter; the
// ranks then agree on the slowest rank's figures, so that all choose alike. That takes some thirty
// messages around the ring. Before, and for smaller operations, figures of an ordinary machine
// serve.
//
// Only algorithms that keep the canonical order are candidates: what the clock showed never changes
// a result's bits.
//
// Thread rules: whoever drives the communicator.

#pragma once

#include <cohort/comm/cost.h>

#include <optional>

#include "algorithms/choose.h"
#include "exchange.h"

namespace cohort {

class CostModel {
 public:
  // `given`: nothing is measured; equal on all ranks. `shared_memory`: peers read each other's
  // memory.
  CostModel(const std::optional<CostParameters>& given, bool shared_memory);

  // Within an operation that all ranks have begun. `bytes`: of the buffer; for an all-gather of the
  // whole output.
  Result<Algorithm> Choose(Exchange& exchange, OperationKind kind, std::int64_t bytes);
  // Measures if need be, whatever the size.
  Result<CostEstimate> Estimate(Exchange& exchange, OperationKind kind, std::int64_t bytes);

 private:
  Status Measure(Exchange& exchange);

  CostParameters parameters_;
  bool measured_;
  Duration calibration_{0};
};

// Seconds, by the table in comm/README.md.
double PredictedSeconds(const CostParameters& parameters, OperationKind kind, Algorithm algorithm,
                        std::int64_t bytes, int ranks);

// The one that takes least of those that keep the order; the earlier of equal ones.
Algorithm BestAlgorithm(const CostParameters& parameters, OperationKind kind, std::int64_t bytes,
                        int ranks);

}  // namespace cohort
