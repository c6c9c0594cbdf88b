#include "synchronous/distributed_dataset.h"

#include <utility>

namespace cohort {
namespace {

class SynchronousDataset final : public DistributedDataset {
 public:
  SynchronousDataset(const data::Dataset& dataset, int processes, int process, int replicas)
      : dataset_(dataset), processes_(processes), process_(process), replicas_(replicas) {}

  Status BeginEpoch(std::int64_t epoch, std::int64_t first_batch) override {
    iterator_.reset();  // its threads end before others begin
    data::IterateOptions options;
    options.num_workers = processes_;
    options.worker = process_;
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
    if (replicas_ == 1) {
      batch.replicas.push_back(*std::move(part));
    } else {
      for (int r = 0; r < replicas_; ++r) {
        batch.replicas.push_back(part->Slice(data::PartBegin(part->size, replicas_, r),
                                             data::PartBegin(part->size, replicas_, r + 1)));
      }
    }
    return std::optional<DistributedBatch>(std::move(batch));
  }

 private:
  const data::Dataset dataset_;
  const int processes_;
  const int process_;
  const int replicas_;
  std::unique_ptr<data::BatchIterator> iterator_;
  std::int64_t epoch_ = 0;
  std::int64_t index_ = 0;
};

}  // namespace

std::unique_ptr<DistributedDataset> MakeSynchronousDataset(const data::Dataset& dataset,
                                                           int processes, int process,
                                                           int replicas) {
  return std::make_unique<SynchronousDataset>(dataset, processes, process, replicas);
}

}  // namespace cohort
