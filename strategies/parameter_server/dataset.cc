#include "parameter_server/dataset.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <iterator>
#include <utility>

namespace cohort::ps {
namespace {

using NextBatch = Result<std::optional<DistributedBatch>>;

// The next batch of an iterator; adds to `seconds` what it took.
Result<std::optional<data::Batch>> Timed(data::BatchIterator& iterator, double& seconds) {
  const auto before = std::chrono::steady_clock::now();
  Result<std::optional<data::Batch>> batch = iterator.Next();
  seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count();
  return batch;
}

DistributedBatch OneReplica(data::Batch batch, std::int64_t epoch, std::int64_t index) {
  DistributedBatch distributed;
  distributed.replicas.push_back(std::move(batch));
  distributed.epoch = epoch;
  distributed.index = index;
  return distributed;
}

// The batches of an iterator, of which as many are read ahead as are wanted: one more with each
// batch that is handed out, so that none waits for all of them.
class Reader {
 public:
  // `dataset`: its number.
  Reader(const Feed& feed, int dataset)
      : feed_(feed), number_(static_cast<std::uint64_t>(dataset + 1) << kBatchBits) {}
  bool open() const { return iterator_ != nullptr; }
  void Close() {
    iterator_.reset();
    ahead_.clear();
  }
  void Open(std::unique_ptr<data::BatchIterator> iterator) {
    Close();
    iterator_ = std::move(iterator);
  }
  Result<std::optional<data::Batch>> Next() {
    int reads = 0;
    if (ahead_.empty()) {
      Read(&reads);
    }
    Entry entry = std::move(ahead_.front());
    ahead_.pop_front();
    const int wanted = Stands(entry) ? feed_.looks_ahead() : 0;
    if (wanted <= 0) {
      return std::move(entry.batch);
    }
    while (reads < 2 && std::ssize(ahead_) < wanted && (ahead_.empty() || Stands(ahead_.back()))) {
      Read(&reads);
    }
    std::vector<NumberedBatch> behind;
    for (const Entry& next : ahead_) {
      if (Stands(next)) {
        behind.push_back({.number = next.number, .batch = **next.batch});
      }
    }
    feed_.next(entry.number, std::move(behind));
    return std::move(entry.batch);
  }
  double seconds() const { return seconds_; }  // in the iterators

 private:
  static constexpr int kBatchBits = 40;  // of a number: the batches of a data set

  struct Entry {
    std::uint64_t number = 0;
    Result<std::optional<data::Batch>> batch;
  };
  static bool Stands(const Entry& entry) { return entry.batch.ok() && entry.batch->has_value(); }
  void Read(int* reads) {
    ++*reads;
    ahead_.push_back({.number = number_++, .batch = Timed(*iterator_, seconds_)});
  }

  const Feed& feed_;
  std::uint64_t number_;
  double seconds_ = 0;
  std::unique_ptr<data::BatchIterator> iterator_;
  std::deque<Entry> ahead_;  // what ends it is the last
};

class SplitDataset final : public DistributedDataset {
 public:
  SplitDataset(const data::Dataset& dataset, int number, Feed feed)
      : dataset_(dataset), number_(number), feed_(std::move(feed)) {}

  Status BeginEpoch(std::int64_t epoch, std::int64_t first_batch) override {
    Drop();
    epoch_ = epoch;
    first_batch_ = first_batch;
    return feed_.begin();
  }

  NextBatch Next() override {
    Require(epoch_ >= 0, "Next after BeginEpoch");
    for (;;) {
      if (feed_.roll_backs() != roll_backs_) {
        Drop();
      }
      if (reader_.open()) {
        COHORT_ASSIGN_OR_RETURN(std::optional<data::Batch> batch, reader_.Next());
        if (batch.has_value()) {
          return std::optional(OneReplica(*std::move(batch), split_.epoch, index_++));
        }
        reader_.Close();
      }
      const Result<bool> more = NextSplit();
      if (!more.ok()) {
        COHORT_RETURN_IF_ERROR(feed_.go_on(more.status()));
        continue;
      }
      if (!*more) {
        return std::optional<DistributedBatch>();
      }
      index_ = split_.begin / dataset_.batch_size();
      data::IterateOptions options;
      options.epoch = split_.epoch;
      options.begin = split_.begin;
      options.end = split_.end;
      options.allocate = feed_.allocate;
      COHORT_ASSIGN_OR_RETURN(auto iterator, dataset_.Iterate(options));
      reader_.Open(std::move(iterator));
    }
  }

