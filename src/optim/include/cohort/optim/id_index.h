// IdIndex: the different ids of a call, each with its place in the order in which they came.
//
// Open addressing, at most half full: about 16 bytes an id. Not synchronised.

#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace cohort {

// The hash of an id, the same everywhere: servers, and files of rows, go by it. A bijection: equal
// hashes are equal ids.
inline std::uint64_t HashId(std::uint64_t id) {
  std::uint64_t h = id + 0x9E3779B97F4A7C15ULL;
  h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9ULL;
  h = (h ^ (h >> 27)) * 0x94D049BB133111EBULL;
  return h ^ (h >> 31);
}

class IdIndex {
 public:
  static constexpr std::uint32_t kNone = 0xFFFFFFFF;

  // Of `most` ids at most.
  explicit IdIndex(std::size_t most)
      : slots_(std::bit_ceil(std::max<std::size_t>(16, 2 * most)), kNone) {}

  // The id's place, which a new one gets now.
  std::uint32_t Add(std::uint64_t id) {
    std::uint32_t& slot = slots_[SlotOf(id)];
    if (slot == kNone) {
      slot = static_cast<std::uint32_t>(ids_.size());
      ids_.push_back(id);
    }
    return slot;
  }
  // kNone: it was not added.
  std::uint32_t Find(std::uint64_t id) const { return slots_[SlotOf(id)]; }
  const std::vector<std::uint64_t>& ids() const { return ids_; }
  std::vector<std::uint64_t> TakeIds() && { return std::move(ids_); }

 private:
  std::size_t SlotOf(std::uint64_t id) const {
    std::size_t slot = HashId(id) & (slots_.size() - 1);
    while (slots_[slot] != kNone && ids_[slots_[slot]] != id) {
      slot = (slot + 1) & (slots_.size() - 1);
    }
    return slot;
  }

  std::vector<std::uint64_t> ids_;
  std::vector<std::uint32_t> slots_;  // places in `ids_`
};

}  // namespace cohort
