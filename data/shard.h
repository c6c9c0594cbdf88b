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

// One worker's part of an epoch.
class Shard {
 public:
  // See Dataset::Iterate for what is refused.
  static Result<Shard> Make(const Source& source, const std::vector<OrderStage>& stages,
                            std::int64_t batch_size, Remainder remainder,
                            const IterateOptions& options);

  const EpochOrder& order() const { return order_; }
  std::int64_t num_batches() const { return num_batches_; }
  // Positions of this worker's part of batch `batch`; may be empty.
  Range Batch(std::int64_t batch) const;

 private:
  explicit Shard(EpochOrder order) : order_(std::move(order)) {}
  static Result<Shard> OfRecords(const Source& source, const std::vector<OrderStage>& stages,
                                 std::int64_t batch_size, Remainder remainder,
                                 const IterateOptions& options);
  static Result<Shard> OfFiles(const Source& source, const std::vector<OrderStage>& stages,
                               std::int64_t batch_size, Remainder remainder,
                               const IterateOptions& options);
  static Result<Shard> OfHint(const Source& source, const std::vector<OrderStage>& stages,
                              std::int64_t batch_size, Remainder remainder,
                              const IterateOptions& options);
  static Result<Shard> OfOwn(const Source& source, const std::vector<OrderStage>& stages,
                             std::int64_t batch_size, Remainder remainder,
                             const IterateOptions& options);
  // This worker's part of the batch size, so many times, of an order of its own.
  static Shard OwnOrder(EpochOrder order, std::int64_t batch_size, std::int64_t num_batches,
                        Remainder remainder, const IterateOptions& options);

  EpochOrder order_;
  Range range_;                  // of order_, from which batches are cut
  std::int64_t batch_size_ = 0;  // of the batches cut from range_
  std::int64_t num_batches_ = 0;
  int parts_ = 1;  // into which each of them is cut
  int part_ = 0;
  int span_ = 1;  // as many parts as one
};

// Whether the last batch is made whole.
inline bool FillsUp(Remainder remainder) {
  return remainder == Remainder::kPad || remainder == Remainder::kWrap;
}

// Examples in an epoch of `records` records after the stages.
std::int64_t EpochSize(std::int64_t records, const std::vector<OrderStage>& stages);

}  // namespace cohort::data
