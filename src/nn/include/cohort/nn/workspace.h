// Workspace: what a replica keeps from step to step: its device's kernels, and memory.
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
#include <cohort/device/kernels.h>

namespace cohort::nn {

class Workspace {
 public:
  Workspace();
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // A block of this shape with unspecified contents.
  Tensor Take(DType dtype, const Shape& shape);
  // The CPU's kernels with so many threads (0: one for each available core); the same ones until
  // the number changes.
  Kernels& KernelsFor(int threads);
  std::int64_t bytes() const;  // that the pool has taken from the system

 private:
  struct Pool;
  std::shared_ptr<Pool> pool_;  // owners: this, and every tensor taken
  std::unique_ptr<Kernels> kernels_;
  int threads_ = 0;
};

// A workspace for each local replica, made at the first call. Any thread may call For.
class Workspaces {
 public:
  Workspace& For(int local_replica);

 private:
  std::mutex mutex_;
  std::map<int, Workspace> workspaces_;
};

}  // namespace cohort::nn
