// RowSet: the rows of one bucket: records of one size, found by their id.
//
//   record   RowHeader | dim weights | optimizer slots        (floats; 4-byte aligned)
//            in dumps without the mark at the end of the header: see CopyOut, CopyIn
//   index    open addressing, at most 3/4 full: 8 bits of the hash and 24 bits of row number in 4
//            bytes, so a probe looks at a record only when it is nearly sure. A search begins at a
//            multiple of kProbe slots, and looks at so many at once
//
// Records are numbered 0 to size() - 1 without gaps: a removed one is replaced by the last. They
// lie in blocks of 1, 1, 2, 4, ... records up to about 32 KiB, which never move, so the address of
// a record is good until something is removed. Memory for n records: n * stride, at most as much
// again while they are few, one block while they are many, and 5.3 to 8 bytes of index for each.
//
// Thread rules: RowSet under its bucket's lock. RowMemory from any thread.

#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <vector>

namespace cohort::ps {

// Blocks of records, from pages that are asked for in growing pieces, huge ones where the system
// has them. What is freed is used again for blocks of the same size; all goes back with the object.
class RowMemory {
 public:
  RowMemory() = default;
  RowMemory(const RowMemory&) = delete;
  RowMemory& operator=(const RowMemory&) = delete;
  ~RowMemory();

  // std::bad_alloc if the system has no more.
  std::byte* Allocate(std::size_t bytes);
  void Free(std::byte* block, std::size_t bytes);
  std::size_t allocated_bytes() const;  // of blocks in use

 private:
  struct Piece {
    void* start;
    std::size_t bytes;
  };
  mutable std::mutex mutex_;
  // Below: under `mutex_`.
  std::vector<Piece> pieces_;
  std::byte* next_ = nullptr;
  std::size_t left_ = 0;
  std::size_t mapped_ = 0;
  std::size_t allocated_ = 0;
  std::map<std::size_t, std::vector<std::byte*>> free_;
};

struct RowHeader {
  std::array<std::uint32_t, 2> id_words{};
  std::uint32_t updates = 0;    // gradients applied
  std::uint32_t last_step = 0;  // of the last pull for training, or gradient
  std::uint32_t frequency = 0;  // occurrences, all counts together
  // The table's number of snapshots when the record changed last. Not in dumps, which are a
  // function of what the rows hold.
  std::uint32_t changed = 0;

  std::uint64_t id() const { return (std::uint64_t{id_words[1]} << 32) | id_words[0]; }
  void set_id(std::uint64_t id) {
    id_words = {static_cast<std::uint32_t>(id), static_cast<std::uint32_t>(id >> 32)};
  }
};
static_assert(sizeof(RowHeader) == 24 && alignof(RowHeader) == 4);
// What dumps have of it.
inline constexpr std::size_t kDumpedHeader = 20;
static_assert(offsetof(RowHeader, changed) == kDumpedHeader);

// Of a record.
inline RowHeader& HeaderOf(std::byte* record) { return *reinterpret_cast<RowHeader*>(record); }

struct RowShape {
  explicit RowShape(std::size_t floats);
  std::size_t stride;  // bytes of a record
  std::size_t dumped;  // of it in a dump
  int block_bits;      // log2 of the records in a whole block
};

// Of a dumped record.
inline RowHeader DumpedHeader(const void* record) {
  RowHeader header;
  std::memcpy(static_cast<void*>(&header), record, kDumpedHeader);
  return header;
}
// A record into a dump, and back; what it says of changes is left out, and left alone.
inline void CopyOut(const std::byte* record, const RowShape& shape, void* dump) {
  auto* const to = static_cast<std::byte*>(dump);
  std::memcpy(to, record, kDumpedHeader);
  std::memcpy(to + kDumpedHeader, record + sizeof(RowHeader), shape.stride - sizeof(RowHeader));
}
inline void CopyIn(const void* dump, const RowShape& shape, std::byte* record) {
  const auto* const from = static_cast<const std::byte*>(dump);
  std::memcpy(record, from, kDumpedHeader);
  std::memcpy(record + sizeof(RowHeader), from + kDumpedHeader, shape.stride - sizeof(RowHeader));
}

class RowSet {
 public:
  static constexpr std::uint32_t kNone = 0xFFFFFFFF;
  static constexpr std::uint32_t kMaxRows = (1U << 24) - 2;

  std::uint32_t size() const { return size_; }
  std::size_t overhead_bytes() const {
    return capacity_ * sizeof(std::uint32_t) + blocks_.capacity() * sizeof(std::byte*);
  }

  // Where the search for `hash` begins, to be prefetched. Null in an empty set.
  const std::uint32_t* IndexOf(std::uint64_t hash) const {
    return capacity_ == 0 ? nullptr : index_.get() + Home(hash);
  }
  // The record that `hash` most likely has, by the index alone; kNone: it has none.
  std::uint32_t Guess(std::uint64_t hash) const;
  std::uint32_t Find(std::uint64_t hash, std::uint64_t id, const RowShape& shape) const;

  // Where records are, to be prefetched.
  std::span<std::byte* const> blocks() const { return blocks_; }
  std::byte* At(std::uint32_t row, const RowShape& shape) const {
    const Place place = PlaceOf(row, shape.block_bits);
    return blocks_[place.block] + place.record * shape.stride;
  }
  RowHeader& HeaderAt(std::uint32_t row, const RowShape& shape) const {
    return HeaderOf(At(row, shape));
  }

