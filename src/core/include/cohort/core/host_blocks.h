// HostBlocks: memory of the host that is used again as soon as it is dropped, as batches of
// examples are: large memory that is new costs the kernel a fault and a clearing for each page.
// There is never more than was in use at once. Whoever lets a device copy from a block holds it
// until the copy has run (nn::Tape does), so nothing is asked of the device, which would wait for
// its streams.

#pragma once

#include <algorithm>
#include <bit>
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

  // At least `bytes`, at most an eighth more; goes back when its last owner drops it. Any thread.
  // Throws what `allocate` throws. The blocks outlive this.
  std::shared_ptr<std::byte> Take(std::size_t bytes) {
    // Lengths that differ a little share blocks.
    const std::size_t unit = std::max<std::size_t>(std::bit_floor(bytes) / 8, 1);
    bytes = (bytes + unit - 1) / unit * unit;
    Block block = TakeFree(bytes);
    if (block.memory == nullptr) {
      block = {bytes, allocate_(bytes)};
    }
    Count(bytes);
    std::byte* const memory = block.memory.get();
    return {memory, [pool = weak_from_this(), block = std::move(block)](std::byte* /*memory*/) {
              if (const std::shared_ptr<HostBlocks> blocks = pool.lock(); blocks != nullptr) {
                blocks->GiveBack(block);
              }
            }};
  }

 private:
  struct Block {
    std::size_t bytes = 0;
    std::shared_ptr<std::byte> memory;  // owner: whoever has the block
  };
  static constexpr std::size_t kMostFree = 64;

  // One of that length, if there is one.
  Block TakeFree(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto found =
        std::ranges::find_if(free_, [bytes](const Block& block) { return block.bytes == bytes; });
    if (found == free_.end()) {
      return {};
    }
    Block block = std::move(*found);
    free_.erase(found);
    free_bytes_ -= bytes;
    return block;
  }

  void Count(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    used_bytes_ += bytes;
    most_bytes_ = std::max(most_bytes_, used_bytes_);
    Trim();
  }

  void GiveBack(const Block& block) {
    const std::lock_guard lock(mutex_);
    used_bytes_ -= block.bytes;
    free_.push_back(block);
    free_bytes_ += block.bytes;
    Trim();
  }

  // With the lock held. What was given back first goes first: other lengths are asked for now.
  void Trim() {
    while (free_.size() > kMostFree ||
           (used_bytes_ + free_bytes_ > most_bytes_ && !free_.empty())) {
      free_bytes_ -= free_.front().bytes;
      free_.erase(free_.begin());
    }
  }

  const Allocate allocate_;
  std::mutex mutex_;
  // Below: guarded by mutex_.
  std::vector<Block> free_;
  std::size_t free_bytes_ = 0;
  std::size_t used_bytes_ = 0;
  std::size_t most_bytes_ = 0;  // that were used at once
};

}  // namespace cohort
