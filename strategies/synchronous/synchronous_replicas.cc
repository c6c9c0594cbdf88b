// The replicas of SynchronousStrategy: the step function on each one's part of a batch, and what
// they came to together.

#include <algorithm>
#include <cmath>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "no_gradients.h"
#include "synchronous/step_totals.h"
#include "synchronous/synchronous_strategy.h"

namespace cohort {
namespace {

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

void SynchronousStrategy::CheckResult(int thread, const ReplicaResult& result,
                                      Purpose purpose) const {
  Require(std::isfinite(result.weight) && result.weight >= 0,
          "a step function returns a finite weight of at least 0");
  if (const std::size_t metrics = result.metric_sums.size(); metrics > StepTotals::kMaxMetrics) {
    Require(false, "a step function returns at most " + std::to_string(StepTotals::kMaxMetrics) +
                       " metric sums, not " + std::to_string(metrics) +
                       " [longer ones, say the counts of an AUC, go through Strategy::Reduce]");
  }
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
  const Status drained = stream.Synchronize(DeadlineAfter(options_.communication.timeout));
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

// Adds the replicas' sum to `totals`.
Status SynchronousStrategy::RunReplicas(const DistributedBatch& batch, const StepFn& fn,
                                        Purpose purpose, StepTotals& totals) {
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
  std::vector<StepTotals> sums;
  double metrics = -1;
  for (int replica = 0; replica < local_replicas_; ++replica) {
    const Outcome& outcome = outcomes_[static_cast<std::size_t>(replica)];
    if (outcome.exception != nullptr) {
      (void)Fail(Internal(NameOf(replica) + ": exception: " + WhatOf(outcome.exception)));
      std::rethrow_exception(outcome.exception);
    }
    if (!outcome.status.ok()) {
      const bool of_a_server = rows_ != nullptr && rows_->server_failed();
      return Fail(outcome.status.Annotate(NameOf(replica)),
                  of_a_server ? Cause::kAny : Cause::kOwn);
    }
    const StepTotals mine(outcome.result);
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
  totals.Add(StepTotals::InTree(std::move(sums)));
  return {};
}

}  // namespace cohort
