#include <cohort/data/dataset.h>

#include <algorithm>
#include <limits>
#include <mutex>
#include <utility>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/core/thread_pool.h>

#include "batch_builder.h"
#include "iterator.h"
#include "plan_source.h"
#include "shard.h"
#include "sources/exact_text.h"
#include "sources/guarded.h"

namespace cohort::data {

struct Dataset::Plan {
  // The source's Fingerprint, which may take a pass over the data: asked for once.
  struct SourceDigest {
    std::once_flag once;
    std::uint64_t value = 0;
  };

  std::shared_ptr<const Source> source;  // owners: every Plan made from it, and their iterators
  std::shared_ptr<SourceDigest> digest = std::make_shared<SourceDigest>();  // owners: as of source
  std::vector<OrderStage> order;
  Recipe recipe;
  std::int64_t batch_size = 0;  // 0: not batched yet
  Remainder remainder = Remainder::kShort;
  int prefetch_batches = 0;
  int prefetch_threads = 1;
  std::int64_t prefetch_bytes = 0;
  bool deterministic = true;

  bool bucketed() const { return !order.empty() && order.back().kind == OrderStage::Kind::kBucket; }
  bool hinted() const {
    return std::ranges::any_of(order, [](const OrderStage& stage) { return stage.IsHint(); });
  }
  ShardPolicy PolicyFor(const IterateOptions& options) const {
    return data::PolicyFor(*source, order, batch_size, remainder, options);
  }
  // With one more stage.
  std::shared_ptr<const Plan> Then(OrderStage stage, const char* what) const {
    Require(batch_size == 0, std::string(what) + " stands before Batch");
    Require(!bucketed(), std::string(what) + " stands before BucketByLength");
    Plan plan = *this;
    plan.order.push_back(std::move(stage));
    return std::make_shared<const Plan>(std::move(plan));
  }
  // A digest of the examples and their order, whatever the batches.
  std::vector<std::uint64_t> Words() const;
  // Of an epoch's batches, but their size; 0 where each worker has other examples.
  std::uint64_t DigestOfBatches(ShardPolicy policy) const;
};

Dataset::Dataset(std::shared_ptr<const Source> source) {
  Require(source != nullptr, "a data set has a source");
  plan_ = std::make_shared<const Plan>(Plan{.source = std::move(source)});
}

Dataset::Dataset(std::shared_ptr<const Plan> plan) : plan_(std::move(plan)) {}

using Kind = OrderStage::Kind;

Dataset Dataset::Shuffle(std::uint64_t seed, bool reshuffle) const {
  return Dataset(
      plan_->Then({.kind = Kind::kShuffle, .seed = seed, .reshuffle = reshuffle}, "Shuffle"));
}

Dataset Dataset::ShuffleBlocks(std::uint64_t seed, std::int64_t block, std::int64_t mixed_blocks,
                               bool reshuffle) const {
  Require(block >= 1 && mixed_blocks >= 1, "ShuffleBlocks of at least 1 block of 1 example");
  return Dataset(plan_->Then({.kind = Kind::kBlockShuffle,
                              .seed = seed,
                              .reshuffle = reshuffle,
                              .count = block,
                              .number = mixed_blocks},
                             "ShuffleBlocks"));
}

Dataset Dataset::ShuffleBuffer(std::uint64_t seed, std::int64_t buffer, bool reshuffle) const {
  Require(buffer >= 1, "ShuffleBuffer of at least 1 example");
  return Dataset(plan_->Then(
      {.kind = Kind::kBufferShuffle, .seed = seed, .reshuffle = reshuffle, .count = buffer},
      "ShuffleBuffer"));
}

Dataset Dataset::Take(std::int64_t examples) const {
  Require(examples >= 0, "Take of at least 0 examples");
  return Dataset(plan_->Then({.kind = Kind::kTake, .count = examples}, "Take"));
}

Dataset Dataset::Skip(std::int64_t examples) const {
  Require(examples >= 0, "Skip of at least 0 examples");
  return Dataset(plan_->Then({.kind = Kind::kSkip, .count = examples}, "Skip"));
}

Dataset Dataset::Repeat(std::int64_t times) const {
  Require(times >= 0 && (times == 0 || size() <= (std::int64_t{1} << 62) / times),
          "Repeat of at least 0 times, and of fewer than 2^62 examples in all");
  return Dataset(plan_->Then({.kind = Kind::kRepeat, .count = times}, "Repeat"));
}

Dataset Dataset::Shard(std::int64_t parts, std::int64_t i) const {
  if (parts == kShardHint && i == kShardHint) {
    Require(!plan_->hinted(), "one mark for ShardPolicy::kHint");
    return Dataset(plan_->Then({.kind = Kind::kShard, .count = kShardHint}, "Shard"));
  }
  Require(parts >= 1 && 0 <= i && i < parts, "Shard i of parts, 0 <= i < parts");
  return Dataset(plan_->Then({.kind = Kind::kShard, .count = parts, .number = i}, "Shard"));
}

Dataset Dataset::BucketByLength(std::shared_ptr<const std::vector<std::int32_t>> lengths,
                                std::uint64_t seed, std::int64_t window_batches) const {
  Require(lengths != nullptr && lengths->size() == static_cast<std::size_t>(plan_->source->size()),
          "BucketByLength has a length for each example of the source");
  Require(window_batches >= 1, "a window of at least 1 batch");
  Require(plan_->source->AtEpoch(1) == nullptr,
          "BucketByLength of examples that have the same numbers in every epoch: parts are put "
          "together unshuffled");
  return Dataset(plan_->Then(
      {.kind = Kind::kBucket, .seed = seed, .count = window_batches, .lengths = std::move(lengths)},
      "BucketByLength"));
}

Dataset Dataset::Map(std::function<Status(Example&)> transform) const {
  Require(plan_->batch_size == 0, "Map stands before Batch");
  Require(transform != nullptr, "Map has a function");
  Plan plan = *plan_;
  plan.recipe.maps.push_back(std::move(transform));
  return Dataset(std::make_shared<const Plan>(std::move(plan)));
}

Dataset Dataset::Lists(const std::vector<std::string>& names) const {
  Require(plan_->batch_size == 0, "Lists stands before Batch");
  Plan plan = *plan_;
  plan.recipe.ragged.insert(names.begin(), names.end());
  return Dataset(std::make_shared<const Plan>(std::move(plan)));
}

Dataset Dataset::Pad(const std::string& name, const PadOptions& options) const {
  Require(options.length >= 0 && options.multiple >= 1 && (!options.cut || options.length > 0),
          "Pad to a length of at least 0 and a multiple of at least 1; cut to a length");
  Plan plan = *plan_;
  Require(plan.recipe.pads.emplace(name, options).second, "Pad a feature once");
  return Dataset(std::make_shared<const Plan>(std::move(plan)));
}

Dataset Dataset::Batch(std::int64_t global_batch_size, bool drop_remainder) const {
  return Batch(global_batch_size, drop_remainder ? Remainder::kDrop : Remainder::kShort);
}

Dataset Dataset::Batch(std::int64_t global_batch_size, Remainder remainder,
                       const std::string& weights) const {
  Require(plan_->batch_size == 0, "Batch once");
  Require(global_batch_size >= 1, "a batch of at least 1 example");
  Require(remainder != Remainder::kPad || !weights.empty(), "a feature for the weights has a name");
  Plan plan = *plan_;
  plan.batch_size = global_batch_size;
  plan.remainder = remainder;
  if (remainder == Remainder::kPad) {
    plan.recipe.weights = weights;
  }
  if (plan.bucketed()) {
    plan.order.back().number = global_batch_size;
  }
  return Dataset(std::make_shared<const Plan>(std::move(plan)));
}

Dataset Dataset::Prefetch(int batches, int threads, std::int64_t max_bytes) const {
  Require(batches >= kAutotune && (threads >= 1 || threads == kAutotune),
          "Prefetch of at least 0 batches on at least 1 thread, or kAutotune");
  Require(max_bytes >= 0, "Prefetch of at least 0 bytes");
  Plan plan = *plan_;
  plan.prefetch_batches = batches;
  plan.prefetch_threads = threads;
  plan.prefetch_bytes = max_bytes;
  return Dataset(std::make_shared<const Plan>(std::move(plan)));
}

Dataset Dataset::Deterministic(bool deterministic) const {
  Plan plan = *plan_;
  plan.deterministic = deterministic;
  return Dataset(std::make_shared<const Plan>(std::move(plan)));
}

bool Dataset::deterministic() const { return plan_->deterministic; }

const Source& Dataset::source() const { return *plan_->source; }

std::int64_t Dataset::size() const { return EpochSize(plan_->source->size(), plan_->order); }

std::int64_t Dataset::batch_size() const { return plan_->batch_size; }

std::int64_t Dataset::batches_per_epoch() const {
  if (plan_->batch_size == 0) {
    return 0;
  }
  const bool one_more = plan_->remainder != Remainder::kDrop && size() % plan_->batch_size != 0;
  return size() / plan_->batch_size + (one_more ? 1 : 0);
}

Remainder Dataset::remainder() const { return plan_->remainder; }

std::int64_t Dataset::SizeOfBatch(std::int64_t batch) const {
  if (batch < 0 || batch >= batches_per_epoch()) {
    return 0;
  }
  return FillsUp(plan_->remainder)
             ? plan_->batch_size
             : std::min(plan_->batch_size, size() - batch * plan_->batch_size);
}

std::vector<std::uint64_t> Dataset::Plan::Words() const {
  std::call_once(digest->once, [this] { digest->value = source->Fingerprint(); });
  std::vector<std::uint64_t> words = {digest->value, static_cast<std::uint64_t>(source->size()),
                                      recipe.maps.size()};
  for (const OrderStage& stage : order) {
    words.insert(words.end(), {static_cast<std::uint64_t>(stage.kind), stage.seed,
                               stage.reshuffle ? 1U : 0U, static_cast<std::uint64_t>(stage.count),
                               static_cast<std::uint64_t>(stage.number)});
    if (stage.lengths != nullptr) {
      words.push_back(Hash64({reinterpret_cast<const char*>(stage.lengths->data()),
                              stage.lengths->size() * sizeof(std::int32_t)}));
    }
  }
  return words;
}

namespace {

std::uint64_t DigestOf(const std::vector<std::uint64_t>& words) {
  return Hash64({reinterpret_cast<const char*>(words.data()), words.size() * sizeof(words[0])});
}

}  // namespace

std::uint64_t Dataset::Plan::DigestOfBatches(ShardPolicy policy) const {
  if (policy == ShardPolicy::kOwn) {
    return 0;
  }
  std::vector<std::uint64_t> words = Words();
  words.push_back(static_cast<std::uint64_t>(remainder));
  return DigestOf(words);
}

std::uint64_t Dataset::Fingerprint() const {
  std::vector<std::uint64_t> words = plan_->Words();
  words.push_back(static_cast<std::uint64_t>(plan_->batch_size));
  words.push_back(static_cast<std::uint64_t>(plan_->remainder));
  if (!plan_->recipe.weights.empty()) {
    words.push_back(Hash64(plan_->recipe.weights));
  }
  for (const auto& [name, pad] : plan_->recipe.pads) {
    words.push_back(Hash64(name + "/" + ExactText(pad.value) + "/" + std::to_string(pad.length) +
                           "/" + std::to_string(pad.multiple) + pad.lengths +
                           (pad.cut ? "c" : "")));
  }
  return DigestOf(words);
}

ShardPolicy Dataset::PolicyFor(ShardPolicy policy, int num_workers) const {
  return plan_->PolicyFor({.num_workers = num_workers, .policy = policy});
}

DataPosition Dataset::PositionAt(const IterateOptions& given, std::int64_t batch,
                                 const std::vector<std::vector<std::int64_t>>& overtaken) const {
  IterateOptions options = given;
  options.policy = plan_->PolicyFor(given);
  Require(plan_->batch_size > 0, "a place in a data set with batches");
  Require(overtaken.empty() || overtaken.size() == static_cast<std::size_t>(options.num_workers),
          "what was overtaken, of each worker");
  DataPosition position{.epoch = options.epoch, .fingerprint = DigestOf(plan_->Words())};
  position.begun = options.begun;
  if (GoesOnAsBegun(options)) {
    position.begun.pop_back();  // Overtaken has what was left then, too
  }
  const bool any =
      std::ranges::any_of(overtaken, [](const auto& numbers) { return !numbers.empty(); });
  if (any || (position.begun.empty() && HasOwnOrder(options.policy))) {
    const bool by_record = !position.begun.empty() && options.policy != ShardPolicy::kOff;
    position.begun.push_back({.policy = by_record ? ShardPolicy::kData : options.policy,
                              .num_workers = options.num_workers,
                              .batch = batch});
    if (any) {
      position.begun.back().overtaken = overtaken;
    }
  }
  if (!position.begun.empty()) {
    position.batch = batch;
    position.batch_size = plan_->batch_size;
    position.fingerprint = plan_->DigestOfBatches(position.begun.front().policy);
    return position;
  }
  const std::int64_t end = options.end < 0 ? size() : options.end;
  position.example = std::min(options.begin + batch * plan_->batch_size, end);
  if (plan_->remainder == Remainder::kDrop && end - position.example < plan_->batch_size) {
    position.example = end;  // the rest is left out
  }
  return position;
}

Result<IterateOptions> Dataset::ResumeAt(const DataPosition& position,
                                         IterateOptions options) const {
  options.policy = plan_->PolicyFor(options);
  const bool begun = !position.begun.empty();
  if (position.fingerprint !=
      (begun ? plan_->DigestOfBatches(position.begun.front().policy) : DigestOf(plan_->Words()))) {
    return FailedPrecondition(
        "the place in the data was saved for other data, another order (seed, Take, Repeat, ...) "
        "or "
        "other maps than this data set's [go on with those, or begin an epoch]");
  }
  options.epoch = position.epoch;
  options.begun = position.begun;
  options.first_batch = position.batch;
  if (!begun) {
    if (position.example > size()) {
      return FailedPrecondition("the place in the data is example " +
                                std::to_string(position.example) + " of an epoch of " +
                                std::to_string(size()));
    }
    if (!HasOwnOrder(options.policy) || position.example == 0) {
      options.begin = position.example;
      return options;
    }
    // The epoch ends as it was begun, in batches of an order that all share.
    const bool done = position.example == size();
    if (options.policy == ShardPolicy::kOwn ||
        (!done && position.example % plan_->batch_size != 0)) {
      return FailedPrecondition(
          "the place in the data is example " + std::to_string(position.example) +
          " of an order that all workers share, where " +
          (options.policy == ShardPolicy::kOwn
               ? "none of shares begins"
               : "no batch of " + std::to_string(plan_->batch_size) + " examples begins"));
    }
    options.begun = {{.policy = ShardPolicy::kData}};
    options.first_batch = done ? batches_per_epoch() : position.example / plan_->batch_size;
    return options;
  }
  if (position.batch_size != plan_->batch_size) {
    return FailedPrecondition("the place in the data is within an epoch that was divided " +
                              std::string(DivisionName(position.begun.front().policy)) +
                              " in batches of " + std::to_string(position.batch_size) +
                              ", not of " + std::to_string(plan_->batch_size) +
                              " [end the epoch with those]");
  }
  const EpochDivision& left = position.begun.back();
  if ((left.policy == ShardPolicy::kOwn || left.policy == ShardPolicy::kOff) &&
      !GoesOnAsBegun(options)) {
    return FailedPrecondition("the place in the data is within an epoch that was divided " +
                              std::string(DivisionName(left.policy)) + " among " +
                              std::to_string(left.num_workers) +
                              " workers [end the epoch with as many, under that policy]");
  }
  return options;
}

Result<std::shared_ptr<const Source>> Dataset::AsSource() const {
  if (plan_->batch_size != 0 || plan_->bucketed() || !plan_->recipe.pads.empty()) {
    return InvalidArgument(
        "a data set with batches, buckets or padding is no source [put data sets together first]");
  }
  if (plan_->hinted()) {
    return InvalidArgument(
        "a data set with a mark for ShardPolicy::kHint is no source [mark what is put together]");
  }
  if (plan_->order.empty() && plan_->recipe.maps.empty()) {
    return plan_->source;
  }
  return PlanSource::Make(plan_->source, plan_->order, plan_->recipe, DigestOf(plan_->Words()));
}

Result<std::shared_ptr<const std::vector<std::int32_t>>> Dataset::LengthsOf(const std::string& name,
                                                                            int threads) const {
  Require(threads >= 1, "at least 1 thread");
  const Source& all = *plan_->source;
  if (all.AtEpoch(1) != nullptr) {
    return InvalidArgument(
        "LengthsOf: the data set is put together of parts that are shuffled, or mixed, anew in "
        "each "
        "epoch [Shuffle what is put together]");
  }
  auto lengths = std::make_shared<std::vector<std::int32_t>>(static_cast<std::size_t>(all.size()));
  std::mutex mutex;
  Status first_error;
  std::int64_t first_place = std::numeric_limits<std::int64_t>::max();
  const auto measure = [&](std::int64_t index) -> Status {
    COHORT_ASSIGN_OR_RETURN(Example example, all.Read(index));
    COHORT_RETURN_IF_ERROR(ApplyMaps(plan_->recipe.maps, all, index, example));
    const auto it = example.find(name);
    if (it == example.end() || it->second.shape().rank() != 1 ||
        it->second.shape()[0] > std::numeric_limits<std::int32_t>::max()) {
      return InvalidArgument(all.Where(index) + ": feature '" + name +
                             (it == example.end() ? "' is missing" : "' has not one axis"));
    }
    (*lengths)[static_cast<std::size_t>(index)] = static_cast<std::int32_t>(it->second.shape()[0]);
    return {};
  };
  ThreadPool pool(threads, "lengths");
  pool.ParallelFor(all.size(), 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      if (Status status = Guarded(measure, i); !status.ok()) {
        std::lock_guard lock(mutex);
        if (i < first_place) {
          first_place = i;
          first_error = std::move(status);
        }
        return;
      }
    }
  });
  COHORT_RETURN_IF_ERROR(first_error);
  return std::shared_ptr<const std::vector<std::int32_t>>(std::move(lengths));
}

