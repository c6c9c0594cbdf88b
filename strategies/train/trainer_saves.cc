// What a trainer saves, and restores: now, or behind training.

#include <fmt/format.h>

#include <chrono>
#include <utility>

#include "trainer_state.h"

namespace cohort {

Status Trainer::Save() { return state_->SaveAt(state_->epoch, state_->batch); }

Status Trainer::State::FinishSave() {
  if (!behind.begun()) {
    return {};
  }
  COHORT_RETURN_IF_ERROR(behind.Finish(&saved_path));
  if (strategy.is_chief()) {
    metrics.AddCheckpoint(behind_since, behind.ended());
  }
  saved_step = behind.state().step;
  saved_epoch = behind.state().epoch;
  saved_batch = behind.state().batch;
  return {};
}

Status Trainer::State::SaveAt(std::int64_t at_epoch, std::int64_t at_batch, Write when) {
  if (when == Write::kBehind && behind.begun() && behind.state().step == strategy.step()) {
    return {};  // this very state is being written
  }
  if (const Status before = FinishSave(); !before.ok()) {
    const bool of_the_job = before.code() == StatusCode::kUnavailable ||
                            before.code() == StatusCode::kAborted ||
                            before.code() == StatusCode::kDeadlineExceeded;
    if (of_the_job) {
      return before;
    }
    // Every process has heard the same.
    if (strategy.is_chief()) {
      options.log.Warning("a save has failed, training went on, and the save before it counts: " +
                          before.ToString());
    }
  }
  if (saved_between_updates && strategy.is_chief()) {
    COHORT_RETURN_IF_ERROR(strategy.PullState());  // for the step
  }
  if (saved_step == strategy.step()) {
    return {};  // this very state is there already
  }
  Require(store.has_value(), "Save needs TrainerOptions::checkpoint_dir");
  std::string place = data_position;
  if (training.has_value()) {
    COHORT_ASSIGN_OR_RETURN(const data::DataPosition position, PositionAt(at_epoch, at_batch));
    place = position.ToString();
  }
  const io::CheckpointState state = {.step = strategy.step(),
                                     .epoch = at_epoch,
                                     .batch = at_batch,
                                     .seed = options.seed,
                                     .dataset_fingerprint = dataset_fingerprint,
                                     .data_position = place,
                                     .optimizer = strategy.optimizer()->config(),
                                     .strategy = std::string(strategy.kind()),
                                     .world_size = strategy.num_replicas_in_sync()};
  const std::chrono::steady_clock::time_point before = std::chrono::steady_clock::now();
  if (!handed_out) {
    const Result<bool> writes_behind =
        behind.Begin(strategy, parameters, *store, state, options.full_save_every);
    if (!writes_behind.ok()) {
      if (when == Write::kNow && behind.begun()) {
        (void)behind.Abandon();  // nothing is under way when this returns
      }
      return writes_behind.status();
    }
    if (*writes_behind) {
      behind_since = before;
      return when == Write::kBehind ? OkStatus() : FinishSave();
    }
  }
  COHORT_RETURN_IF_ERROR(
      SaveSnapshot(strategy, parameters, *store, state, options.full_save_every, &saved_path));
  if (strategy.is_chief()) {
    metrics.AddCheckpoint(before);
  }
  saved_step = state.step;
  saved_epoch = at_epoch;
  saved_batch = at_batch;
  return {};
}

Result<bool> Trainer::Restore() {
  State& s = *state_;
  Require(s.store.has_value(), "Restore needs TrainerOptions::checkpoint_dir");
  COHORT_RETURN_IF_ERROR(s.FinishSave());
  const Result<io::CheckpointState> state =
      LoadSnapshot(s.strategy, s.parameters, *s.store, s.options.seed);
  if (state.status().code() == StatusCode::kNotFound) {
    return false;
  }
  COHORT_RETURN_IF_ERROR(state.status());
  s.epoch = state->epoch;
  s.batch = state->batch;
  s.dataset_fingerprint = state->dataset_fingerprint;
  s.data_position = state->data_position;
  s.saved_step = state->step;
  return true;
}

// The report ends who writes the save, too. Behind this nobody uses the strategy but its program,
// which may leave the job while the trainer lives.
void Trainer::State::AbandonSave(const Status& why) {
  strategy.ReportError(why);
  const Result<std::string> written = behind.Abandon();
  if (strategy.is_chief() && written.ok()) {
    options.log.Info("the save that was under way is whole: " + *written);
  } else if (strategy.is_chief()) {
    options.log.Warning("the save that was under way is not there, and the one before it counts: " +
                        written.status().ToString());
  }
}

}  // namespace cohort