  // At the end of the split, which is then acknowledged.
  Result<bool> MayStop() override {
    if (split_.id != 0 && index_ * dataset_.batch_size() < split_.end) {
      return false;
    }
    reader_.Close();
    const Result<bool> told = NextSplit(/*leaves=*/true);
    if (!told.ok()) {
      COHORT_RETURN_IF_ERROR(feed_.go_on(told.status()));
      return false;
    }
    return true;
  }

  std::int64_t batches_per_epoch() const override { return dataset_.batches_per_epoch(); }
  double input_seconds() const override { return reader_.seconds(); }

 private:
  void Drop() {
    reader_.Close();
    split_ = {};
    finished_ = {};
    roll_backs_ = feed_.roll_backs();
  }

  // The steps of the last split are done: its pushes stand in the servers. False: the epoch is
  // over.
  Result<bool> NextSplit(bool leaves = false) {
    COHORT_RETURN_IF_ERROR(feed_.idle());
    FinishedSplit finished = feed_.finished(std::exchange(split_.id, 0));
    finished.epoch = split_.epoch;
    if (finished.id != 0) {
      finished_ = std::move(finished);
    }
    if (feed_.save) {
      COHORT_RETURN_IF_ERROR(feed_.save({.dataset = number_, .epoch = split_.epoch}, finished_));
    }
    COHORT_ASSIGN_OR_RETURN(const auto split,
                            feed_.scheduler()->NextSplit({.dataset = number_, .epoch = epoch_},
                                                         first_batch_, finished_, leaves));
    finished_ = {};
    if (!split.has_value()) {
      COHORT_RETURN_IF_ERROR(feed_.end());
      return false;
    }
    split_ = *split;
    return true;
  }

  const data::Dataset dataset_;
  const int number_;
  const Feed feed_;
  std::int64_t epoch_ = -1;
  std::int64_t first_batch_ = 0;
  std::int64_t index_ = 0;
  int roll_backs_ = 0;
  SchedulerClient::EpochSplit split_;
  FinishedSplit finished_;  // until the scheduler has been told
  Reader reader_{feed_, number_};
};

class RoundDataset final : public DistributedDataset {
 public:
  RoundDataset(const data::Dataset& dataset, int number, Feed feed)
      : dataset_(dataset), number_(number), feed_(std::move(feed)) {}

  Status BeginEpoch(std::int64_t epoch, std::int64_t first_batch) override {
    reader_.Close();
    epoch_ = epoch;
    first_batch_ = first_batch;
    return feed_.begin();
  }

  NextBatch Next() override {
    Require(epoch_ >= 0, "Next after BeginEpoch");
    Result<std::optional<RoundPart>> part = NextPart();
    while (!part.ok()) {
      COHORT_RETURN_IF_ERROR(feed_.go_on(part.status()));
      part = NextPart();
    }
    if (!part->has_value()) {
      return std::optional<DistributedBatch>();
    }
    return BatchOf(**part);
  }

  std::int64_t batches_per_epoch() const override { return dataset_.batches_per_epoch(); }
  double input_seconds() const override { return reader_.seconds(); }

 private:
  // Nothing: the epoch is over.
  Result<std::optional<RoundPart>> NextPart() {
    if (feed_.save) {
      COHORT_RETURN_IF_ERROR(feed_.save({.dataset = number_, .epoch = epoch_}, {}));
    }
    COHORT_ASSIGN_OR_RETURN(
        const std::optional<RoundPart> part,
        feed_.scheduler()->JoinRound({.dataset = number_, .epoch = epoch_}, first_batch_));
    if (!part.has_value()) {
      reader_.Close();
      COHORT_RETURN_IF_ERROR(feed_.end());
    }
    return part;
  }

