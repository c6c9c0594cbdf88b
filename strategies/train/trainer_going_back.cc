// The trainer after a loss that its job survives: back to where all are together again, and on.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "trainer_state.h"

namespace cohort {

// After an error: OK when the strategy is as it was when Fit began, a lost process being replaced
// or done without.
Status Trainer::State::GoBack(const Status& error) {
  if (!loss.has_value()) {
    loss = Loss{.step = strategy.step(), .since = std::chrono::steady_clock::now()};
  }
  const auto abandon = [this] {
    if (behind.begun()) {
      (void)behind.Abandon();  // what it has written counts
    }
  };
  const auto has_save = [this] { return store.has_value() && store->OpenLatest().ok(); };
  COHORT_RETURN_IF_ERROR(strategy.Recover(error, {.let_go = abandon, .to_save = has_save}));
  epoch = beginning.epoch;
  batch = beginning.batch;
  data_position = beginning.data_position;
  begun = beginning.begun;
  saved_step = -1;
  return {};
}

// When the job has gone back.
void Trainer::State::ReportLoss() {
  events.ResumeAt(strategy.step() + 1);
  if (strategy.is_chief()) {
    options.log.Warning(
        fmt::format("rolled back {} steps to step {}; the job goes on after {:.1f} s",
                    std::max<std::int64_t>(loss->step - strategy.step(), 0), strategy.step(),
                    SecondsSince(loss->since)));
  }
  loss.reset();
}

// At the end of an epoch's training.
Status Trainer::State::NoteEpoch(EpochResult result, History& history) {
  const Status status = events.Write("train", strategy.step(), result.loss, result.metrics,
                                     result.seconds > 0 ? result.examples / result.seconds : 0);
  history.epochs.push_back(std::move(result));
  return status;
}

// When the job has gone back to the end of an epoch's training, and no further: a save was whole
// before this process had left that epoch.
Status Trainer::State::NoteTrained(History& history) {
  const bool at_its_end = trained.has_value() && batch == 0 && trained->epoch == epoch - 1;
  return at_its_end && !HasEpoch(history.epochs, epoch - 1) ? NoteEpoch(*trained, history)
                                                            : OkStatus();
}

// When the job has gone back: has any process trained the epoch before this place, and not the
// evaluation that follows it? It may have failed on some processes only.
Result<bool> Trainer::State::OwesEvaluation(const History& history) const {
  return AnyProcess(batch == 0 && HasEpoch(history.epochs, epoch - 1) &&
                    !HasEpoch(history.evaluations, epoch - 1));
}

}  // namespace cohort
