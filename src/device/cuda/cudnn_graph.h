// One operation of cuDNN's graphs: its descriptors, and the ways (engines) that it offers.

#pragma once

#include <cohort/core/status.h>

#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

#include "cuda/libraries.h"

namespace cohort::cuda {

// Owner of a descriptor of cuDNN's. What fails throws nothing: it is noted, and ok() is false.
class GraphDescriptor {
 public:
  GraphDescriptor(const LibraryCalls& calls, cudnnBackendDescriptorType_t type);
  ~GraphDescriptor();
  GraphDescriptor(GraphDescriptor&& other) noexcept;
  GraphDescriptor& operator=(GraphDescriptor&&) = delete;
  GraphDescriptor(const GraphDescriptor&) = delete;
  GraphDescriptor& operator=(const GraphDescriptor&) = delete;

  void Set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, std::int64_t count,
           const void* values);
  template <typename T>
  void Set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, const T& value) {
    Set(name, type, 1, &value);
  }
  void Set(cudnnBackendAttributeName_t name, std::initializer_list<std::int64_t> values) {
    Set(name, CUDNN_TYPE_INT64, static_cast<std::int64_t>(values.size()), values.begin());
  }
  void Set(cudnnBackendAttributeName_t name, const GraphDescriptor& value) {
    const cudnnBackendDescriptor_t raw = value.raw();
    ok_ = ok_ && value.ok();
    Set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, raw);
  }
  // How many values were written to `values`.
  std::int64_t Get(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                   std::int64_t most, void* values) const;
  // False if it was not described rightly, or cuDNN has no such thing.
  bool Finalize();

  bool ok() const { return ok_; }
  cudnnBackendDescriptor_t raw() const { return descriptor_; }

 private:
  const LibraryCalls& calls_;
  cudnnBackendDescriptor_t descriptor_ = nullptr;
  bool ok_ = false;
};

// A way to run an operation.
struct GraphWay {
  GraphDescriptor plan;
  std::int64_t workspace = 0;
  bool exact = false;  // the same bits each time
};

// Ways for the operation, at most `most`, those that cuDNN deems fastest first; none that adds up
// in less than float32, or needs more than `most_workspace` bytes.
std::vector<GraphWay> WaysOf(const LibraryCalls& calls, cudnnHandle_t handle,
                             const GraphDescriptor& operation, int most,
                             std::int64_t most_workspace);

// Puts a run on the handle's stream; `ids` and `data` name the tensors.
cudnnStatus_t RunWay(const LibraryCalls& calls, cudnnHandle_t handle, const GraphWay& way,
                     std::span<const std::int64_t> ids, std::span<const void* const> data,
                     void* workspace);

}  // namespace cohort::cuda
