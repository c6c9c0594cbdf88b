// RowTable: dumps of buckets, as they are and as they were at a snapshot, and what has changed
// between two snapshots.

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <utility>

#include "parameter_server/rows/row_bucket.h"
#include "parameter_server/rows/row_changes.h"
#include "parameter_server/rows/row_table.h"

namespace cohort::ps {
namespace {

constexpr std::size_t kLeastRemoved = 64;  // that are noted, however few rows a bucket has

}  // namespace

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
  if (snapshot != 0) {
    // Every bucket is touched before a snapshot is given back: none misses one.
    bucket.generation = snapshot;
    const std::uint32_t oldest = snapshot >= kRemembered ? snapshot - kRemembered + 1 : 1;
    for (auto* const removed : {&bucket.removed_rows, &bucket.removed_candidates}) {
      std::erase_if(*removed, [oldest](const Bucket::Removed& r) { return r.generation < oldest; });
    }
    bucket.known_from = std::max(bucket.known_from, oldest);
  }
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

void RowTable::NoteRemoved(Bucket& bucket, const RowSet& set, std::uint64_t id) const {
  if (bucket.generation == 0) {
    return;  // of no snapshot's interest
  }
  const bool is_row = &set == &bucket.rows;
  auto& removed = is_row ? bucket.removed_rows : bucket.removed_candidates;
  if (removed.size() >= std::max<std::size_t>(kLeastRemoved, set.size())) {
    // The whole bucket is less than a list of what went.
    removed.clear();
    bucket.known_from = bucket.generation + 1;
    return;
  }
  if (bucket.generation >= bucket.known_from) {
    removed.push_back({id, bucket.generation});
  }
}

void RowTable::NoteReplaced(Bucket& bucket) {
  bucket.removed_rows = {};
  bucket.removed_candidates = {};
  bucket.known_from = bucket.generation + 1;
}

std::string RowTable::DumpBucket(std::uint32_t bucket) const {
  Require(bucket >= range_.begin && bucket < range_.end, "a bucket of this server");
  return Dump(bucket, /*frozen=*/false, /*since=*/0);
}

Status RowTable::CheckFrozen(std::uint32_t bucket) const {
  Require(bucket >= range_.begin && bucket < range_.end, "a bucket of this server");
  if (snapshot_.load() == 0 || bucket < thawed_.load()) {
    return FailedPrecondition("table \"" + spec_.name + "\": there is no snapshot of bucket " +
                              std::to_string(bucket) + " any more");
  }
  return {};
}

Result<std::string> RowTable::DumpFrozen(std::uint32_t bucket) const {
  COHORT_RETURN_IF_ERROR(CheckFrozen(bucket));
  return Dump(bucket, /*frozen=*/true, /*since=*/0);
}

Result<std::string> RowTable::DumpFrozenSince(std::uint32_t bucket, std::uint32_t since) const {
  COHORT_RETURN_IF_ERROR(CheckFrozen(bucket));
  Require(since >= 1 && since < snapshot_.load(), "changes since a snapshot before the present");
  return Dump(bucket, /*frozen=*/true, since);
}

// Under the lock records are copied as they lie, and put in order behind it.
std::string RowTable::Dump(std::uint32_t number, bool frozen, std::uint32_t since) const {
  struct Records {
    std::uint32_t count = 0;
    std::unique_ptr<std::byte[]> bytes;
    std::vector<std::uint64_t> removed;
  };
  const auto copy = [](const RowSet& set, const RowShape& shape, const Kept::Part* kept,
                       std::uint32_t from) {
    Records records;
    const std::uint32_t rows = kept == nullptr ? set.size() : kept->rows;
    records.bytes = std::make_unique_for_overwrite<std::byte[]>(rows * shape.stride);
    const auto take = [&](const std::byte* record) {
      std::memcpy(records.bytes.get() + records.count++ * shape.stride, record, shape.stride);
    };
    const auto changed = [from](const std::byte* record) {
      RowHeader header;
      std::memcpy(&header, record, sizeof(header));
      return header.changed >= from;
    };
    for (std::uint32_t row = 0; row < rows; ++row) {
      if (kept != nullptr && kept->has(row)) {
        continue;
      }
      if (const std::byte* const record = set.At(row, shape); from == 0 || changed(record)) {
        take(record);
      }
    }
    if (kept != nullptr) {
      for (std::size_t at = 0; at < kept->images.size(); at += shape.stride) {
        if (const std::byte* const image = kept->images.data() + at; from == 0 || changed(image)) {
          take(image);
        }
      }
    }
    return records;
  };
  const auto gone = [](const std::vector<Bucket::Removed>& all, std::uint32_t from,
                       std::uint32_t before) {
    std::vector<std::uint64_t> ids;
    for (const Bucket::Removed& removed : all) {
      if (removed.generation >= from && removed.generation < before) {
        ids.push_back(removed.id);
      }
    }
    return ids;
  };
  Records rows;
  Records candidates;
  bool changes = since != 0;
  {
    Bucket& bucket = buckets_[number - range_.begin];
    const std::lock_guard lock(bucket.mutex);
    Touch(bucket);
    changes = changes && since >= bucket.known_from;
    const std::uint32_t from = changes ? since : 0;
    const Kept* const kept = frozen ? bucket.kept.get() : nullptr;
    rows = copy(bucket.rows, shape_, kept == nullptr ? nullptr : &kept->rows, from);
    candidates = copy(bucket.candidates, candidate_shape_,
                      kept == nullptr ? nullptr : &kept->candidates, from);
    if (changes) {
      rows.removed = gone(bucket.removed_rows, since, bucket.snapshot);
      candidates.removed = gone(bucket.removed_candidates, since, bucket.snapshot);
    }
  }
  const std::size_t records =
      rows.count * shape_.dumped + candidates.count * candidate_shape_.dumped;
  std::string bytes;
  if (changes) {
    bytes.reserve(sizeof(std::uint32_t) * 5 + records +
                  sizeof(std::uint64_t) * (rows.removed.size() + candidates.removed.size()));
  }
  bytes.resize(sizeof(std::uint32_t) * 3 + records);
  const std::array<std::uint32_t, 3> head = {changes ? number | kChangesBit : number, rows.count,
                                             candidates.count};
  std::memcpy(bytes.data(), head.data(), sizeof(head));
  char* to = bytes.data() + sizeof(head);
  for (const auto& [part, shape] :
       {std::pair(&rows, &shape_), std::pair(&candidates, &candidate_shape_)}) {
    std::vector<std::pair<std::uint64_t, std::uint32_t>> order(part->count);
    for (std::uint32_t i = 0; i < part->count; ++i) {
      order[i] = {HeaderOf(part->bytes.get() + i * shape->stride).id(), i};
    }
    std::ranges::sort(order);
    for (const auto& [id, i] : order) {
      CopyOut(part->bytes.get() + i * shape->stride, *shape, to);
      to += shape->dumped;
    }
    // What came back is there again.
    const auto is_back = [&order = order](std::uint64_t id) {
      const auto found = std::ranges::lower_bound(order, std::pair(id, std::uint32_t{0}));
      return found != order.end() && found->first == id;
    };
    std::erase_if(part->removed, is_back);
    std::ranges::sort(part->removed);
    part->removed.erase(std::unique(part->removed.begin(), part->removed.end()),
                        part->removed.end());
  }
  if (changes) {
    AppendRemoved(rows.removed, candidates.removed, bytes);
  }
  return bytes;
}

}  // namespace cohort::ps
