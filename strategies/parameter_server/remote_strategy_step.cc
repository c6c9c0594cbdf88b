// A step of RemoteStrategy: a pass over a part of the data, and what the servers make of it.
#include "parameter_server/remote_strategy.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <utility>

#include <cohort/device/range.h>
#include <cohort/optim/gradients.h>

#include "no_gradients.h"

namespace cohort {

Result<StepResult> RemoteStrategy::Step(const DistributedBatch& batch, const StepFn& fn) {
  const int roll_backs = roll_backs_;
  Result<StepResult> result = StepThrough(batch, fn);
  if (!functions_ || !result.ok() || (!void_ && roll_backs_ == roll_backs)) {
    return result;
  }
  void_ = true;  // nobody brings the batch again, but the call as a whole
  return Aborted(
      "the servers went back to a save in the middle of this call: it runs again from its begin, "
      "and no step that it makes now counts");
}

Result<StepResult> RemoteStrategy::StepThrough(const DistributedBatch& batch, const StepFn& fn) {
  const Range range(Phase::kStep, step_ + 1);
  Require(trains(), "Step where trains() holds");
  Require(sink_ != nullptr, "Bind before the first step");
  Require(batch.replicas.size() == 1, "a batch with one part per local replica");
  if (void_) {
    return ResultOf({});
  }
  while (!fresh_) {
    const Status status = Refresh(/*everything=*/true);
    fresh_ = status.ok();
    if (!fresh_) {
      COHORT_RETURN_IF_ERROR(GoOn(status));
      if (!work_stands_) {
        return ResultOf({});
      }
    }
  }
  do {
    if (rows_ != nullptr) {
      rows_->StartBatch(batch.replicas[0], batch_);
    }
    fixed_->Keep(values());
    own_error_ = false;
    Result<StepResult> result = options_.consistency.synchronous()
                                    ? StepTogether(batch, fn)
                                    : StepAlone(batch.replicas[0], fn);
    if (result.ok()) {
      job_->StepDone();
      return result;
    }
    RestoreFixedValues();
    if (own_error_) {
      job_->StepDone();  // what it has sent is not sent again
      return job_->Explain(result.status());
    }
    if (const Status well = GoOn(result.status()); !well.ok()) {
      job_->StepDone();
      return well;
    }
  } while (work_stands_);  // of this step the servers have nothing yet: see Persist
  return ResultOf({});     // Next brings the batch again
}

Result<StepResult> RemoteStrategy::Evaluate(const DistributedBatch& batch, const StepFn& fn) {
  Require(client_ != nullptr, "Bind before Evaluate, which a server does not call");
  Require(batch.replicas.size() == 1, "a batch with one part per local replica");
  if (fixed_ != nullptr) {
    fixed_->Keep(values());
  }
  if (is_chief() && functions_) {
    COHORT_RETURN_IF_ERROR(MatchRows());
  }
  std::uint64_t seen = recoveries_;
  Result<ReplicaResult> mine = Run(batch.replicas[0], fn, /*train=*/false);
  while (!mine.ok() && !own_error_) {  // a server was lost while rows were looked up
    COHORT_RETURN_IF_ERROR(is_chief() && functions_ ? RecoverCalls(mine.status(), seen)
                                                    : GoOn(mine.status()));
    void_ = void_ || !work_stands_;
    seen = recoveries_;
    mine = Run(batch.replicas[0], fn, /*train=*/false);
  }
  if (!mine.ok()) {
    return job_->Explain(mine.status());
  }
  return ResultOf({mine->loss_sum, mine->weight, mine->metric_sums});
}

Result<ReplicaResult> RemoteStrategy::Run(const data::Batch& part, const StepFn& fn, bool train) {
  NoGradients none;
  ReplicaContext context{.replica = trains() ? job_->rank() : 0,
                         .num_replicas = trains() ? static_cast<int>(job_->workers().size()) : 1,
                         .step = train ? step_ + 1 : step_,
                         .parameters = replica_ ? replica_->parameters() : *parameters_,
                         .gradients = train ? static_cast<GradientSink&>(*sink_) : none,
                         .stream = *stream_,
                         .intra_op_threads = intra_op_threads_,
                         .device = device_};
  Result<ReplicaResult> result = ReplicaResult();
  std::exception_ptr exception;
  try {
    if (replica_ != nullptr) {
      replica_->Upload();
    }
    if (train) {
      sink_->Begin(static_cast<double>(part.size), global_mean(), *stream_);
    }
    if (part.size > 0) {
      result = fn(context, part);
    }
    if (train && result.ok()) {
      sink_->End();
    }
  } catch (const StatusError& error) {
    result = error.status();
  } catch (...) {
    exception = std::current_exception();
  }
  // The parameters must not change, nor the arena be sent, before the stream ran dry.
  const Status drained = Drain();
  if (replica_ != nullptr && (exception != nullptr || !result.ok() || !drained.ok())) {
    replica_->Changed();  // the device may have anything
  }
  if (exception != nullptr) {
    RestoreFixedValues();
    std::rethrow_exception(exception);
  }
  const bool broken = rows_ != nullptr && rows_->TakeBroken();
  own_error_ = !broken && !(result.ok() && drained.ok());
  COHORT_RETURN_IF_ERROR(result.status());
  COHORT_RETURN_IF_ERROR(drained);
  if (result->weight == 0) {
    return ReplicaResult();  // without the sums, which may be NaN
  }
  Require(std::isfinite(result->weight) && result->weight >= 0,
          "a step function returns a finite weight of at least 0");
  Require(!train || !global_mean() || result->weight == sink_->weight(),
          "the weight that a step function returns is the one its gradients were scaled by");
  return result;
}

Status RemoteStrategy::Drain() {
  const Status status = stream_->Synchronize(DeadlineAfter(options_.communication.timeout));
  if (replica_ == nullptr) {
    return status;
  }
  const Status copied = replica_->Drain(options_.communication.timeout);
  return status.ok() ? copied : status;
}

void RemoteStrategy::RestoreFixedValues() {
  if (fixed_ != nullptr) {
    fixed_->Restore(NewValues());
  }
}

Result<StepResult> RemoteStrategy::StepAlone(const data::Batch& part, const StepFn& fn) {
  if (idle_ && options_.consistency.bounded()) {
    COHORT_RETURN_IF_ERROR(CatchUp({}));
    fixed_->Keep(values());
  }
  idle_ = false;
  COHORT_ASSIGN_OR_RETURN(const ReplicaResult mine, Run(part, fn, /*train=*/true));
  if (mine.weight == 0) {
    RestoreFixedValues();
    return ResultOf({});
  }
  fixed_->Put(values(), sink_->arena(), /*difference=*/true);
  const double weight = PushWeight(mine.weight);
  const double clip = Clip(weight);
  const std::int64_t row_step = step_ + 1;
  client_->KeepBase(NewValues());
  COHORT_ASSIGN_OR_RETURN(const bool stands,
                          Persist([&] { return PushAlone(row_step, weight, clip); }));
  if (!stands) {
    return ResultOf({});  // Next brings the batch again
  }
  step_ = static_cast<std::int64_t>(client_->version());
  if (rows_ != nullptr && options_.consistency.bounded()) {
    LookAhead(/*round=*/0, step_);
  }
  const ps::RoundSums sums{mine.loss_sum, mine.weight, mine.metric_sums};
  ++finished_.steps;
  finished_.sums.Add(sums);
  StepResult result = ResultOf(sums);
  result.staleness = static_cast<std::int64_t>(client_->staleness());
  return result;
}

// Does a part of a step. Where servers that are not lost go on as they are it is done again after
// the loss of a server, until it is done: the same frames go out again, under the same numbers, and
// what has arrived counts once; computed anew, they might be others. False: the step does not
// stand.
Result<bool> RemoteStrategy::Persist(const std::function<Status()>& fn) {
  for (Status status = fn(); !status.ok(); status = fn()) {
    if (options_.server_loss == ServerLoss::kRollBack) {
      return status;
    }
    if (const Status well = GoOn(status); !well.ok()) {
      own_error_ = true;  // the servers have been waited for
      return well;
    }
    if (!work_stands_) {
      return false;
    }
  }
  return true;
}

// Scales the gradients by their own norms, and returns by what all of them are to be scaled.
double RemoteStrategy::Clip(double weight) {
  if (const ServerSideOptimizer* const side = ServerSideOptimizer::Of(*optimizer_);
      side != nullptr && side->options().clip_norm > 0) {
    sink_->ClipEach(static_cast<float>(1.0 / weight), side->options().clip_norm);
  }
  double clip = 1;
  if (optimizer_->global_clip_norm() > 0) {
    const double scale = static_cast<float>(1.0 / weight);
    clip = ClipFactor(sink_->SquaredNorm() * scale * scale, optimizer_->global_clip_norm());
    clip = std::isfinite(clip) ? clip : 1;  // the server says whose gradient it is that is broken
  }
  return clip;
}

Status RemoteStrategy::PushAlone(std::int64_t row_step, double weight, double clip) {
  if (rows_ != nullptr) {
    rows_->Wait();
    COHORT_RETURN_IF_ERROR(job_->rows()->Push(sink_->rows(), row_step, weight));
  }
  // Rows must be as fresh as the values, which bounded staleness has this worker wait for.
  if (rows_ != nullptr && !options_.consistency.bounded()) {
    LookAhead(/*round=*/0, row_step);
  }
  return client_->Push({.arena = sink_->arena(), .weight = weight, .clip = clip}, NewValues());
}

Result<StepResult> RemoteStrategy::StepTogether(const DistributedBatch& batch, const StepFn& fn) {
  Require(round_.has_value() && round_->epoch.epoch == batch.epoch && round_->batch == batch.index,
          "under synchronous application a step takes the batch that Next gave last");
  const ps::RoundPart part = *round_;
  const bool elected = elects();
  if (elected) {
    SetElected(part.previous);  // servers of rows may not have been told by others yet
  }
  if (elected && client_->version() + 1 != part.round) {
    COHORT_RETURN_IF_ERROR(CatchUp(part.previous));  // late for the round before
    fixed_->Keep(values());
  }
  COHORT_ASSIGN_OR_RETURN(const ReplicaResult mine, Run(batch.replicas[0], fn, /*train=*/true));
  fixed_->Put(values(), sink_->arena(), /*difference=*/false);
  COHORT_ASSIGN_OR_RETURN(bool stands, Persist([&] { return PushPart(part, mine); }));
  if (!stands) {
    return ResultOf({});  // Next brings the batch again
  }
  job_->PushDone();
  std::optional<ps::RoundTotal> total;
  COHORT_ASSIGN_OR_RETURN(stands, Persist([&]() -> Status {
                            COHORT_ASSIGN_OR_RETURN(
                                total, job_->scheduler_client()->FinishRound(
                                           part, {mine.loss_sum, mine.weight, mine.metric_sums}));
                            return {};
                          }));
  round_.reset();
  if (!stands) {
    return ResultOf({});
  }
  if (!total.has_value()) {
    // Values stay as they are: the batch comes again, cut among the workers that are left, and its
    // gradient is to be taken where this one was.
    RestoreFixedValues();
    return ResultOf({});
  }
  if (rows_ != nullptr && !backs_up()) {
    LookAhead(part.round, step_ + 1);
  }
  COHORT_ASSIGN_OR_RETURN(
      stands, Persist([&] { return elected ? CatchUp(total->commit) : TakeRound(part.round); }));
  if (!stands) {
    return ResultOf({});
  }
  if (rows_ != nullptr && backs_up()) {  // whose servers were told by CatchUp which parts it has
    LookAhead(part.round, step_);
  }
  return ResultOf(*total);
}

// The values after a round that is complete.
Status RemoteStrategy::TakeRound(std::uint64_t round) {
  if (optimizer_->global_clip_norm() > 0) {
    COHORT_RETURN_IF_ERROR(client_->Settle(round, {}, optimizer_->global_clip_norm()));
  }
  return Refresh(/*everything=*/false);
}

Status RemoteStrategy::PushPart(const ps::RoundPart& part, const ReplicaResult& mine) {
  ps::Gradient gradient{.arena = sink_->arena(), .weight = PushWeight(mine.weight)};
  if (elects()) {
    gradient.commit = SetElected(part.previous);  // also by a client that is new
  }
  gradient.round.emplace();
  gradient.round->set_round(part.round);
  gradient.round->set_attempt(static_cast<std::uint32_t>(part.attempt));
  gradient.round->set_part(static_cast<std::uint32_t>(part.part));
  gradient.round->set_parts(static_cast<std::uint32_t>(part.parts));
  if (rows_ != nullptr) {
    // What weighs nothing contributes nothing, not even its NaNs.
    const auto rows = mine.weight > 0 ? sink_->rows() : std::vector<ps::RowClient::Gradients>();
    rows_->Wait();
    // The step is the round's: who is late may have values of a later one already.
    COHORT_RETURN_IF_ERROR(job_->rows()->PushPart(
        rows, static_cast<std::int64_t>(part.round), gradient.weight,
        {.round = part.round, .attempt = part.attempt, .part = part.part, .parts = part.parts}));
  }
  return client_->Push(gradient, {});
}

// What servers are told from now on of the parts that a round has. Those of rows need it with
// backup workers only: a round of rows is applied when somebody needs it, and an attempt may be
// replaced until then (row_rounds.h).
ps::Commit RemoteStrategy::SetElected(const ps::RoundCommit& commit) {
  ps::Commit message;
  message.set_round(commit.round);
  message.set_attempt(static_cast<std::uint32_t>(commit.attempt));
  message.mutable_winners()->Assign(commit.winners.begin(), commit.winners.end());
  if (rows_ != nullptr && backs_up()) {
    rows_->Wait();
    job_->rows()->Elected(message);
  }
  return message;
}

// With the values of the round after `commit`.
Status RemoteStrategy::CatchUp(const ps::RoundCommit& commit) {
  const ps::Commit message = SetElected(commit);
  if (commit.round != 0 && optimizer_->global_clip_norm() > 0) {
    COHORT_RETURN_IF_ERROR(client_->Settle(commit.round, message, optimizer_->global_clip_norm()));
  }
  COHORT_RETURN_IF_ERROR(client_->PullForStep(NewValues(), message));
  step_ = static_cast<std::int64_t>(client_->version());
  return {};
}

// Under bounded staleness nobody waits for a worker between two pieces of work, and its copy may be
// old when it begins the next one.
Status RemoteStrategy::Idle() {
  if (options_.consistency.bounded() && !idle_) {
    COHORT_RETURN_IF_ERROR(job_->Explain(client_->Pause()));
  }
  idle_ = true;
  return {};
}

// How many batches. In rounds the next one only: rows of others would lack the rounds until then.
int RemoteStrategy::LookaheadDepth() const {
  if (rows_ == nullptr) {
    return 0;
  }
  return options_.consistency.synchronous() ? std::min(options_.lookahead, 1) : options_.lookahead;
}

// The rows of the next batches, now that those of this one, of `step`, have been pushed.
void RemoteStrategy::LookAhead(std::uint64_t round, std::int64_t step) {
  rows_->LookAhead(std::exchange(next_, {}), sink_->rows(), round, step);
}

// A step sees all rounds before its own. A round that is trained again, for a worker that was lost
// after others had sent theirs, may be behind this process's values: its rows wait for nothing.
std::uint64_t RemoteStrategy::RoundsToSee() const {
  if (!options_.consistency.synchronous()) {
    return 0;
  }
  return round_.has_value() ? round_->round - 1 : static_cast<std::uint64_t>(step_);
}

// What the servers divide by, such that parts add up to the loss scale that was asked for.
double RemoteStrategy::PushWeight(double weight) const {
  switch (options_.loss_scale) {
    case LossScale::kGlobalMean:
      return weight;
    case LossScale::kReplicaMean:
      return 1;
    case LossScale::kSum:
      break;
  }
  return round_.has_value() ? 1.0 / round_->parts : 1.0;
}

StepResult RemoteStrategy::ResultOf(const ps::RoundSums& sums) const {
  StepResult result;
  result.weight = sums.weight;
  result.step = step_;
  if (sums.weight > 0) {
    result.loss = sums.loss_sum / sums.weight;
    for (const double metric : sums.metric_sums) {
      result.metrics.push_back(metric / sums.weight);
    }
  }
  return result;
}

}  // namespace cohort
