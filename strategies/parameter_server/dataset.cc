#include "parameter_server/dataset.h"

#include <algorithm>
#include <utility>

namespace cohort::ps {
namespace {

using NextBatch = Result<std::optional<DistributedBatch>>;

DistributedBatch OneReplica(data::Batch batch, std::int64_t epoch, std::int64_t index) {
  DistributedBatch distributed;
  distributed.replicas.push_back(std::move(batch));
  distributed.epoch = epoch;
  distributed.index = index;
  return distributed;
}

class SplitDataset final : public DistributedDataset {
 public:
  SplitDataset(const data::Dataset& dataset, int number, Feed feed)
      : dataset_(dataset), number_(number), feed_(std::move(feed)) {}

  Status BeginEpoch(std::int64_t epoch, std::int64_t first_batch) override {
    iterator_.reset();
    split_ = {};
    epoch_ = epoch;
    first_batch_ = first_batch;
    feed_.begin();
    return {};
  }

  NextBatch Next() override {
    Require(epoch_ >= 0, "Next after BeginEpoch");
    for (;;) {
      if (iterator_ != nullptr) {
        COHORT_ASSIGN_OR_RETURN(std::optional<data::Batch> batch, iterator_->Next());
        if (batch.has_value()) {
          return std::optional(OneReplica(*std::move(batch), epoch_, index_++));
        }
        iterator_.reset();
      }
      // The steps of the last split are done: its pushes stand in the servers.
      COHORT_RETURN_IF_ERROR(feed_.idle());
      const EpochKey epoch{.dataset = number_, .epoch = epoch_};
      const FinishedSplit finished = feed_.finished(std::exchange(split_.id, 0));
      if (feed_.save) {
        COHORT_RETURN_IF_ERROR(feed_.save(epoch, finished));
      }
      const Result<std::optional<Split>> answer =
          feed_.coordinator->NextSplit(epoch, first_batch_, finished);
      if (!answer.ok()) {
        return feed_.explain(answer.status());
      }
      const std::optional<Split>& split = *answer;
      if (!split.has_value()) {
        COHORT_RETURN_IF_ERROR(feed_.end());
        return std::optional<DistributedBatch>();
      }
      split_ = *split;
      index_ = split_.begin / dataset_.batch_size();
      data::IterateOptions options;
      options.epoch = epoch_;
      options.begin = split_.begin;
      options.end = split_.end;
      COHORT_ASSIGN_OR_RETURN(iterator_, dataset_.Iterate(options));
    }
  }

 private:
  const data::Dataset dataset_;
  const int number_;
  const Feed feed_;
  std::int64_t epoch_ = -1;
  std::int64_t first_batch_ = 0;
  std::int64_t index_ = 0;
  Split split_;
  std::unique_ptr<data::BatchIterator> iterator_;
};

class RoundDataset final : public DistributedDataset {
 public:
  RoundDataset(const data::Dataset& dataset, int number, Feed feed)
      : dataset_(dataset), number_(number), feed_(std::move(feed)) {}

  Status BeginEpoch(std::int64_t epoch, std::int64_t first_batch) override {
    iterator_.reset();
    epoch_ = epoch;
    first_batch_ = first_batch;
    feed_.begin();
    return {};
  }

