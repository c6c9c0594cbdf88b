// DeviceCopy: the model on one device of this process: values, the optimizer's slots, and a stream
// for what becomes of gradients apart from the replicas' own work: sums, copies, updates.
//
// Replicas on one device share its copy. The host's copy is the process's ParameterSet itself; of a
// device whose memory is apart, the ParameterSet is brought up to date by Pull.
//
// Everything but the constructor and Drain puts work on stream() and returns.
//
// Thread rules: one thread at a time, stream() and kernels() included.

#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/device/device.h>
#include <cohort/optim/parameter_set.h>

#include "synchronous/bucket_plan.h"

namespace cohort {

class DeviceCopy {
 public:
  // With the values and slots of now; all must outlive this. Throws StatusError.
  DeviceCopy(std::shared_ptr<Device> device, ParameterSet& parameters,
             std::span<const std::span<float>> slots, int threads);

  const std::shared_ptr<Device>& device() const { return device_; }
  bool apart() const { return device_->memory_space() == MemorySpace::kDevice; }
  ParameterSet& parameters() { return copy_.built() ? copy_ : parameters_; }
  Stream& stream() { return *stream_; }
  Kernels& kernels() { return *kernels_; }

  // Values and slots to the device, and from it.
  void Push();
  void Pull();
  // The values of some parameters, one after the other: from the device, and to it.
  void PullValues(std::span<const int> parameters, std::span<float> to);
  void PushValues(std::span<const int> parameters, std::span<const float> from);
  // Keeps the values of some parameters, on the device; and puts those of the last KeepValues back.
  void KeepValues(std::span<const int> parameters);
  void PutBackValues(std::span<const int> parameters);

  // The update of a bucket's parameters by the gradients in an arena of the device.
  void Update(const UpdateRule& rule, const BucketPlan& plan, const BucketPlan::Bucket& bucket,
              std::span<const float> gradients, float scale);
  // The sum of squares of all gradients in an arena, added up by parameters in the order of their
  // declaration. Blocks.
  Result<double> Squares(const BucketPlan& plan, std::span<const float> gradients,
                         std::chrono::milliseconds timeout);
  // y += x; both are in the device's memory, or x in that of one which it reaches.
  void Add(std::span<const float> x, std::span<float> y);
  // What the stream is given from here on starts when what that of `from` has now has run.
  void Follow(DeviceCopy& from);
  // A copy of x, in the memory of `from`, which its stream has written, to y in this one's.
  void Fetch(DeviceCopy& from, std::span<const float> x, std::span<float> y);

  // A copy between the device's memory and the host's.
  void Send(std::span<const float> from, std::span<float> to);

  // Blocks until the stream has run dry.
  Status Drain(std::chrono::milliseconds timeout);

 private:
  std::span<float> KeptOf(std::span<const int> parameters) const;

  const std::shared_ptr<Device> device_;
  ParameterSet& parameters_;
  const std::span<const std::span<float>> slots_;
  ParameterSet copy_;                                    // where the memory is apart
  std::vector<std::shared_ptr<std::byte>> slot_memory_;  // owner: this
  std::vector<std::span<float>> device_slots_;
  std::shared_ptr<std::byte> kept_;     // owner: this
  std::shared_ptr<std::byte> squares_;  // a double for each parameter; owner: this
  std::shared_ptr<std::byte> squares_on_host_;
  const std::unique_ptr<Kernels> kernels_;
  const std::unique_ptr<Stream> stream_;  // ends first: its work is on the memory above
};

}  // namespace cohort
