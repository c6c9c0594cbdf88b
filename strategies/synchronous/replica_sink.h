// ReplicaSink: what a replica's backward pass writes its gradients to, in a synchronous strategy.
//
// A gradient is written where it will be sent from, a place in the replica's current arena. As a
// parameter becomes Ready, the levels that the turn closes (see reducer.h, TURNS) are added to it
// while it is in the cache; what weighs nothing is zeroed, so that its NaNs reach nobody. When all
// parameters of a bucket are Ready, it is complete: its weight is in the header if it is the first,
// and in the last turn of a pass that is sent whoever launches buckets is told.
//
// It knows the plan, the arenas that a turn is given and how the seed is weighted; of other
// replicas, processes and of what becomes of a bucket it knows nothing.
//
// Cost: on the host, a pass over a gradient to zero it before it is first touched, and one for each
// level. On a device both are kernels on the replica's stream, a whole arena or bucket at once.
//
// Thread rules: the replica's own thread; StartPass and what tells of the last pass (weight, ready,
// as_rows, dense) from another only while the replica is in no turn.

#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include <cohort/device/device.h>
#include <cohort/device/stream.h>
#include <cohort/optim/gradient_sink.h>
#include <cohort/optim/parameter_set.h>

#include "synchronous/arena.h"
#include "synchronous/bucket_plan.h"
#include "synchronous/row_exchange.h"
#include "synchronous/step_rows.h"

namespace cohort {

class ReplicaSink final : public GradientSink {
 public:
  // All of it outlives the sink. The plan may become another one between two passes.
  struct Parts {
    const ParameterSet& parameters;
    const BucketPlan& plan;
    int replica = 0;               // of this process
    Kernels* kernels = nullptr;    // of the replica's stream; nullptr: without devices
    bool apart = false;            // the arenas are in a device's own memory
    StepRows* rows = nullptr;      // of the model's tables, if it has any
    bool seed_with_weight = true;  // loss_seed(): the replica's weight, or 1
    std::int64_t early_bytes = 0;  // see GradientSink
    // The bucket is complete on this replica, behind what the stream holds.
    std::function<void(int bucket, Stream& stream)> complete;
  };
  // The arenas of a turn.
  struct TurnArenas {
    Arena* current = nullptr;    // where gradients are written
    std::vector<Arena*> closes;  // levels whose gradients are added to this turn's
  };

  explicit ReplicaSink(Parts parts);

  // `loss_scale`: of loss_seed(), beside the weight.
  void StartPass(double loss_scale);
  // `last`: what is complete may be launched.
  void Begin(double weight, Stream& stream, TurnArenas arenas, bool last);
  // Takes what is not Ready as it stands; returns those. `ran` false: the step function was not
  // called.
  std::vector<int> End(bool ran);

  double weight() const { return weight_; }  // of the last turn
  // Of the last pass: the parameters in the order of Ready in its last turn; and by parameter, 1 if
  // rows came, or if it was written otherwise.
  const std::vector<int>& ready() const { return ready_; }
  const std::vector<std::int32_t>& as_rows() const { return as_rows_; }
  const std::vector<std::int32_t>& dense() const { return dense_; }

  std::span<float> Accumulator(int parameter) override;
  void AddSlices(int parameter, const IndexedSlices& slices) override;
  void AddRows(const RowGradients& gradients) override;
  void Ready(int parameter) override;
  std::int64_t early_bytes() const override { return parts_.early_bytes; }
  void SetWeight(double weight) override;
  float loss_seed() const override;

 private:
  enum class State : std::uint8_t { kUntouched, kTouched, kReady };

  State& StateOf(int parameter) { return states_[static_cast<std::size_t>(parameter)]; }
  const BucketPlan::Place& Place(int parameter) const {
    return parts_.plan.places[static_cast<std::size_t>(parameter)];
  }
  bool IsRows(int parameter) const {
    return parts_.plan.buckets[static_cast<std::size_t>(Place(parameter).bucket)].rows;
  }
  Arena& Current() const { return *arenas_.current; }
  TouchedRows& Touched(int parameter) const {
    return Current().touched()[static_cast<std::size_t>(parameter)];
  }
  RowTable TableIn(Arena& arena, int parameter) const {
    return TableOf(parts_.parameters, parts_.plan, parameter, arena);
  }
  std::span<float> GradientIn(const Arena& arena, int parameter) const {
    return arena.values(Place(parameter).offset, Place(parameter).elements);
  }
  void Open(int parameter, const char* call);
  std::span<float> Touch(int parameter);
  void Close(int parameter);
  void CloseDense(int parameter, std::span<float> gradient);
  void CloseRows(int parameter);
  void CompleteBucket(int bucket);

  const Parts parts_;
  double loss_scale_ = 1;
  Stream* stream_ = nullptr;  // nullptr: not in a turn
  TurnArenas arenas_;
  double weight_ = 0;
  mutable bool weight_used_ = false;
  bool last_ = true;
  std::vector<State> states_;  // by parameter
  std::vector<int> left_;      // by bucket: parameters that are not Ready
  std::vector<int> ready_;
  std::vector<std::int32_t> as_rows_;
  std::vector<std::int32_t> dense_;
};

}  // namespace cohort
