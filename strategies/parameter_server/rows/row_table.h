// RowTable: one server's part of a sparse table. No network.
//
// A row is one record [id, counts | weights | optimizer slots], read, updated, evicted, saved and
// loaded as a whole. A bucket of rows has one lock. Calls with many ids group them by bucket, so
// that each lock is taken once for a run of ids, and fetch the records of several ids at a time;
// up to kLockedTogether buckets are locked together, always in ascending order.
//
// Steps are the caller's clock, at least 1 and below 2^32: learning-rate schedules, time to live
// and recency are measured in them. They need not be unique or ascend.
//
// What a call does to a table depends on its arguments and on the rows only: not on the order of
// the ids, on other ids, on threads or on how many servers share the table. Repeated ids in one
// Apply are one update: their gradients are added up in the order of the input, in float32.
//
// Errors name the table. Except where said, a call that fails has changed nothing.
//
// Thread rules: all methods from any thread. Two calls on the same rows take effect row by row, in
// some order. Cost: README.md.

#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/core/status.h>
#include <cohort/optim/row_optimizer.h>

#include "parameter_server/model/table_spec.h"
#include "parameter_server/rows/row_set.h"

namespace cohort::ps {

// Of updates: of a row that there is not, or of which nobody knows how many it has had.
inline constexpr std::uint32_t kNoRow = 0xFFFFFFFF;

struct TableStats {
  std::uint64_t rows = 0;
  std::uint64_t candidates = 0;  // ids that are counted, and not admitted yet
  std::uint64_t created = 0;
  std::uint64_t evicted = 0;         // by capacity and by time to live
  std::uint64_t updates = 0;         // gradients applied; repeated ids of a call are one
  std::uint64_t dropped = 0;         // gradients of ids that were not admitted
  std::uint64_t skipped = 0;         // gradients with NaN or infinity, under kSkipRow
  std::uint64_t row_bytes = 0;       // of the blocks that hold records
  std::uint64_t overhead_bytes = 0;  // of everything else
};

// What had no effect, or went, in a table; counted without a lock.
struct RowLosses {
  std::atomic<std::uint64_t> evicted{0};
  std::atomic<std::uint64_t> dropped{0};
  std::atomic<std::uint64_t> skipped{0};
};

class RowTable {
  struct Entry;

 public:
  static constexpr std::size_t kTogether = 128;       // ids whose records are fetched together
  static constexpr std::size_t kLockedTogether = 32;  // buckets

  // Under the row's lock: must be short, and not call the table.
  using EvictionHook = std::function<void(std::uint64_t id, std::span<const float> weights)>;

  // The buckets of `range`. InvalidArgument: the specification, or the range, is wrong.
  static Result<std::unique_ptr<RowTable>> Create(TableSpec spec, BucketRange range,
                                                  EvictionHook on_evict = {});
  ~RowTable();
  RowTable(const RowTable&) = delete;
  RowTable& operator=(const RowTable&) = delete;

  const TableSpec& spec() const { return spec_; }
  const RowOptimizer& rule() const { return *rule_; }
  BucketRange range() const { return range_; }

  // kTraining makes missing rows where the table says so, and marks all as used; kReading changes
  // nothing, and shows a missing row as it would begin.
  enum class Purpose { kTraining, kReading };
  // In what order a pull met its ids, and where it found their rows: for an Apply to the same ids,
  // which need not sort and search again. A hint: whatever has happened to the table since, the
  // effect is the same without. 24 bytes for each id.
  class Found {
   public:
    Found();
    ~Found();
    std::uint64_t uses() const { return uses_; }  // calls of Apply that went by it

   private:
    friend class RowTable;
    std::vector<std::uint64_t> ids_;
    std::unique_ptr<Entry[]> entries_;
    std::uint64_t uses_ = 0;
  };
  // The weights of `ids`, repeated ones as well, into `rows`: [ids, dim]. InvalidArgument: a
  // length, the step, an id of another server; NotFound names the first id without a row under
  // kError. ResourceExhausted: a bucket or the memory is full; rows may have been made. `updates`:
  // how many each row has had goes there, kNoRow where there is none; [ids], or empty. `found`: see
  // Found; or null.
  Status Pull(std::span<const std::uint64_t> ids, std::int64_t step, Purpose purpose,
              std::span<float> rows, std::span<std::uint32_t> updates = {}, Found* found = nullptr);

