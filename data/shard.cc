#include "shard.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

namespace cohort::data {
namespace {

std::int64_t CeilDivide(std::int64_t n, std::int64_t d) { return n / d + (n % d != 0 ? 1 : 0); }

// What reading the part `range` of each file costs, in bytes; in examples where the bytes of one
// are not known.
std::vector<double> CostsOf(const std::vector<FileRange>& files, const std::vector<Range>& ranges) {
  const bool bytes = std::ranges::all_of(
      files, [](const FileRange& file) { return file.bytes > 0 || file.begin == file.end; });
  std::vector<double> costs;
  for (std::size_t i = 0; i < files.size(); ++i) {
    const auto part = static_cast<double>(ranges[i].size());
    const auto whole = static_cast<double>(files[i].end - files[i].begin);
    costs.push_back(bytes && part > 0 ? part / whole * static_cast<double>(files[i].bytes) : part);
  }
  return costs;
}

// Each worker's records, in file order, of the first `limit` of all files: the largest file first,
// to the worker that has least so far. With `draw`, files of equal size and the workers change
// places.
std::vector<std::vector<Range>> SharesOf(const std::vector<FileRange>& files, std::int64_t limit,
                                         int num_workers, std::optional<std::uint64_t> draw) {
  std::vector<Range> ranges;
  for (const FileRange& file : files) {
    ranges.push_back({std::min(file.begin, limit), std::min(file.end, limit)});
  }
  const std::vector<double> costs = CostsOf(files, ranges);
  const auto drawn = [&draw](std::size_t i, std::size_t size) {
    return draw.has_value() ? static_cast<std::size_t>(Permutation(size, *draw)(i)) : i;
  };
  std::vector<std::size_t> by_cost(files.size());
  for (std::size_t i = 0; i < by_cost.size(); ++i) {
    by_cost[i] = drawn(i, by_cost.size());
  }
  std::ranges::stable_sort(by_cost, std::greater(), [&](std::size_t file) { return costs[file]; });
  const auto workers = static_cast<std::size_t>(num_workers);
  std::vector<std::vector<std::size_t>> files_of(workers);
  std::vector<double> load(workers, 0);
  for (const std::size_t file : by_cost) {
    const auto least = static_cast<std::size_t>(std::ranges::min_element(load) - load.begin());
    files_of[least].push_back(file);
    load[least] += costs[file];
  }
  std::vector<std::vector<Range>> shares(workers);
  for (std::size_t w = 0; w < workers; ++w) {
    std::ranges::sort(files_of[w]);
    for (const std::size_t file : files_of[w]) {
      shares[drawn(w, workers)].push_back(ranges[file]);
    }
  }
  return shares;
}

const char* NameOf(ShardPolicy policy) {
  return policy == ShardPolicy::kFile   ? "ShardPolicy::kFile"
         : policy == ShardPolicy::kHint ? "ShardPolicy::kHint"
                                        : "ShardPolicy::kOwn";
}

// What an order of each worker's own cannot have.
Status CheckOwnOrder(std::int64_t batch_size, const IterateOptions& options) {
  const std::string name = NameOf(options.policy);
  if (batch_size < options.num_workers) {
    return InvalidArgument(name + ": a global batch of " + std::to_string(batch_size) +
                           " leaves some of " + std::to_string(options.num_workers) +
                           " workers without examples [use a larger batch, or kData]");
  }
  if (options.begin != 0 || options.end >= 0) {
    return InvalidArgument(
        name +
        ": a range of the epoch's order has no meaning, each worker has an order of its own [use "
        "kData]");
  }
  return {};
}

// The examples that worker w of W takes of an order of its own in its first `batches` batches: of W
// of them the whole batch size, since the larger parts go round.
// Source: tf.data's batch_sizes_for_worker, of one replica each.
std::int64_t TakenOf(std::int64_t batch_size, int workers, int w, std::int64_t batches) {
  const std::int64_t rounds = batches / workers;
  const std::int64_t rest = batches % workers;
  const std::int64_t larger = batch_size % workers;
  // Of the places w, w + 1, ..., w + rest - 1, modulo W, those before `larger`.
  const std::int64_t round =
      std::min<std::int64_t>(larger, w + rest) - std::min<std::int64_t>(larger, w);
  const std::int64_t next_round = std::clamp<std::int64_t>(w + rest - workers, 0, larger);
  return rounds * batch_size + rest * (batch_size / workers) + round + next_round;
}

// In how many batches it has taken `examples`; the last may take more (`whole` false) or may not.
std::int64_t BatchesOf(std::int64_t examples, std::int64_t batch_size, int workers, int w,
                       bool whole) {
  std::int64_t batches = examples / batch_size * workers;
  while (TakenOf(batch_size, workers, w, batches + (whole ? 1 : 0)) <= examples - (whole ? 0 : 1)) {
    ++batches;
  }
  return batches;
}

// The batches that every worker has, where worker w's share has examples[w]: counted from sizes
// alone, so that all come to the same number.
Result<std::int64_t> CountBatches(const std::vector<std::int64_t>& examples,
                                  std::int64_t batch_size, Remainder remainder,
                                  const IterateOptions& options) {
  std::int64_t longest = 0;
  std::int64_t shortest = std::numeric_limits<std::int64_t>::max();
  for (int w = 0; w < options.num_workers; ++w) {
    const std::int64_t has = examples[static_cast<std::size_t>(w)];
    longest = std::max(longest, BatchesOf(has, batch_size, options.num_workers, w, false));
    shortest = std::min(shortest, BatchesOf(has, batch_size, options.num_workers, w, true));
  }
  for (int w = 0; w < options.num_workers && FillsUp(remainder) && longest > 0; ++w) {
    if (examples[static_cast<std::size_t>(w)] == 0) {
      return InvalidArgument(std::string(NameOf(options.policy)) + ": the share of worker " +
                             std::to_string(w) +
                             " has no examples to fill its batches up from [use kData, or split "
                             "the data more evenly]");
    }
  }
  return remainder == Remainder::kDrop ? shortest : longest;
}

}  // namespace

ShardPolicy PolicyFor(const Source& source, const std::vector<OrderStage>& stages,
                      std::int64_t batch_size, Remainder remainder, const IterateOptions& options) {
  if (options.policy != ShardPolicy::kAuto) {
    return options.policy;
  }
  const bool one_order =
      options.num_workers < 2 || options.span != 1 || options.begin != 0 || options.end >= 0;
  const IterateOptions by_file{.num_workers = options.num_workers, .policy = ShardPolicy::kFile};
  return !one_order && Shard::Make(source, stages, batch_size, remainder, by_file).ok()
             ? ShardPolicy::kFile
             : ShardPolicy::kData;
}

bool GoesOnAsBegun(const IterateOptions& options) {
  return !options.begun.empty() && options.span == 1 &&
         options.begun.back().policy == options.policy &&
         options.begun.back().num_workers == options.num_workers;
}

bool HasOwnOrder(ShardPolicy policy) {
  return policy == ShardPolicy::kFile || policy == ShardPolicy::kHint ||
         policy == ShardPolicy::kOwn;
}

std::string_view DivisionName(ShardPolicy policy) {
  switch (policy) {
    case ShardPolicy::kOff:
      return "not at all";
    case ShardPolicy::kFile:
      return "by file";
    case ShardPolicy::kHint:
      return "at its mark";
    case ShardPolicy::kOwn:
      return "by each worker itself";
    case ShardPolicy::kAuto:
    case ShardPolicy::kData:
      break;
  }
  return "by record";
}

std::int64_t PartBegin(std::int64_t batch, int parts, int part) {
  return batch / parts * part + std::min<std::int64_t>(part, batch % parts);
}

std::int64_t Shard::NumberOf(std::int64_t batch) const {
  const std::int64_t since = batch - left_at_;
  return since >= 0 && since < std::ssize(overtaken_) ? overtaken_[static_cast<std::size_t>(since)]
                                                      : batch;
}

Range Shard::PositionsOf(std::int64_t number) const {
  const auto at = [this](std::int64_t examples) {
    return range_.begin + std::min(examples, range_.size());
  };
  if (own_) {
    return {at(TakenOf(batch_size_, parts_, part_, number)),
            at(TakenOf(batch_size_, parts_, part_, number + 1))};
  }
  const std::int64_t begin = at(number * batch_size_);
  const Range mine = MineOf(std::min(batch_size_, range_.end - begin));
  return {begin + mine.begin, begin + mine.end};
}

Range Shard::MineOf(std::int64_t rows) const {
  return {PartBegin(rows, parts_, part_), PartBegin(rows, parts_, part_ + span_)};
}

std::int64_t Shard::RowsOfBegun(std::int64_t number) const {
  std::int64_t rows = 0;
  for (const Shard& shard : begun_) {
    rows += shard.SizeOf(number);
  }
  return rows;
}

std::int64_t Shard::SizeOf(std::int64_t batch) const {
  const std::int64_t number = NumberOf(batch);
  return (begun_.empty() ? PositionsOf(number) : MineOf(RowsOfBegun(number))).size();
}

BatchExamples Shard::Examples(std::int64_t batch) const {
  BatchExamples examples;
  const auto rows = static_cast<std::size_t>(SizeOf(batch));
  examples.indexes.reserve(rows);
  examples.real.reserve(rows);
  examples.sample = order_.size() > 0 ? order_.At(0) : 0;
  Append(batch, {0, static_cast<std::int64_t>(rows)}, examples);
  return examples;
}

void Shard::Append(std::int64_t batch, Range rows, BatchExamples& examples) const {
  const std::int64_t number = NumberOf(batch);
  if (begun_.empty()) {
    const std::int64_t begin = PositionsOf(number).begin;
    for (std::int64_t p = begin + rows.begin; p < begin + rows.end; ++p) {
      examples.indexes.push_back(order_.At(p));
      examples.real.push_back(p < order_.size());
    }
    return;
  }
  const std::int64_t mine = MineOf(RowsOfBegun(number)).begin;
  std::int64_t before = 0;
  for (const Shard& shard : begun_) {
    const std::int64_t size = shard.SizeOf(number);
    const auto within = [&](std::int64_t row) {
      return std::clamp<std::int64_t>(mine + row - before, 0, size);
    };
    shard.Append(number, {within(rows.begin), within(rows.end)}, examples);
    before += size;
  }
}

std::vector<std::int64_t> Shard::LeftOf(const std::vector<std::int64_t>& overtaken,
                                        std::int64_t next) const {
  std::vector<std::int64_t> left;
  for (const std::int64_t batch : overtaken) {
    left.push_back(NumberOf(batch));
  }
  for (std::int64_t batch = next; batch < left_at_ + std::ssize(overtaken_); ++batch) {
    left.push_back(NumberOf(batch));
  }
  return left;
}

Status Shard::GoOn(const EpochDivision& division, int worker) {
  left_at_ = division.batch;
  if (division.overtaken.empty()) {
    return {};
  }
  overtaken_ = division.overtaken[static_cast<std::size_t>(worker)];
  std::int64_t last = -1;
  for (const std::int64_t number : overtaken_) {
    if (number <= last || number >= std::min(left_at_ + std::ssize(overtaken_), num_batches_)) {
      return InvalidArgument("no division of an epoch: batch " + std::to_string(number) +
                             " of worker " + std::to_string(worker) +
                             " is said to be still to come, at batch " + std::to_string(left_at_) +
                             " of " + std::to_string(num_batches_));
    }
    last = number;
  }
  return {};
}

Result<Shard> Shard::Make(const Source& source, const std::vector<OrderStage>& stages,
                          std::int64_t batch_size, Remainder remainder,
                          const IterateOptions& options) {
  const auto text = [](std::int64_t n) { return std::to_string(n); };
  if (batch_size < 1) {
    return InvalidArgument("this data set has no batches [call Batch before Iterate]");
  }
  if (options.num_workers < 1 || options.worker < 0 || options.worker >= options.num_workers) {
    return InvalidArgument("worker " + text(options.worker) + " of " + text(options.num_workers) +
                           " [0 <= worker < num_workers]");
  }
  if (options.policy == ShardPolicy::kAuto) {
    IterateOptions chosen = options;
    chosen.policy = PolicyFor(source, stages, batch_size, remainder, options);
    return Make(source, stages, batch_size, remainder, chosen);
  }
  const bool own_order = HasOwnOrder(options.policy);
  if (options.span < 1 || options.span > (own_order ? 1 : options.num_workers - options.worker)) {
    return InvalidArgument("a span of " + text(options.span) + " workers from " +
                           text(options.worker) + " of " + text(options.num_workers) +
                           (own_order ? " [1 under " + std::string(NameOf(options.policy)) + "]"
                                      : " [within num_workers]"));
  }
  if (options.epoch < 0) {
    return InvalidArgument("epoch " + text(options.epoch) + " [epochs start at 0]");
  }
  const bool hinted =
      std::ranges::any_of(stages, [](const OrderStage& stage) { return stage.IsHint(); });
  if (options.begun.empty() && hinted != (options.policy == ShardPolicy::kHint)) {
    return InvalidArgument(hinted
                               ? "Shard(kShardHint, kShardHint) stands for a worker's part only "
                                 "under ShardPolicy::kHint"
                               : "ShardPolicy::kHint: the data set has no mark [Shard(kShardHint, "
                                 "kShardHint) where it is to be divided]");
  }
  if (options.num_batches != -1 &&
      (options.policy != ShardPolicy::kOwn || options.num_batches < 0)) {
    return InvalidArgument("num_batches " + text(options.num_batches) +
                           " [at least 0, and only under ShardPolicy::kOwn]");
  }
  Maker* const make = !options.begun.empty()                                            ? OfBegun
                      : options.policy == ShardPolicy::kHint                            ? OfHint
                      : options.policy == ShardPolicy::kOwn                             ? OfOwn
                      : options.policy == ShardPolicy::kFile && options.num_workers > 1 ? OfFiles
                                                                                        : OfRecords;
  COHORT_ASSIGN_OR_RETURN(Shard shard, make(source, stages, batch_size, remainder, options));
  const std::int64_t first = options.begun.empty() ? 0 : options.begun.back().batch;
  if (options.first_batch < first || options.first_batch > shard.num_batches()) {
    return InvalidArgument("first_batch " + text(options.first_batch) + " of " +
                           (first > 0 ? "batches " + text(first) + " to " : std::string()) +
                           text(shard.num_batches()) +
                           " batches [was the data or the batch size changed since the position "
                           "was saved?]");
  }
  return shard;
}

Result<Shard> Shard::OfRecords(const Source& source, const std::vector<OrderStage>& stages,
                               std::int64_t batch_size, Remainder remainder,
                               const IterateOptions& options) {
  Shard shard(EpochOrder({{0, source.size()}}, stages, options.epoch, remainder));
  const std::int64_t size = shard.order_.size();
  const std::int64_t end = options.end < 0 ? size : options.end;
  if (options.begin < 0 || options.begin > end || end > size) {
    return InvalidArgument("examples [" + std::to_string(options.begin) + ", " +
                           std::to_string(end) + ") of an epoch of " + std::to_string(size));
  }
  // What is left out is the epoch's remainder, not each split's: splits of any length lose nothing.
  const std::int64_t used = remainder == Remainder::kDrop ? size - size % batch_size : size;
  shard.range_ = {std::min(options.begin, used), std::min(end, used)};
  shard.batch_size_ = batch_size;
  shard.num_batches_ = CeilDivide(shard.range_.size(), batch_size);
  if (FillsUp(remainder) && end == size) {
    shard.range_.end = shard.range_.begin + shard.num_batches_ * batch_size;
  }
  if (options.policy != ShardPolicy::kOff) {
    shard.parts_ = options.num_workers;
    shard.part_ = options.worker;
    shard.span_ = options.span;
  }
  return shard;
}

Result<Shard> Shard::OfFiles(const Source& source, const std::vector<OrderStage>& stages,
                             std::int64_t batch_size, Remainder remainder,
                             const IterateOptions& options) {
  const int workers = options.num_workers;
  const std::vector<FileRange> files = source.files();
  if (files.size() < static_cast<std::size_t>(workers)) {
    return InvalidArgument("ShardPolicy::kFile: " + std::to_string(files.size()) + " files for " +
                           std::to_string(workers) +
                           " workers [shard by record with kData, give every worker all of it with "
                           "kOff, or split the data into at least " +
                           std::to_string(workers) + " files, or use fewer workers]");
  }
  COHORT_RETURN_IF_ERROR(CheckOwnOrder(batch_size, options));
  std::int64_t limit = source.size();
  std::vector<OrderStage> shuffles;
  for (const OrderStage& stage : stages) {
    if (stage.kind == OrderStage::Kind::kShuffle ||
        stage.kind == OrderStage::Kind::kBufferShuffle) {
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

  // Each epoch's shares are its own where its order is.
  std::optional<std::uint64_t> draw;
  if (!shuffles.empty() && shuffles.front().reshuffle) {
    const Philox::Block words =
        Philox(shuffles.front().seed, "data/files").At(static_cast<std::uint64_t>(options.epoch));
    draw = (std::uint64_t{words[1]} << 32) | words[0];
  }
  const std::vector<std::vector<Range>> shares = SharesOf(files, limit, workers, draw);

  std::vector<std::int64_t> examples;
  for (const std::vector<Range>& share : shares) {
    examples.push_back(
        std::accumulate(share.begin(), share.end(), std::int64_t{0},
                        [](std::int64_t sum, const Range& range) { return sum + range.size(); }));
  }
  COHORT_ASSIGN_OR_RETURN(const std::int64_t batches,
                          CountBatches(examples, batch_size, remainder, options));
  return OwnOrder(EpochOrder(shares[static_cast<std::size_t>(options.worker)], shuffles,
                             options.epoch, remainder),
                  batch_size, batches, remainder, options);
}

Result<Shard> Shard::OfHint(const Source& source, const std::vector<OrderStage>& stages,
                            std::int64_t batch_size, Remainder remainder,
                            const IterateOptions& options) {
  COHORT_RETURN_IF_ERROR(CheckOwnOrder(batch_size, options));
  std::vector<OrderStage> mine = stages;
  OrderStage& mark = *std::ranges::find_if(mine, &OrderStage::IsHint);
  mark.count = options.num_workers;
  std::vector<std::int64_t> examples;
  for (int w = 0; w < options.num_workers; ++w) {
    mark.number = w;
    examples.push_back(EpochSize(source.size(), mine));
  }
  mark.number = options.worker;
  COHORT_ASSIGN_OR_RETURN(const std::int64_t batches,
                          CountBatches(examples, batch_size, remainder, options));
  return OwnOrder(EpochOrder({{0, source.size()}}, mine, options.epoch, remainder), batch_size,
                  batches, remainder, options);
}

Result<Shard> Shard::OfOwn(const Source& source, const std::vector<OrderStage>& stages,
                           std::int64_t batch_size, Remainder remainder,
                           const IterateOptions& options) {
  COHORT_RETURN_IF_ERROR(CheckOwnOrder(batch_size, options));
  EpochOrder order({{0, source.size()}}, stages, options.epoch, remainder);
  const bool drops = remainder == Remainder::kDrop;
  const std::int64_t has =
      BatchesOf(order.size(), batch_size, options.num_workers, options.worker, drops);
  const std::int64_t batches = options.num_batches < 0 ? has : options.num_batches;
  if (drops ? batches > has : batches < has) {
    return InvalidArgument("ShardPolicy::kOwn: num_batches " + std::to_string(batches) +
                           " of a share of " + std::to_string(has) + " batches");
  }
  if (FillsUp(remainder) && order.size() == 0 && batches > 0) {
    return InvalidArgument("ShardPolicy::kOwn: the share of worker " +
                           std::to_string(options.worker) +
                           " has no examples to fill its batches up from [use kData, or split the "
                           "data more evenly]");
  }
  return OwnOrder(std::move(order), batch_size, batches, remainder, options);
}

Shard Shard::OwnOrder(EpochOrder order, std::int64_t batch_size, std::int64_t num_batches,
                      Remainder remainder, const IterateOptions& options) {
  Shard shard(std::move(order));
  shard.own_ = true;
  shard.batch_size_ = batch_size;
  shard.num_batches_ = num_batches;
  shard.parts_ = options.num_workers;
  shard.part_ = options.worker;
  shard.range_ = {0, FillsUp(remainder)
                         ? TakenOf(batch_size, options.num_workers, options.worker, num_batches)
                         : shard.order_.size()};
  return shard;
}

Result<Shard> Shard::OfBegun(const Source& source, const std::vector<OrderStage>& stages,
                             std::int64_t batch_size, Remainder remainder,
                             const IterateOptions& options) {
  const EpochDivision& left = options.begun.back();
  const auto workers = static_cast<std::size_t>(left.num_workers);
  if (left.num_workers < 1 || left.batch < 0 ||
      (!left.overtaken.empty() && left.overtaken.size() != workers)) {
    return InvalidArgument("no division of an epoch: " + std::to_string(left.num_workers) +
                           " workers, batch " + std::to_string(left.batch) + ", lists of " +
                           std::to_string(left.overtaken.size()) + " workers");
  }
  if (options.begin != 0 || options.end >= 0) {
    return InvalidArgument("the rest of an epoch that was divided " +
                           std::string(DivisionName(left.policy)) +
                           " has no order of which a range could be taken");
  }
  IterateOptions then = options;
  then.policy = left.policy;
  then.num_workers = left.num_workers;
  then.span = 1;
  then.first_batch = left.batch;
  then.begun.pop_back();
  const auto part_of = [&](int worker) -> Result<Shard> {
    then.worker = worker;
    COHORT_ASSIGN_OR_RETURN(Shard shard, Make(source, stages, batch_size, remainder, then));
    COHORT_RETURN_IF_ERROR(shard.GoOn(left, worker));
    return shard;
  };
  if (GoesOnAsBegun(options)) {
    return part_of(options.worker);
  }
  if (left.policy == ShardPolicy::kOwn || left.policy == ShardPolicy::kOff) {
    return InvalidArgument("the epoch was divided " + std::string(DivisionName(left.policy)) +
                           " among " + std::to_string(left.num_workers) +
                           " workers: only as many, under the same policy, can go on with it");
  }
  std::vector<Shard> shards;
  for (int worker = 0; worker < left.num_workers; ++worker) {
    COHORT_ASSIGN_OR_RETURN(Shard shard, part_of(worker));
    shards.push_back(std::move(shard));
  }
  Shard shard(shards.front().order_);
  shard.num_batches_ = shards.front().num_batches_;
  shard.begun_ = std::move(shards);
  if (options.policy != ShardPolicy::kOff) {
    shard.parts_ = options.num_workers;
    shard.part_ = options.worker;
    shard.span_ = options.span;
  }
  return shard;
}

}  // namespace cohort::data
