// RowTable, one bucket after the other: eviction, statistics, the way back from dumps.

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "parameter_server/rows/row_bucket.h"
#include "parameter_server/rows/row_table.h"

namespace cohort::ps {

void RowTable::Trim(Bucket& bucket, RowSet& set, const RowShape& shape, std::uint32_t step) {
  if (set.size() <= bucket_capacity_) {
    return;
  }
  KeepAll(bucket, set);
  // An eighth more than needed, so that the bucket is not looked through for every new row.
  const std::uint32_t keep = bucket_capacity_ - bucket_capacity_ / 8;
  // The first go first. Rows in use at this very step are last: their gradients are on the way.
  struct Rank {
    bool in_use;
    std::uint32_t first;
    std::uint32_t second;
    std::uint64_t id;
    auto operator<=>(const Rank&) const = default;
  };
  std::vector<Rank> ranks(set.size());
  const bool by_frequency = spec_.eviction == TableSpec::Eviction::kLeastFrequent;
  for (std::uint32_t row = 0; row < set.size(); ++row) {
    const RowHeader& header = set.HeaderAt(row, shape);
    ranks[row] = {header.last_step >= step, by_frequency ? header.frequency : header.last_step,
                  by_frequency ? header.last_step : header.frequency, header.id()};
  }
  const auto kept = ranks.begin() + (set.size() - keep);
  std::nth_element(ranks.begin(), kept, ranks.end());
  for (auto rank = ranks.begin(); rank != kept; ++rank) {
    const std::uint32_t row = set.Find(HashId(rank->id), rank->id, shape);
    if (&set == &bucket.rows) {
      losses_->evicted.fetch_add(1, std::memory_order_relaxed);
      if (on_evict_) {
        on_evict_(rank->id, Weights(set.At(row, shape)));
      }
    }
    NoteRemoved(bucket, set, rank->id);
    set.Remove(row, shape, memory_);
  }
}

std::uint64_t RowTable::EvictExpiredOf(Bucket& bucket, std::int64_t step) {
  std::uint64_t evicted = 0;
  const auto sweep = [&](RowSet& set, const RowShape& shape) {
    // From the last to the first: a removed row is replaced by the last, which has been looked at.
    for (std::uint32_t row = set.size(); row-- > 0;) {
      const RowHeader& header = set.HeaderAt(row, shape);
      if (std::int64_t{header.last_step} + spec_.time_to_live >= step) {
        continue;
      }
      KeepAll(bucket, set);
      if (&set == &bucket.rows) {
        ++evicted;
        losses_->evicted.fetch_add(1, std::memory_order_relaxed);
        if (on_evict_) {
          on_evict_(header.id(), Weights(set.At(row, shape)));
        }
      }
      NoteRemoved(bucket, set, header.id());
      set.Remove(row, shape, memory_);
    }
  };
  const std::lock_guard lock(bucket.mutex);
  Touch(bucket);
  sweep(bucket.rows, shape_);
  sweep(bucket.candidates, candidate_shape_);
  return evicted;
}

Result<std::uint64_t> RowTable::EvictExpired(std::int64_t step) {
  COHORT_RETURN_IF_ERROR(CheckCall("eviction", 0, step, 0, ""));
  std::uint64_t evicted = 0;
  for (std::uint32_t b = 0; spec_.time_to_live > 0 && b < range_.end - range_.begin; ++b) {
    evicted += EvictExpiredOf(buckets_[b], step);
  }
  return evicted;
}

Result<std::uint64_t> RowTable::EvictWhenDue(std::int64_t step) {
  if (spec_.time_to_live == 0 ||
      (step >= 1 && step <= evicted_at_.load(std::memory_order_acquire))) {
    return std::uint64_t{0};
  }
  COHORT_RETURN_IF_ERROR(CheckCall("eviction", 0, step, 0, ""));
  const std::lock_guard lock(sweep_mutex_);
  // Bucket b in the steps that are b modulo time_to_live: the same for every number of servers. Of
  // the steps that were left out those before the last time_to_live ones would have nothing to
  // remove that the later ones have not; so it is, too, where nobody knows what was left out.
  const std::int64_t every = spec_.time_to_live;
  const std::int64_t last = std::max(evicted_at_.load(), step - every);
  std::uint64_t evicted = 0;
  if (step - last >= std::int64_t{range_.end - range_.begin}) {
    for (std::uint32_t b = range_.begin; b < range_.end; ++b) {
      if (const std::int64_t due = LastDue(b, step); due > last) {
        evicted += EvictExpiredOf(buckets_[b - range_.begin], due);
      }
    }
  } else {
    for (std::int64_t due = last + 1; due <= step; ++due) {
      // The first of this table's buckets that is `due` modulo `every`.
      std::int64_t b = range_.begin + ((due - range_.begin) % every + every) % every;
      for (; b < range_.end; b += every) {
        evicted += EvictExpiredOf(buckets_[static_cast<std::uint32_t>(b) - range_.begin], due);
      }
    }
  }
  evicted_at_.store(std::max(step, evicted_at_.load()), std::memory_order_release);
  return evicted;
}

std::int64_t RowTable::LastDue(std::uint32_t bucket, std::int64_t step) const {
  const std::int64_t every = spec_.time_to_live;
  return step - ((step - bucket) % every + every) % every;
}

void RowTable::ForgetEvictions() {
  const std::lock_guard lock(sweep_mutex_);
  evicted_at_.store(0, std::memory_order_release);
}

TableStats RowTable::stats() const {
  TableStats stats;
  stats.evicted = losses_->evicted;
  stats.dropped = losses_->dropped;
  stats.skipped = losses_->skipped;
  stats.row_bytes = memory_.allocated_bytes();
  for (std::uint32_t b = 0; b < range_.end - range_.begin; ++b) {
    const Bucket& bucket = buckets_[b];
    const std::lock_guard lock(bucket.mutex);
    stats.rows += bucket.rows.size();
    stats.candidates += bucket.candidates.size();
    stats.created += bucket.created;
    stats.updates += bucket.updates;
    stats.overhead_bytes +=
        sizeof(Bucket) + bucket.rows.overhead_bytes() + bucket.candidates.overhead_bytes();
  }
  return stats;
}

void RowTable::CountIn(std::shared_ptr<RowLosses> losses,
                       std::function<void(std::uint64_t id)> on_first_skip) {
  losses_ = std::move(losses);
  on_first_skip_ = std::move(on_first_skip);
}

std::uint64_t RowTable::UpdatesOf(std::uint32_t bucket) const {
  Require(bucket >= range_.begin && bucket < range_.end, "a bucket of this server");
  const Bucket& of = buckets_[bucket - range_.begin];
  const std::lock_guard lock(of.mutex);
  return of.updates;
}

Status RowTable::RestoreBucket(std::uint32_t bucket, std::string_view bytes, Origin origin) {
  Require(bucket >= range_.begin && bucket < range_.end, "a bucket of this server");
  const auto bad = [&](const std::string& what) {
    return DataLoss("table \"" + spec_.name + "\", bucket " + std::to_string(bucket) + ": " + what);
  };
  std::array<std::uint32_t, 3> head{};
  if (bytes.size() < sizeof(head)) {
    return bad("a dump of " + std::to_string(bytes.size()) + " bytes");
  }
  std::memcpy(head.data(), bytes.data(), sizeof(head));
  const std::uint64_t expected = sizeof(head) + std::uint64_t{head[1]} * shape_.dumped +
                                 std::uint64_t{head[2]} * candidate_shape_.dumped;
  if (head[0] != bucket || bytes.size() != expected) {
    return bad("the dump is of bucket " + std::to_string(head[0]) + " and has " +
               std::to_string(bytes.size()) + " bytes, " + std::to_string(expected) +
               " are those of its rows");
  }
  Bucket& target = buckets_[bucket - range_.begin];
  // What the other table had still to remove goes here, and no step passes in between.
  std::unique_lock sweep(sweep_mutex_, std::defer_lock);
  if (origin == Origin::kTable) {
    sweep.lock();
  } else {
    ForgetEvictions();
  }
  std::unique_lock lock(target.mutex);
  Touch(target);
  KeepAll(target, target.rows);
  KeepAll(target, target.candidates);
  NoteReplaced(target);
  target.rows.Clear(shape_, memory_);
  target.candidates.Clear(candidate_shape_, memory_);
  const char* from = bytes.data() + sizeof(head);
  const auto fill = [&](RowSet& set, const RowShape& shape, std::uint32_t count) {
    std::uint64_t last = 0;
    for (std::uint32_t row = 0; row < count; ++row, from += shape.dumped) {
      const std::uint64_t id = DumpedHeader(from).id();
      if (BucketOf(id, spec_.buckets) != bucket || (row > 0 && id <= last)) {
        return bad("id " + std::to_string(id) + " does not belong where it stands");
      }
      last = id;
      std::byte* const record = set.Insert(HashId(id), id, shape, memory_);
      if (record == nullptr) {
        return Full(bucket);
      }
      CopyIn(from, shape, record);
      HeaderOf(record).changed = target.generation;
    }
    return OkStatus();
  };
  Status status = fill(target.rows, shape_, head[1]);
  if (status.ok()) {
    status = fill(target.candidates, candidate_shape_, head[2]);
  }
  if (!status.ok()) {
    target.rows.Clear(shape_, memory_);
    target.candidates.Clear(candidate_shape_, memory_);
  }
  lock.unlock();
  if (const std::int64_t at = evicted_at_.load();
      status.ok() && sweep.owns_lock() && spec_.time_to_live > 0 && LastDue(bucket, at) > 0) {
    EvictExpiredOf(target, LastDue(bucket, at));
  }
  return status;
}

void RowTable::Clear() {
  ForgetEvictions();
  for (std::uint32_t b = 0; b < range_.end - range_.begin; ++b) {
    Bucket& bucket = buckets_[b];
    const std::lock_guard lock(bucket.mutex);
    Touch(bucket);
    KeepAll(bucket, bucket.rows);
    KeepAll(bucket, bucket.candidates);
    NoteReplaced(bucket);
    bucket.rows.Clear(shape_, memory_);
    bucket.candidates.Clear(candidate_shape_, memory_);
  }
}

}  // namespace cohort::ps
