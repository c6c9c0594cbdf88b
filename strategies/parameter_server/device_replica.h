// DeviceReplica: a worker's replica on a device whose memory is apart from the host's.
//
// What servers send and are sent stays in memory of the host that copies need not wait for, laid
// out as ParameterSet::all(): the values, which Upload copies to the device before a pass, and the
// gradients, which come from there while the backward pass goes on, about 1 MiB at a time.
//
// Memory of the device: values and gradients; of the host: both again. Without gradients, for a
// process that only evaluates, half of it.
//
// Thread rules: one thread at a time. Everything but Drain puts work on streams and returns.

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/device/device.h>
#include <cohort/optim/parameter_set.h>

#include "synchronous/device_copy.h"

namespace cohort::ps {

class DeviceReplica {
 public:
  // Of gradients that are worth a copy of their own: of fewer the calls cost more than the bytes.
  static constexpr std::int64_t kLandedBytes = std::int64_t{1} << 20;

  // With the values of now. `compute`: the replica's stream, of that device. All must outlive this.
  // Throws StatusError.
  DeviceReplica(const std::shared_ptr<Device>& device, ParameterSet& parameters, Stream& compute,
                int threads, bool trains);
  // What is on the streams works on memory that goes now.
  ~DeviceReplica();
  DeviceReplica(const DeviceReplica&) = delete;
  DeviceReplica& operator=(const DeviceReplica&) = delete;

  // The device's, for step functions.
  ParameterSet& parameters() { return copy_.parameters(); }
  // The host's. Not to be written between Upload and Drain.
  std::span<float> values() const { return FloatsOf(values_); }
  std::span<float> gradients() const { return FloatsOf(gradients_); }
  // values() are written now: the next Upload has something to copy.
  void Changed() { changed_ = true; }

  // The device gets the values, before what is put on the compute stream from now on.
  void Upload();
  // A pass begins: its gradients are zeros.
  void BeginPass();
  // Of a parameter, in the device's memory.
  std::span<float> gradient(int parameter) const;
  // The gradient is written by what is on the compute stream now.
  void Ready(int parameter);
  // All of them were, and the values that a step function writes itself (running averages): these
  // come to values(), the gradients to gradients(), by the time that Drain returns.
  void EndPass();
  // Blocks until no stream works for this any more.
  Status Drain(std::chrono::milliseconds timeout);

 private:
  std::span<float> FloatsOf(const std::shared_ptr<std::byte>& memory) const {
    return {reinterpret_cast<float*>(memory.get()), memory == nullptr ? 0 : elements_};
  }
  std::span<float> PlaceIn(std::span<float> arena, int parameter) const;
  void Land();

  const ParameterSet& host_;
  const std::size_t elements_;
  Stream& compute_;
  std::shared_ptr<std::byte> values_;               // owner: this
  std::shared_ptr<std::byte> gradients_;            // owner: this
  std::shared_ptr<std::byte> gradients_on_device_;  // owner: this
  std::vector<int> ready_;                          // that are still to be copied
  std::size_t ready_elements_ = 0;
  bool changed_ = false;
  DeviceCopy copy_;  // ends first: its stream works on the memory above
};

}  // namespace cohort::ps
