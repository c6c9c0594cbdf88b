// StepTotals: loss, weight and metrics of some replicas' parts of a batch, as they travel among
// processes: sums, so that they add up.
//
// A part without weight counts for nothing, whatever its sums are: they may be NaN.
//
// Cost: 32 doubles, whatever the number of metrics.
//
// Thread rules: a plain value.

#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/strategies/step.h>

namespace cohort {

class StepTotals {
 public:
  static constexpr std::size_t kMaxMetrics = 28;

  // Of nothing.
  StepTotals() = default;
  // Of one replica, whose result has kMaxMetrics at most.
  explicit StepTotals(const ReplicaResult& result);
  // The sum in the tree in which gradients are added: pairs, then pairs of pairs. Of one at least.
  static StepTotals InTree(std::vector<StepTotals> parts);

  void Add(const StepTotals& other);

  double weight() const { return sums_[1]; }
  double replicas() const { return sums_[2]; }  // that had any weight
  double metrics() const { return sums_[3]; }   // all together
  std::span<double> sums() { return sums_; }    // what travels

  // Loss, weight and metrics of a step result. InvalidArgument: not as many metrics on every
  // replica.
  Result<StepResult> Means() const;

 private:
  double loss() const { return sums_[0]; }
  // The sum of the squares of metrics(), which tells whether each has as many as the others.
  double metrics_squared() const { return sums_[4]; }
  double metric(std::size_t m) const { return sums_[5 + m]; }

  std::array<double, 5 + kMaxMetrics> sums_{};
};

}  // namespace cohort
