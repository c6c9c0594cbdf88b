// Trainer::State: where a trainer stands, and what it does there.
//
// Its parts by what they know: a run through the epochs in trainer.cc; saves in trainer_saves.cc;
// places in the data, of which a save has one, in trainer_place.cc; the way back after a loss in
// trainer_going_back.cc; evaluation in trainer_evaluation.cc.

#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <cohort/data/dataset.h>
#include <cohort/io/checkpoint.h>
#include <cohort/strategies/strategy.h>
#include <cohort/train/trainer.h>

#include "epoch_results.h"
#include "event_log.h"
#include "snapshot.h"
#include "train_metrics.h"

namespace cohort {

struct Trainer::State {
  State(Strategy& s, ParameterSet& p, TrainerOptions o)
      : strategy(s),
        parameters(p),
        options(std::move(o)),
        events(strategy.is_chief() ? options.log_dir : "", options.metric_names),
        metrics(options.metrics) {
    if (!options.checkpoint_dir.empty()) {
      store.emplace(
          FileSystem::Local(), options.checkpoint_dir,
          io::CheckpointStoreOptions{.max_to_keep = options.max_to_keep, .log = options.log});
    }
  }

  Strategy& strategy;
  ParameterSet& parameters;
  const TrainerOptions options;
  std::optional<io::CheckpointStore> store;  // where there is a checkpoint folder
  EventLog events;
  TrainMetrics metrics;
  // Where training stands: the next batch to be trained on.
  std::int64_t epoch = 0;
  std::int64_t batch = 0;
  std::uint64_t dataset_fingerprint = 0;
  std::optional<data::Dataset> training;      // what Fit was given
  data::ShardPolicy policy = options.policy;  // of it
  std::string data_position;                  // as restored
  // How the epoch was divided that is gone on with.
  std::vector<data::EpochDivision> begun;
  const DistributedDataset* feed = nullptr;  // while Fit has it
  std::vector<std::int64_t> overtaken;       // when it had
  // Where Fit began, before it restored anything.
  struct Place {
    std::int64_t epoch = 0;
    std::int64_t batch = 0;
    std::string data_position;
    std::vector<data::EpochDivision> begun;
  };
  Place beginning;
  // While the job goes back, until it is where it goes on.
  struct Loss {
    std::int64_t step = 0;  // that was reached
    std::chrono::steady_clock::time_point since;
  };
  std::optional<Loss> loss;
  // Of the epoch that was trained last in this Fit, or as much of it as there was before an error.
  std::optional<EpochResult> trained;
  bool store_is_own = false;  // in this Fit, which is not to resume: what is there is its own
  std::int64_t saved_step = -1;
  std::string saved_path;
  std::int64_t saved_epoch = 0;  // the place in saved_path
  std::int64_t saved_batch = 0;
  SnapshotBehind behind;  // the save that is being written while training goes on
  std::chrono::steady_clock::time_point behind_since;
  bool handed_out = false;             // the data, to whoever asks for some
  bool saved_between_updates = false;  // by the strategy's call

  // kBehind: written while training goes on, where that can be.
  enum class Write { kNow, kBehind };
  Status SaveAt(std::int64_t at_epoch, std::int64_t at_batch, Write when = Write::kNow);
  Status FinishSave();  // that is written behind
  // Training, from where it stands to its end; `history` gets what it adds.
  static Status Fit(State& s, Trainer& trainer, const data::Dataset& training_data,
                    const StepFn& train_step, const data::Dataset* validation,
                    const StepFn& evaluate_step, History& history);
  Status GoBack(const Status& error);
  void ReportLoss();
  Status NoteEpoch(EpochResult result, History& history);
  Status NoteTrained(History& history);
  Result<bool> OwesEvaluation(const History& history) const;
  static Status EvaluateEpoch(State& s, Trainer& trainer, const data::Dataset& validation,
                              const StepFn& evaluate_step, History& history);
  void AbandonSave(const Status& why);
  Status ResumeIn(const data::Dataset& data, std::uint64_t fingerprint);
  Status ResumeAtExample(std::int64_t example);
  Result<std::uint64_t> FingerprintOf(const data::Dataset& data) const;
  data::IterateOptions PlaceIn(std::int64_t at_epoch) const {
    return {.num_workers = strategy.input_context().num_input_pipelines,
            .worker = strategy.input_context().input_pipeline_id,
            .epoch = at_epoch,
            .policy = policy,
            .begun = begun};
  }
  bool Covered() const;
  Status Stopped() const;
  Result<data::DataPosition> PositionAt(std::int64_t at_epoch, std::int64_t at_batch) const;
  Result<std::vector<std::vector<std::int64_t>>> OvertakenOfAll() const;

  void EndEpoch() {
    ++epoch;
    batch = 0;
    begun.clear();
  }

  bool alone() const { return strategy.num_replicas_in_sync() == strategy.num_local_replicas(); }

  // Whether any process was told to stop; every process of a synchronous job gets the same answer.
  // Where the data is handed out, whether this one was: the others need not stop with it.
  Result<bool> AgreeToStop() const;
  // Every process of a synchronous job calls this at the same place.
  Result<bool> AnyProcess(bool mine) const;

  Status TrainEpoch(DistributedDataset& dataset, const StepFn& step, bool* stopped);
  Status TrainBatches(DistributedDataset& dataset, const StepFn& step,
                      std::chrono::steady_clock::time_point start, EpochTotals& totals,
                      bool* stopped);
  void ShowProgress(const EpochTotals& totals, double seconds, std::int64_t batches,
                    bool finished) const;
};

// While Fit has its data set.
class Trainer::Feeding {
 public:
  Feeding(State& state, const DistributedDataset& feed) : state_(state) { state_.feed = &feed; }
  ~Feeding() {
    state_.overtaken = state_.feed->Overtaken();
    state_.feed = nullptr;
  }
  Feeding(const Feeding&) = delete;
  Feeding& operator=(const Feeding&) = delete;

 private:
  State& state_;
};

}  // namespace cohort
