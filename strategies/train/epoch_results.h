// What a trainer's epochs came to: sums of steps, and lists of results.

#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include <cohort/strategies/distributed_dataset.h>
#include <cohort/strategies/step.h>
#include <cohort/train/trainer.h>

namespace cohort {

inline double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Weighted sums of the steps of one epoch or evaluation.
class EpochTotals {
 public:
  void Add(const StepResult& step) {
    ++result_.steps;
    result_.examples += step.weight;
    result_.exposed_communication_seconds += step.exposed_communication_seconds;
    // The loss of a step that was skipped may be infinite.
    if (step.weight > 0 && !step.skipped) {
      weight_ += step.weight;
      loss_sum_ += step.loss * step.weight;
      metric_sums_.resize(std::max(metric_sums_.size(), step.metrics.size()));
      for (std::size_t i = 0; i < step.metrics.size(); ++i) {
        metric_sums_[i] += step.metrics[i] * step.weight;
      }
    }
  }
  double loss() const { return Mean(loss_sum_); }
  double examples() const { return result_.examples; }
  EpochResult& result() { return result_; }
  const EpochResult& result() const { return result_; }
  EpochResult Finish(std::chrono::steady_clock::time_point start) {
    result_.loss = loss();
    result_.metrics.clear();
    for (const double sum : metric_sums_) {
      result_.metrics.push_back(Mean(sum));
    }
    result_.seconds = SecondsSince(start);
    return result_;
  }

 private:
  // NaN if all steps were skipped.
  double Mean(double sum) const { return result_.examples > 0 ? sum / weight_ : 0; }

  EpochResult result_;
  double weight_ = 0;  // of the steps that were not skipped
  double loss_sum_ = 0;
  std::vector<double> metric_sums_;
};

// Of a job whose data one process hands out to the others, as that process saw it.
History HistoryOf(const std::vector<EpochCoverage>& coverage);
bool HasEpoch(const std::vector<EpochResult>& results, std::int64_t epoch);
// Without the epochs that are done again, from this one on.
void DropFrom(std::int64_t epoch, History& history);
// What all epochs so far come to.
void SumUp(History& history);

}  // namespace cohort
