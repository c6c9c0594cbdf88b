// Where the batches of a replica are decoded to.

#pragma once

#include <memory>
#include <utility>

#include <cohort/core/host_blocks.h>
#include <cohort/data/dataset.h>
#include <cohort/device/device.h>

namespace cohort {

// For IterateOptions::allocate: page-locked memory of the host, from which they are copied to
// `device`, used again as batches are dropped. Empty, the data set's own, where the device shares
// the host's.
inline data::AllocateBytes BatchMemoryOf(std::shared_ptr<Device> device) {
  if (device->memory_space() == MemorySpace::kHost) {
    return {};
  }
  const auto blocks = std::make_shared<HostBlocks>([device = std::move(device)](std::size_t bytes) {
    return device->AllocateHost(bytes, "batches of examples");
  });
  return [blocks](std::size_t bytes) { return blocks->Take(bytes); };
}

}  // namespace cohort
