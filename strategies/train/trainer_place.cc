// Where in its data a trainer begins, goes on, or goes back to.

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include <cohort/core/random.h>

#include "trainer_state.h"

namespace cohort {

// Where Fit begins, or goes back to: at the newest checkpoint, or, in a folder without any, at the
// beginning.
Status Trainer::StartFrom(const data::Dataset& training) {
  State& s = *state_;
  COHORT_ASSIGN_OR_RETURN(s.dataset_fingerprint, s.FingerprintOf(training));
  s.training = training;
  if (!s.store.has_value()) {
    return {};
  }
  COHORT_RETURN_IF_ERROR(PrepareSnapshots(s.strategy, *s.store));
  if (!s.options.resume) {
    COHORT_RETURN_IF_ERROR(RefuseSnapshots(s.strategy, *s.store, /*own=*/s.store_is_own));
    s.store_is_own = true;
    if (!s.loss.has_value()) {
      return {};
    }
  }
  const std::uint64_t fingerprint = s.dataset_fingerprint;
  COHORT_ASSIGN_OR_RETURN(const bool resumed, Restore());
  if (!resumed) {
    return {};
  }
  COHORT_RETURN_IF_ERROR(s.ResumeIn(training, fingerprint));
  s.dataset_fingerprint = fingerprint;
  s.events.ResumeAt(s.strategy.step() + 1);
  if (s.strategy.is_chief() && !s.loss.has_value()) {
    s.options.log.Info(fmt::format("resumed at epoch {}, batch {}, step {}", s.epoch + 1, s.batch,
                                   s.strategy.step()));
  }
  return {};
}

// Of what all processes read.
Result<std::uint64_t> Trainer::State::FingerprintOf(const data::Dataset& data) const {
  if (policy != data::ShardPolicy::kOwn) {
    return data.Fingerprint();
  }
  // One of each process, on however many devices.
  const auto mine = static_cast<std::int64_t>(data.Fingerprint());
  PerReplica<Tensor> values;
  values.values.assign(static_cast<std::size_t>(strategy.num_local_replicas()),
                       Tensor(DType::kInt64, {0}));
  values.values.front() = Tensor::Of<std::int64_t>({1}, std::span(&mine, 1));
  COHORT_ASSIGN_OR_RETURN(const Mirrored<Tensor> all, strategy.Gather(values));
  return Hash64({reinterpret_cast<const char*>(all.value.raw()), all.value.bytes()});
}

// After a Restore: where in this run's data the checkpoint stands.
Status Trainer::State::ResumeIn(const data::Dataset& data, std::uint64_t fingerprint) {
  const bool same = dataset_fingerprint == fingerprint;
  if (same && batch == 0) {
    return {};
  }
  const Result<data::DataPosition> position = data::DataPosition::Parse(data_position);
  if (!position.ok() && same && !data::HasOwnOrder(policy)) {
    return {};  // saved before Fit knew any data
  }
  const Result<data::IterateOptions> place =
      position.ok() ? data.ResumeAt(*position, PlaceIn(epoch)) : position.status();
  if (place.ok() && position->epoch == epoch && (same || policy != data::ShardPolicy::kOwn)) {
    begun = place->begun;
    if (!begun.empty()) {
      batch = place->first_batch;
    }
    return same || !begun.empty() ? OkStatus() : ResumeAtExample(position->example);
  }
  if (options.allow_changed_data) {
    if (strategy.is_chief()) {
      options.log.Warning(fmt::format(
          "the checkpoint in {} was trained on other data, or in another order, up to batch {} of "
          "epoch {}: the epoch is begun anew with what there is now",
          options.checkpoint_dir, batch, epoch + 1));
    }
    batch = 0;
    return {};
  }
  if (position.ok() && (same || !position->begun.empty())) {
    return FailedPrecondition(
        fmt::format("the checkpoint in {}: {}", options.checkpoint_dir, place.status().message()));
  }
  return FailedPrecondition(
      fmt::format("the checkpoint in {} was trained on other data, or in another order, than this "
                  "run's [give the same data, or another checkpoint folder; allow_changed_data "
                  "(--data-allow-changed) begins the epoch anew]",
                  options.checkpoint_dir));
}

// Of a checkpoint that was trained on other batches: the batch of these that begins there.
Status Trainer::State::ResumeAtExample(std::int64_t example) {
  const std::int64_t size = training->batch_size();
  const bool done = example == training->size();
  if (!done && example % size != 0) {
    return FailedPrecondition(fmt::format(
        "the checkpoint in {} stands at example {} of epoch {}, where no batch of {} begins [a "
        "batch size that divides {}]",
        options.checkpoint_dir, example, epoch + 1, size, example));
  }
  batch = done ? training->batches_per_epoch() : example / size;
  return {};
}

// Every process calls this at the same place.
Result<data::DataPosition> Trainer::State::PositionAt(std::int64_t at_epoch,
                                                      std::int64_t at_batch) const {
  if (at_batch == 0) {
    return training->PositionAt({.epoch = at_epoch}, 0);
  }
  COHORT_ASSIGN_OR_RETURN(const auto overtaken_of_all, OvertakenOfAll());
  return training->PositionAt(PlaceIn(at_epoch), at_batch, overtaken_of_all);
}

Result<std::vector<std::vector<std::int64_t>>> Trainer::State::OvertakenOfAll() const {
  std::vector<std::vector<std::int64_t>> all;
  if (training->deterministic() || strategy.kind() == "parameter_server") {
    return all;
  }
  const InputContext mine = strategy.input_context();
  std::vector<std::int64_t> rows;  // process and number
  for (const std::int64_t number : feed != nullptr ? feed->Overtaken() : overtaken) {
    rows.insert(rows.end(), {mine.input_pipeline_id, number});
  }
  const auto shape = [](std::size_t size) {
    return Shape({static_cast<std::int64_t>(size / 2), 2});
  };
  PerReplica<Tensor> values;
  values.values.assign(static_cast<std::size_t>(strategy.num_local_replicas()),
                       Tensor(DType::kInt64, shape(0)));
  values.values.front() = Tensor::Of<std::int64_t>(shape(rows.size()), rows);
  COHORT_ASSIGN_OR_RETURN(const Mirrored<Tensor> gathered, strategy.Gather(values));
  const auto numbers = gathered.value.data<std::int64_t>();
  all.resize(static_cast<std::size_t>(mine.num_input_pipelines));
  for (std::size_t i = 0; i < numbers.size(); i += 2) {
    all[static_cast<std::size_t>(numbers[i])].push_back(numbers[i + 1]);
  }
  return all;
}

}  // namespace cohort
