#include "synchronous/synchronous_strategy.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <cohort/core/thread_pool.h>
#include <cohort/optim/gradients.h>
#include <cohort/strategies/synchronous.h>

#include "synchronous/agreement.h"
#include "synchronous/cores.h"
#include "synchronous/distributed_dataset.h"
#include "synchronous/tensors.h"

namespace cohort {
namespace {

// Fewer chunks than this are applied by the caller alone: waking the others takes longer.
constexpr std::size_t kChunksWorthWaking = 4;

// What Evaluate's step functions get for gradients.
class NoGradients final : public GradientSink {
 public:
  std::span<float> Accumulator(int /*parameter*/) override { Refuse(); }
  void AddSlices(int /*parameter*/, const IndexedSlices& /*slices*/) override { Refuse(); }
  void Ready(int /*parameter*/) override { Refuse(); }
  float loss_seed() const override { Refuse(); }
  void SetWeight(double /*weight*/) override { Refuse(); }

 private:
  [[noreturn]] static void Refuse() { throw ContractError("no gradients in Evaluate"); }
};

std::vector<std::string> Lines(const ParameterSet& parameters) {
  std::vector<std::string> lines;
  lines.reserve(static_cast<std::size_t>(parameters.size()));
  for (int p = 0; p < parameters.size(); ++p) {
    lines.push_back(parameters[p].name + " " + parameters[p].shape.ToString() +
                    (parameters[p].trainable ? "" : " not trainable"));
  }
  return lines;
}

std::string WhatOf(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "of a type that is no std::exception";
  }
}

}  // namespace

Result<std::unique_ptr<Strategy>> MakeSynchronousStrategy(SynchronousParts parts,
                                                          StrategyOptions options) {
  return SynchronousStrategy::Make(std::move(parts.kind), std::move(parts.cluster),
                                   MakeMembership(std::move(parts.communicator)),
                                   std::move(options));
}

Status SynchronousStrategy::CheckOptions(const StrategyOptions& options) {
  if (options.num_devices < 1) {
    return InvalidArgument("num_devices is " + std::to_string(options.num_devices) +
                           " [at least 1]");
  }
  if (options.first_bucket_bytes < 1 || options.bucket_bytes < 1) {
    return InvalidArgument("gradient buckets of " + std::to_string(options.first_bucket_bytes) +
                           " and " + std::to_string(options.bucket_bytes) + " bytes [at least 1]");
  }
  if (options.intra_op_threads < 0) {
    return InvalidArgument("intra_op_threads is " + std::to_string(options.intra_op_threads) +
                           " [0 shares the cores among the replicas]");
  }
  if (options.collective_timeout.count() <= 0) {
    return InvalidArgument("collective_timeout is " +
                           std::to_string(options.collective_timeout.count()) +
                           " ms [more than 0]");
  }
  return {};
}

Result<std::unique_ptr<Strategy>> SynchronousStrategy::Make(std::string kind, ClusterConfig cluster,
                                                            std::unique_ptr<Membership> membership,
                                                            StrategyOptions options) {
  COHORT_RETURN_IF_ERROR(CheckOptions(options));
  return std::unique_ptr<Strategy>(new SynchronousStrategy(
      std::move(kind), std::move(cluster), std::move(membership), std::move(options)));
}

SynchronousStrategy::SynchronousStrategy(std::string kind, ClusterConfig cluster,
                                         std::unique_ptr<Membership> membership,
                                         StrategyOptions options)
    : kind_(std::move(kind)),
      cluster_(std::move(cluster)),
      options_(std::move(options)),
      membership_(std::move(membership)),
      communicator_(membership_->communicator()),
      rank_(communicator_ != nullptr ? communicator_->rank() : 0),
      num_processes_(communicator_ != nullptr ? communicator_->size() : 1),
      gang_(options_.num_devices, rank_ * options_.num_devices),
      intra_op_threads_(options_.intra_op_threads > 0
                            ? options_.intra_op_threads
                            : CoresPerReplica(cluster_, options_.num_devices)),
      outcomes_(static_cast<std::size_t>(options_.num_devices)) {
  for (int r = 0; r < options_.num_devices; ++r) {
    streams_.push_back(options_.make_stream ? options_.make_stream() : MakeInlineStream());
  }
  if (communicator_ != nullptr) {
    span_reduction_ = std::make_unique<SpanReduction>(*communicator_, options_.bucket_bytes,
                                                      options_.collective_timeout);
  }
}

