// GradScaler: keeps gradients of float16 within its range, as torch.amp.GradScaler and
// tf.keras.mixed_precision.LossScaleOptimizer do.
//
// The mean loss of a replica is multiplied by a scale (and up to twice that where its batch is no
// power of two), which the update divides out. A step whose gradients are infinite or NaN is
// skipped and halves it; good steps in a row double it. All are powers of two: nothing is rounded.
//
// Thread rules: none; the strategy has one, and uses it between its steps.

#pragma once

#include <cstdint>

#include <cohort/core/status.h>

namespace cohort {

struct GradScalerOptions {
  double init_scale = 32'768;  // a power of two
  double growth_factor = 2;
  double backoff_factor = 0.5;
  std::int64_t growth_interval = 2000;  // good steps in a row
};

class GradScaler {
 public:
  // Where it stands, for checkpoints.
  struct State {
    double scale = 1;
    std::int64_t good_steps = 0;  // in a row, since the scale changed
    std::int64_t skipped = 0;     // steps, of the whole run
    friend bool operator==(const State&, const State&) = default;
  };

  // InvalidArgument names the option that is out of its range.
  static Status Check(const GradScalerOptions& options);
  explicit GradScaler(const GradScalerOptions& options);

  double scale() const { return state_.scale; }
  const State& state() const { return state_; }
  // InvalidArgument if no scaler is ever there.
  Status SetState(const State& state);
  // A step's gradients were finite, or they were not and it was skipped.
  void Update(bool finite);

 private:
  const GradScalerOptions options_;
  State state_;
};

}  // namespace cohort
