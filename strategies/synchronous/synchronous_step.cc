// One step of SynchronousStrategy: the replicas' passes (synchronous_replicas.cc), what the
// processes settle together, and the update of each bucket as it lands (updater.h).

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include <cohort/device/range.h>

#include "synchronous/synchronous_strategy.h"

namespace cohort {
namespace {

using SteadyClock = std::chrono::steady_clock;

double Seconds(SteadyClock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

// This process cannot go on with the step: nor can the others.
Status SynchronousStrategy::Fail(const Status& status, Cause cause) {
  if (cause == Cause::kOwn) {
    membership_->GiveUpOwn(status);
  } else {
    membership_->GiveUp(status);
  }
  if (reducer_ != nullptr) {
    reducer_->GiveUp();
  }
  if (rows_ != nullptr) {
    rows_->Drop();
  }
  totals_ = StepTotals();
  passes_ = 0;
  return status;
}

Result<std::unique_ptr<Work>> SynchronousStrategy::AddUp(StepTotals& totals,
                                                         const std::string& name) {
  CollectiveOptions options;
  options.name = name;
  options.algorithm = OrderedAlgorithm();
  return communicator_->AllReduce(totals.sums(), ReduceOp::kSum, options);
}

Result<StepResult> SynchronousStrategy::Finish(const StepTotals& totals) const {
  COHORT_ASSIGN_OR_RETURN(StepResult result, totals.Means());
  result.step = step_;
  result.exposed_communication_seconds = exposed_seconds_;
  return result;
}

// ---- What the processes settle together ------------------------------------------------------

Status SynchronousStrategy::Expose(const std::function<Status()>& wait) {
  const SteadyClock::time_point start = SteadyClock::now();
  const Status status = wait();
  exposed_seconds_ += Seconds(SteadyClock::now() - start);
  return status;
}

float SynchronousStrategy::GradientScale(double weight) const {
  return updater_->GradientScale(weight, num_replicas_in_sync() * passes_);
}

// Once bucket 0 has landed. 0: there is nothing to update with.
float SynchronousStrategy::ScaleOfSums() const {
  const double weight = reducer_->total_weight();
  return weight > 0 ? GradientScale(weight) : 0;
}

// Waits for each bucket in turn and applies it, unless all have to be there first; `applied` counts
// those that were. The tuner learns from buckets that were waited for and followed such, or had the
// link for themselves, and from the operation behind them.
Status SynchronousStrategy::LandInOrder(Work* behind, float& scale, int& applied) {
  const BucketPlan& plan = reducer_->plan();
  const bool at_once = updater_->at_once();
  const bool watched = !one_bucket_ && agreement_->watches();
  std::optional<SteadyClock::time_point> since;
  for (std::size_t b = 0; b < plan.buckets.size(); ++b) {
    const int bucket = static_cast<int>(b);
    const bool waited = !reducer_->has_landed(bucket);
    COHORT_RETURN_IF_ERROR(Expose([&] { return reducer_->Landed(bucket); }));
    if (b == 0) {
      scale = ScaleOfSums();
    }
    if (watched) {
      const SteadyClock::time_point now = SteadyClock::now();
      const std::int64_t bytes =
          (plan.buckets[b].end - plan.buckets[b].begin) * static_cast<std::int64_t>(sizeof(float));
      const SteadyClock::time_point launched = reducer_->launched_at(bucket);
      if (reducer_->launched_alone(bucket)) {
        since = launched;
      }
      if (waited && since.has_value() && !plan.buckets[b].rows) {
        agreement_->tuner().AddBucket(bytes, Seconds(now - std::max(*since, launched)));
      }
      since = waited ? std::optional(now) : std::nullopt;
      if (waited && bucket + 1 == static_cast<int>(plan.buckets.size()) && !behind->done()) {
        COHORT_RETURN_IF_ERROR(Expose([&] { return behind->Wait(); }));
        agreement_->tuner().AddLatency(Seconds(SteadyClock::now() - now));
      }
    }
    if (scale > 0 && !at_once) {
      ++applied;
      updater_->Apply(bucket, step_ + 1, scale);
    }
  }
  return {};
}

// What this process's gradients of rows are divided by: those of the job, by the sum over
// processes.
double SynchronousStrategy::RowDivisor() {
  const double loss_scale = updater_->LossFactor();
  switch (options_.loss_scale) {
    case LossScale::kGlobalMean:
      return totals_.weight() * loss_scale;
    case LossScale::kReplicaMean:
      return local_replicas_ * passes_ * loss_scale;
    case LossScale::kSum:
      break;
  }
  return loss_scale / num_processes_;
}

// Before parameters, since it may refuse a gradient, which an update of parameters never does.
Status SynchronousStrategy::UpdateRows() {
  const Status status = rows_->Apply(step_ + 1, RowDivisor(), peek_next_ ? peek_next_() : nullptr);
  if (status.code() == StatusCode::kResourceExhausted) {
    broken_ = status.Annotate("some rows are those of a step that was given up");
  }
  return status;
}

Status SynchronousStrategy::UpdateAtOnce(float scale) {
  std::function<Result<bool>()> rows;
  if (holds_rows()) {
    rows = [this]() -> Result<bool> {
      if (!rows_->Finite()) {
        return false;
      }
      COHORT_RETURN_IF_ERROR(UpdateRows());
      return true;
    };
  }
  COHORT_ASSIGN_OR_RETURN(const bool updated, updater_->ApplyAll(step_ + 1, scale, rows));
  skipped_ = !updated;
  if (skipped_ && rows_ != nullptr) {
    rows_->Drop();
  }
  return {};
}

Status SynchronousStrategy::UpdateAlone() {
  if (copies_.size() > 1 && !untrained_->empty()) {
    COHORT_RETURN_IF_ERROR(untrained_->Gather());
    untrained_->Take();
  }
  for (int b = 0; reducer_->launches() && b < static_cast<int>(reducer_->plan().buckets.size());
       ++b) {
    COHORT_RETURN_IF_ERROR(Expose([&] { return reducer_->Landed(b); }));
  }
  const double weight = reducer_->total_weight();
  if (weight == 0) {
    return holds_rows() ? UpdateRows() : OkStatus();
  }
  if (!copies_.empty() && !reducer_->launches()) {
    reducer_->SumOnDevices();
  }
  return UpdateAtOnce(GradientScale(weight));
}

// The step's collectives that are not buckets, and the buckets' update.
Status SynchronousStrategy::SettleTogether(int& applied) {
  auto sums = AddUp(totals_, "loss and metrics");
  COHORT_RETURN_IF_ERROR(sums.status());
  std::unique_ptr<Work> state;
  Status status;
  if (!untrained_->empty()) {
    auto sent = untrained_->Send(*communicator_);
    status = sent.status();
    state = sent.ok() ? std::move(sent).value() : nullptr;
  }
  float scale = 0;
  if (status.ok() && one_bucket_) {  // so that each operation is run by who waits for it
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
  if (status.ok() && scale > 0 && updater_->at_once()) {
    status = UpdateAtOnce(scale);
  }
  if (status.ok() && state != nullptr && !skipped_) {
    untrained_->Take();
  }
  return status;
}

// ---- A step ----------------------------------------------------------------------------------

// Adds what it comes to, which is `*pass` too, to the step's.
Status SynchronousStrategy::RunPass(const DistributedBatch& batch, const StepFn& fn, bool sent,
                                    StepTotals* pass) {
  COHORT_RETURN_IF_ERROR(broken_);
  Require(parameters_ != nullptr, "Bind before the first step");
  exposed_seconds_ = 0;
  if (scaler_.has_value() && passes_ == 0) {
    updater_->ScaleFor(usual_weight_);
    try {
      untrained_->Keep();
    } catch (const StatusError& error) {  // no memory for it
      return Fail(error.status());
    }
  }
  reducer_->StartPass(step_ + 1, sent, updater_->LossFactor());
  if (rows_ != nullptr) {
    rows_->StartStep(step_ + 1, batch, scaler_.has_value() ? scaler_->state().skipped : 0);
  }
  ++passes_;
  COHORT_RETURN_IF_ERROR(RunReplicas(batch, fn, Purpose::kTrain, *pass));
  totals_.Add(*pass);
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
  StepTotals pass;
  COHORT_RETURN_IF_ERROR(RunPass(batch, fn, /*sent=*/false, &pass));
  return Finish(pass);
}

Result<StepResult> SynchronousStrategy::Step(const DistributedBatch& batch, const StepFn& fn) {
  const Range range(Phase::kStep, step_ + 1);
  StepTotals pass;
  COHORT_RETURN_IF_ERROR(RunPass(batch, fn, /*sent=*/true, &pass));
  agreement_->CountPass();
  skipped_ = false;
  int applied = 0;
  const bool rows_first = rows_ != nullptr && !holds_rows();
  Status settled = rows_first ? UpdateRows() : OkStatus();
  if (settled.ok() && communicator_ == nullptr) {
    settled = UpdateAlone();
    // The rows have been.
    applied = settled.ok() || !rows_first ? 0 : static_cast<int>(reducer_->plan().buckets.size());
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
  const StepTotals totals = std::exchange(totals_, StepTotals());
  passes_ = 0;
  Result<StepResult> result = Finish(totals);
  if (result.ok()) {
    result->skipped = skipped_;
  }
  broken_ = result.status();  // too late to give the step up
  if (result.ok() && reducer_->launches()) {
    if (const Status status = agreement_->AfterStep(); !status.ok()) {
      return Fail(membership_->Explain(status)).Annotate("after step " + std::to_string(step_));
    }
  }
  return result;
}

Result<StepResult> SynchronousStrategy::Evaluate(const DistributedBatch& batch, const StepFn& fn) {
  StepTotals totals;
  exposed_seconds_ = 0;
  COHORT_RETURN_IF_ERROR(RunReplicas(batch, fn, Purpose::kEvaluate, totals));
  if (communicator_ != nullptr) {
    COHORT_RETURN_IF_ERROR(Expose([&] { return Meet(AddUp(totals, "evaluation")); }));
  }
  return Finish(totals);
}

}  // namespace cohort
