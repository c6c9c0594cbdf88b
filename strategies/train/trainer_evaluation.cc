// Evaluation and prediction: batches without a step.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "trainer_state.h"

namespace cohort {
namespace {

// The rows of all parts, one after the other.
Result<Tensor> Concatenate(const std::vector<Tensor>& parts) {
  if (parts.empty()) {
    return Tensor();
  }
  std::vector<std::int64_t> dims = parts.front().shape().dims();
  dims[0] = 0;
  for (const Tensor& part : parts) {
    dims[0] += part.shape()[0];
  }
  Tensor all(parts.front().dtype(), Shape(std::move(dims)));
  std::byte* to = all.raw();
  for (const Tensor& part : parts) {
    std::memcpy(to, part.raw(), part.bytes());
    to += part.bytes();
  }
  return all;
}

// Type and shape of a row, in a form that travels.
struct RowShape {
  std::int32_t dtype = static_cast<std::int32_t>(DType::kFloat32);
  std::int32_t rank = 0;
  std::array<std::int64_t, 8> dims = {};

  static RowShape Of(const Tensor& rows) {
    RowShape shape;
    shape.dtype = static_cast<std::int32_t>(rows.dtype());
    shape.rank = rows.shape().rank() - 1;
    Require(shape.rank <= static_cast<int>(shape.dims.size()), "predictions of at most 9 axes");
    std::copy(rows.shape().dims().begin() + 1, rows.shape().dims().end(), shape.dims.begin());
    return shape;
  }
  Tensor Empty() const {
    std::vector<std::int64_t> all = {0};
    all.insert(all.end(), dims.begin(), dims.begin() + rank);
    return {static_cast<DType>(dtype), Shape(std::move(all))};
  }
};

}  // namespace

// Of the epoch before this place.
Status Trainer::State::EvaluateEpoch(State& s, Trainer& trainer, const data::Dataset& validation,
                                     const StepFn& evaluate_step, History& history) {
  COHORT_ASSIGN_OR_RETURN(EpochResult evaluation, trainer.Evaluate(validation, evaluate_step));
  evaluation.epoch = s.epoch - 1;
  if (!HasEpoch(history.evaluations, evaluation.epoch)) {
    history.evaluations.push_back(std::move(evaluation));
  }
  return {};
}

Result<EpochResult> Trainer::Evaluate(const data::Dataset& dataset, const StepFn& step) {
  State& s = *state_;
  const std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
  EpochTotals totals;
  totals.result().epoch = s.epoch;
  if (!s.strategy.evaluates()) {
    return totals.Finish(start);
  }
  COHORT_ASSIGN_OR_RETURN(const auto distributed,
                          s.strategy.Distribute(dataset, {.evaluation = true}));
  COHORT_RETURN_IF_ERROR(distributed->BeginEpoch(0));
  for (;;) {
    COHORT_ASSIGN_OR_RETURN(const std::optional<DistributedBatch> batch, distributed->Next());
    if (!batch.has_value()) {
      break;
    }
    COHORT_ASSIGN_OR_RETURN(const StepResult result, s.strategy.Evaluate(*batch, step));
    totals.Add(result);
  }
  EpochResult result = totals.Finish(start);
  COHORT_RETURN_IF_ERROR(s.events.Write("eval", s.strategy.step(), result.loss, result.metrics,
                                        result.seconds > 0 ? result.examples / result.seconds : 0));
  return result;
}

Result<Tensor> Trainer::Predict(const data::Dataset& dataset, const PredictFn& predict) {
  State& s = *state_;
  const int locals = s.strategy.num_local_replicas();
  RowShape row;
  std::vector<Tensor> batches;
  COHORT_ASSIGN_OR_RETURN(const auto distributed,
                          s.strategy.Distribute(dataset, {.evaluation = true}));
  COHORT_RETURN_IF_ERROR(distributed->BeginEpoch(0));
  for (;;) {
    COHORT_ASSIGN_OR_RETURN(const std::optional<DistributedBatch> batch, distributed->Next());
    if (!batch.has_value()) {
      break;
    }
    PerReplica<Tensor> rows;
    rows.values.resize(static_cast<std::size_t>(locals));
    const StepFn collect = [&](ReplicaContext& context,
                               const data::Batch& part) -> Result<ReplicaResult> {
      COHORT_ASSIGN_OR_RETURN(Tensor mine, predict(context, part));
      if (mine.shape().rank() < 1 || mine.shape()[0] != part.size) {
        return InvalidArgument(
            fmt::format("Predict's function returned shape {} for a batch of {} examples [one row "
                        "for each example]",
                        mine.shape().ToString(), part.size));
      }
      rows.values[static_cast<std::size_t>(context.replica % locals)] = std::move(mine);
      return ReplicaResult{
          .loss_sum = 0, .weight = static_cast<double>(part.size), .metric_sums = {}};
    };
    COHORT_RETURN_IF_ERROR(s.strategy.Evaluate(*batch, collect).status());
    if (batches.empty()) {
      // Replica 0 has examples in every batch; those that have none yet learn what a row is.
      row = RowShape::Of(rows.values[0]);
      COHORT_RETURN_IF_ERROR(s.strategy.Broadcast(std::as_writable_bytes(std::span(&row, 1))));
    }
    for (std::size_t r = 0; r < rows.values.size(); ++r) {
      if (batch->replicas[r].size == 0) {
        rows.values[r] = row.Empty();
      }
    }
    COHORT_ASSIGN_OR_RETURN(Mirrored<Tensor> all, s.strategy.Gather(rows));
    batches.push_back(std::move(all.value));
  }
  COHORT_ASSIGN_OR_RETURN(Tensor rows, Concatenate(batches));
  // What fills up the last batch is behind the examples.
  return rows.shape()[0] > dataset.size() ? rows.Rows(0, dataset.size()) : rows;
}

}  // namespace cohort