std::string SynchronousStrategy::NameOf(int replica) const {
  std::string name = "replica " + std::to_string(rank_ * gang_.size() + replica);
  return communicator_ == nullptr ? name : communicator_->peer_name(rank_) + ", " + name;
}

// ---- What all processes do together ----------------------------------------------------------

Status SynchronousStrategy::Meet(Communicator::Pending pending) {
  const Status status = Await(std::move(pending));
  return status.ok() ? status : membership_->Explain(status);
}

Status SynchronousStrategy::Compare(std::string_view what, const std::vector<std::string>& lines,
                                    std::string_view hint) {
  const Status status = Agree(*communicator_, what, lines, hint);
  return status.ok() ? status : membership_->Explain(status);
}

Status SynchronousStrategy::Bind(ParameterSet& parameters, std::unique_ptr<Optimizer> optimizer) {
  Require(parameters_ == nullptr, "Bind once");
  Require(parameters.built(), "Bind with parameters that are built");
  Require(optimizer != nullptr, "Bind with an optimizer");
  if (communicator_ != nullptr) {
    const std::vector<std::string> settings{
        "replicas per process: " + std::to_string(gang_.size()),
        "loss scale: " + std::to_string(static_cast<int>(options_.loss_scale)),
        "first bucket: " + std::to_string(options_.first_bucket_bytes) + " bytes",
        "buckets: " + std::to_string(options_.bucket_bytes) + " bytes",
        "optimizer: " + optimizer->config()};
    COHORT_RETURN_IF_ERROR(
        Compare("parameters", Lines(parameters),
                "declare the same parameters in the same order on every process"));
    COHORT_RETURN_IF_ERROR(Compare("settings", settings, "give every process the same options"));
    CollectiveOptions broadcast;
    broadcast.name = "initial values";
    COHORT_RETURN_IF_ERROR(Meet(communicator_->Broadcast(parameters.all(), 0, broadcast)));
  }

  for (int slot = 0; slot < optimizer->num_slots(); ++slot) {
    slot_arenas_.emplace_back(DType::kFloat32,
                              Shape{static_cast<std::int64_t>(parameters.all().size())});
    slots_.push_back(slot_arenas_.back().data<float>());
    std::fill(slots_.back().begin(), slots_.back().end(), optimizer->slot_initial_value(slot));
  }
  reducer_ = std::make_unique<Reducer>(
      parameters,
      Reducer::Options{.replicas = gang_.size(),
                       .communicator = communicator_,
                       .seed_with_weight = options_.loss_scale == LossScale::kGlobalMean,
                       .first_bucket_bytes = options_.first_bucket_bytes,
                       .bucket_bytes = options_.bucket_bytes,
                       .timeout = options_.collective_timeout,
                       .log = options_.log});
  squares_.resize(reducer_->plan().chunks.size());
  std::size_t state = 0;
  for (int p = 0; p < parameters.size(); ++p) {
    if (!parameters[p].trainable) {
      untrained_.push_back(p);
      state += parameters.value(p).size();
    }
  }
  state_.resize(state);
  optimizer_ = std::move(optimizer);
  parameters_ = &parameters;
  return {};
}

Result<std::unique_ptr<DistributedDataset>> SynchronousStrategy::Distribute(
    const data::Dataset& dataset, const InputOptions& /*options*/) {
  if (dataset.batch_size() < num_replicas_in_sync()) {
    return InvalidArgument("a global batch of " + std::to_string(dataset.batch_size()) +
                           " examples for " + std::to_string(num_replicas_in_sync()) +
                           " replicas [Batch() with at least one example per replica]");
  }
  if (communicator_ != nullptr) {
    COHORT_RETURN_IF_ERROR(Compare(
        "datasets",
        {std::to_string(dataset.size()) + " examples in global batches of " +
             std::to_string(dataset.batch_size()),
         "content and order with digest " + std::to_string(dataset.Fingerprint())},
        "make the same dataset on every process: same files, seed, stages and global batch"));
  }
  return MakeSynchronousDataset(dataset, num_processes_, rank_, gang_.size());
}

