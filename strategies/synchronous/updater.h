// Updater: what the sums of a synchronous step do to the parameters.
//
// A sum is divided by the weight of the batch (or as StrategyOptions::loss_scale has it) and by the
// scale that the losses were multiplied with, clipped, and applied by the optimizer: chunk by chunk
// on the replicas' threads on the host, by kernels on every device. One bucket as it lands, or all
// of them at once, where the norm of the whole gradient has a say. With a GradScaler a step whose
// gradients overflowed is skipped: nothing changes but the scale.
//
// Every process comes to the same bits and the same decision from the sums that all have; only the
// norm of gradients on devices is sent, from process 0.
//
// Cost: a pass over gradients, values and slots, and one more over gradients for their norm.
//
// Thread rules: the strategy's thread, while no replica is in a pass; it wakes those of the gang.

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include <cohort/comm/communicator.h>
#include <cohort/core/log.h>
#include <cohort/core/status.h>
#include <cohort/optim/optimizer.h>
#include <cohort/optim/parameter_set.h>
#include <cohort/strategies/grad_scaler.h>
#include <cohort/strategies/strategy_options.h>

#include "synchronous/device_copy.h"
#include "synchronous/reducer.h"
#include "synchronous/replica_gang.h"
#include "synchronous/untrained_values.h"

namespace cohort {

class Updater {
 public:
  // All outlive the updater.
  struct Parts {
    Reducer& reducer;
    const Optimizer& optimizer;
    ParameterSet& parameters;
    std::span<const std::span<float>> slots;
    UntrainedValues& untrained;  // put back where a step is skipped
    ReplicaGang& gang;
    GradScaler* scaler = nullptr;  // nullptr: nothing is scaled
    // Where a device's memory is apart: the model on each, and on that of replica 0. Otherwise none
    // and nullptr.
    std::span<const std::unique_ptr<DeviceCopy>> copies;
    DeviceCopy* first_copy = nullptr;
    Communicator* communicator = nullptr;  // nullptr: alone
    LossScale loss_scale = LossScale::kGlobalMean;
    bool whole_updates = false;  // as StrategyOptions'
    std::chrono::milliseconds timeout{0};
    Log log;
  };

  explicit Updater(Parts parts);

  // The scale of the losses of the next step is for parts of about this weight, a power of two.
  void ScaleFor(double usual_weight);
  // What losses are multiplied with, beside the weight.
  double LossFactor() const;
  // What sums are multiplied with. `weight`: of the whole batch. `replicas`: of the job, each as
  // often as it had a part.
  float GradientScale(double weight, int replicas) const;

  // Whether no bucket may be applied before all have landed. On devices, where what is wrong with
  // the data of a process (a label out of range) may come to light only after its buckets were
  // sent.
  bool at_once() const { return parts_.whole_updates || NeedsNorm() || !parts_.copies.empty(); }
  // One bucket, in step `step`, the one under way. Only where not at_once.
  void Apply(int bucket, std::int64_t step, float scale);
  // All buckets, clipped. False: the gradients overflowed, and nothing was updated. DataLoss: so
  // they did at the lowest scale, or many times in a row. `rows`, with a scaler: updates what is no
  // part of a bucket, before these, and only where they are finite. False: it is not, and nothing
  // was updated.
  Result<bool> ApplyAll(std::int64_t step, float scale,
                        const std::function<Result<bool>()>& rows = {});

 private:
  bool NeedsNorm() const {
    return parts_.scaler != nullptr || parts_.optimizer.global_clip_norm() > 0;
  }
  std::int64_t BiasStep(std::int64_t step) const;
  void ForChunks(std::size_t first, std::size_t last,
                 const std::function<void(std::size_t chunk)>& fn);
  void ApplyChunks(std::size_t first_chunk, std::size_t last_chunk, std::int64_t step, float scale);
  void ApplyOnDevices(int first_bucket, int last_bucket, std::int64_t step, float scale);
  Result<double> SquaredNormOfAll();
  Result<double> SquaredNormOnDevices();
  Status Skip(std::int64_t step);

  const Parts parts_;
  std::vector<double> squares_;  // by chunk, in declaration order
  double scaled_weight_ = 1;     // what the scale of the step under way is divided by
  int skips_ = 0;                // in a row
};

}  // namespace cohort
