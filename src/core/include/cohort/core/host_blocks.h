// HostBlocks: memory of the host that is used again as soon as it is dropped, as batches of
// examples are: large memory that is new costs the kernel a fault and a clearing for each page.
// What there is follows what was in use at once. Whoever lets a device copy from a block holds it
// until the copy has run (nn::Tape does), so nothing is asked of the device, which would wait for
// its streams.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace cohort {

// At least so many bytes of the host, aligned to 64, unzeroed. Throws std::bad_alloc.
inline std::shared_ptr<std::byte> HostBytes(std::size_t bytes) {
  constexpr std::size_t kAlignment = 64;
  const std::size_t whole = (std::max<std::size_t>(bytes, 1) + kAlignment - 1) / kAlignment;
  auto* const memory = static_cast<std::byte*>(std::aligned_alloc(kAlignment, whole * kAlignment));
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  return {memory, [](std::byte* p) { std::free(p); }};
}

class HostBlocks : public std::enable_shared_from_this<HostBlocks> {
 public:
  using Allocate = std::function<std::shared_ptr<std::byte>(std::size_t bytes)>;

  explicit HostBlocks(Allocate allocate) : allocate_(std::move(allocate)) {
    free_.reserve(kMostFree + 1);  // to give a block back takes no memory
  }

  // At least `bytes`; goes back when its last owner drops it. Any thread. Throws what `allocate`
  // throws. The blocks outlive this.
  std::shared_ptr<std::byte> Take(std::size_t bytes) {
    Block block = TakeFree(bytes);
    if (block.memory == nullptr) {
      block = {bytes, allocate_(bytes)};
    }
    std::byte* const memory = block.memory.get();
    return {memory, [self = shared_from_this(), block = std::move(block)](std::byte* /*memory*/) {
              self->GiveBack(block);
            }};
  }

 private:
  struct Block {
    std::size_t bytes = 0;
    std::shared_ptr<std::byte> memory;  // owner: whoever has the block
  };
  // Lists of many lengths leave blocks that fit nothing: the smallest go.
  static constexpr std::size_t kMostFree = 64;

  // The smallest that fits, unless it is much too large; else none.
  Block TakeFree(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    auto best = free_.end();
    for (auto at = free_.begin(); at != free_.end(); ++at) {
      if (at->bytes >= bytes && at->bytes / 4 <= bytes &&
          (best == free_.end() || at->bytes < best->bytes)) {
        best = at;
      }
    }
    if (best == free_.end()) {
      return {};
    }
    Block block = std::move(*best);
    free_.erase(best);
    return block;
  }

  void GiveBack(const Block& block) {
    const std::lock_guard lock(mutex_);
    free_.push_back(block);
    if (free_.size() > kMostFree) {
      auto least = free_.begin();
      for (auto at = free_.begin(); at != free_.end(); ++at) {
        least = at->bytes < least->bytes ? at : least;
      }
      free_.erase(least);
    }
  }

  const Allocate allocate_;
  std::mutex mutex_;
  std::vector<Block> free_;  // guarded by mutex_
};

}  // namespace cohort
