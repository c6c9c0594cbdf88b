#include "epoch_results.h"

#include <algorithm>
#include <utility>

namespace cohort {

History HistoryOf(const std::vector<EpochCoverage>& coverage) {
  History history;
  for (const EpochCoverage& epoch : coverage) {
    if (epoch.dataset != coverage.back().dataset) {
      continue;
    }
    EpochResult result;
    result.epoch = epoch.epoch;
    result.steps = epoch.steps;
    result.examples = static_cast<double>(epoch.seen);
    result.loss = epoch.loss;
    result.metrics = epoch.metrics;
    result.seconds = epoch.seconds;
    history.steps += result.steps;
    history.examples += result.examples;
    history.seconds += result.seconds;
    history.epochs.push_back(std::move(result));
  }
  return history;
}

bool HasEpoch(const std::vector<EpochResult>& results, std::int64_t epoch) {
  return std::ranges::any_of(results,
                             [epoch](const EpochResult& result) { return result.epoch == epoch; });
}

void DropFrom(std::int64_t epoch, History& history) {
  const auto again = [epoch](const EpochResult& result) { return result.epoch >= epoch; };
  std::erase_if(history.epochs, again);
  std::erase_if(history.evaluations, again);
}

void SumUp(History& history) {
  history.steps = 0;
  history.examples = 0;
  history.seconds = 0;
  history.exposed_communication_seconds = 0;
  history.input_seconds = 0;
  for (const EpochResult& epoch : history.epochs) {
    history.steps += epoch.steps;
    history.examples += epoch.examples;
    history.seconds += epoch.seconds;
    history.exposed_communication_seconds += epoch.exposed_communication_seconds;
    history.input_seconds += epoch.input_seconds;
  }
}

}  // namespace cohort
