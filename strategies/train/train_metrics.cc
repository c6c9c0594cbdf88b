#include "train_metrics.h"

#include <array>
#include <limits>

namespace cohort {
namespace {

constexpr std::array kStepSeconds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                     0.25,  0.5,    1.0,   2.5,  5.0,   10.0, 30.0};
constexpr std::array kCheckpointSeconds = {0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0};

// Nothing is known yet.
Gauge& Unset(Gauge& gauge) {
  gauge.Set(std::numeric_limits<double>::quiet_NaN());
  return gauge;
}

}  // namespace

TrainMetrics::TrainMetrics(Metrics* metrics)
    : metrics_(metrics != nullptr ? *metrics : own_.emplace()),
      steps_(metrics_.AddCounter("cohort_steps_total", "Steps completed.")),
      examples_(metrics_.AddCounter("cohort_examples_total",
                                    "Examples that this process has trained on.")),
      step_duration_(metrics_.AddHistogram(
          "cohort_step_duration_seconds",
          "Compute, communication and update of a step, without the wait for input.",
          kStepSeconds)),
      input_wait_(metrics_.AddCounter("cohort_input_wait_seconds_total",
                                      "Waiting for examples to be read and made.")),
      exposed_communication_(metrics_.AddCounter("cohort_exposed_communication_seconds_total",
                                                 "Waiting for other processes.")),
      loss_(Unset(metrics_.AddGauge("cohort_loss", "Loss of the last step."))),
      progress_(metrics_.AddGauge("cohort_progress_ratio", "Part of all epochs that is done.")) {}

void TrainMetrics::AddBatch(const DistributedBatch& batch, std::int64_t batches,
                            std::int64_t epochs) {
  for (const data::Batch& part : batch.replicas) {
    examples_.Add(static_cast<double>(part.size));
  }
  const double done = static_cast<double>(batch.index + 1) / static_cast<double>(batches);
  progress_.Set((static_cast<double>(batch.epoch) + done) / static_cast<double>(epochs));
}

void TrainMetrics::AddStep(const StepResult& step, const EpochResult& so_far) {
  step_duration_.Observe(so_far.step_seconds - counted_.step_seconds);
  AddWaits(so_far);
  if (!step.skipped) {
    loss_.Set(step.loss);
  }
  steps_.Add();
  SetReady();
}

void TrainMetrics::AddWaits(const EpochResult& so_far) {
  input_wait_.Add(so_far.input_seconds - counted_.input_seconds);
  exposed_communication_.Add(so_far.exposed_communication_seconds -
                             counted_.exposed_communication_seconds);
  counted_ = so_far;
}

void TrainMetrics::AddCheckpoint(std::chrono::steady_clock::time_point since,
                                 std::chrono::steady_clock::time_point end) {
  const std::chrono::duration<double> took = end - since;
  metrics_
      .AddHistogram("cohort_checkpoint_duration_seconds", "Writing a checkpoint.",
                    kCheckpointSeconds)
      .Observe(took.count());
  const std::chrono::duration<double> then =
      (std::chrono::system_clock::now() - (std::chrono::steady_clock::now() - end))
          .time_since_epoch();
  metrics_
      .AddGauge("cohort_checkpoint_last_success_timestamp_seconds",
                "When the last checkpoint was written, in seconds since 1970.")
      .Set(then.count());
}

}  // namespace cohort
