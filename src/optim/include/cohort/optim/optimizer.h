// Optimizer: an update rule on flat spans.
//
// The rule owns no memory: values, gradients and slots (momentum and so on) are handed in as spans
// of equal length, so that the same code updates a whole arena, one bucket of it as it lands, a
// shard on a parameter server, or a row.
//
// Thread rules: Apply is const and may run from many threads on disjoint spans.

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/device/update.h>

namespace cohort {

// One fused pass over `value`: reads gradient * gradient_scale, updates value and slots in place.
struct OptimizerUpdate {
  std::span<float> value;
  std::span<const float> gradient;
  std::span<const std::span<float>> slots;  // num_slots() spans as long as value
  float gradient_scale = 1.0F;              // 1/weight of the batch, times any clipping factor
  std::int64_t step = 1;                    // 1 for the first update: schedules and bias correction
  std::int64_t bias_step = 0;               // of the bias correction, where it is another; 0: step
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;

  virtual std::string_view name() const = 0;  // "sgd", "adam", ...
  virtual int num_slots() const = 0;
  virtual std::string_view slot_name(
      int slot) const = 0;  // "momentum", "m", "v": names in checkpoints
  virtual float slot_initial_value(int /*slot*/) const { return 0.0F; }
  virtual float learning_rate(std::int64_t step) const = 0;  // after schedules
  // The norm that the gradient of all parameters together is clipped to, after the reduction; 0: no
  // clipping. The caller computes the norm and folds the factor into gradient_scale.
  virtual float global_clip_norm() const { return 0.0F; }
  virtual void Apply(const OptimizerUpdate& update) const = 0;
  // The rule of update `step`, for a device to run (Kernels::Update): what Apply does.
  virtual UpdateRule RuleAt(std::int64_t step, std::int64_t bias_step = 0) const = 0;
  // Everything needed to make the same rule elsewhere (a parameter server, a resumed run):
  // MakeOptimizer(config()).
  virtual std::string config()
      const = 0;  // one-line JSON, {"name":"adam","learning_rate":0.001,...}
};

// From config()'s JSON; InvalidArgument names the field that is unknown or out of range.
Result<std::unique_ptr<Optimizer>> MakeOptimizer(const std::string& config);

}  // namespace cohort
