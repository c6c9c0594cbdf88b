// The order of an epoch, and which run of it is a worker's part of which batch.
//
// Everything here is arithmetic on counts: nothing is read, and every worker computes the same.

#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/core/status.h>
#include <cohort/data/dataset.h>

namespace cohort::data {

struct OrderStage {
  enum class Kind { kShuffle, kTake };
  Kind kind = Kind::kShuffle;
  std::uint64_t seed = 0;  // kShuffle
  bool reshuffle = true;   // kShuffle
  std::int64_t count = 0;  // kTake
};

// Half open.
struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t size() const { return end - begin; }
};

// Position in the order -> index in the source: the ranges one after another, then the stages.
class EpochOrder {
 public:
  EpochOrder(std::vector<Range> ranges, const std::vector<OrderStage>& stages, std::int64_t epoch);

  std::int64_t size() const { return size_; }
  std::int64_t At(std::int64_t position) const;

 private:
  std::vector<Range> ranges_;
  std::vector<std::int64_t> starts_;       // of each range, among the concatenated ranges
  std::vector<Permutation> permutations_;  // in the order of the stages
  std::int64_t size_ = 0;
};

// One worker's part of an epoch.
class Shard {
 public:
  // See Dataset::Iterate for what is refused.
  static Result<Shard> Make(const Source& source, const std::vector<OrderStage>& stages,
                            std::int64_t batch_size, bool drop_remainder,
                            const IterateOptions& options);

  const EpochOrder& order() const { return order_; }
  std::int64_t num_batches() const { return num_batches_; }
  // Positions of this worker's part of batch `batch`; may be empty.
  Range Batch(std::int64_t batch) const;

 private:
  explicit Shard(EpochOrder order) : order_(std::move(order)) {}
  static Result<Shard> OfRecords(const Source& source, const std::vector<OrderStage>& stages,
                                 std::int64_t batch_size, bool drop_remainder,
                                 const IterateOptions& options);
  static Result<Shard> OfFiles(const Source& source, const std::vector<OrderStage>& stages,
                               std::int64_t batch_size, bool drop_remainder,
                               const IterateOptions& options);

  EpochOrder order_;
  Range range_;                  // of order_, from which batches are cut
  std::int64_t batch_size_ = 0;  // of the batches cut from range_
  std::int64_t num_batches_ = 0;
  int parts_ = 1;  // into which each of them is cut
  int part_ = 0;
  int span_ = 1;  // as many parts as one
};

// Examples in an epoch of `records` records after the stages.
std::int64_t EpochSize(std::int64_t records, const std::vector<OrderStage>& stages);

}  // namespace cohort::data