Status SynchronousStrategy::ReduceGradients(std::span<const std::span<float>> gradients,
                                            double weight) {
  Require(std::isfinite(weight) && weight >= 0, "a finite weight of at least 0");
  if (communicator_ != nullptr) {
    const Status status = span_reduction_->Run(gradients, weight);
    return status.ok() ? status : membership_->Explain(status);
  }
  for (const std::span<float> gradient : gradients) {
    if (weight == 0) {
      std::fill(gradient.begin(), gradient.end(), 0.0F);
    }
  }
  return {};
}

Status SynchronousStrategy::Broadcast(std::span<std::byte> bytes) {
  if (communicator_ == nullptr) {
    return {};
  }
  CollectiveOptions options;
  options.name = "broadcast";
  return Meet(communicator_->Broadcast(
      Buffer(bytes.data(), static_cast<std::int64_t>(bytes.size()), DType::kUInt8), 0, options));
}

Result<Mirrored<Tensor>> SynchronousStrategy::Reduce(ReduceOp op, const PerReplica<Tensor>& value) {
  Require(static_cast<int>(value.values.size()) == gang_.size(), "one value per local replica");
  COHORT_ASSIGN_OR_RETURN(Tensor result, CombineTensors(op, value.values));
  if (communicator_ != nullptr) {
    CollectiveOptions options;
    options.name = "Reduce";
    COHORT_RETURN_IF_ERROR(
        Meet(communicator_->AllReduce(Buffer(result.raw(), result.elements(), result.dtype()),
                                      op == ReduceOp::kMean ? ReduceOp::kSum : op, options)));
  }
  if (op == ReduceOp::kMean) {
    DivideTensor(result, num_replicas_in_sync());
  }
  return Mirrored<Tensor>{std::move(result)};
}

Result<Mirrored<Tensor>> SynchronousStrategy::Gather(const PerReplica<Tensor>& value) {
  Require(static_cast<int>(value.values.size()) == gang_.size(), "one value per local replica");
  COHORT_ASSIGN_OR_RETURN(Tensor local, ConcatenateTensors(value.values));
  if (communicator_ == nullptr) {
    return Mirrored<Tensor>{std::move(local)};
  }
  std::vector<std::int64_t> dims = local.shape().dims();
  const std::int64_t rows = std::exchange(dims[0], 1);
  const std::string row = std::string(DTypeName(local.dtype())) + Shape(dims).ToString();
  COHORT_RETURN_IF_ERROR(Compare("rows to Gather", {row}, "gather tensors of one row shape"));
  std::vector<std::int64_t> counts(static_cast<std::size_t>(num_processes_));
  CollectiveOptions options;
  options.name = "Gather";
  COHORT_RETURN_IF_ERROR(Meet(communicator_->AllGather(std::span<const std::int64_t>(&rows, 1),
                                                       std::span<std::int64_t>(counts), options)));
  const auto row_bytes = Shape(dims).elements() * static_cast<std::int64_t>(SizeOf(local.dtype()));
  dims[0] = 0;
  for (std::int64_t& count : counts) {
    dims[0] += count;
    count *= row_bytes;
  }
  Tensor result(local.dtype(), Shape(dims));
  COHORT_RETURN_IF_ERROR(Meet(communicator_->AllGatherV(
      Buffer(local.raw(), static_cast<std::int64_t>(local.bytes()), DType::kUInt8),
      Buffer(result.raw(), static_cast<std::int64_t>(result.bytes()), DType::kUInt8), counts,
      options)));
  return Mirrored<Tensor>{std::move(result)};
}

Status SynchronousStrategy::SetStep(std::int64_t step) {
  if (step < 0) {
    return InvalidArgument("SetStep to " + std::to_string(step));
  }
  step_ = step;
  return {};
}

Status SynchronousStrategy::Barrier(std::string_view name) {
  if (communicator_ == nullptr) {
    return {};
  }
  CollectiveOptions options;
  options.name = name;
  return Meet(communicator_->Barrier(options));
}

// ---- One step --------------------------------------------------------------------------------

