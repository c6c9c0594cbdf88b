#include "parameter_server/rows/row_set.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>

#include "parameter_server/model/table_spec.h"

namespace cohort::ps {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kLeastPiece = std::size_t{256} << 10;
constexpr std::size_t kGreatestPiece = std::size_t{64} << 20;
constexpr std::size_t kBlockBytes = std::size_t{32} << 10;

std::size_t RecordsIn(std::size_t block, int block_bits) {
  if (block > static_cast<std::size_t>(block_bits)) {
    return std::size_t{1} << block_bits;
  }
  return block == 0 ? 1 : std::size_t{1} << (block - 1);
}

}  // namespace

RowMemory::~RowMemory() {
  for (const Piece& piece : pieces_) {
    ::munmap(piece.start, piece.bytes);
  }
}

std::byte* RowMemory::Allocate(std::size_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  const std::lock_guard lock(mutex_);
  std::byte* block = nullptr;
  if (const auto spare = free_.find(bytes); spare != free_.end() && !spare->second.empty()) {
    block = spare->second.back();
    spare->second.pop_back();
  } else {
    if (left_ < bytes) {
      // An eighth of what there is, so that the unused rest stays small beside it. Pages that
      // nobody touches take no memory.
      std::size_t piece = std::max(bytes, std::clamp(mapped_ / 8, kLeastPiece, kGreatestPiece));
      const bool huge = piece >= kHugePage;
      piece = huge ? (piece + kHugePage - 1) / kHugePage * kHugePage : piece;
      const std::size_t mapped = huge ? piece + kHugePage : piece;
      void* const start =
          ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (start == MAP_FAILED) {
        throw std::bad_alloc();
      }
      pieces_.push_back({start, mapped});
      mapped_ += piece;
      next_ = static_cast<std::byte*>(start);
      left_ = piece;
      if (huge) {
        const auto address = reinterpret_cast<std::uintptr_t>(start);
        next_ += (kHugePage - address % kHugePage) % kHugePage;
        static_cast<void>(::madvise(next_, piece, MADV_HUGEPAGE));  // a wish: slower without
      }
    }
    block = next_;
    next_ += bytes;
    left_ -= bytes;
  }
  allocated_ += bytes;
  return block;
}

void RowMemory::Free(std::byte* block, std::size_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  const std::lock_guard lock(mutex_);
  free_[bytes].push_back(block);
  allocated_ -= bytes;
}

std::size_t RowMemory::allocated_bytes() const {
  const std::lock_guard lock(mutex_);
  return allocated_;
}

RowShape::RowShape(std::size_t floats)
    : stride(sizeof(RowHeader) + floats * sizeof(float)),
      dumped(stride - sizeof(RowHeader) + kDumpedHeader) {
  const std::size_t records = std::clamp<std::size_t>(kBlockBytes / stride, 1, 64);
  block_bits = static_cast<int>(std::bit_width(records)) - 1;
}

void RowSet::Grow(const RowShape& shape) {
  // By half, so that between 1/2 and 3/4 is used. A multiple of a cache line.
  const std::uint32_t capacity = std::max(16U, (capacity_ + capacity_ / 2 + 15) / 16 * 16);
  index_.reset(new (std::align_val_t{kIndexAlign}) std::uint32_t[capacity]());
  capacity_ = capacity;
  for (std::uint32_t row = 0; row < size_; ++row) {
    const std::uint64_t hash = HashId(HeaderAt(row, shape).id());
    std::uint32_t slot = Home(hash);
    while (index_[slot] != 0) {
      slot = Next(slot);
    }
    index_[slot] = TagOf(hash) | (row + 1);
  }
}

std::byte* RowSet::Insert(std::uint64_t hash, std::uint64_t id, const RowShape& shape,
                          RowMemory& memory) {
  if (size_ >= kMaxRows) {
    return nullptr;
  }
  if ((std::uint64_t{size_} + 1) * 4 > std::uint64_t{capacity_} * 3) {
    Grow(shape);
  }
  const Place place = PlaceOf(size_, shape.block_bits);
  if (place.block == blocks_.size()) {
    // Without the doubling of push_back, whose rest would count for every row.
    if (blocks_.size() == blocks_.capacity()) {
      blocks_.reserve(blocks_.size() + blocks_.size() / 4 + 4);
    }
    blocks_.push_back(memory.Allocate(RecordsIn(place.block, shape.block_bits) * shape.stride));
  }
  std::uint32_t slot = Home(hash);
  while (index_[slot] != 0) {
    slot = Next(slot);
  }
  index_[slot] = TagOf(hash) | (size_ + 1);
  std::byte* const record = At(size_++, shape);
  RowHeader header;
  header.set_id(id);
  std::memcpy(record, &header, sizeof(header));
  return record;
}

std::uint32_t RowSet::SlotOf(std::uint32_t row, std::uint64_t hash) const {
  std::uint32_t slot = Home(hash);
  while ((index_[slot] & kRowMask) != row + 1) {
    slot = Next(slot);
  }
  return slot;
}

void RowSet::Remove(std::uint32_t row, const RowShape& shape, RowMemory& memory) {
  // Empty the slot, and move up those behind it that the gap would hide.
  std::uint32_t gap = SlotOf(row, HashId(HeaderAt(row, shape).id()));
  const auto distance = [this](std::uint32_t from, std::uint32_t to) {
    return to >= from ? to - from : to + capacity_ - from;
  };
  for (std::uint32_t slot = Next(gap); index_[slot] != 0; slot = Next(slot)) {
    const std::uint32_t other = (index_[slot] & kRowMask) - 1;
    const std::uint32_t home = Home(HashId(HeaderAt(other, shape).id()));
    if (distance(home, slot) >= distance(gap, slot)) {
      index_[gap] = index_[slot];
      gap = slot;
    }
  }
  index_[gap] = 0;

  const std::uint32_t last = size_ - 1;
  if (row != last) {
    const std::uint64_t hash = HashId(HeaderAt(last, shape).id());
    index_[SlotOf(last, hash)] = TagOf(hash) | (row + 1);
    std::memcpy(At(row, shape), At(last, shape), shape.stride);
  }
  --size_;
  if (const Place place = PlaceOf(last, shape.block_bits); place.record == 0) {
    memory.Free(blocks_.back(), RecordsIn(place.block, shape.block_bits) * shape.stride);
    blocks_.pop_back();
  }
}

void RowSet::Clear(const RowShape& shape, RowMemory& memory) {
  for (std::size_t block = 0; block < blocks_.size(); ++block) {
    memory.Free(blocks_[block], RecordsIn(block, shape.block_bits) * shape.stride);
  }
  blocks_.clear();
  index_.reset();
  capacity_ = 0;
  size_ = 0;
}

}  // namespace cohort::ps
