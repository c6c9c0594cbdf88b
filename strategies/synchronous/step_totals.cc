#include "synchronous/step_totals.h"

#include <algorithm>

namespace cohort {

StepTotals::StepTotals(const ReplicaResult& result) {
  if (result.weight == 0) {
    return;  // sums may be NaN
  }
  sums_[0] = result.loss_sum;
  sums_[1] = result.weight;
  sums_[2] = 1;
  sums_[3] = static_cast<double>(result.metric_sums.size());
  sums_[4] = sums_[3] * sums_[3];
  std::ranges::copy(result.metric_sums, sums_.begin() + 5);
}

StepTotals StepTotals::InTree(std::vector<StepTotals> parts) {
  for (std::size_t step = 1; step < parts.size(); step *= 2) {
    for (std::size_t r = 0; r + step < parts.size(); r += 2 * step) {
      parts[r].Add(parts[r + step]);
    }
  }
  return parts.front();
}

void StepTotals::Add(const StepTotals& other) {
  for (std::size_t i = 0; i < sums_.size(); ++i) {
    sums_[i] += other.sums_[i];
  }
}

Result<StepResult> StepTotals::Means() const {
  StepResult result;
  result.weight = weight();
  if (replicas() == 0) {
    return result;
  }
  const double each = metrics() / replicas();
  if (metrics() * metrics() != replicas() * metrics_squared()) {
    return InvalidArgument(
        "replicas of different processes returned different numbers of metric sums [as many on "
        "every replica]");
  }
  result.loss = loss() / weight();
  for (std::size_t m = 0; m < static_cast<std::size_t>(each); ++m) {
    result.metrics.push_back(metric(m) / weight());
  }
  return result;
}

}  // namespace cohort
