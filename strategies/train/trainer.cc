#include <cohort/train/trainer.h>

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <span>
#include <utility>

#include <cohort/strategies/parameter_server.h>

#include "trainer_state.h"

namespace cohort {
namespace {

using SteadyClock = std::chrono::steady_clock;

// How many steps may pass between two agreements of several processes on whether to stop.
constexpr std::int64_t kStopCheckSteps = 10;

}  // namespace

Trainer::Trainer(Strategy& strategy, ParameterSet& parameters, TrainerOptions options)
    : state_(std::make_unique<State>(strategy, parameters, std::move(options))) {
  Require(parameters.built(), "a Trainer is given parameters after Build");
}

Trainer::~Trainer() = default;

Result<bool> Trainer::State::AgreeToStop() const {
  const bool mine = options.stop->load();
  if (handed_out || alone()) {
    return mine;
  }
  return strategy.step() % kStopCheckSteps == 0 ? AnyProcess(mine) : Result<bool>(false);
}

Result<bool> Trainer::State::AnyProcess(bool mine) const {
  if (alone()) {
    return mine;
  }
  PerReplica<Tensor> flags;
  for (int i = 0; i < strategy.num_local_replicas(); ++i) {
    const std::int32_t flag = mine ? 1 : 0;
    flags.values.push_back(Tensor::Of<std::int32_t>({1}, std::span(&flag, 1)));
  }
  COHORT_ASSIGN_OR_RETURN(const Mirrored<Tensor> any, strategy.Reduce(ReduceOp::kMax, flags));
  return any.value.data<std::int32_t>()[0] != 0;
}

// `trained` becomes what it came to, also where it ends with an error.
Status Trainer::State::TrainEpoch(DistributedDataset& dataset, const StepFn& step, bool* stopped) {
  const SteadyClock::time_point start = SteadyClock::now();
  EpochTotals totals;
  totals.result().epoch = epoch;
  Status status = TrainBatches(dataset, step, start, totals, stopped);
  trained = totals.Finish(start);
  return status;
}

Status Trainer::State::TrainBatches(DistributedDataset& dataset, const StepFn& step,
                                    SteadyClock::time_point start, EpochTotals& totals,
                                    bool* stopped) {
  int gathered = 0;  // batches of the next step
  COHORT_RETURN_IF_ERROR(dataset.ResumeEpoch(epoch, batch, begun));
  metrics.BeginEpoch();
  const std::int64_t batches = dataset.batches_per_epoch();
  for (;;) {
    // What a call takes besides waiting for examples.
    const auto split = [&](SteadyClock::time_point since, double input_before) {
      const double input = dataset.input_seconds() - input_before;
      totals.result().input_seconds += input;
      return std::max(SecondsSince(since) - input, 0.0);
    };
    const double input_before_next = dataset.input_seconds();
    const SteadyClock::time_point before_next = SteadyClock::now();
    COHORT_ASSIGN_OR_RETURN(const std::optional<DistributedBatch> next, dataset.Next());
    totals.result().exposed_communication_seconds += split(before_next, input_before_next);
    if (!next.has_value()) {
      break;
    }
    const double input_before_step = dataset.input_seconds();
    const SteadyClock::time_point before_step = SteadyClock::now();
    const bool whole = ++gathered == options.batches_per_step || batch + 1 == batches;
    Result<StepResult> result =
        whole ? strategy.Step(*next, step) : strategy.Accumulate(*next, step);
    if (!result.ok()) {
      return result.status().Annotate(fmt::format("epoch {}, batch {}", epoch + 1, batch));
    }
    totals.result().step_seconds += split(before_step, input_before_step);
    metrics.AddBatch(*next, batches, options.epochs);
    ++batch;
    if (!whole) {
      continue;  // its loss comes with the step's
    }
    gathered = 0;
    totals.Add(*result);
    metrics.AddStep(*result, totals.result());
    if (!result->skipped && !std::isfinite(result->loss)) {
      return DataLoss(fmt::format(
          "the loss is {} at step {} (epoch {}, batch {}) [lower the learning rate, clip "
          "the gradient's norm, or look for bad values in the input]",
          result->loss, result->step, epoch + 1, batch - 1));
    }
    ShowProgress(totals, SecondsSince(start), batches, !handed_out && batch == batches);
    if (options.save_every_steps > 0 && !saved_between_updates &&
        strategy.step() % options.save_every_steps == 0) {
      const SteadyClock::time_point before_save = SteadyClock::now();
      COHORT_RETURN_IF_ERROR(SaveAt(epoch, batch, Write::kBehind));
      totals.result().checkpoint_seconds += SecondsSince(before_save);
    }
    if (options.stop != nullptr) {
      COHORT_ASSIGN_OR_RETURN(*stopped, AgreeToStop());
      if (*stopped) {
        COHORT_ASSIGN_OR_RETURN(*stopped, dataset.MayStop());
      }
      if (*stopped) {
        break;
      }
    }
  }
  if (handed_out && !*stopped) {
    ShowProgress(totals, SecondsSince(start), batches, true);
  }
  metrics.AddWaits(totals.result());
  return {};
}

// Of all workers, where this process hands out their work.
void Trainer::State::ShowProgress(const EpochTotals& totals, double seconds, std::int64_t batches,
                                  bool finished) const {
  if (!options.progress || !strategy.is_chief()) {
    return;
  }
  Progress progress{.epoch = epoch,
                    .epochs = options.epochs,
                    .batch = batch,
                    .batches = batches,
                    .loss = totals.loss(),
                    .epoch_finished = finished};
  double examples = totals.examples();
  if (handed_out) {
    const std::vector<EpochCoverage> coverage = strategy.coverage();
    if (coverage.empty() || coverage.back().epoch != epoch) {
      return;  // nothing of it is done
    }
    const EpochCoverage& done = coverage.back();
    progress.batch = done.examples > 0 ? batches * done.seen / done.examples : 0;
    progress.loss = done.loss;
    examples = static_cast<double>(done.seen);
  }
  if (seconds > 0) {
    progress.examples_per_second = examples / seconds;
    progress.exposed_communication = totals.result().exposed_communication_seconds / seconds;
    progress.input_wait = totals.result().input_seconds / seconds;
  }
  options.progress(progress);
}

Result<History> Trainer::Fit(const data::Dataset& training, const StepFn& train_step,
                             const data::Dataset* validation, const StepFn& evaluate_step) {
  State& s = *state_;
  s.beginning = {
      .epoch = s.epoch, .batch = s.batch, .data_position = s.data_position, .begun = s.begun};
  s.loss.reset();
  s.trained.reset();
  s.store_is_own = false;
  COHORT_ASSIGN_OR_RETURN(const bool survives, s.strategy.BeginTraining());
  if (survives && s.strategy.joined_in_training()) {
    s.loss = State::Loss{.step = 0, .since = SteadyClock::now()};  // of the process before this one
  }
  History history;
  Status status;
  do {
    status = State::Fit(s, *this, training, train_step, validation, evaluate_step, history);
    if (status.ok()) {
      return history;
    }
  } while (survives && (status = s.GoBack(status)).ok());
  if (s.behind.begun()) {
    s.AbandonSave(status);
  }
  return status;
}

Status Trainer::State::Fit(State& s, Trainer& trainer, const data::Dataset& training_data,
                           const StepFn& train_step, const data::Dataset* validation,
                           const StepFn& evaluate_step, History& history) {
  Require(validation == nullptr || evaluate_step, "validation data comes with an evaluation step");
  Require(s.options.batches_per_step >= 1, "at least one batch to a step");
  s.policy = s.strategy.PolicyFor(training_data, s.options.policy);
  if (data::HasOwnOrder(s.policy) && s.strategy.kind() == "parameter_server") {
    return InvalidArgument(
        fmt::format("TrainerOptions::policy: under a parameter server the data is handed out on "
                    "demand, and not divided {} [kAuto or kData]",
                    data::DivisionName(s.policy)));
  }
  if (!s.strategy.trains() && !s.strategy.is_chief()) {
    if (dynamic_cast<ParameterServerStrategy*>(&s.strategy) == nullptr) {
      s.metrics.SetReady();  // the others say so themselves
    }
    return s.strategy.Serve();
  }
  COHORT_RETURN_IF_ERROR(trainer.StartFrom(training_data));
  COHORT_ASSIGN_OR_RETURN(
      const auto dataset,
      s.strategy.Distribute(training_data,
                            {.policy = s.options.policy, .copy_ahead = s.options.copy_ahead}));
  const Feeding feeding(s, *dataset);
  SavePlan plan{.stop = s.options.stop};
  if (s.store.has_value()) {
    plan.every_steps = s.options.save_every_steps;
    plan.every_epochs = s.options.save_every_epochs;
    plan.save = [&s](std::int64_t epoch, std::int64_t batch) { return s.SaveAt(epoch, batch); };
    plan.restore = [&s]() -> Result<std::int64_t> {
      COHORT_ASSIGN_OR_RETURN(const io::CheckpointState state,
                              LoadSnapshot(s.strategy, s.parameters, *s.store, s.options.seed));
      s.saved_step = state.step;
      return state.step;
    };
  }
  s.handed_out = s.strategy.SaveBetweenUpdates(std::move(plan));
  s.saved_between_updates = s.handed_out && s.store.has_value();
  bool stopped = false;
  if (!s.strategy.trains()) {
    s.metrics.SetReady();
    COHORT_RETURN_IF_ERROR(s.strategy.Serve());
    if (!s.Covered()) {  // this process was told to stop, or the workers were
      COHORT_RETURN_IF_ERROR(s.strategy.StopWork("the workers have left"));
      return s.Stopped();
    }
    s.epoch = s.options.epochs;
    COHORT_RETURN_IF_ERROR(s.strategy.PullState());
    if (s.store.has_value()) {
      COHORT_RETURN_IF_ERROR(trainer.Save());
    }
  }
  if (s.batch > 0 && (s.policy == data::ShardPolicy::kFile || !s.begun.empty())) {
    // Which files a process has, and so how many batches there are, is the epoch's own.
    COHORT_RETURN_IF_ERROR(dataset->ResumeEpoch(s.epoch, s.batch, s.begun));
  }
  if (s.batch > 0 && s.batch >= dataset->batches_per_epoch()) {
    // Resumed from the last step of an epoch, before its end was noted.
    s.EndEpoch();
  }
  const bool evaluates = validation != nullptr && s.strategy.trains();
  if (s.loss.has_value()) {
    DropFrom(s.epoch, history);
    s.ReportLoss();
    COHORT_RETURN_IF_ERROR(s.NoteTrained(history));
    COHORT_ASSIGN_OR_RETURN(const bool owes,
                            evaluates ? s.OwesEvaluation(history) : Result<bool>(false));
    if (owes) {
      COHORT_RETURN_IF_ERROR(State::EvaluateEpoch(s, trainer, *validation, evaluate_step, history));
    }
  }
  while (s.epoch < s.options.epochs && !stopped) {
    COHORT_RETURN_IF_ERROR(s.TrainEpoch(*dataset, train_step, &stopped));
    if (!stopped) {
      s.EndEpoch();
    }
    if (stopped && s.handed_out) {
      COHORT_RETURN_IF_ERROR(s.strategy.StopWork("the job is stopped, as its chief was asked to"));
      return s.Stopped();
    }
    COHORT_RETURN_IF_ERROR(s.NoteEpoch(*s.trained, history));
    const bool save = !s.options.checkpoint_dir.empty() &&
                      (stopped || s.epoch == s.options.epochs ||
                       (!s.saved_between_updates && s.options.save_every_epochs > 0 &&
                        s.epoch % s.options.save_every_epochs == 0));
    if (save) {
      const SteadyClock::time_point before_save = SteadyClock::now();
      const bool goes_on = !stopped && s.epoch < s.options.epochs;
      const Status saved =
          s.SaveAt(s.epoch, s.batch, goes_on ? State::Write::kBehind : State::Write::kNow);
      history.epochs.back().checkpoint_seconds += SecondsSince(before_save);
      COHORT_RETURN_IF_ERROR(saved);
    }
    if (evaluates && !stopped) {
      COHORT_RETURN_IF_ERROR(State::EvaluateEpoch(s, trainer, *validation, evaluate_step, history));
    }
  }
  SumUp(history);
  if (const std::vector<EpochCoverage> coverage = s.strategy.coverage(); !coverage.empty()) {
    // What this process did with its time is its own.
    const History mine = std::exchange(history, HistoryOf(coverage));
    history.input_seconds = mine.input_seconds;
    history.exposed_communication_seconds = mine.exposed_communication_seconds;
  }
  // Values on a device come to `parameters`; a process that trains and does not evaluate has no
  // whole of them.
  if (s.strategy.trains() && s.strategy.evaluates()) {
    COHORT_RETURN_IF_ERROR(s.strategy.PullState());
  }
  COHORT_RETURN_IF_ERROR(s.strategy.EndTraining());
  history.checkpoint = s.saved_path;
  return stopped ? s.Stopped() : OkStatus();
}

// Where all work is handed out by this process: is it done?
bool Trainer::State::Covered() const {
  const std::vector<EpochCoverage> coverage = strategy.coverage();
  return epoch >= options.epochs ||
         (!coverage.empty() && coverage.back().epoch == options.epochs - 1 &&
          coverage.back().seen >= coverage.back().examples);
}

Status Trainer::State::Stopped() const {
  if (!saved_path.empty()) {
    return Cancelled(fmt::format("stopped as asked at epoch {}, batch {}; state saved in {}",
                                 saved_epoch + 1, saved_batch, saved_path));
  }
  if (handed_out && !strategy.is_chief()) {
    return Cancelled("stopped as asked; where the job is saved the chief says");
  }
  return Cancelled(fmt::format(
      "stopped as asked at epoch {}, batch {}; nothing was saved{}", epoch + 1, batch,
      store.has_value() ? " since the last checkpoint" : ", as there is no checkpoint folder"));
}

}  // namespace cohort
