#include "synchronous/distributed_dataset.h"

#include <chrono>
#include <utility>

namespace cohort {
namespace {

class SynchronousDataset final : public DistributedDataset {
 public:
  SynchronousDataset(const data::Dataset& dataset, data::IterateOptions part, int replicas,
                     std::int64_t batches)
      : dataset_(dataset), part_(std::move(part)), replicas_(replicas), batches_(batches) {}

  Status BeginEpoch(std::int64_t epoch, std::int64_t first_batch) override {
    return ResumeEpoch(epoch, first_batch, {});
  }
  Status ResumeEpoch(std::int64_t epoch, std::int64_t first_batch,
                     const std::vector<data::EpochDivision>& begun) override {
    if (!begun.empty() && part_.span != 1) {
      return FailedPrecondition("virtual shards are cut from the batches of one order: epoch " +
                                std::to_string(epoch) + " was divided " +
                                std::string(data::DivisionName(begun.front().policy)) +
                                " [end it as it was begun]");
    }
    iterator_.reset();  // its threads end before others begin
    data::IterateOptions options = part_;
    options.epoch = epoch;
    options.first_batch = first_batch;
    options.begun = begun;
    // Shares of files are drawn anew for each epoch.
    COHORT_ASSIGN_OR_RETURN(batches_, dataset_.CountBatches(options));
    COHORT_ASSIGN_OR_RETURN(iterator_, dataset_.Iterate(options));
    epoch_ = epoch;
    index_ = first_batch;
    return {};
  }

  Result<std::optional<DistributedBatch>> Next() override {
    Require(iterator_ != nullptr, "Next after BeginEpoch");
    const SteadyClock::time_point before = SteadyClock::now();
    Result<std::optional<data::Batch>> next = iterator_->Next();
    waited_ += SteadyClock::now() - before;
    COHORT_ASSIGN_OR_RETURN(std::optional<data::Batch> part, std::move(next));
    if (!part.has_value()) {
      return std::optional<DistributedBatch>();
    }
    DistributedBatch batch;
    batch.epoch = epoch_;
    batch.index = index_++;
    if (replicas_ == 1) {
      batch.replicas.push_back(*std::move(part));
    } else {
      for (int r = 0; r < replicas_; ++r) {
        batch.replicas.push_back(
            part->Slice(Begin(batch.index, part->size, r), Begin(batch.index, part->size, r + 1)));
      }
    }
    return std::optional<DistributedBatch>(std::move(batch));
  }

  std::int64_t batches_per_epoch() const override { return batches_; }
  double input_seconds() const override { return waited_.count(); }
  std::vector<std::int64_t> Overtaken() const override {
    return iterator_ != nullptr ? iterator_->Overtaken() : std::vector<std::int64_t>();
  }

 private:
  using SteadyClock = std::chrono::steady_clock;

  // Where replica r's slice of the part of batch `index` begins. A shard's place is that in the
  // whole batch, since others cut the same batch elsewhere.
  std::int64_t Begin(std::int64_t index, std::int64_t part, int r) const {
    if (part_.span == 1) {
      return data::PartBegin(part, replicas_, r);
    }
    const std::int64_t whole = dataset_.SizeOfBatch(index);
    return data::PartBegin(whole, part_.num_workers, part_.worker + r) -
           data::PartBegin(whole, part_.num_workers, part_.worker);
  }

  const data::Dataset dataset_;
  const data::IterateOptions part_;
  const int replicas_;
  std::int64_t batches_;
  std::unique_ptr<data::BatchIterator> iterator_;
  std::chrono::duration<double> waited_{0};
  std::int64_t epoch_ = 0;
  std::int64_t index_ = 0;
};

class AheadDataset final : public DistributedDataset {
 public:
  AheadDataset(std::unique_ptr<DistributedDataset> batches, std::function<void(PeekNext)> offer)
      : batches_(std::move(batches)), ahead_(*batches_), offer_(std::move(offer)) {}
  ~AheadDataset() override { offer_(nullptr); }

  Status BeginEpoch(std::int64_t epoch, std::int64_t first_batch) override {
    return ResumeEpoch(epoch, first_batch, {});
  }
  Status ResumeEpoch(std::int64_t epoch, std::int64_t first_batch,
                     const std::vector<data::EpochDivision>& begun) override {
    offer_(nullptr);
    ahead_.Drop();
    return batches_->ResumeEpoch(epoch, first_batch, begun);
  }
  Result<std::optional<DistributedBatch>> Next() override {
    offer_([this] { return ahead_.Peek(); });
    return ahead_.Next();
  }
  std::int64_t batches_per_epoch() const override { return batches_->batches_per_epoch(); }
  double input_seconds() const override { return batches_->input_seconds(); }
  std::vector<std::int64_t> Overtaken() const override { return ahead_.Overtaken(); }

 private:
  const std::unique_ptr<DistributedDataset> batches_;
  OneAhead ahead_;
  const std::function<void(PeekNext)> offer_;
};

}  // namespace

Result<std::optional<DistributedBatch>> OneAhead::Next() {
  return next_.has_value() ? *std::exchange(next_, std::nullopt) : batches_.Next();
}

DistributedBatch* OneAhead::Peek() {
  if (!next_.has_value()) {
    before_next_ = batches_.Overtaken();
    next_ = batches_.Next();
  }
  return next_->ok() && next_->value().has_value() ? &*next_->value() : nullptr;
}

std::vector<std::int64_t> OneAhead::Overtaken() const {
  return next_.has_value() ? before_next_ : batches_.Overtaken();
}

std::unique_ptr<DistributedDataset> LookAhead(std::unique_ptr<DistributedDataset> batches,
                                              std::function<void(PeekNext)> offer) {
  return std::make_unique<AheadDataset>(std::move(batches), std::move(offer));
}

Result<std::unique_ptr<DistributedDataset>> MakeSynchronousDataset(const data::Dataset& dataset,
                                                                   data::IterateOptions part,
                                                                   int replicas) {
  COHORT_ASSIGN_OR_RETURN(const std::int64_t batches, dataset.CountBatches(part));
  return std::make_unique<SynchronousDataset>(dataset, std::move(part), replicas, batches);
}

}  // namespace cohort
