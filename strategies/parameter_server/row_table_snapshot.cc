// RowTable: dumps of buckets, as they are and as they were at a snapshot.

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <utility>

#include "parameter_server/row_bucket.h"
#include "parameter_server/row_table.h"

namespace cohort::ps {

void RowTable::Freeze() {
  thawed_.store(range_.begin, std::memory_order_relaxed);
  snapshot_.store(++snapshots_, std::memory_order_release);
}

void RowTable::Thaw(std::uint32_t done) {
  const std::uint32_t from = thawed_.load(std::memory_order_relaxed);
  done = std::min(done, range_.end);
  if (snapshot_.load(std::memory_order_relaxed) == 0 || done <= from) {
    return;
  }
  thawed_.store(done, std::memory_order_relaxed);
  for (std::uint32_t b = from; b < done; ++b) {
    Bucket& bucket = buckets_[b - range_.begin];
    const std::lock_guard lock(bucket.mutex);
    Touch(bucket);
    DropKept(bucket);
  }
}

void RowTable::Thaw() {
  Thaw(range_.end);
  snapshot_.store(0, std::memory_order_release);
}

void RowTable::DropKept(Bucket& bucket) const {
  if (bucket.kept != nullptr) {
    kept_bytes_ -= bucket.kept->rows.images.capacity() + bucket.kept->candidates.images.capacity();
    bucket.kept.reset();
  }
}

void RowTable::Touch(Bucket& bucket) const {
  const std::uint32_t snapshot = snapshot_.load(std::memory_order_acquire);
  if (bucket.snapshot == snapshot) [[likely]] {
    return;
  }
  DropKept(bucket);
  const auto number = static_cast<std::uint32_t>(&bucket - buckets_.get()) + range_.begin;
  if (snapshot != 0 && number >= thawed_.load(std::memory_order_relaxed)) {
    bucket.kept = std::make_unique<Kept>();
    bucket.kept->rows.rows = bucket.kept->rows.left = bucket.rows.size();
    bucket.kept->candidates.rows = bucket.kept->candidates.left = bucket.candidates.size();
  }
  bucket.snapshot = snapshot;  // not before `kept` is there, for which there may be no memory
}

void RowTable::KeepRecord(Bucket& bucket, const RowSet& set, std::uint32_t row) const {
  if (bucket.kept == nullptr) {
    return;
  }
  const bool is_row = &set == &bucket.rows;
  Kept::Part& part = is_row ? bucket.kept->rows : bucket.kept->candidates;
  if (row >= part.rows || part.has(row)) {
    return;
  }
  const RowShape& shape = is_row ? shape_ : candidate_shape_;
  const std::byte* const record = set.At(row, shape);
  part.copied.resize((part.rows + 63) / 64);
  if (const std::size_t before = part.images.capacity(); part.images.size() == before) {
    // Twice as much each time, but never more than all of them take.
    part.images.reserve(
        std::min(std::max(2 * before, 16 * shape.stride), part.rows * shape.stride));
    kept_bytes_ += part.images.capacity() - before;
  }
  part.images.insert(part.images.end(), record, record + shape.stride);
  part.copied[row / 64] |= std::uint64_t{1} << row % 64;
  --part.left;
}

void RowTable::KeepAll(Bucket& bucket, const RowSet& set) const {
  if (bucket.kept == nullptr) {
    return;
  }
  const Kept::Part& part = &set == &bucket.rows ? bucket.kept->rows : bucket.kept->candidates;
  for (std::uint32_t row = 0; row < part.rows && part.left > 0; ++row) {
    KeepRecord(bucket, set, row);
  }
}

std::string RowTable::DumpBucket(std::uint32_t bucket) const {
  Require(bucket >= range_.begin && bucket < range_.end, "a bucket of this server");
  return Dump(bucket, /*frozen=*/false);
}

Result<std::string> RowTable::DumpFrozen(std::uint32_t bucket) const {
  Require(bucket >= range_.begin && bucket < range_.end, "a bucket of this server");
  if (snapshot_.load() == 0 || bucket < thawed_.load()) {
    return FailedPrecondition("table \"" + spec_.name + "\": there is no snapshot of bucket " +
                              std::to_string(bucket) + " any more");
  }
  return Dump(bucket, /*frozen=*/true);
}

// Under the lock records are copied as they lie, and put in order behind it.
std::string RowTable::Dump(std::uint32_t number, bool frozen) const {
  struct Records {
    std::uint32_t count = 0;
    std::unique_ptr<std::byte[]> bytes;
  };
  const auto copy = [](const RowSet& set, const RowShape& shape, const Kept::Part* kept) {
    Records records;
    records.count = kept == nullptr ? set.size() : kept->rows;
    records.bytes = std::make_unique_for_overwrite<std::byte[]>(records.count * shape.stride);
    std::byte* to = records.bytes.get();
    for (std::uint32_t row = 0; row < records.count; ++row) {
      if (kept == nullptr || !kept->has(row)) {
        std::memcpy(to, set.At(row, shape), shape.stride);
        to += shape.stride;
      }
    }
    if (kept != nullptr) {
      std::ranges::copy(kept->images, to);
    }
    return records;
  };
  Records rows;
  Records candidates;
  {
    Bucket& bucket = buckets_[number - range_.begin];
    const std::lock_guard lock(bucket.mutex);
    Touch(bucket);
    const Kept* const kept = frozen ? bucket.kept.get() : nullptr;
    rows = copy(bucket.rows, shape_, kept == nullptr ? nullptr : &kept->rows);
    candidates =
        copy(bucket.candidates, candidate_shape_, kept == nullptr ? nullptr : &kept->candidates);
  }
  const std::array<std::uint32_t, 3> head = {number, rows.count, candidates.count};
  std::string bytes(
      sizeof(head) + rows.count * shape_.stride + candidates.count * candidate_shape_.stride, '\0');
  std::memcpy(bytes.data(), head.data(), sizeof(head));
  char* to = bytes.data() + sizeof(head);
  for (const auto& [records, shape] :
       {std::pair(&rows, &shape_), std::pair(&candidates, &candidate_shape_)}) {
    std::vector<std::pair<std::uint64_t, std::uint32_t>> order(records->count);
    for (std::uint32_t i = 0; i < records->count; ++i) {
      order[i] = {HeaderOf(records->bytes.get() + i * shape->stride).id(), i};
    }
    std::ranges::sort(order);
    for (const auto& [id, i] : order) {
      std::memcpy(to, records->bytes.get() + i * shape->stride, shape->stride);
      to += shape->stride;
    }
  }
  return bytes;
}

}  // namespace cohort::ps
