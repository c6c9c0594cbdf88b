#include "shard.h"

#include <algorithm>
#include <limits>
#include <string>

namespace cohort::data {
namespace {

std::int64_t CeilDivide(std::int64_t n, std::int64_t d) { return n / d + (n % d != 0 ? 1 : 0); }

// The records in file order that belong to `worker`, of the first `limit` of all files.
std::vector<Range> FilesOfWorker(const std::vector<FileRange>& files, std::int64_t limit,
                                 int num_workers, int worker) {
  std::vector<Range> ranges;
  for (std::size_t i = static_cast<std::size_t>(worker); i < files.size();
       i += static_cast<std::size_t>(num_workers)) {
    ranges.push_back({std::min(files[i].begin, limit), std::min(files[i].end, limit)});
  }
  return ranges;
}

}  // namespace

std::int64_t PartBegin(std::int64_t batch, int parts, int part) {
  return batch / parts * part + std::min<std::int64_t>(part, batch % parts);
}

Range Shard::Batch(std::int64_t batch) const {
  const std::int64_t begin = range_.begin + std::min(batch * batch_size_, range_.size());
  const std::int64_t size = std::min(batch_size_, range_.end - begin);
  return {begin + PartBegin(size, parts_, part_), begin + PartBegin(size, parts_, part_ + span_)};
}

Result<Shard> Shard::Make(const Source& source, const std::vector<OrderStage>& stages,
                          std::int64_t batch_size, bool drop_remainder,
                          const IterateOptions& options) {
  const auto text = [](std::int64_t n) { return std::to_string(n); };
  if (batch_size < 1) {
    return InvalidArgument("this data set has no batches [call Batch before Iterate]");
  }
  if (options.num_workers < 1 || options.worker < 0 || options.worker >= options.num_workers) {
    return InvalidArgument("worker " + text(options.worker) + " of " + text(options.num_workers) +
                           " [0 <= worker < num_workers]");
  }
  const bool files = options.policy == ShardPolicy::kFile;
  if (options.span < 1 || options.span > (files ? 1 : options.num_workers - options.worker)) {
    return InvalidArgument("a span of " + text(options.span) + " workers from " +
                           text(options.worker) + " of " + text(options.num_workers) +
                           (files ? " [1 under ShardPolicy::kFile]" : " [within num_workers]"));
  }
  if (options.epoch < 0) {
    return InvalidArgument("epoch " + text(options.epoch) + " [epochs start at 0]");
  }
  const bool by_file = options.policy == ShardPolicy::kFile && options.num_workers > 1;
  COHORT_ASSIGN_OR_RETURN(Shard shard,
                          by_file ? OfFiles(source, stages, batch_size, drop_remainder, options)
                                  : OfRecords(source, stages, batch_size, drop_remainder, options));
  if (options.first_batch < 0 || options.first_batch > shard.num_batches()) {
    return InvalidArgument("first_batch " + text(options.first_batch) + " of " +
                           text(shard.num_batches()) +
                           " batches [was the data or the batch size changed since the position "
                           "was saved?]");
  }
  return shard;
}

Result<Shard> Shard::OfRecords(const Source& source, const std::vector<OrderStage>& stages,
                               std::int64_t batch_size, bool drop_remainder,
                               const IterateOptions& options) {
  Shard shard(EpochOrder({{0, source.size()}}, stages, options.epoch));
  const std::int64_t size = shard.order_.size();
  const std::int64_t end = options.end < 0 ? size : options.end;
  if (options.begin < 0 || options.begin > end || end > size) {
    return InvalidArgument("examples [" + std::to_string(options.begin) + ", " +
                           std::to_string(end) + ") of an epoch of " + std::to_string(size));
  }
  // What is left out is the epoch's remainder, not each split's: splits of any length lose nothing.
  const std::int64_t used = drop_remainder ? size - size % batch_size : size;
  shard.range_ = {std::min(options.begin, used), std::min(end, used)};
  shard.batch_size_ = batch_size;
  shard.num_batches_ = CeilDivide(shard.range_.size(), batch_size);
  if (options.policy != ShardPolicy::kOff) {
    shard.parts_ = options.num_workers;
    shard.part_ = options.worker;
    shard.span_ = options.span;
  }
  return shard;
}

Result<Shard> Shard::OfFiles(const Source& source, const std::vector<OrderStage>& stages,
                             std::int64_t batch_size, bool drop_remainder,
                             const IterateOptions& options) {
  const int workers = options.num_workers;
  const std::vector<FileRange> files = source.files();
  if (files.size() < static_cast<std::size_t>(workers)) {
    return InvalidArgument(
        "ShardPolicy::kFile: " + std::to_string(files.size()) + " files for " +
        std::to_string(workers) +
        " workers [shard by record with kData, or split the data into at least " +
        std::to_string(workers) + " files, or use fewer workers]");
  }
  if (batch_size < workers) {
    return InvalidArgument("ShardPolicy::kFile: a global batch of " + std::to_string(batch_size) +
                           " leaves some of " + std::to_string(workers) +
                           " workers without examples [use a larger batch, or kData]");
  }
  if (options.begin != 0 || options.end >= 0) {
    return InvalidArgument(
        "ShardPolicy::kFile: a range of the epoch's order has no meaning, each worker has an order "
        "of its own [use kData]");
  }
  std::int64_t limit = source.size();
  std::vector<OrderStage> shuffles;
  for (const OrderStage& stage : stages) {
    if (stage.kind == OrderStage::Kind::kShuffle) {
      shuffles.push_back(stage);
    } else if (stage.kind != OrderStage::Kind::kTake) {
      return InvalidArgument(
          "ShardPolicy::kFile: Skip, Repeat, Shard, ShuffleBlocks and buckets need an order over "
          "all workers [use kData]");
    } else if (shuffles.empty()) {
      limit = std::min(limit, stage.count);
    } else {
      return InvalidArgument(
          "ShardPolicy::kFile: Take after Shuffle needs an order over all workers [Take before "
          "Shuffle, or use kData]");
    }
  }

  // Every worker's batches, counted from sizes alone, so that all come to the same number.
  std::int64_t longest = 0;
  std::int64_t shortest = std::numeric_limits<std::int64_t>::max();
  for (int w = 0; w < workers; ++w) {
    std::int64_t examples = 0;
    for (const Range& range : FilesOfWorker(files, limit, workers, w)) {
      examples += range.size();
    }
    const std::int64_t part =
        PartBegin(batch_size, workers, w + 1) - PartBegin(batch_size, workers, w);
    longest = std::max(longest, CeilDivide(examples, part));
    shortest = std::min(shortest, examples / part);
  }
  Shard shard(
      EpochOrder(FilesOfWorker(files, limit, workers, options.worker), shuffles, options.epoch));
  shard.range_ = {0, shard.order_.size()};
  shard.batch_size_ = PartBegin(batch_size, workers, options.worker + 1) -
                      PartBegin(batch_size, workers, options.worker);
  shard.num_batches_ = drop_remainder ? shortest : longest;
  return shard;
}

}  // namespace cohort::data
