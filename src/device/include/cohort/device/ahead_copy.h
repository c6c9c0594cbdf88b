// AheadCopy: a copy of a tensor in a device's memory, put there before who needs it asks.
//
// Batches of a strategy's data set have them (InputOptions::copy_ahead): the copy runs on a stream
// of its own, while a step computes. It goes along with the tensor (Tensor::twin), whose own memory
// stays the host's and has the same values.
//
// Thread rules: Of from any thread, once the copy has Begun.

#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <optional>

#include <cohort/core/tensor.h>
#include <cohort/device/device.h>
#include <cohort/device/stream.h>

namespace cohort {

class AheadCopy final : public TensorTwin {
 public:
  // In `memory`, which is the device's.
  AheadCopy(std::shared_ptr<const Device> device, std::shared_ptr<std::byte> memory);

  std::byte* memory() const { return memory_.get(); }
  // It is there when `done` is. Once, before anybody is given the tensor.
  void Begun(std::shared_ptr<Event> done);

  // What `tensor` holds, in the memory of `device`, for what `stream` is given from here on;
  // nothing where no such copy goes along with it.
  static std::optional<Tensor> Of(const Tensor& tensor, const Device& device, Stream& stream);
  bool used() const { return used_.load(std::memory_order_relaxed); }  // Of has found it

 private:
  const std::shared_ptr<const Device> device_;
  const std::shared_ptr<std::byte> memory_;
  std::shared_ptr<Event> done_;
  mutable std::atomic<bool> used_ = false;
};

}  // namespace cohort
