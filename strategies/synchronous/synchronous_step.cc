// One step of SynchronousStrategy: the replicas' passes, what the processes settle together, the
// update, and what is learnt for the next steps' buckets.

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <optional>
#include <utility>

#include <cohort/device/range.h>
#include <cohort/optim/gradients.h>

#include "synchronous/agreement.h"
#include "synchronous/synchronous_strategy.h"

namespace cohort {
namespace {

using SteadyClock = std::chrono::steady_clock;

// Fewer chunks than this are applied by the caller alone: waking the others takes longer.
constexpr std::size_t kChunksWorthWaking = 4;
// More steps in a row that overflow are not the scale's fault.
constexpr int kMostSkips = 100;
// Buckets are watched for so many steps, again after so many, and then cut anew if that is worth
// it.
constexpr std::int64_t kWatchedSteps = 10;
constexpr std::int64_t kTuningPeriod = 100;

double Seconds(SteadyClock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

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

std::string WhatOf(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "of a type that is no std::exception";
  }
}

// Of a power of two.
std::string ShortText(double scale) { return "2^" + std::to_string(std::ilogb(scale)); }

// Is a step whose pass had this number, from 1, one that the tuner watches?
bool Watched(std::int64_t pass) { return pass > 1 && (pass - 2) % kTuningPeriod < kWatchedSteps; }

}  // namespace

void SynchronousStrategy::Totals::Add(const Totals& other) {
  for (std::size_t i = 0; i < sums.size(); ++i) {
    sums[i] += other.sums[i];
  }
}

// ---- The replicas ----------------------------------------------------------------------------

void SynchronousStrategy::CheckResult(int thread, const ReplicaResult& result,
                                      Purpose purpose) const {
  Require(std::isfinite(result.weight) && result.weight >= 0,
          "a step function returns a finite weight of at least 0");
  Require(result.metric_sums.size() <= kMaxMetrics,
          "a step function returns at most 28 metric sums");
  if (purpose == Purpose::kTrain && options_.loss_scale == LossScale::kGlobalMean) {
    Require(result.weight == reducer_->weight(thread),
            "the weight that a step function returns is the one its gradients were scaled by: " +
                std::to_string(result.weight) + " against " +
                std::to_string(reducer_->weight(thread)) +
                " [call gradients.SetWeight before the backward pass]");
  }
}

Result<ReplicaResult> SynchronousStrategy::Call(int thread, int replica, const data::Batch& part,
                                                const StepFn& fn, Purpose purpose) {
  NoGradients none;
  const bool train = purpose == Purpose::kTrain;
  DeviceCopy* const copy = copy_of(thread);
  ReplicaContext context{.replica = rank_ * local_replicas_ + replica,
                         .num_replicas = num_replicas_in_sync(),
                         .step = train ? step_ + 1 : step_,
                         .parameters = copy == nullptr ? *parameters_ : copy->parameters(),
                         .gradients = train ? reducer_->sink(thread) : none,
                         .stream = *streams_[static_cast<std::size_t>(thread)],
                         .intra_op_threads = intra_op_threads_,
                         .local_replica = replica,
                         .device = devices_[static_cast<std::size_t>(thread)]};
  COHORT_ASSIGN_OR_RETURN(ReplicaResult result, fn(context, part));
  CheckResult(thread, result, purpose);
  return result;
}

void SynchronousStrategy::RunTurn(int thread, int turn, const data::Batch& part, const StepFn& fn,
                                  Purpose purpose) {
  const int replica = thread * turns_ + turn;
  Outcome& outcome = outcomes_[static_cast<std::size_t>(replica)];
  Stream& stream = *streams_[static_cast<std::size_t>(thread)];
  const bool train = purpose == Purpose::kTrain;
  outcome = Outcome{};
  try {
    for (const std::shared_ptr<Event>& ready : copies_ready_) {
      stream.WaitFor(ready);
    }
    if (train) {
      reducer_->Begin(thread, turn, static_cast<double>(part.size), stream);
      if (rows_ != nullptr) {
        rows_->Mark(thread);
      }
    }
    if (part.size > 0) {
      Result<ReplicaResult> result = Call(thread, replica, part, fn, purpose);
      outcome.status = result.status();
      if (result.ok()) {
        outcome.result = std::move(result).value();
      }
    }
    if (train && outcome.status.ok()) {
      reducer_->End(thread, part.size > 0);
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
  if (train) {
    reducer_->CloseTurn(thread, turn);
  }
  if (train && rows_ != nullptr && outcome.result.weight == 0) {
    rows_->DropSinceMark(thread);
  }
}

// Loss, weight and metrics of one replica, as they are added up.
SynchronousStrategy::Totals SynchronousStrategy::TotalsOf(const ReplicaResult& result) {
  Totals totals;
  if (result.weight == 0) {
    return totals;  // sums may be NaN
  }
  totals.loss() = result.loss_sum;
  totals.weight() = result.weight;
  totals.replicas() = 1;
  totals.metrics() = static_cast<double>(result.metric_sums.size());
  std::ranges::copy(result.metric_sums, totals.metric());
  return totals;
}

// `totals` becomes the replicas' sum, in the tree in which their gradients are added.
Status SynchronousStrategy::RunReplicas(const DistributedBatch& batch, const StepFn& fn,
                                        Purpose purpose, Totals& totals) {
  Require(parameters_ != nullptr, "Bind before the first step");
  Require(static_cast<int>(batch.replicas.size()) == local_replicas_,
          "a batch with one part per local replica");
  copies_ready_.clear();
  for (const std::unique_ptr<DeviceCopy>& copy : copies_) {
    copies_ready_.push_back(copy->stream().Record());
  }
  gang_.Run([&](int thread) {
    for (int turn = 0; turn < turns_; ++turn) {
      const auto replica = static_cast<std::size_t>(thread * turns_ + turn);
      RunTurn(thread, turn, batch.replicas[replica], fn, purpose);
      if (outcomes_[replica].exception != nullptr || !outcomes_[replica].status.ok()) {
        break;
      }
    }
  });
  std::vector<Totals> sums;
  double metrics = -1;
  for (int replica = 0; replica < local_replicas_; ++replica) {
    const Outcome& outcome = outcomes_[static_cast<std::size_t>(replica)];
    if (outcome.exception != nullptr) {
      (void)Fail(Internal(NameOf(replica) + ": exception: " + WhatOf(outcome.exception)));
      std::rethrow_exception(outcome.exception);
    }
    if (!outcome.status.ok()) {
      return Fail(outcome.status.Annotate(NameOf(replica)));
    }
    Totals mine = TotalsOf(outcome.result);
    if (mine.replicas() > 0) {
      if (metrics >= 0 && metrics != mine.metrics()) {
        return Fail(InvalidArgument(
            NameOf(replica) + " returned " + std::to_string(outcome.result.metric_sums.size()) +
            " metric sums, another one " + std::to_string(std::llround(metrics)) +
            " [as many on every replica]"));
      }
      metrics = mine.metrics();
    }
    sums.push_back(mine);
  }
  for (std::size_t step = 1; step < sums.size(); step *= 2) {
    for (std::size_t r = 0; r + step < sums.size(); r += 2 * step) {
      sums[r].Add(sums[r + step]);
    }
  }
  totals.Add(sums.front());
  return {};
}

// This process cannot go on with the step: nor can the others.
Status SynchronousStrategy::Fail(const Status& status) {
  membership_->GiveUp(status);
  if (reducer_ != nullptr) {
    reducer_->GiveUp();
  }
  if (rows_ != nullptr) {
    rows_->Drop();
  }
  totals_ = Totals();
  passes_ = 0;
  return status;
}

Result<std::unique_ptr<Work>> SynchronousStrategy::AddUp(Totals& totals, const std::string& name) {
  CollectiveOptions options;
  options.name = name;
  options.algorithm = algorithm_;
  return communicator_->AllReduce(std::span<double>(totals.sums), ReduceOp::kSum, options);
}

Result<StepResult> SynchronousStrategy::Finish(Totals& totals) const {
  if (totals.replicas() > 0) {
    const double metrics = totals.metrics() / totals.replicas();
    if (metrics != std::floor(metrics)) {
      return InvalidArgument(
          "replicas of different processes returned different numbers of metric sums [as many on "
          "every replica]");
    }
  }
  return ResultOf(totals);
}

StepResult SynchronousStrategy::ResultOf(Totals& totals) const {
  StepResult result;
  result.weight = totals.weight();
  result.step = step_;
  result.exposed_communication_seconds = exposed_seconds_;
  if (totals.replicas() == 0) {
    return result;
  }
  result.loss = totals.loss() / totals.weight();
  const auto metrics = static_cast<std::size_t>(totals.metrics() / totals.replicas());
  for (std::size_t m = 0; m < metrics; ++m) {
    result.metrics.push_back(totals.metric()[m] / totals.weight());
  }
  return result;
}

// ---- The update ------------------------------------------------------------------------------

// Of loss_seed(), beside the weight.
double SynchronousStrategy::LossFactor() const {
  return scaler_.has_value() ? scaler_->scale() / scaled_weight_ : 1.0;
}

// Bias correction counts what the moments have seen; schedules count steps. 0: they are the same.
std::int64_t SynchronousStrategy::BiasStep() const {
  return scaler_.has_value() ? std::max<std::int64_t>(1, step_ + 1 - scaler_->state().skipped) : 0;
}

float SynchronousStrategy::GradientScale(double weight) const {
  const double loss_scale = LossFactor();
  switch (options_.loss_scale) {
    case LossScale::kGlobalMean:
      return static_cast<float>(1.0 / (weight * loss_scale));
    case LossScale::kReplicaMean:
      return static_cast<float>(1.0 / (num_replicas_in_sync() * passes_ * loss_scale));
    case LossScale::kSum:
      break;
  }
  return static_cast<float>(1.0 / loss_scale);
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
  const Range range(Phase::kUpdate, step_ + 1);
  const std::span<float> values = parameters_->all();
  const bool summed = NeedsNorm();
  ForChunks(first_chunk, last_chunk, [&](std::size_t index) {
    const BucketPlan::Chunk& chunk = reducer_->plan().chunks[index];
    if (!summed) {
      reducer_->Sum(chunk);
    }
    const auto value = static_cast<std::size_t>(chunk.value);
    const auto elements = static_cast<std::size_t>(chunk.elements);
    // Of a size that the allocator has at hand: the same, from chunk to chunk, in the cache.
    const auto room = one_pass_ ? std::make_unique_for_overwrite<float[]>(elements) : nullptr;
    std::vector<std::span<float>> slots;
    slots.reserve(slots_.size());
    for (const std::span<float> slot : slots_) {
      slots.push_back(slot.subspan(value, elements));
    }
    optimizer_->Apply({.value = values.subspan(value, elements),
                       .gradient = reducer_->SumOf(chunk, room.get()),
                       .slots = slots,
                       .gradient_scale = scale,
                       .step = step_ + 1,
                       .bias_step = BiasStep()});
  });
}

void SynchronousStrategy::ApplyOnDevices(int first_bucket, int last_bucket, float scale) {
  const Range range(Phase::kUpdate, step_ + 1);
  const BucketPlan& plan = reducer_->plan();
  const UpdateRule rule = optimizer_->RuleAt(step_ + 1, BiasStep());
  for (const std::unique_ptr<DeviceCopy>& copy : copies_) {
    for (int b = first_bucket; b < last_bucket; ++b) {
      copy->Update(rule, plan, plan.buckets[static_cast<std::size_t>(b)],
                   reducer_->gradients(*copy), scale);
    }
  }
}

// Of the whole gradient, for which all buckets must have landed. Squares are added in declaration
// order, however the buckets lie. On devices those of process 0's replica 0 count: another's
// kernels may add in another order.
Result<double> SynchronousStrategy::SquaredNormOfAll() {
  if (!copies_.empty()) {
    DeviceCopy& first = *copy_of(0);
    double squared_norm = 0;
    try {
      COHORT_ASSIGN_OR_RETURN(
          squared_norm,
          first.Squares(reducer_->plan(), reducer_->gradients(first), options_.collective_timeout));
    } catch (const StatusError& error) {  // no memory for it
      return error.status();
    }
    // Whether it is finite, all know.
    if (communicator_ != nullptr && optimizer_->global_clip_norm() > 0) {
      CollectiveOptions options;
      options.name = "norm of the gradient";
      COHORT_RETURN_IF_ERROR(
          Await(communicator_->Broadcast(std::span<double>(&squared_norm, 1), 0, options)));
    }
    return squared_norm;
  }
  const std::vector<BucketPlan::Chunk>& chunks = reducer_->plan().chunks;
  ForChunks(0, chunks.size(), [&](std::size_t index) {
    const BucketPlan::Chunk& chunk = chunks[index];
    reducer_->Sum(chunk);
    squares_[chunk.ordinal] = SquaredNorm(reducer_->gradients().subspan(
        static_cast<std::size_t>(chunk.gradient), static_cast<std::size_t>(chunk.elements)));
  });
  double squared_norm = 0;
  for (const double squares : squares_) {
    squared_norm += squares;
  }
  return squared_norm;
}

Status SynchronousStrategy::Expose(const std::function<Status()>& wait) {
  const SteadyClock::time_point start = SteadyClock::now();
  const Status status = wait();
  exposed_seconds_ += Seconds(SteadyClock::now() - start);
  return status;
}

// A bucket in one pass. What is not spent on the update is waiting.
Status SynchronousStrategy::ReadAndApply(int bucket, float& scale, int& applied) {
  SteadyClock::duration updating{0};
  const SteadyClock::time_point start = SteadyClock::now();
  const Status status = reducer_->Read(bucket, [&] {
    const SteadyClock::time_point begin = SteadyClock::now();
    if (bucket == 0) {
      const double weight = reducer_->total_weight();
      scale = weight > 0 ? GradientScale(weight) : 0;
    }
    if (scale > 0) {
      const BucketPlan::Bucket& b = reducer_->plan().buckets[static_cast<std::size_t>(bucket)];
      ++applied;
      Apply(b.first_chunk, b.last_chunk, scale);
    }
    updating = SteadyClock::now() - begin;
  });
  exposed_seconds_ += Seconds(SteadyClock::now() - start - updating);
  return status;
}

// Waits for each bucket in turn and applies it, unless all have to be there first; `applied` counts
// those that were. The tuner learns from buckets that were waited for and followed such, and from
// the operation behind them.
Status SynchronousStrategy::LandInOrder(Work* behind, float& scale, int& applied) {
  const BucketPlan& plan = reducer_->plan();
  const bool at_once = AtOnce();
  const bool watched = !one_pass_ && Watched(sent_passes_);
  std::optional<SteadyClock::time_point> since = reducer_->launched_at(0);
  for (std::size_t b = 0; b < plan.buckets.size(); ++b) {
    const int bucket = static_cast<int>(b);
    if (reducer_->is_read(bucket)) {
      COHORT_RETURN_IF_ERROR(ReadAndApply(bucket, scale, applied));
      continue;
    }
    const bool waited = !reducer_->has_landed(bucket);
    COHORT_RETURN_IF_ERROR(Expose([&] { return reducer_->Landed(bucket); }));
    if (b == 0) {
      const double weight = reducer_->total_weight();
      scale = weight > 0 ? GradientScale(weight) : 0;
    }
    if (watched) {
      const SteadyClock::time_point now = SteadyClock::now();
      const std::int64_t bytes =
          (plan.buckets[b].end - plan.buckets[b].begin) * static_cast<std::int64_t>(sizeof(float));
      if (waited && since.has_value() && !plan.buckets[b].rows) {
        tuner_.AddBucket(bytes, Seconds(now - std::max(*since, reducer_->launched_at(bucket))));
      }
      since = waited ? std::optional(now) : std::nullopt;
      if (waited && bucket + 1 == static_cast<int>(plan.buckets.size()) && !behind->done()) {
        COHORT_RETURN_IF_ERROR(Expose([&] { return behind->Wait(); }));
        tuner_.AddLatency(Seconds(SteadyClock::now() - now));
      }
    }
    if (scale > 0 && !at_once) {
      ++applied;
      if (copies_.empty()) {
        Apply(plan.buckets[b].first_chunk, plan.buckets[b].last_chunk, scale);
      } else {
        ApplyOnDevices(bucket, bucket + 1, scale);
      }
    }
  }
  return {};
}

// What this process's gradients of rows are divided by: those of the job, by the sum over
// processes.
double SynchronousStrategy::RowDivisor() {
  switch (options_.loss_scale) {
    case LossScale::kGlobalMean:
      return totals_.weight();
    case LossScale::kReplicaMean:
      return local_replicas_ * passes_;
    case LossScale::kSum:
      break;
  }
  return 1.0 / num_processes_;
}

// Before parameters, since it may refuse a gradient, which an update of parameters never does.
Status SynchronousStrategy::UpdateRows() {
  const Status status = rows_->Apply(step_ + 1, RowDivisor(), peek_next_ ? peek_next_() : nullptr);
  if (status.code() == StatusCode::kResourceExhausted) {
    broken_ = status.Annotate("some rows are those of a step that was given up");
  }
  return status;
}

// Whether no bucket may be applied before all have landed. On devices, where what is wrong with the
// data of a process (a label out of range) may come to light only after its buckets were sent.
bool SynchronousStrategy::AtOnce() const {
  return options_.whole_updates || NeedsNorm() || !copies_.empty();
}

Status SynchronousStrategy::UpdateAtOnce(float scale) {
  if (NeedsNorm()) {
    // Squares of float32, added up in double, are finite if all of them are: a process finds what
    // the others find, from the same sums.
    COHORT_ASSIGN_OR_RETURN(const double squared_norm, SquaredNormOfAll());
    if (scaler_.has_value()) {
      skipped_ = !std::isfinite(squared_norm);
      if (skipped_) {
        return Skip();
      }
      scaler_->Update(true);
      skips_ = 0;
    }
    if (optimizer_->global_clip_norm() > 0) {
      const double factor = scale;
      scale = static_cast<float>(
          factor * ClipFactor(squared_norm * factor * factor, optimizer_->global_clip_norm()));
    }
  }
  if (copies_.empty()) {
    Apply(0, reducer_->plan().chunks.size(), scale);
  } else {
    ApplyOnDevices(0, static_cast<int>(reducer_->plan().buckets.size()), scale);
  }
  return {};
}

// The step's gradients overflowed, on every process. An error if a lower scale does not help.
Status SynchronousStrategy::Skip() {
  PutBackState();
  const double scale = scaler_->scale();
  scaler_->Update(false);
  if (scaler_->scale() == scale || ++skips_ >= kMostSkips) {
    return DataLoss("gradients are infinite or NaN, also where they are scaled by " +
                    ShortText(scale) + ", after " + std::to_string(scaler_->state().skipped) +
                    " skipped steps [lower the learning rate, look for bad values in the input, or "
                    "train in mixed_bfloat16]");
  }
  options_.log.Info("step " + std::to_string(step_ + 1) +
                    ": gradients overflowed, nothing is updated; they are scaled by " +
                    ShortText(scaler_->scale()) + " now");
  return {};
}

Status SynchronousStrategy::UpdateAlone() {
  if (copies_.size() > 1 && !state_.empty()) {
    COHORT_RETURN_IF_ERROR(GatherState());
    TakeState();
  }
  for (int b = 0; reducer_->launches() && b < static_cast<int>(reducer_->plan().buckets.size());
       ++b) {
    COHORT_RETURN_IF_ERROR(Expose([&] { return reducer_->Landed(b); }));
  }
  const double weight = reducer_->total_weight();
  if (weight == 0) {
    return {};
  }
  if (!copies_.empty() && !reducer_->launches()) {
    reducer_->SumOnDevices();
  }
  return UpdateAtOnce(GradientScale(weight));
}

// Rank 0's values of what is not trainable (running averages) hold everywhere, as initial values
// do.
Communicator::Pending SynchronousStrategy::SendState() {
  if (rank_ == 0) {
    COHORT_RETURN_IF_ERROR(GatherState());
  }
  CollectiveOptions options;
  options.name = "values that are not trainable";
  return communicator_->Broadcast(std::span<float>(state_), 0, options);
}

// From where replica 0 wrote them.
Status SynchronousStrategy::GatherState() {
  if (DeviceCopy* const first = copy_of(0); first != nullptr) {
    // A copy to the host's own memory blocks, without a deadline, until the stream has come there.
    COHORT_RETURN_IF_ERROR(first->Drain(options_.collective_timeout));
    first->PullValues(untrained_, state_);
    return first->Drain(options_.collective_timeout);
  }
  auto to = state_.begin();
  for (const int parameter : untrained_) {
    to = std::ranges::copy(parameters_->value(parameter), to).out;
  }
  return {};
}

void SynchronousStrategy::TakeState() {
  if (!copies_.empty()) {
    for (const std::unique_ptr<DeviceCopy>& copy : copies_) {
      copy->PushValues(untrained_, state_);
    }
    return;
  }
  auto from = state_.begin();
  for (const int parameter : untrained_) {
    const std::span<float> value = parameters_->value(parameter);
    std::copy_n(from, value.size(), value.begin());
    from += static_cast<std::ptrdiff_t>(value.size());
  }
}

// The values that are not trainable as they are before a step, which may be skipped.
void SynchronousStrategy::KeepState() {
  for (const std::unique_ptr<DeviceCopy>& copy : copies_) {
    copy->KeepValues(untrained_);
  }
  if (copies_.empty()) {
    kept_state_.clear();
    for (const int parameter : untrained_) {
      const std::span<const float> value = parameters_->value(parameter);
      kept_state_.insert(kept_state_.end(), value.begin(), value.end());
    }
  }
}

void SynchronousStrategy::PutBackState() {
  for (const std::unique_ptr<DeviceCopy>& copy : copies_) {
    copy->PutBackValues(untrained_);
  }
  if (copies_.empty()) {
    auto from = kept_state_.begin();
    for (const int parameter : untrained_) {
      const std::span<float> value = parameters_->value(parameter);
      std::copy_n(from, value.size(), value.begin());
      from += static_cast<std::ptrdiff_t>(value.size());
    }
  }
}

// The step's collectives that are not buckets, and the buckets' update.
Status SynchronousStrategy::SettleTogether(int& applied) {
  auto sums = AddUp(totals_, "loss and metrics");
  COHORT_RETURN_IF_ERROR(sums.status());
  std::unique_ptr<Work> state;
  Status status;
  if (!state_.empty()) {
    auto sent = SendState();
    status = sent.status();
    state = sent.ok() ? std::move(sent).value() : nullptr;
  }
  float scale = 0;
  if (status.ok() && one_pass_) {  // so that each operation is run by who waits for it
    status = Expose([&] { return sums.value()->Wait(); });
  }
  if (status.ok()) {
    status = LandInOrder(sums->get(), scale, applied);
  }
  // Their buffers are ours again only when both are over, also after an error.
  for (Work* work : {sums->get(), state.get()}) {
    const Status done = work == nullptr ? OkStatus() : Expose([&] { return work->Wait(); });
    status = status.ok() ? done : status;
  }
  if (status.ok() && scale > 0 && AtOnce()) {
    status = UpdateAtOnce(scale);
  }
  if (status.ok() && state != nullptr && !skipped_) {
    TakeState();
  }
  return status;
}

// ---- A step ----------------------------------------------------------------------------------

Status SynchronousStrategy::RunPass(const DistributedBatch& batch, const StepFn& fn, bool sent) {
  COHORT_RETURN_IF_ERROR(broken_);
  Require(reducer_ != nullptr, "Bind before the first step");
  exposed_seconds_ = 0;
  if (scaler_.has_value() && passes_ == 0) {
    scaled_weight_ = options_.loss_scale == LossScale::kGlobalMean ? usual_weight_ : 1;
    try {
      KeepState();
    } catch (const StatusError& error) {  // no memory for it
      return Fail(error.status());
    }
  }
  reducer_->StartPass(step_ + 1, sent, LossFactor());
  if (rows_ != nullptr) {
    rows_->StartStep(step_ + 1, batch);
  }
  ++passes_;
  COHORT_RETURN_IF_ERROR(RunReplicas(batch, fn, Purpose::kTrain, totals_));
  const Status finished = reducer_->FinishPass();
  return finished.ok() ? finished : Fail(finished);
}

Result<StepResult> SynchronousStrategy::Accumulate(const DistributedBatch& batch,
                                                   const StepFn& fn) {
  if (options_.virtual_shards > 0) {
    return InvalidArgument(
        "Accumulate with virtual shards, of which each device accumulates its own already [make "
        "the global batch larger, and cut it into more of them]");
  }
  const Totals before = totals_;
  COHORT_RETURN_IF_ERROR(RunPass(batch, fn, /*sent=*/false));
  Totals mine = totals_;
  for (std::size_t i = 0; i < mine.sums.size(); ++i) {
    mine.sums[i] -= before.sums[i];
  }
  return Finish(mine);
}

Result<StepResult> SynchronousStrategy::Step(const DistributedBatch& batch, const StepFn& fn) {
  const Range range(Phase::kStep, step_ + 1);
  COHORT_RETURN_IF_ERROR(RunPass(batch, fn, /*sent=*/true));
  ++sent_passes_;
  skipped_ = false;
  int applied = 0;
  Status settled = rows_ == nullptr ? OkStatus() : UpdateRows();
  if (settled.ok() && communicator_ == nullptr) {
    settled = UpdateAlone();
    // The rows have been.
    applied =
        settled.ok() || rows_ == nullptr ? 0 : static_cast<int>(reducer_->plan().buckets.size());
  } else if (settled.ok()) {
    settled = SettleTogether(applied);
  }
  if (settled.ok() && rows_ != nullptr) {
    settled = Expose([&] { return rows_->Finish(); });
    applied = settled.ok() ? applied : static_cast<int>(reducer_->plan().buckets.size());
  }
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
  Totals totals = std::exchange(totals_, Totals());
  passes_ = 0;
  Result<StepResult> result = Finish(totals);
  if (result.ok()) {
    result->skipped = skipped_;
  }
  broken_ = result.status();  // too late to give the step up
  if (result.ok() && reducer_->launches()) {
    if (const Status status = AfterStep(); !status.ok()) {
      return Fail(membership_->Explain(status)).Annotate("after step " + std::to_string(step_));
    }
  }
  return result;
}

Result<StepResult> SynchronousStrategy::Evaluate(const DistributedBatch& batch, const StepFn& fn) {
  Totals totals;
  exposed_seconds_ = 0;
  COHORT_RETURN_IF_ERROR(RunReplicas(batch, fn, Purpose::kEvaluate, totals));
  if (communicator_ != nullptr) {
    COHORT_RETURN_IF_ERROR(Expose([&] { return Meet(AddUp(totals, "evaluation")); }));
  }
  return Finish(totals);
}

// ---- Between steps ---------------------------------------------------------------------------

// All processes come here after the same steps.
Status SynchronousStrategy::AfterStep() {
  if (!ordered_) {
    return AgreeOnOrder();
  }
  const NcclSums* const nccl = cross_device_.nccl.get();
  const int summands = nccl != nullptr ? nccl->size() : num_processes_;
  const bool adapts =
      options_.bucket_bytes == 0 && communicator_ != nullptr && summands == 2 && !one_pass_;
  if (adapts && Watched(sent_passes_) && !Watched(sent_passes_ + 1)) {
    return AgreeOnLimits();
  }
  return {};
}

// From the first step that rank 0 had examples in, all processes take the order in which its first
// replica finished the parameters, and know which of them came as rows only, on all replicas.
Status SynchronousStrategy::AgreeOnOrder() {
  const Reducer::Use& use = reducer_->use();
  const auto parameters = static_cast<std::size_t>(parameters_->size());
  std::vector<std::int32_t> order(parameters, -1);
  std::ranges::copy(use.ready, order.begin());
  std::vector<std::int32_t> uses = use.as_rows;
  uses.insert(uses.end(), use.dense.begin(), use.dense.end());
  if (communicator_ != nullptr) {
    CollectiveOptions options;
    options.name = "order of gradients";
    COHORT_RETURN_IF_ERROR(
        Await(communicator_->Broadcast(std::span<std::int32_t>(order), 0, options)));
    options.name = "gradients that are rows";
    COHORT_RETURN_IF_ERROR(
        Await(communicator_->AllReduce(std::span<std::int32_t>(uses), ReduceOp::kMax, options)));
  }
  BucketOrder seen;
  std::ranges::copy_if(order, std::back_inserter(seen.parameters), [](int p) { return p >= 0; });
  if (seen.parameters.empty()) {
    return {};  // rank 0 had no examples
  }
  for (std::size_t p = 0; p < parameters; ++p) {
    seen.rows.push_back(uses[p] != 0 && uses[parameters + p] == 0);
  }
  ordered_ = true;
  return UsePlan(seen, limits_);
}

// Rank 0 has measured, and all processes take its word.
Status SynchronousStrategy::AgreeOnLimits() {
  const auto gradient_bytes = reducer_->plan().elements * static_cast<std::int64_t>(sizeof(float));
  const BucketLimits mine = tuner_.Propose(limits_, gradient_bytes).value_or(limits_);
  std::array<std::int64_t, 2> limits{mine.first_bytes, mine.bytes};
  CollectiveOptions options;
  options.name = "bucket size";
  COHORT_RETURN_IF_ERROR(
      Await(communicator_->Broadcast(std::span<std::int64_t>(limits), 0, options)));
  const BucketLimits agreed{.first_bytes = limits[0], .bytes = limits[1]};
  return agreed == limits_ ? OkStatus() : UsePlan(order_, agreed);
}

Status SynchronousStrategy::UsePlan(const BucketOrder& order, const BucketLimits& limits) {
  order_ = order;
  limits_ = limits;
  reducer_->Rebuild(order_, limits_);
  if (communicator_ == nullptr) {
    return {};
  }
  return Agree(*communicator_, "gradient buckets", reducer_->plan().Lines(),
               "this is a defect: report it");
}

}  // namespace cohort