void SynchronousStrategy::CheckResult(int replica, const ReplicaResult& result, bool train) const {
  Require(std::isfinite(result.weight) && result.weight >= 0,
          "a step function returns a finite weight of at least 0");
  Require(result.metric_sums.size() <= kMaxMetrics,
          "a step function returns at most 28 metric sums");
  if (train && options_.loss_scale == LossScale::kGlobalMean) {
    Require(result.weight == reducer_->weight(replica),
            "the weight that a step function returns is the one its gradients were scaled by: " +
                std::to_string(result.weight) + " against " +
                std::to_string(reducer_->weight(replica)) +
                " [call gradients.SetWeight before the backward pass]");
  }
}

void SynchronousStrategy::RunReplica(int replica, const data::Batch& part, const StepFn& fn,
                                     bool train) {
  Outcome& outcome = outcomes_[static_cast<std::size_t>(replica)];
  Stream& stream = *streams_[static_cast<std::size_t>(replica)];
  outcome = Outcome{};
  try {
    if (train) {
      reducer_->Begin(replica, static_cast<double>(part.size), stream);
    }
    if (part.size > 0) {
      NoGradients none;
      ReplicaContext context{.replica = rank_ * gang_.size() + replica,
                             .num_replicas = num_replicas_in_sync(),
                             .step = train ? step_ + 1 : step_,
                             .parameters = *parameters_,
                             .gradients = train ? reducer_->sink(replica) : none,
                             .stream = stream,
                             .intra_op_threads = intra_op_threads_};
      Result<ReplicaResult> result = fn(context, part);
      if (result.ok()) {
        CheckResult(replica, *result, train);
        outcome.result = std::move(result).value();
      } else {
        outcome.status = result.status();
      }
    }
    if (train && outcome.status.ok()) {
      reducer_->End(replica, part.size > 0);
    }
  } catch (const StatusError& error) {
    outcome.status = error.status();
  } catch (...) {
    outcome.exception = std::current_exception();
  }
  // The parameters must not change, nor the arenas be read on the host, before all streams ran dry.
  const Status drained = stream.Synchronize(DeadlineAfter(options_.collective_timeout));
  if (outcome.status.ok()) {
    outcome.status = drained;
  }
}

Status SynchronousStrategy::RunReplicas(const DistributedBatch& batch, const StepFn& fn, bool train,
                                        Totals& totals) {
  Require(parameters_ != nullptr, "Bind before the first step");
  Require(static_cast<int>(batch.replicas.size()) == gang_.size(),
          "a batch with one part per local replica");
  gang_.Run([&](int replica) {
    RunReplica(replica, batch.replicas[static_cast<std::size_t>(replica)], fn, train);
  });
  for (int replica = 0; replica < gang_.size(); ++replica) {
    const Outcome& outcome = outcomes_[static_cast<std::size_t>(replica)];
    if (outcome.exception != nullptr) {
      (void)Fail(Internal(NameOf(replica) + ": exception: " + WhatOf(outcome.exception)));
      std::rethrow_exception(outcome.exception);
    }
    if (!outcome.status.ok()) {
      return Fail(outcome.status.Annotate(NameOf(replica)));
    }
    if (outcome.result.weight == 0) {
      continue;  // and with it sums that may be NaN
    }
    if (totals.replicas() > 0 &&
        totals.metrics() !=
            totals.replicas() * static_cast<double>(outcome.result.metric_sums.size())) {
      return Fail(InvalidArgument(
          NameOf(replica) + " returned " + std::to_string(outcome.result.metric_sums.size()) +
          " metric sums, another one " + std::to_string(totals.metrics() / totals.replicas()) +
          " [as many on every replica]"));
    }
    totals.loss() += outcome.result.loss_sum;
    totals.weight() += outcome.result.weight;
    totals.replicas() += 1;
    totals.metrics() += static_cast<double>(outcome.result.metric_sums.size());
    for (std::size_t m = 0; m < outcome.result.metric_sums.size(); ++m) {
      totals.metric()[m] += outcome.result.metric_sums[m];
    }
  }
  return {};
}

// This process cannot go on with the step: nor can the others.
Status SynchronousStrategy::Fail(const Status& status) {
  membership_->GiveUp(status);
  if (reducer_ != nullptr) {
    reducer_->GiveUp();
  }
  return status;
}

