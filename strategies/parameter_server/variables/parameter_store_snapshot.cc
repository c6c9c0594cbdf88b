// ParameterStore: snapshots, which are read while pushes go on. A chunk is copied aside before its
// first change.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>

#include "parameter_server/variables/parameter_store.h"

namespace cohort::ps {

std::uint64_t ParameterStore::LeastVersion() const {
  std::uint64_t version = std::numeric_limits<std::uint64_t>::max();
  for (const auto& block : blocks_) {
    if (block != nullptr) {
      const std::lock_guard lock(block->mutex);
      version = std::min(version, block->version);
    }
  }
  return version;
}

void ParameterStore::Keep(Block& block) {
  const std::uint64_t snapshot = snapshot_.load(std::memory_order_acquire);
  if (block.snapshot == snapshot) {
    return;
  }
  const auto bytes_of = [](const Block& b) {
    return b.value.size() * sizeof(float) * (1 + b.slots.size());
  };
  if (block.image != nullptr) {
    kept_bytes_ -= bytes_of(block);
    block.image.reset();
    block.snapshot = 0;
  }
  if (snapshot != 0) {
    block.image = std::make_unique<const Block::Image>(
        Block::Image{.value = block.value, .slots = block.slots, .version = block.version});
    kept_bytes_ += bytes_of(block);
  }
  block.snapshot = snapshot;  // not before the image is there, for which there may be no memory
}

void ParameterStore::Thaw() {
  snapshot_ = 0;
  for (const auto& block : blocks_) {
    if (block != nullptr) {
      const std::lock_guard lock(block->mutex);
      Keep(*block);
    }
  }
}

Result<std::uint64_t> ParameterStore::Freeze(std::uint64_t layout, std::uint64_t snapshot) {
  if (!ready() || layout != fingerprint_) {
    return FailedPrecondition("a snapshot of a model that is not here");
  }
  const std::lock_guard lock(declare_mutex_);
  if (snapshot_ != snapshot) {
    Thaw();
    snapshot_ = snapshot;
  }
  return LeastVersion();
}

}  // namespace cohort::ps