  struct Gradients {
    std::span<const std::uint64_t> ids;
    std::span<const float> values;            // [ids, dim]
    std::span<const std::uint32_t> counts{};  // occurrences behind each gradient; empty: 1 each
    float scale = 1.0F;                       // 1/weight of the batch
    std::int64_t step = 1;
    std::int64_t bias_step = 0;  // of BiasScope::kTable; 0: step
    // What rows were that the gradients were computed from, for an optimizer that asks for it: the
    // updates that each had had, kNoRow where that is not known; and what it was, [ids, dim]. Or
    // empty. A row that has had fewer since was evicted and made anew: its gradient is applied as
    // if it were computed from what there is. Of ids that are repeated, that of the first.
    std::span<const std::uint32_t> updates{};
    std::span<const float> pulled{};
    Found* found = nullptr;  // of a pull from this table; of other ids it is left alone
  };
  // Updates the rows. Errors as Pull; and InvalidArgument for a count of 0, or (under kReject) for
  // a gradient that is not finite, naming its id. After ResourceExhausted some rows are updated.
  Status Apply(const Gradients& gradients);
  // NotFound, as Pull's: where missing rows are errors. None that is there ever goes, but by
  // RestoreBucket and Clear.
  Status CheckPresent(std::span<const std::uint64_t> ids);
  // What Apply refuses, but for ids of another server and rows that are missing under kError.
  Status Check(const Gradients& gradients) const;

  // Sets weights, with fresh slots for rows that are new. No id twice; finite.
  Status Assign(std::span<const std::uint64_t> ids, std::int64_t step, std::span<const float> rows);

  // Removes rows and candidates that were last used more than time_to_live steps before `step`.
  // Returns how many rows. Locks one bucket after the other.
  Result<std::uint64_t> EvictExpired(std::int64_t step);

  // EvictExpired, of each bucket once for every time_to_live steps, of some at each: so a row goes
  // at most twice that time after its last use, and a call takes its part of the time. Steps that
  // were left out are made up for, each with its own number: before the first use in a step, or
  // behind the last, a call has the rows go that would have gone in calls at every step. The first
  // after rows were loaded looks at all of them. Waits for one that is under way, where that has
  // not come as far. Where memory ends (std::bad_alloc) the next call does what this one has not
  // done.
  Result<std::uint64_t> EvictWhenDue(std::int64_t step);

  TableStats stats() const;
  // Has what is lost counted there, and `on_first_skip` called when the first gradient is skipped
  // that is: with its id, under no lock of the table; it must not throw. Before the table is used.
  void CountIn(std::shared_ptr<RowLosses> losses,
               std::function<void(std::uint64_t id)> on_first_skip);
  std::uint64_t UpdatesOf(std::uint32_t bucket) const;  // gradients applied to its rows

  // A bucket's rows and candidates with everything that they have, as bytes: a function of its
  // content, ascending by id. Consistent: under its lock.
  std::string DumpBucket(std::uint32_t bucket) const;
  // Replaces the bucket's content. DataLoss: `bytes` are no dump of this bucket of such a table; it
  // is as before, or empty, then. kTable: `bytes` are of another table in use, and the steps go on;
  // what EvictWhenDue has done in this one is made up for in the bucket.
  enum class Origin { kSave, kTable };
  Status RestoreBucket(std::uint32_t bucket, std::string_view bytes, Origin origin = Origin::kSave);
  void Clear();  // removes all rows; without the hook

  // A snapshot: the table as it is now, to be dumped while calls go on. Freeze takes the time of
  // two stores; of a call that is under way some buckets are before it and some after. From then on
  // the first change of a row copies its record aside, and the first removal from a bucket all that
  // are left of the bucket: at most one copy of what was there. Replaces an earlier snapshot. One
  // thread at a time makes, dumps and thaws snapshots.
  void Freeze();
  // The bucket's dump at Freeze, however often. FailedPrecondition: it was given back.
  Result<std::string> DumpFrozen(std::uint32_t bucket) const;
  // How many snapshots there have been: the number of the present one, where there is one.
  std::uint32_t snapshots() const { return snapshots_; }
  // The same as what has changed (row_changes.h) since the snapshot of the number `since`; the
  // whole bucket where that is not known: before it was filled anew, or further back than
  // kRemembered snapshots, or where more rows went than it has. Takes 4 bytes for each row, and 16
  // for each that was removed since.
  static constexpr std::uint32_t kRemembered = 4;
  Result<std::string> DumpFrozenSince(std::uint32_t bucket, std::uint32_t since) const;
  // Gives back the copies of the buckets below `done`, or all, and the snapshot.
  void Thaw(std::uint32_t done);
  void Thaw();
  std::uint64_t kept_bytes() const { return kept_bytes_; }  // of copies