  // A record for an id that has none, its header set and the rest left to the caller; null if the
  // set is full.
  std::byte* Insert(std::uint64_t hash, std::uint64_t id, const RowShape& shape, RowMemory& memory);
  void Remove(std::uint32_t row, const RowShape& shape, RowMemory& memory);
  void Clear(const RowShape& shape, RowMemory& memory);

 private:
  static constexpr std::uint32_t kRowMask = (1U << 24) - 1;
  static constexpr std::uint32_t kProbe = 8;  // a vector of slots

  // Which block a record is in, and which record of it. Blocks 0 to b hold 1, 1, 2, 4, ... 2^(b-1)
  // records, all others 2^b.
  struct Place {
    std::size_t block;
    std::size_t record;
  };
  static Place PlaceOf(std::uint32_t row, int block_bits) {
    // Without a branch: which one it is nobody can foresee.
    const std::uint32_t whole = row >> block_bits;
    const int width = std::bit_width(row);
    const std::uint32_t first = (1U << width) >> 1;  // of its block; 0 of row 0
    return {
        whole > 0 ? static_cast<std::size_t>(block_bits) + whole : static_cast<std::size_t>(width),
        row - (whole > 0 ? whole << block_bits : first)};
  }

  std::uint32_t Home(std::uint64_t hash) const {
    return static_cast<std::uint32_t>(((hash & 0xFFFFFFFF) * (capacity_ / kProbe)) >> 32) * kProbe;
  }
  static std::uint32_t TagOf(std::uint64_t hash) {
    return static_cast<std::uint32_t>(hash >> 32) << 24;
  }
  std::uint32_t Next(std::uint32_t slot) const { return slot + 1 == capacity_ ? 0 : slot + 1; }
  // Of the kProbe slots from `slot` on, a bit each: which have the hash bits of `tag`, and which
  // are empty.
  struct Probe {
    std::uint32_t hits;
    std::uint32_t empty;
  };
  Probe Look(std::uint32_t slot, std::uint32_t tag) const;
  // Calls `is_it` with the rows that `hash` may have, until that says yes; kNone: never.
  template <typename IsIt>
  std::uint32_t Search(std::uint64_t hash, const IsIt& is_it) const;
  std::uint32_t SlotOf(std::uint32_t row, std::uint64_t hash) const;
  void Grow(const RowShape& shape);

  // Slots: hash bits << 24 | row + 1; 0: empty. A search's first ones are in one cache line.
  struct FreeIndex {
    void operator()(std::uint32_t* index) const {
      ::operator delete[](index, std::align_val_t{kIndexAlign});
    }
  };
  static constexpr std::size_t kIndexAlign = 64;
  std::unique_ptr<std::uint32_t[], FreeIndex> index_;
  std::uint32_t capacity_ = 0;
  std::uint32_t size_ = 0;
  std::vector<std::byte*> blocks_;
};

inline RowSet::Probe RowSet::Look(std::uint32_t slot, std::uint32_t tag) const {
  using Slots = std::uint32_t __attribute__((vector_size(kProbe * sizeof(std::uint32_t))));
  constexpr Slots kBits = {1, 2, 4, 8, 16, 32, 64, 128};
  Slots slots;
  std::memcpy(&slots, index_.get() + slot, sizeof(slots));
  const Slots empty = static_cast<Slots>(slots == 0);
  const Slots same = static_cast<Slots>(((slots ^ tag) & ~kRowMask) == 0);
  const auto both = std::bit_cast<std::array<std::uint64_t, kProbe / 2>>(
      (same & ~empty & kBits) | (empty & (kBits << kProbe)));
  const std::uint64_t folded = (both[0] | both[1]) | (both[2] | both[3]);
  const auto bits = static_cast<std::uint32_t>(folded | folded >> 32);
  return {bits & ((1U << kProbe) - 1), bits >> kProbe};
}

template <typename IsIt>
std::uint32_t RowSet::Search(std::uint64_t hash, const IsIt& is_it) const {
  if (capacity_ == 0) {
    return kNone;
  }
  const std::uint32_t tag = TagOf(hash);
  for (std::uint32_t slot = Home(hash);;) {
    const Probe probe = Look(slot, tag);
    for (std::uint32_t hits = probe.hits; hits != 0; hits &= hits - 1) {
      const auto hit = slot + static_cast<std::uint32_t>(std::countr_zero(hits));
      if (const std::uint32_t row = (index_[hit] & kRowMask) - 1; is_it(row)) {
        return row;
      }
    }
    if (probe.empty != 0) {
      return kNone;
    }
    slot = slot + kProbe == capacity_ ? 0 : slot + kProbe;
  }
}

inline std::uint32_t RowSet::Guess(std::uint64_t hash) const {
  return Search(hash, [](std::uint32_t) { return true; });
}

inline std::uint32_t RowSet::Find(std::uint64_t hash, std::uint64_t id,
                                  const RowShape& shape) const {
  return Search(hash, [&](std::uint32_t row) { return HeaderAt(row, shape).id() == id; });
}

}  // namespace cohort::ps
