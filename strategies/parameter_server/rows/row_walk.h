// RowTable::Walk: the ids of a call, one after the other, each with its bucket locked and its
// record on the way to the cache.
//
// Index and records are in memory, not in a cache, and what a processor waits for it waits for many
// at a time, if it is asked to. So kTogether ids are met three times: their buckets are locked, and
// their slots of the index asked for; the slots are read, and the records asked for; then each has
// its turn. A lock waits for all reads before it: there is none between the ids of a group.
//
// Buckets are locked in ascending order, kLockedTogether of them at most, and let go of together.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "parameter_server/rows/row_bucket.h"
#include "parameter_server/rows/row_table.h"

namespace cohort::ps {

// An id of a call: its hash, in whose order calls work, where it stands, and the number that its
// row had, if that is known: a hint.
struct RowTable::Entry {
  std::uint64_t hash;
  std::uint32_t position;
  std::uint32_t row;
};

class RowTable::Walk {
 public:
  struct Stop {
    std::uint64_t hash;
    Bucket* bucket;
    std::byte* record;  // null: none that is known
    std::uint32_t row;  // its number
    // Of this id: one, or where equal ids are met at once, all.
    std::span<Entry> entries;
    std::uint64_t id() const { return IdOfHash(hash); }
  };
  enum class Equal { kApart, kAtOnce };

  // `entries` bucket by bucket, in ascending order; for kAtOnce with equal ids as neighbours. Of
  // the records `bytes` are used. `step`: by which rows are evicted where a bucket has more than
  // its capacity.
  Walk(RowTable& table, std::span<Entry> entries, Equal equal, std::size_t bytes,
       std::uint32_t step)
      : table_(table), entries_(entries), equal_(equal), bytes_(bytes), step_(step) {}
  Walk(const Walk&) = delete;
  Walk& operator=(const Walk&) = delete;
  ~Walk() { Unlock(); }

  // The next one, until that after it is asked for; null: that was all. `ahead` is called with the
  // first entry of one that comes soon, to fetch what else will be needed for it.
  template <typename Ahead>
  Stop* Next(const Ahead& ahead) {
    if (taken_ == size_) {
      LetGo();
      if (next_ == entries_.size()) {
        return nullptr;
      }
      Lock(ahead);
      Locate();
    }
    return &stops_[taken_++];
  }

  // The record of a stop; null: none.
  std::byte* Record(Stop& stop) {
    if (stop.record == nullptr || HeaderOf(stop.record).id() != stop.id()) {
      stop.row = stop.bucket->rows.Find(stop.hash, stop.id(), table_.shape_);
      stop.record =
          stop.row == RowSet::kNone ? nullptr : stop.bucket->rows.At(stop.row, table_.shape_);
    }
    return stop.record;
  }
  // Before the record of a stop, which is there, changes.
  void Change(const Stop& stop) {
    if (stop.bucket->kept != nullptr) {
      table_.KeepRecord(*stop.bucket, stop.bucket->rows, stop.row);
    }
    HeaderOf(stop.record).changed = stop.bucket->generation;
  }

 private:
  static constexpr std::size_t kCacheLine = 64;
  static constexpr std::size_t kBucketsAhead = 64;  // ids

  std::size_t BucketOf(const Entry& entry) const {
    const std::uint64_t bucket = table_.hash_shift_ == 64 ? 0 : entry.hash >> table_.hash_shift_;
    return bucket - table_.range_.begin;
  }

  // The buckets of the stops that follow, which are counted from 0 again.
  template <typename Ahead>
  void Lock(const Ahead& ahead) {
    size_ = taken_ = 0;
    while (size_ < kTogether && next_ < entries_.size()) {
      const Entry& entry = entries_[next_];
      Bucket& bucket = table_.buckets_[BucketOf(entry)];
      if (locked_ == 0 || buckets_[locked_ - 1] != &bucket) {
        if (locked_ == kLockedTogether) {
          break;
        }
        bucket.mutex.lock();
        buckets_[locked_++] = &bucket;
        table_.Touch(bucket);
        Prefetch<0>(bucket.rows.blocks().data(), bucket.rows.blocks().size_bytes());
      }
      if (entry.row == RowSet::kNone) {
        __builtin_prefetch(bucket.rows.IndexOf(entry.hash));
      }
      ahead(entry);
      if (next_ + kBucketsAhead < entries_.size()) {
        const Bucket& soon = table_.buckets_[BucketOf(entries_[next_ + kBucketsAhead])];
        Prefetch<1>(&soon, 2 * kCacheLine);
      }
      std::size_t end = next_ + 1;
      while (equal_ == Equal::kAtOnce && end < entries_.size() &&
             entries_[end].hash == entry.hash) {
        ++end;
      }
      stops_[size_++] = {entry.hash, &bucket, nullptr, RowSet::kNone,
                         entries_.subspan(next_, end - next_)};
      next_ = end;
    }
  }
  // Their records. Each is found again by Record if another one of its bucket is made meanwhile.
  void Locate() {
    const auto stops = std::span(stops_).first(size_);
    for (Stop& stop : stops) {
      const std::uint32_t known = stop.entries[0].row;
      stop.row = known < stop.bucket->rows.size() ? known : stop.bucket->rows.Guess(stop.hash);
    }
    for (Stop& stop : stops) {
      if (stop.row != RowSet::kNone) {
        stop.record = stop.bucket->rows.At(stop.row, table_.shape_);
        Prefetch<1>(stop.record, bytes_);
      }
    }
  }
  // Buckets of which no more ids follow are brought back to their capacity first, which may move
  // records: once in a call, whatever else the call is about.
  void LetGo() {
    if (table_.spec_.capacity > 0) {
      const Bucket* const goes_on =
          next_ == entries_.size() ? nullptr : &table_.buckets_[BucketOf(entries_[next_])];
      for (Bucket* const bucket : std::span(buckets_).first(locked_)) {
        if (bucket != goes_on) {
          table_.Trim(*bucket, bucket->rows, table_.shape_, step_);
          table_.Trim(*bucket, bucket->candidates, table_.candidate_shape_, step_);
        }
      }
    }
    Unlock();
  }
  void Unlock() {
    for (Bucket* const bucket : std::span(buckets_).first(locked_)) {
      bucket->mutex.unlock();
    }
    locked_ = 0;
  }

 public:
  // The cache lines of [from, from + bytes), to be read, or (kWrite) written. Of long rows the
  // first ones: the processor sees where that leads.
  template <int kWrite>
  static void Prefetch(const void* from, std::size_t bytes) {
    if (bytes == 0) {
      return;
    }
    const auto* const begin = static_cast<const std::byte*>(from);
    bytes = std::min(bytes, std::size_t{1} << 10);
    for (std::size_t at = 0; at < bytes; at += kCacheLine) {
      __builtin_prefetch(begin + at, kWrite);
    }
    __builtin_prefetch(begin + bytes - 1, kWrite);
  }

 private:
  RowTable& table_;
  const std::span<Entry> entries_;
  const Equal equal_;
  const std::size_t bytes_;
  const std::uint32_t step_;
  std::size_t next_ = 0;  // of the entries, that is no stop yet
  std::size_t locked_ = 0;
  std::size_t size_ = 0;  // stops whose buckets are locked; of them:
  std::size_t taken_ = 0;
  std::array<Stop, kTogether> stops_;
  std::array<Bucket*, kLockedTogether> buckets_;
};

}  // namespace cohort::ps