Result<std::int64_t> Dataset::CountBatches(const IterateOptions& options) const {
  COHORT_ASSIGN_OR_RETURN(const data::Shard shard,
                          data::Shard::Make(*plan_->source, plan_->order, plan_->batch_size,
                                            plan_->remainder, options));
  return shard.num_batches();
}

Result<std::unique_ptr<BatchIterator>> Dataset::Iterate(const IterateOptions& options) const {
  COHORT_ASSIGN_OR_RETURN(data::Shard shard,
                          data::Shard::Make(*plan_->source, plan_->order, plan_->batch_size,
                                            plan_->remainder, options));
  std::shared_ptr<const Source> source = plan_->source->AtEpoch(options.epoch);
  if (source == nullptr) {
    source = plan_->source;
  }
  IteratorPlan plan{BatchBuilder(std::move(source), plan_->recipe, options.allocate),
                    std::move(shard), options.first_batch,
                    plan_->deterministic || options.begin != 0 || options.end >= 0};
  if (plan_->prefetch_batches == 0) {
    return MakeDirectIterator(std::move(plan));
  }
  return MakePrefetchIterator(std::move(plan), {.ahead = plan_->prefetch_batches,
                                                .threads = plan_->prefetch_threads,
                                                .max_bytes = plan_->prefetch_bytes});
}

}  // namespace cohort::data
