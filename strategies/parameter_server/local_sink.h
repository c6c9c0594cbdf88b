// LocalSink: the gradients of one replica, in an arena laid out as the parameters'; of one on a
// device, in that one's memory, from where they come to an arena of the host.

#pragma once

#include <memory>
#include <span>
#include <vector>

#include <cohort/comm/memory.h>
#include <cohort/core/tensor.h>
#include <cohort/device/stream.h>
#include <cohort/optim/gradient_sink.h>
#include <cohort/optim/parameter_set.h>

#include "parameter_server/device_replica.h"
#include "parameter_server/rows/row_client.h"
#include "parameter_server/rows/row_gradient_buffer.h"

namespace cohort::ps {

class FrameMemory;  // frames/frame_memory.h

// Thread rules: the replica's thread; rows are added where the stream runs.
class LocalSink final : public GradientSink {
 public:
  // `device`: where the replica is; null: in the host's memory, and gradients in `memory` where
  // that is not null. The first two must outlive this. Throws StatusError.
  LocalSink(const ParameterSet& parameters, DeviceReplica* device, FrameMemory* memory);

  // A pass begins, over `weight` examples. `seed_with_weight`: loss_seed() is the weight, or 1.
  void Begin(double weight, bool seed_with_weight, Stream& stream);
  // What the pass did not write is zero. On a device, arena() is complete when that is drained.
  void End();
  double weight() const { return weight_; }
  std::span<float> arena() const { return arena_; }  // the host's
  double SquaredNorm() const;                        // over the trainable parameters
  // Scales the gradient of each so that `scale` times its norm is at most `clip_norm`.
  void ClipEach(double scale, double clip_norm);
  // What the pass had for the tables.
  std::vector<RowClient::Gradients> rows() const;

  std::span<float> Accumulator(int parameter) override;
  void AddSlices(int parameter, const IndexedSlices& slices) override;
  void AddRows(const RowGradients& gradients) override;
  void Ready(int parameter) override;
  std::int64_t early_bytes() const override;
  float loss_seed() const override;
  void SetWeight(double weight) override;

 private:
  std::span<float> SpanOf(int parameter) const;
  void CheckTrainable(int parameter) const;

  const ParameterSet& parameters_;
  DeviceReplica* const device_;
  Tensor memory_;                        // without a device
  std::unique_ptr<Memory> lent_memory_;  // in its place
  std::span<float> arena_;
  std::vector<char> zeroed_;  // by parameter, in this pass
  std::vector<char> ready_;
  std::vector<RowGradientBuffer> rows_;  // by table
  double weight_ = 0;
  bool seed_with_weight_ = true;
  Stream* stream_ = nullptr;
};

}  // namespace cohort::ps