Result<std::unique_ptr<Work>> SynchronousStrategy::AddUp(Totals& totals, const std::string& name) {
  CollectiveOptions options;
  options.name = name;
  return communicator_->AllReduce(std::span<double>(totals.sums), ReduceOp::kSum, options);
}

Result<StepResult> SynchronousStrategy::Finish(Totals& totals) const {
  StepResult result;
  result.weight = totals.weight();
  result.step = step_;
  if (totals.replicas() == 0) {
    return result;
  }
  const double metrics = totals.metrics() / totals.replicas();
  result.loss = totals.loss() / totals.weight();
  if (metrics != std::floor(metrics)) {
    return InvalidArgument("processes returned different numbers of metric sums, " +
                           std::to_string(metrics) + " on average [as many on every replica]");
  }
  for (std::size_t m = 0; m < static_cast<std::size_t>(metrics); ++m) {
    result.metrics.push_back(totals.metric()[m] / totals.weight());
  }
  return result;
}

float SynchronousStrategy::GradientScale(double weight) const {
  switch (options_.loss_scale) {
    case LossScale::kGlobalMean:
      return static_cast<float>(1.0 / weight);
    case LossScale::kReplicaMean:
      return 1.0F / static_cast<float>(num_replicas_in_sync());
    case LossScale::kSum:
      break;
  }
  return 1.0F;
}

void SynchronousStrategy::ForChunks(std::size_t first, std::size_t last,
                                    const std::function<void(std::size_t chunk)>& fn) {
  const std::size_t count = last - first;
  if (gang_.size() == 1 || count < kChunksWorthWaking) {
    for (std::size_t chunk = first; chunk < last; ++chunk) {
      fn(chunk);
    }
    return;
  }
  const auto threads = static_cast<std::size_t>(gang_.size());
  gang_.Run([&](int thread) {
    const auto t = static_cast<std::size_t>(thread);
    for (std::size_t i = count * t / threads; i < count * (t + 1) / threads; ++i) {
      fn(first + i);
    }
  });
}

void SynchronousStrategy::Apply(std::size_t first_chunk, std::size_t last_chunk, float scale) {
  const std::span<float> values = parameters_->all();
  const std::span<const float> gradients = reducer_->gradients();
  const bool summed = optimizer_->global_clip_norm() > 0;
  ForChunks(first_chunk, last_chunk, [&](std::size_t index) {
    const BucketPlan::Chunk& chunk = reducer_->plan().chunks[index];
    if (!summed) {
      reducer_->Sum(chunk);
    }
    const auto value = static_cast<std::size_t>(chunk.value);
    const auto elements = static_cast<std::size_t>(chunk.elements);
    std::vector<std::span<float>> slots;
    slots.reserve(slots_.size());
    for (const std::span<float> slot : slots_) {
      slots.push_back(slot.subspan(value, elements));
    }
    optimizer_->Apply(
        {.value = values.subspan(value, elements),
         .gradient = gradients.subspan(static_cast<std::size_t>(chunk.gradient), elements),
         .slots = slots,
         .gradient_scale = scale,
         .step = step_ + 1});
  });
}

// With the norm of the whole gradient known, which all buckets must have landed for.
float SynchronousStrategy::ClippedScale(float scale) {
  const std::vector<BucketPlan::Chunk>& chunks = reducer_->plan().chunks;
  ForChunks(0, chunks.size(), [&](std::size_t index) {
    reducer_->Sum(chunks[index]);
    squares_[index] = SquaredNorm(
        reducer_->gradients().subspan(static_cast<std::size_t>(chunks[index].gradient),
                                      static_cast<std::size_t>(chunks[index].elements)));
  });
  double squared_norm = 0;
  for (const double squares : squares_) {
    squared_norm += squares;
  }
  const double factor = scale;
  return static_cast<float>(
      factor * ClipFactor(squared_norm * factor * factor, optimizer_->global_clip_norm()));
}

