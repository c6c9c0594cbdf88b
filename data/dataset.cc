#include <cohort/data/dataset.h>

#include <algorithm>
#include <utility>
#include <vector>

#include <cohort/core/random.h>

#include "batch_builder.h"
#include "iterator.h"
#include "shard.h"

namespace cohort::data {

struct Dataset::Plan {
  std::shared_ptr<const Source> source;  // owners: every Plan made from it, and their iterators
  std::vector<OrderStage> order;
  std::vector<MapFn> maps;
  std::int64_t batch_size = 0;  // 0: not batched yet
  bool drop_remainder = false;
  int prefetch_batches = 0;
  int prefetch_threads = 1;
};

Dataset::Dataset(std::shared_ptr<const Source> source) {
  Require(source != nullptr, "a data set has a source");
  plan_ = std::make_shared<const Plan>(Plan{.source = std::move(source)});
}

Dataset::Dataset(std::shared_ptr<const Plan> plan) : plan_(std::move(plan)) {}

Dataset Dataset::Shuffle(std::uint64_t seed, bool reshuffle) const {
  Require(plan_->batch_size == 0, "Shuffle stands before Batch");
  Plan plan = *plan_;
  plan.order.push_back({.kind = OrderStage::Kind::kShuffle, .seed = seed, .reshuffle = reshuffle});
  return Dataset(std::make_shared<const Plan>(std::move(plan)));
}

Dataset Dataset::Take(std::int64_t examples) const {
  Require(plan_->batch_size == 0, "Take stands before Batch");
  Require(examples >= 0, "Take of at least 0 examples");
  Plan plan = *plan_;
  plan.order.push_back({.kind = OrderStage::Kind::kTake, .count = examples});
  return Dataset(std::make_shared<const Plan>(std::move(plan)));
}

Dataset Dataset::Map(std::function<Status(Example&)> transform) const {
  Require(plan_->batch_size == 0, "Map stands before Batch");
  Require(transform != nullptr, "Map has a function");
  Plan plan = *plan_;
  plan.maps.push_back(std::move(transform));
  return Dataset(std::make_shared<const Plan>(std::move(plan)));
}

Dataset Dataset::Batch(std::int64_t global_batch_size, bool drop_remainder) const {
  Require(plan_->batch_size == 0, "Batch once");
  Require(global_batch_size >= 1, "a batch of at least 1 example");
  Plan plan = *plan_;
  plan.batch_size = global_batch_size;
  plan.drop_remainder = drop_remainder;
  return Dataset(std::make_shared<const Plan>(std::move(plan)));
}

Dataset Dataset::Prefetch(int batches, int threads) const {
  Require(batches >= 0 && threads >= 1, "Prefetch of at least 0 batches on at least 1 thread");
  Plan plan = *plan_;
  plan.prefetch_batches = batches;
  plan.prefetch_threads = threads;
  return Dataset(std::make_shared<const Plan>(std::move(plan)));
}

const Source& Dataset::source() const { return *plan_->source; }

std::int64_t Dataset::size() const { return EpochSize(plan_->source->size(), plan_->order); }

std::int64_t Dataset::batch_size() const { return plan_->batch_size; }

std::int64_t Dataset::batches_per_epoch() const {
  if (plan_->batch_size == 0) {
    return 0;
  }
  const bool short_last = !plan_->drop_remainder && size() % plan_->batch_size != 0;
  return size() / plan_->batch_size + (short_last ? 1 : 0);
}

std::uint64_t Dataset::Fingerprint() const {
  std::vector<std::uint64_t> words = {
      plan_->source->Fingerprint(), static_cast<std::uint64_t>(plan_->source->size()),
      plan_->maps.size(), static_cast<std::uint64_t>(plan_->batch_size),
      plan_->drop_remainder ? 1U : 0U};
  for (const OrderStage& stage : plan_->order) {
    words.insert(words.end(), {static_cast<std::uint64_t>(stage.kind), stage.seed,
                               stage.reshuffle ? 1U : 0U, static_cast<std::uint64_t>(stage.count)});
  }
  return Hash64({reinterpret_cast<const char*>(words.data()), words.size() * sizeof(words[0])});
}

Result<std::int64_t> Dataset::CountBatches(const IterateOptions& options) const {
  COHORT_ASSIGN_OR_RETURN(
      const Shard shard,
      Shard::Make(*plan_->source, plan_->order, plan_->batch_size, plan_->drop_remainder, options));
  return shard.num_batches();
}

Result<std::unique_ptr<BatchIterator>> Dataset::Iterate(const IterateOptions& options) const {
  COHORT_ASSIGN_OR_RETURN(Shard shard, Shard::Make(*plan_->source, plan_->order, plan_->batch_size,
                                                   plan_->drop_remainder, options));
  IteratorPlan plan{BatchBuilder(plan_->source, plan_->maps), std::move(shard),
                    options.first_batch};
  if (plan_->prefetch_batches == 0) {
    return MakeDirectIterator(std::move(plan));
  }
  return MakePrefetchIterator(std::move(plan), plan_->prefetch_batches, plan_->prefetch_threads);
}

}  // namespace cohort::data
