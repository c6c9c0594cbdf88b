#include "synchronous/distributed_dataset.h"

#include <algorithm>
#include <utility>

namespace cohort {
namespace {

class SynchronousDataset final : public DistributedDataset {
 public:
  // How a batch of `size` examples, of which the iterator gives part, is cut: replica r gets
  // [begin(size, r), begin(size, r + 1)) of that part.
  struct Cut {
    int workers = 1;  // as data::IterateOptions has them
    int worker = 0;
    int span = 1;
    int replicas = 1;
    data::ShardPolicy policy = data::ShardPolicy::kAuto;
  };
  SynchronousDataset(const data::Dataset& dataset, const Cut& cut) : dataset_(dataset), cut_(cut) {}

  Status BeginEpoch(std::int64_t epoch, std::int64_t first_batch) override {
    iterator_.reset();  // its threads end before others begin
    data::IterateOptions options;
    options.num_workers = cut_.workers;
    options.worker = cut_.worker;
    options.span = cut_.span;
    options.policy = cut_.policy;
    options.epoch = epoch;
    options.first_batch = first_batch;
    COHORT_ASSIGN_OR_RETURN(iterator_, dataset_.Iterate(options));
    epoch_ = epoch;
    index_ = first_batch;
    return {};
  }

  Result<std::optional<DistributedBatch>> Next() override {
    Require(iterator_ != nullptr, "Next after BeginEpoch");
    COHORT_ASSIGN_OR_RETURN(std::optional<data::Batch> part, iterator_->Next());
    if (!part.has_value()) {
      return std::optional<DistributedBatch>();
    }
    DistributedBatch batch;
    batch.epoch = epoch_;
    batch.index = index_++;
    if (cut_.replicas == 1) {
      batch.replicas.push_back(*std::move(part));
    } else {
      for (int r = 0; r < cut_.replicas; ++r) {
        batch.replicas.push_back(
            part->Slice(Begin(batch.index, part->size, r), Begin(batch.index, part->size, r + 1)));
      }
    }
    return std::optional<DistributedBatch>(std::move(batch));
  }

 private:
  // Where replica r's slice of the part of batch `index` begins. A shard's place is that in the
  // whole batch, since others cut the same batch elsewhere.
  std::int64_t Begin(std::int64_t index, std::int64_t part, int r) const {
    if (cut_.span == 1) {
      return data::PartBegin(part, cut_.replicas, r);
    }
    const std::int64_t whole = dataset_.SizeOfBatch(index);
    return data::PartBegin(whole, cut_.workers, cut_.worker + r) -
           data::PartBegin(whole, cut_.workers, cut_.worker);
  }

  const data::Dataset dataset_;
  const Cut cut_;
  std::unique_ptr<data::BatchIterator> iterator_;
  std::int64_t epoch_ = 0;
  std::int64_t index_ = 0;
};

class AheadDataset final : public DistributedDataset {
 public:
  AheadDataset(std::unique_ptr<DistributedDataset> batches, std::function<void(PeekNext)> offer)
      : batches_(std::move(batches)), offer_(std::move(offer)) {}
  ~AheadDataset() override { offer_(nullptr); }

  Status BeginEpoch(std::int64_t epoch, std::int64_t first_batch) override {
    offer_(nullptr);
    next_.reset();
    return batches_->BeginEpoch(epoch, first_batch);
  }
  Result<std::optional<DistributedBatch>> Next() override {
    offer_([this] { return Peek(); });
    return next_.has_value() ? *std::exchange(next_, std::nullopt) : batches_->Next();
  }

 private:
  const DistributedBatch* Peek() {
    if (!next_.has_value()) {
      next_ = batches_->Next();
    }
    return next_->ok() && next_->value().has_value() ? &*next_->value() : nullptr;
  }

  const std::unique_ptr<DistributedDataset> batches_;
  const std::function<void(PeekNext)> offer_;
  std::optional<Result<std::optional<DistributedBatch>>> next_;
};

}  // namespace

std::unique_ptr<DistributedDataset> LookAhead(std::unique_ptr<DistributedDataset> batches,
                                              std::function<void(PeekNext)> offer) {
  return std::make_unique<AheadDataset>(std::move(batches), std::move(offer));
}

std::unique_ptr<DistributedDataset> MakeSynchronousDataset(const data::Dataset& dataset,
                                                           int processes, int process, int replicas,
                                                           data::ShardPolicy policy) {
  return std::make_unique<SynchronousDataset>(dataset, SynchronousDataset::Cut{.workers = processes,
                                                                               .worker = process,
                                                                               .span = 1,
                                                                               .replicas = replicas,
                                                                               .policy = policy});
}

std::unique_ptr<DistributedDataset> MakeShardedDataset(const data::Dataset& dataset, int shards,
                                                       int first, int count) {
  return std::make_unique<SynchronousDataset>(
      dataset, SynchronousDataset::Cut{
                   .workers = shards, .worker = first, .span = count, .replicas = count});
}

}  // namespace cohort