  NextBatch Next() override {
    Require(epoch_ >= 0, "Next after BeginEpoch");
    if (feed_.save) {
      COHORT_RETURN_IF_ERROR(feed_.save({.dataset = number_, .epoch = epoch_}, {}));
    }
    const Result<std::optional<RoundPart>> answer =
        feed_.coordinator->JoinRound({.dataset = number_, .epoch = epoch_}, first_batch_);
    if (!answer.ok()) {
      return feed_.explain(answer.status());
    }
    const std::optional<RoundPart>& part = *answer;
    if (!part.has_value()) {
      iterator_.reset();
      COHORT_RETURN_IF_ERROR(feed_.end());
      return std::optional<DistributedBatch>();
    }
    // One iterator serves as long as the workers stay the same.
    if (iterator_ == nullptr || part->part != part_ || part->parts != parts_ ||
        part->batch != next_batch_) {
      iterator_.reset();
      data::IterateOptions options;
      options.num_workers = part->parts;
      options.worker = part->part;
      options.epoch = epoch_;
      options.first_batch = part->batch;
      options.policy = data::ShardPolicy::kData;
      COHORT_ASSIGN_OR_RETURN(iterator_, dataset_.Iterate(options));
      part_ = part->part;
      parts_ = part->parts;
    }
    COHORT_ASSIGN_OR_RETURN(std::optional<data::Batch> batch, iterator_->Next());
    if (!batch.has_value()) {
      return Internal("batch " + std::to_string(part->batch) + " of epoch " +
                      std::to_string(epoch_) + " was handed out, the data ends before it");
    }
    next_batch_ = part->batch + 1;
    feed_.round(*part);
    return std::optional(OneReplica(*std::move(batch), epoch_, part->batch));
  }

 private:
  const data::Dataset dataset_;
  const int number_;
  const Feed feed_;
  std::int64_t epoch_ = -1;
  std::int64_t first_batch_ = 0;
  int part_ = 0;
  int parts_ = 0;
  std::int64_t next_batch_ = 0;
  std::unique_ptr<data::BatchIterator> iterator_;
};

class WholeDataset final : public DistributedDataset {
 public:
  WholeDataset(const data::Dataset& dataset, std::function<Status()> begin)
      : dataset_(dataset), begin_(std::move(begin)) {}

  Status BeginEpoch(std::int64_t epoch, std::int64_t first_batch) override {
    COHORT_RETURN_IF_ERROR(begin_());
    data::IterateOptions options;
    options.epoch = epoch;
    options.first_batch = first_batch;
    COHORT_ASSIGN_OR_RETURN(iterator_, dataset_.Iterate(options));
    epoch_ = epoch;
    index_ = first_batch;
    return {};
  }

  NextBatch Next() override {
    Require(iterator_ != nullptr, "Next after BeginEpoch");
    COHORT_ASSIGN_OR_RETURN(std::optional<data::Batch> batch, iterator_->Next());
    if (!batch.has_value()) {
      return std::optional<DistributedBatch>();
    }
    return std::optional(OneReplica(*std::move(batch), epoch_, index_++));
  }

 private:
  const data::Dataset dataset_;
  const std::function<Status()> begin_;
  std::unique_ptr<data::BatchIterator> iterator_;
  std::int64_t epoch_ = 0;
  std::int64_t index_ = 0;
};

class EmptyDataset final : public DistributedDataset {
 public:
  Status BeginEpoch(std::int64_t /*epoch*/, std::int64_t /*first_batch*/) override { return {}; }
  NextBatch Next() override { return std::optional<DistributedBatch>(); }
};

}  // namespace

std::unique_ptr<DistributedDataset> MakeSplitDataset(const data::Dataset& dataset, int number,
                                                     Feed feed) {
  return std::make_unique<SplitDataset>(dataset, number, std::move(feed));
}

std::unique_ptr<DistributedDataset> MakeRoundDataset(const data::Dataset& dataset, int number,
                                                     Feed feed) {
  return std::make_unique<RoundDataset>(dataset, number, std::move(feed));
}

std::unique_ptr<DistributedDataset> MakeWholeDataset(const data::Dataset& dataset,
                                                     std::function<Status()> begin) {
  return std::make_unique<WholeDataset>(dataset, std::move(begin));
}

std::unique_ptr<DistributedDataset> MakeEmptyDataset() { return std::make_unique<EmptyDataset>(); }

DatasetInfo InfoOf(const data::Dataset& dataset) {
  return {.fingerprint = dataset.Fingerprint(),
          .examples = std::min(dataset.size(), dataset.batches_per_epoch() * dataset.batch_size()),
          .batch_size = dataset.batch_size()};
}

}  // namespace cohort::ps