// Waits for each bucket in turn and applies it; `applied` counts those that were.
Status SynchronousStrategy::ApplyAsLanded(int& applied) {
  const BucketPlan& plan = reducer_->plan();
  const bool clip = optimizer_->global_clip_norm() > 0;
  float scale = 0;
  bool update = false;
  if (communicator_ == nullptr) {
    update = reducer_->total_weight() > 0;
    scale = update ? GradientScale(reducer_->total_weight()) : 0;
    if (update && !clip) {
      Apply(0, plan.chunks.size(), scale);
    }
  } else {
    for (std::size_t b = 0; b < plan.buckets.size(); ++b) {
      COHORT_RETURN_IF_ERROR(reducer_->Landed(static_cast<int>(b)));
      if (b == 0) {
        update = reducer_->total_weight() > 0;
        scale = update ? GradientScale(reducer_->total_weight()) : 0;
      }
      if (update && !clip) {
        ++applied;
        Apply(plan.buckets[b].first_chunk, plan.buckets[b].last_chunk, scale);
      }
    }
  }
  if (update && clip) {
    applied = static_cast<int>(plan.buckets.size());
    Apply(0, plan.chunks.size(), ClippedScale(scale));
  }
  return {};
}

// Rank 0's values of what is not trainable (running averages) hold everywhere, as initial values
// do.
Communicator::Pending SynchronousStrategy::SendState() {
  auto to = state_.begin();
  for (const int parameter : untrained_) {
    to = std::ranges::copy(parameters_->value(parameter), to).out;
  }
  CollectiveOptions options;
  options.name = "values that are not trainable";
  return communicator_->Broadcast(std::span<float>(state_), 0, options);
}

void SynchronousStrategy::TakeState() {
  auto from = state_.begin();
  for (const int parameter : untrained_) {
    const std::span<float> value = parameters_->value(parameter);
    std::copy_n(from, value.size(), value.begin());
    from += static_cast<std::ptrdiff_t>(value.size());
  }
}

// The step's collectives that are not buckets, and the buckets' update.
Status SynchronousStrategy::SettleTogether(Totals& totals, int& applied) {
  auto sums = AddUp(totals, "loss and metrics");
  COHORT_RETURN_IF_ERROR(sums.status());
  std::unique_ptr<Work> state;
  Status status;
  if (!state_.empty()) {
    auto sent = SendState();
    status = sent.status();
    state = sent.ok() ? std::move(sent).value() : nullptr;
  }
  if (status.ok()) {
    status = ApplyAsLanded(applied);
  }
  // Their buffers are ours again only when both are over, also after an error.
  for (Work* work : {sums->get(), state.get()}) {
    const Status done = work == nullptr ? OkStatus() : work->Wait();
    status = status.ok() ? done : status;
  }
  if (status.ok() && state != nullptr) {
    TakeState();
  }
  return status;
}

Result<StepResult> SynchronousStrategy::Step(const DistributedBatch& batch, const StepFn& fn) {
  COHORT_RETURN_IF_ERROR(broken_);
  Require(reducer_ != nullptr, "Bind before the first step");
  reducer_->StartPass();
  Totals totals;
  COHORT_RETURN_IF_ERROR(RunReplicas(batch, fn, /*train=*/true, totals));
  int applied = 0;
  const Status settled =
      communicator_ == nullptr ? ApplyAsLanded(applied) : SettleTogether(totals, applied);
  if (!settled.ok()) {
    const Status status =
        Fail(membership_->Explain(settled)).Annotate("step " + std::to_string(step_ + 1));
    if (applied == 0) {
      return status;
    }
    broken_ = Status(status.code(), status.message() + " [" + std::to_string(applied) + " of " +
                                        std::to_string(reducer_->plan().buckets.size()) +
                                        " buckets had been applied: the parameters belong to no "
                                        "step; restore a checkpoint]");
    return broken_;
  }
  if (reducer_->total_weight() > 0) {
    ++step_;
  }
  Result<StepResult> result = Finish(totals);
  broken_ = result.status();  // too late to give the step up
  return result;
}

Result<StepResult> SynchronousStrategy::Evaluate(const DistributedBatch& batch, const StepFn& fn) {
  Totals totals;
  COHORT_RETURN_IF_ERROR(RunReplicas(batch, fn, /*train=*/false, totals));
  if (communicator_ != nullptr) {
    COHORT_RETURN_IF_ERROR(Meet(AddUp(totals, "evaluation")));
  }
  return Finish(totals);
}

}  // namespace cohort
