// SynchronousStrategy's input: what the processes must agree on before they cut batches apart.

#include <algorithm>
#include <bit>
#include <string>
#include <utility>
#include <vector>

#include <cohort/core/random.h>

#include "synchronous/batch_memory.h"
#include "synchronous/distributed_dataset.h"
#include "synchronous/inputs_ahead.h"
#include "synchronous/synchronous_strategy.h"

namespace cohort {
namespace {

using data::ShardPolicy;

std::string Description(const data::Dataset& dataset) {
  std::uint64_t digest = static_cast<std::uint64_t>(dataset.remainder());
  for (const data::FeatureSpec& feature : dataset.source().features()) {
    digest = Hash64(feature.name + std::string(DTypeName(feature.dtype)) + feature.shape.ToString(),
                    digest);
  }
  for (const data::RaggedSpec& feature : dataset.source().ragged()) {
    digest = Hash64(feature.name + std::string(DTypeName(feature.dtype)), digest);
  }
  return "features and remainder with digest " + std::to_string(digest);
}

// What must be equal on every process.
std::vector<std::string> Lines(const data::Dataset& dataset, ShardPolicy policy) {
  std::string division = "examples divided " + std::string(data::DivisionName(policy));
  const std::string batches = "in global batches of " + std::to_string(dataset.batch_size());
  if (policy == ShardPolicy::kOwn) {
    return {batches, Description(dataset),
            division + (dataset.deterministic() ? "" : ", as they are ready")};
  }
  if (policy == ShardPolicy::kFile) {  // every process works out the shares of all
    std::uint64_t digest = 0;
    for (const data::FileRange& file : dataset.source().files()) {
      const std::int64_t place[] = {file.begin, file.end, file.bytes};
      digest = Hash64({reinterpret_cast<const char*>(place), sizeof(place)}, digest);
    }
    division += ", sizes of the files with digest " + std::to_string(digest);
  }
  return {std::to_string(dataset.size()) + " examples " + batches,
          "content and order with digest " + std::to_string(dataset.Fingerprint()),
          division + (dataset.deterministic() ? "" : ", as they are ready")};
}

std::string Decision(const data::Dataset& dataset, ShardPolicy policy, int processes) {
  const std::size_t files = dataset.source().files().size();
  return (policy == ShardPolicy::kOwn ? "input: a share of " : "input: ") +
         std::to_string(dataset.size()) + " examples" +
         (files == 0 ? "" : " of " + std::to_string(files) + (files == 1 ? " file" : " files")) +
         " in global batches of " + std::to_string(dataset.batch_size()) + ", divided " +
         std::string(data::DivisionName(policy)) + " among " + std::to_string(processes) +
         " processes";
}

// Why kAuto is not by file; empty: it is, or something else was asked for.
std::string WhyNotByFile(const data::Dataset& dataset, ShardPolicy asked, ShardPolicy policy,
                         int processes) {
  if (asked != ShardPolicy::kAuto || policy != ShardPolicy::kData) {
    return "";
  }
  const Status refused =
      dataset.CountBatches({.num_workers = processes, .policy = ShardPolicy::kFile}).status();
  return refused.ok() ? ", as virtual shards are" : ", since " + refused.message();
}

}  // namespace

// Virtual shards are cut from batches of one order.
ShardPolicy SynchronousStrategy::PolicyFor(const data::Dataset& dataset, ShardPolicy policy) const {
  return options_.virtual_shards > 0 && policy == ShardPolicy::kAuto
             ? ShardPolicy::kData
             : dataset.PolicyFor(policy, num_processes_);
}

Result<std::unique_ptr<DistributedDataset>> SynchronousStrategy::Distribute(
    const data::Dataset& dataset, const InputOptions& options) {
  const ShardPolicy policy = PolicyFor(dataset, options.policy);
  const bool whole_batches = policy == ShardPolicy::kOff;
  const int replicas = whole_batches ? num_local_replicas() : num_replicas_in_sync();
  if (dataset.batch_size() < replicas) {
    return InvalidArgument("a global batch of " + std::to_string(dataset.batch_size()) +
                           " examples for " + std::to_string(replicas) +
                           " replicas [Batch() with at least one example per replica]");
  }
  if (options_.virtual_shards > 0 &&
      (whole_batches || data::HasOwnOrder(policy) || !dataset.deterministic())) {
    return InvalidArgument(
        "virtual shards are cut from global batches in their order: InputOptions::policy kFile, "
        "kHint, kOwn and kOff have none, and Dataset::Deterministic(false) gives it up [kAuto or "
        "kData, or no virtual_shards]");
  }
  if (communicator_ != nullptr) {
    COHORT_RETURN_IF_ERROR(Compare("datasets", Lines(dataset, policy),
                                   "make the same dataset on every process: same files, seed, "
                                   "stages, global batch and policy"));
    if (is_chief() && !options.evaluation) {
      options_.log.Info(Decision(dataset, policy, num_processes_) +
                        WhyNotByFile(dataset, options.policy, policy, num_processes_));
    }
  }
  if (options_.deterministic && !options.evaluation && !dataset.deterministic()) {
    return InvalidArgument(
        "deterministic with a dataset whose examples come as they are ready [leave out "
        "StrategyOptions::deterministic or Dataset::Deterministic(false)]");
  }
  data::IterateOptions part;
  part.num_workers = num_processes_;
  part.worker = rank_;
  part.policy = policy;
  if (policy == ShardPolicy::kOwn) {
    COHORT_ASSIGN_OR_RETURN(part.num_batches, AgreeOnBatches(dataset, part));
  }
  if (options_.virtual_shards > 0) {
    part.num_workers = num_replicas_in_sync();
    part.worker = rank_ * local_replicas_;
    part.span = local_replicas_;
  }
  const auto apart = std::ranges::find_if(devices_, [](const std::shared_ptr<Device>& device) {
    return device->memory_space() == MemorySpace::kDevice;
  });
  if (apart != devices_.end()) {
    part.allocate = BatchMemoryOf(*apart);
  }
  COHORT_ASSIGN_OR_RETURN(
      auto batches,
      MakeSynchronousDataset(options.evaluation ? dataset.Deterministic(true) : dataset,
                             std::move(part), local_replicas_));
  if (options.evaluation) {
    return batches;
  }
  if (options.copy_ahead && apart != devices_.end()) {
    std::vector<std::shared_ptr<Device>> of_replicas;
    for (int replica = 0; replica < local_replicas_; ++replica) {
      of_replicas.push_back(devices_[static_cast<std::size_t>(replica / turns_)]);
    }
    batches = CopyAhead(std::move(batches), of_replicas, options_.log);
  }
  usual_weight_ = static_cast<double>(
      std::bit_floor(static_cast<std::uint64_t>(dataset.batch_size() / replicas)));
  if (options_.virtual_shards > 0 || membership_->num_row_servers() == 0) {
    return batches;
  }
  return LookAhead(std::move(batches), [this](PeekNext peek) { peek_next_ = std::move(peek); });
}

// Each process knows its own share alone.
Result<std::int64_t> SynchronousStrategy::AgreeOnBatches(const data::Dataset& dataset,
                                                         const data::IterateOptions& part) {
  const Result<std::int64_t> mine = dataset.CountBatches(part);
  if (communicator_ == nullptr) {
    return mine;
  }
  const std::int64_t count = mine.ok() ? *mine : -1;
  std::vector<std::int64_t> counts(static_cast<std::size_t>(num_processes_));
  CollectiveOptions options;
  options.name = "batches of each process";
  COHORT_RETURN_IF_ERROR(Meet(communicator_->AllGather(std::span<const std::int64_t>(&count, 1),
                                                       std::span<std::int64_t>(counts), options)));
  COHORT_RETURN_IF_ERROR(mine.status());
  const bool drops = dataset.remainder() == data::Remainder::kDrop;
  const bool fills = !drops && dataset.remainder() != data::Remainder::kShort;
  const std::int64_t most = std::ranges::max(counts);
  for (int process = 0; process < num_processes_; ++process) {
    const std::int64_t has = counts[static_cast<std::size_t>(process)];
    if (has < 0 || (fills && has == 0 && most > 0)) {
      return FailedPrecondition(
          "the share of " + communicator_->peer_name(process) +
          (has < 0 ? " cannot be divided, see its error"
                   : " has no examples to fill batches up from [divide the data more evenly]"));
    }
  }
  return drops ? std::ranges::min(counts) : most;
}

}  // namespace cohort
