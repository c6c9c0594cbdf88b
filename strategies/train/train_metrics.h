// What a Trainer counts: src/obs/README.md has the families.

#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include <cohort/core/metrics.h>
#include <cohort/strategies/strategy.h>
#include <cohort/train/trainer.h>

namespace cohort {

class TrainMetrics {
 public:
  // nullptr: for nobody.
  explicit TrainMetrics(Metrics* metrics);

  void SetReady() { metrics_.SetReady(); }
  // An epoch begins, whose result is then added to.
  void BeginEpoch() { counted_ = {}; }
  // A batch is done, of the epoch's `batches`: all of a step, or a part.
  void AddBatch(const DistributedBatch& batch, std::int64_t batches, std::int64_t epochs);
  // A step is done, the epoch has come to `so_far`.
  void AddStep(const StepResult& step, const EpochResult& so_far);
  // Waits that came since.
  void AddWaits(const EpochResult& so_far);
  // The chief has written a checkpoint since.
  // That was written until `end`.
  void AddCheckpoint(std::chrono::steady_clock::time_point since,
                     std::chrono::steady_clock::time_point end = std::chrono::steady_clock::now());

 private:
  std::optional<Metrics> own_;
  Metrics& metrics_;
  Counter& steps_;
  Counter& examples_;
  Histogram& step_duration_;
  Counter& input_wait_;
  Counter& exposed_communication_;
  Gauge& loss_;
  Gauge& progress_;
  EpochResult counted_;
};

}  // namespace cohort
