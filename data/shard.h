// Which examples a worker reads, in which order: everything about an epoch that is known without
// reading it.

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/core/status.h>
#include <cohort/data/dataset.h>

#include "buffer_shuffle.h"

namespace cohort::data {

struct OrderStage {
  enum class Kind {
    kShuffle,
    kTake,
    kSkip,
    kRepeat,
    kShard,
    kBlockShuffle,
    kBucket,
    kBufferShuffle
  };
  Kind kind = Kind::kShuffle;
  std::uint64_t seed = 0;   // kShuffle, kBlockShuffle, kBucket, kBufferShuffle
  bool reshuffle = true;    // kShuffle, kBlockShuffle, kBufferShuffle
  std::int64_t count = 0;   // kTake, kSkip: examples; kRepeat: times; kShard: parts, or kShardHint;
                            // kBlockShuffle: examples in a block; kBucket: batches in a window;
                            // kBufferShuffle: examples in the buffer
  std::int64_t number = 0;  // kShard: which part; kBlockShuffle: blocks mixed; kBucket: batch size
  std::shared_ptr<const std::vector<std::int32_t>> lengths = {};  // kBucket, by index in the source

  bool shuffles() const {
    return kind == Kind::kShuffle || kind == Kind::kBlockShuffle || kind == Kind::kBufferShuffle;
  }
  bool IsHint() const { return kind == Kind::kShard && count == kShardHint; }
};

// Half open.
struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t size() const { return end - begin; }
};

// Position in the order -> index in the source: the ranges one after another, then the stages.
// Behind its end stands the last example, or, under Remainder::kWrap, the order once more.
//
// Thread rules: At from many threads at once.
class EpochOrder {
 public:
  EpochOrder(std::vector<Range> ranges, const std::vector<OrderStage>& stages, std::int64_t epoch,
             Remainder remainder = Remainder::kShort);

  std::int64_t size() const { return size_; }
  std::int64_t At(std::int64_t position) const;

 private:
  struct Stage {
    OrderStage spec;
    std::int64_t size = 0;                        // of what goes in
    std::optional<Permutation> permutation = {};  // kShuffle, of pass epoch_
    std::shared_ptr<BufferShuffle> buffer = {};   // kBufferShuffle; owners: copies of this
  };
  // The windows of a bucket stage that were sorted last.
  struct Windows {
    std::mutex mutex;
    std::map<std::int64_t, std::shared_ptr<const std::vector<std::int64_t>>> sorted;
  };

  // Through stages [0, stages) only.
  std::int64_t Walk(std::int64_t position, std::size_t stages, std::int64_t pass) const;
  std::int64_t Bucketed(const Stage& stage, std::int64_t position, std::size_t before,
                        std::int64_t pass) const;

  std::vector<Range> ranges_;
  std::vector<std::int64_t> starts_;  // of each range, among the concatenated ranges
  std::vector<Stage> stages_;
  std::int64_t epoch_ = 0;
  std::int64_t size_ = 0;
  bool wraps_ = false;
  std::shared_ptr<Windows> windows_;  // owners: copies of this
};

// What a worker's part of a batch is made of, row by row.
struct BatchExamples {
  std::vector<std::int64_t> indexes;  // in the source
  std::vector<bool> real;   // false: stands behind the order's end, and fills the batch up
  std::int64_t sample = 0;  // an example of the order, where there is one: what rows are like
  std::int64_t size() const { return static_cast<std::int64_t>(indexes.size()); }
};

// One worker's part of an epoch.
//
// Thread rules: Examples from many threads at once.
class Shard {
 public:
  // See Dataset::Iterate for what is refused.
  static Result<Shard> Make(const Source& source, const std::vector<OrderStage>& stages,
                            std::int64_t batch_size, Remainder remainder,
                            const IterateOptions& options);

  std::int64_t num_batches() const { return num_batches_; }
  // Examples of this worker's part of batch `batch`; may be 0.
  std::int64_t SizeOf(std::int64_t batch) const;
  BatchExamples Examples(std::int64_t batch) const;
  // What is still to come when all batches before `next` but `overtaken` were delivered: as
  // EpochDivision::overtaken has it.
  std::vector<std::int64_t> LeftOf(const std::vector<std::int64_t>& overtaken,
                                   std::int64_t next) const;

 private:
  using Maker = Result<Shard>(const Source& source, const std::vector<OrderStage>& stages,
                              std::int64_t batch_size, Remainder remainder,
                              const IterateOptions& options);
  static Maker OfRecords;
  static Maker OfFiles;
  static Maker OfHint;
  static Maker OfOwn;
  // The rest of an epoch that was divided otherwise: of each of its batches a part by record.
  static Maker OfBegun;

  explicit Shard(EpochOrder order) : order_(std::move(order)) {}
  // This worker's parts of the batch size, so many, of an order of its own.
  static Shard OwnOrder(EpochOrder order, std::int64_t batch_size, std::int64_t num_batches,
                        Remainder remainder, const IterateOptions& options);
  // The same behind a place where `overtaken` were still to come, in `batch` batches' stead.
  Status GoOn(const EpochDivision& division, int worker);

  // In which place of the division what is delivered as number `batch` stands.
  std::int64_t NumberOf(std::int64_t batch) const;
  // Positions in order_ of this worker's part; not where begun_.
  Range PositionsOf(std::int64_t number) const;
  // Rows of batch `number` of what is divided by record: all workers', and this one's of them.
  std::int64_t RowsOfBegun(std::int64_t number) const;
  Range MineOf(std::int64_t rows) const;
  // Rows `rows` of this worker's part of batch `batch`.
  void Append(std::int64_t batch, Range rows, BatchExamples& examples) const;

  EpochOrder order_;
  Range range_;                  // of order_, from which batches are cut
  std::int64_t batch_size_ = 0;  // of all workers together
  std::int64_t num_batches_ = 0;
  bool own_ = false;  // order_ is this worker's alone, and has its parts of the batch size
  int parts_ = 1;     // into which each batch is cut
  int part_ = 0;
  int span_ = 1;  // as many parts as one
  // Of a division that was left: the shards of its workers, and where they stood.
  std::vector<Shard> begun_;
  std::int64_t left_at_ = 0;
  std::vector<std::int64_t> overtaken_;
};

// What kAuto stands for.
ShardPolicy PolicyFor(const Source& source, const std::vector<OrderStage>& stages,
                      std::int64_t batch_size, Remainder remainder, const IterateOptions& options);

// Whether `options` go on as the last of their begun divisions: each worker with its own part of
// it. Not of kAuto.
bool GoesOnAsBegun(const IterateOptions& options);

// Whether the last batch is made whole.
inline bool FillsUp(Remainder remainder) {
  return remainder == Remainder::kPad || remainder == Remainder::kWrap;
}

// Examples in an epoch of `records` records after the stages.
std::int64_t EpochSize(std::int64_t records, const std::vector<OrderStage>& stages);

}  // namespace cohort::data