 private:
  struct Bucket;
  struct Kept;
  struct Entries;
  class Walk;
  class Lost;

  RowTable(TableSpec spec, BucketRange range, std::unique_ptr<RowOptimizer> rule,
           EvictionHook on_evict);

  Status CheckCall(std::string_view what, std::size_t ids, std::int64_t step, std::size_t floats,
                   std::string_view floats_are) const;
  // Of equal ids: kAnywhere in their bucket, or kTogether, in the order of the input.
  enum class Equal { kAnywhere, kTogether };
  Result<Entries> Sort(std::span<const std::uint64_t> ids, Equal equal) const;
  static void BringEqualTogether(std::span<Entry> of_a_bucket);
  Status Missing(std::uint64_t id) const;
  Status Full(std::uint32_t bucket) const;
  std::byte* Create(Bucket& bucket, std::uint64_t hash, std::uint64_t id, std::uint32_t step);
  bool Admit(Bucket& bucket, std::uint64_t hash, std::uint64_t id, std::uint32_t count,
             std::uint32_t step, std::uint32_t* frequency);
  void Trim(Bucket& bucket, RowSet& set, const RowShape& shape, std::uint32_t step);
  // Under the bucket's lock: whenever something in it may be going to change; before a record does;
  // and before rows are removed.
  void Touch(Bucket& bucket) const;
  void KeepRecord(Bucket& bucket, const RowSet& set, std::uint32_t row) const;
  void KeepAll(Bucket& bucket, const RowSet& set) const;
  void DropKept(Bucket& bucket) const;
  // Likewise, when the record of an id was removed; and when all is other than before.
  void NoteRemoved(Bucket& bucket, const RowSet& set, std::uint64_t id) const;
  static void NoteReplaced(Bucket& bucket);
  std::uint64_t EvictExpiredOf(Bucket& bucket, std::int64_t step);
  // The last step up to `step` at which EvictWhenDue looks through the bucket; below 1: none.
  std::int64_t LastDue(std::uint32_t bucket, std::int64_t step) const;
  void ForgetEvictions();  // the steps that come may be earlier ones
  Status CheckFrozen(std::uint32_t bucket) const;
  std::string Dump(std::uint32_t number, bool frozen, std::uint32_t since) const;
  std::span<float> Weights(std::byte* record) const;
  std::span<float> Slots(std::byte* record) const;
  Status CheckFinite(const Gradients& gradients) const;
  Status CheckPresent(std::span<Entry> entries, std::span<const std::uint64_t> ids);

  const TableSpec spec_;
  const BucketRange range_;
  const std::unique_ptr<RowOptimizer> rule_;
  const EvictionHook on_evict_;
  const std::size_t dim_;
  const std::size_t slot_floats_;
  const RowShape shape_;            // of rows
  const RowShape candidate_shape_;  // the header alone
  const std::uint32_t bucket_capacity_;
  const Philox admission_;
  const int hash_shift_;  // of the bucket in an id's hash
  RowMemory memory_;
  std::unique_ptr<Bucket[]> buckets_;
  std::shared_ptr<RowLosses> losses_ = std::make_shared<RowLosses>();
  std::function<void(std::uint64_t id)> on_first_skip_;
  std::mutex sweep_mutex_;  // before any bucket's
  // What EvictWhenDue has done, up to which step; 0: not known. Written under sweep_mutex_.
  std::atomic<std::int64_t> evicted_at_{0};
  std::atomic<std::uint32_t> snapshot_{0};   // 0: none
  std::atomic<std::uint32_t> thawed_{0};     // buckets of it below are needed no more
  std::atomic<std::uint32_t> snapshots_{0};  // so far
  mutable std::atomic<std::uint64_t> kept_bytes_{0};
};

}  // namespace cohort::ps
