// Workspace: what a replica keeps from step to step: its device, the device's kernels, and memory.
//
// Activations and gradients come from a pool that takes a block back when the last Tensor handle on
// it is gone, so that from the second step on nothing is allocated. Memory returns to the system
// with the workspace and the last such tensor.
//
// Thread rules: one workspace for each replica, used by one Tape at a time. Tensors may be dropped
// on any thread. The work that a Tape put on its stream must have run before its workspace is
// destroyed.

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include <cohort/core/tensor.h>
#include <cohort/device/device.h>

namespace cohort::nn {

class Workspace {
 public:
  // Owners of the device: whoever computes on it.
  explicit Workspace(std::shared_ptr<Device> device = CpuDevice());
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  Device& device() const { return *device_; }
  // A block of the device's memory with unspecified contents; of the host's, for copies between the
  // two.
  Tensor Take(DType dtype, const Shape& shape);
  Tensor TakeHost(DType dtype, const Shape& shape);
  // The device's kernels; a CPU's with so many threads (0: one for each available core), the same
  // ones until the number changes.
  Kernels& KernelsFor(int threads);
  std::int64_t bytes() const;  // that the pools have taken from the device and the host

 private:
  struct Pool;
  const std::shared_ptr<Device> device_;
  std::shared_ptr<Pool> pool_;       // owners: this, and every tensor taken
  std::shared_ptr<Pool> host_pool_;  // the same one where the device shares the host's memory
  std::unique_ptr<Kernels> kernels_;
  int threads_ = 0;
};

// A workspace for each local replica, made at the first call, on the replica's device. Any thread
// may call For.
class Workspaces {
 public:
  Workspace& For(int local_replica, const std::shared_ptr<Device>& device = CpuDevice());

 private:
  std::mutex mutex_;
  std::map<int, Workspace> workspaces_;
};

}  // namespace cohort::nn