  NextBatch BatchOf(const RoundPart& part) {
    // One iterator serves as long as the workers stay the same.
    const std::int64_t epoch = part.epoch.epoch;
    if (!reader_.open() || part.part != part_ || part.parts != parts_ ||
        part.batch != next_batch_ || epoch != part_epoch_) {
      reader_.Close();
      data::IterateOptions options;
      options.num_workers = part.parts;
      options.worker = part.part;
      options.epoch = epoch;
      options.first_batch = part.batch;
      options.policy = data::ShardPolicy::kData;
      options.allocate = feed_.allocate;
      COHORT_ASSIGN_OR_RETURN(auto iterator, dataset_.Iterate(options));
      reader_.Open(std::move(iterator));
      part_ = part.part;
      parts_ = part.parts;
      part_epoch_ = epoch;
    }
    COHORT_ASSIGN_OR_RETURN(std::optional<data::Batch> batch, reader_.Next());
    if (!batch.has_value()) {
      return Internal("batch " + std::to_string(part.batch) + " of epoch " + std::to_string(epoch) +
                      " was handed out, the data ends before it");
    }
    next_batch_ = part.batch + 1;
    feed_.round(part);
    return std::optional(OneReplica(*std::move(batch), epoch, part.batch));
  }

  const data::Dataset dataset_;
  const int number_;
  const Feed feed_;
  std::int64_t epoch_ = -1;
  std::int64_t first_batch_ = 0;
  int part_ = 0;
  int parts_ = 0;
  std::int64_t part_epoch_ = -1;
  std::int64_t next_batch_ = 0;
  Reader reader_{feed_, number_};
};

class WholeDataset final : public DistributedDataset {
 public:
  WholeDataset(const data::Dataset& dataset, std::function<Status()> begin,
               data::AllocateBytes allocate)
      : dataset_(dataset), begin_(std::move(begin)), allocate_(std::move(allocate)) {}

  Status BeginEpoch(std::int64_t epoch, std::int64_t first_batch) override {
    COHORT_RETURN_IF_ERROR(begin_());
    data::IterateOptions options;
    options.epoch = epoch;
    options.first_batch = first_batch;
    options.allocate = allocate_;
    COHORT_ASSIGN_OR_RETURN(iterator_, dataset_.Iterate(options));
    epoch_ = epoch;
    index_ = first_batch;
    return {};
  }

  NextBatch Next() override {
    Require(iterator_ != nullptr, "Next after BeginEpoch");
    COHORT_ASSIGN_OR_RETURN(std::optional<data::Batch> batch, Timed(*iterator_, seconds_));
    if (!batch.has_value()) {
      return std::optional<DistributedBatch>();
    }
    return std::optional(OneReplica(*std::move(batch), epoch_, index_++));
  }

  std::int64_t batches_per_epoch() const override { return dataset_.batches_per_epoch(); }
  double input_seconds() const override { return seconds_; }

 private:
  const data::Dataset dataset_;
  const std::function<Status()> begin_;
  const data::AllocateBytes allocate_;
  double seconds_ = 0;
  std::unique_ptr<data::BatchIterator> iterator_;
  std::int64_t epoch_ = 0;
  std::int64_t index_ = 0;
};

class EmptyDataset final : public DistributedDataset {
 public:
  Status BeginEpoch(std::int64_t /*epoch*/, std::int64_t /*first_batch*/) override { return {}; }
  NextBatch Next() override { return std::optional<DistributedBatch>(); }
  std::int64_t batches_per_epoch() const override { return 0; }
  double input_seconds() const override { return 0; }
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
                                                     std::function<Status()> begin,
                                                     data::AllocateBytes allocate) {
  return std::make_unique<WholeDataset>(dataset, std::move(begin), std::move(allocate));
}

std::unique_ptr<DistributedDataset> MakeEmptyDataset() { return std::make_unique<EmptyDataset>(); }

DatasetInfo InfoOf(const data::Dataset& dataset) {
  return {.fingerprint = dataset.Fingerprint(),
          .examples = std::min(dataset.size(), dataset.batches_per_epoch() * dataset.batch_size()),
          .batch_size = dataset.batch_size()};
}

}  // namespace cohort::ps
