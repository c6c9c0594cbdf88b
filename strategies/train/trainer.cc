#include <cohort/train/trainer.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>

#include <cohort/core/random.h>
#include <cohort/strategies/parameter_server.h>

#include "event_log.h"
#include "snapshot.h"
#include "train_metrics.h"

namespace cohort {
namespace {

using SteadyClock = std::chrono::steady_clock;

double SecondsSince(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

// Weighted sums of the steps of one epoch or evaluation.
class Totals {
 public:
  void Add(const StepResult& step) {
    ++result_.steps;
    result_.examples += step.weight;
    result_.exposed_communication_seconds += step.exposed_communication_seconds;
    // The loss of a step that was skipped may be infinite.
    if (step.weight > 0 && !step.skipped) {
      weight_ += step.weight;
      loss_sum_ += step.loss * step.weight;
      metric_sums_.resize(std::max(metric_sums_.size(), step.metrics.size()));
      for (std::size_t i = 0; i < step.metrics.size(); ++i) {
        metric_sums_[i] += step.metrics[i] * step.weight;
      }
    }
  }
  double loss() const { return Mean(loss_sum_); }
  double examples() const { return result_.examples; }
  EpochResult& result() { return result_; }
  const EpochResult& result() const { return result_; }
  EpochResult Finish(SteadyClock::time_point start) {
    result_.loss = loss();
    result_.metrics.clear();
    for (const double sum : metric_sums_) {
      result_.metrics.push_back(Mean(sum));
    }
    result_.seconds = SecondsSince(start);
    return result_;
  }

 private:
  // NaN if all steps were skipped.
  double Mean(double sum) const { return result_.examples > 0 ? sum / weight_ : 0; }

  EpochResult result_;
  double weight_ = 0;  // of the steps that were not skipped
  double loss_sum_ = 0;
  std::vector<double> metric_sums_;
};

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

// Of a job whose data one process hands out to the others, as that process saw it.
History HistoryOf(const std::vector<EpochCoverage>& coverage) {
  History history;
  for (const EpochCoverage& epoch : coverage) {
    if (epoch.dataset != coverage.back().dataset) {
      continue;
    }
    EpochResult result;
    result.epoch = epoch.epoch;
    result.steps = epoch.steps;
    result.examples = static_cast<double>(epoch.seen);
    result.loss = epoch.loss;
    result.metrics = epoch.metrics;
    result.seconds = epoch.seconds;
    history.steps += result.steps;
    history.examples += result.examples;
    history.seconds += result.seconds;
    history.epochs.push_back(std::move(result));
  }
  return history;
}

bool HasEpoch(const std::vector<EpochResult>& results, std::int64_t epoch) {
  return std::ranges::any_of(results,
                             [epoch](const EpochResult& result) { return result.epoch == epoch; });
}

// Without the epochs that are done again, from this one on.
void DropFrom(std::int64_t epoch, History& history) {
  const auto again = [epoch](const EpochResult& result) { return result.epoch >= epoch; };
  std::erase_if(history.epochs, again);
  std::erase_if(history.evaluations, again);
}

// What all epochs so far come to.
void SumUp(History& history) {
  history.steps = 0;
  history.examples = 0;
  history.seconds = 0;
  history.exposed_communication_seconds = 0;
  history.input_seconds = 0;
  for (const EpochResult& epoch : history.epochs) {
    history.steps += epoch.steps;
    history.examples += epoch.examples;
    history.seconds += epoch.seconds;
    history.exposed_communication_seconds += epoch.exposed_communication_seconds;
    history.input_seconds += epoch.input_seconds;
  }
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

// How many steps may pass between two agreements of several processes on whether to stop.
constexpr std::int64_t kStopCheckSteps = 10;

}  // namespace

struct Trainer::State {
  State(Strategy& s, ParameterSet& p, TrainerOptions o)
      : strategy(s),
        parameters(p),
        options(std::move(o)),
        events(strategy.is_chief() ? options.log_dir : "", options.metric_names),
        metrics(options.metrics) {
    if (!options.checkpoint_dir.empty()) {
      store.emplace(
          FileSystem::Local(), options.checkpoint_dir,
          io::CheckpointStoreOptions{.max_to_keep = options.max_to_keep, .log = options.log});
    }
  }

  Strategy& strategy;
  ParameterSet& parameters;
  const TrainerOptions options;
  std::optional<io::CheckpointStore> store;  // where there is a checkpoint folder
  EventLog events;
  TrainMetrics metrics;
  // Where training stands: the next batch to be trained on.
  std::int64_t epoch = 0;
  std::int64_t batch = 0;
  std::uint64_t dataset_fingerprint = 0;
  std::optional<data::Dataset> training;      // what Fit was given
  data::ShardPolicy policy = options.policy;  // of it
  std::string data_position;                  // as restored
  // How the epoch was divided that is gone on with.
  std::vector<data::EpochDivision> begun;
  const DistributedDataset* feed = nullptr;  // while Fit has it
  std::vector<std::int64_t> overtaken;       // when it had
  // Where Fit began, before it restored anything.
  struct Place {
    std::int64_t epoch = 0;
    std::int64_t batch = 0;
    std::string data_position;
    std::vector<data::EpochDivision> begun;
  };
  Place beginning;
  // While the job goes back, until it is where it goes on.
  struct Loss {
    std::int64_t step = 0;  // that was reached
    SteadyClock::time_point since;
  };
  std::optional<Loss> loss;
  // Of the epoch that was trained last in this Fit, or as much of it as there was before an error.
  std::optional<EpochResult> trained;
  bool store_is_own = false;  // in this Fit, which is not to resume: what is there is its own
  std::int64_t saved_step = -1;
  std::string saved_path;
  std::int64_t saved_epoch = 0;  // the place in saved_path
  std::int64_t saved_batch = 0;
  SnapshotBehind behind;  // the save that is being written while training goes on
  SteadyClock::time_point behind_since;
  bool handed_out = false;             // the data, to whoever asks for some
  bool saved_between_updates = false;  // by the strategy's call

  // kBehind: written while training goes on, where that can be.
  enum class Write { kNow, kBehind };
  Status SaveAt(std::int64_t at_epoch, std::int64_t at_batch, Write when = Write::kNow);
  Status FinishSave();  // that is written behind
  // Training, from where it stands to its end; `history` gets what it adds.
  static Status Fit(State& s, Trainer& trainer, const data::Dataset& training_data,
                    const StepFn& train_step, const data::Dataset* validation,
                    const StepFn& evaluate_step, History& history);
  Status GoBack(const Status& error);
  void ReportLoss();
  Status NoteEpoch(EpochResult result, History& history);
  Status NoteTrained(History& history);
  Result<bool> OwesEvaluation(const History& history) const;
  static Status EvaluateEpoch(State& s, Trainer& trainer, const data::Dataset& validation,
                              const StepFn& evaluate_step, History& history);
  void AbandonSave(const Status& why);
  Status ResumeIn(const data::Dataset& data, std::uint64_t fingerprint);
  Status ResumeAtExample(std::int64_t example);
  Result<std::uint64_t> FingerprintOf(const data::Dataset& data) const;
  data::IterateOptions PlaceIn(std::int64_t at_epoch) const {
    return {.num_workers = strategy.input_context().num_input_pipelines,
            .worker = strategy.input_context().input_pipeline_id,
            .epoch = at_epoch,
            .policy = policy,
            .begun = begun};
  }
  bool Covered() const;
  Status Stopped() const;
  Result<data::DataPosition> PositionAt(std::int64_t at_epoch, std::int64_t at_batch) const;
  Result<std::vector<std::vector<std::int64_t>>> OvertakenOfAll() const;

  void EndEpoch() {
    ++epoch;
    batch = 0;
    begun.clear();
  }

  bool alone() const { return strategy.num_replicas_in_sync() == strategy.num_local_replicas(); }

  // Whether any process was told to stop; every process of a synchronous job gets the same answer.
  Result<bool> AgreeToStop() const {
    const bool mine = options.stop->load();
    if (alone() || strategy.step() % kStopCheckSteps != 0) {
      return alone() && mine;
    }
    return AnyProcess(mine);
  }

  // Every process of a synchronous job calls this at the same place.
  Result<bool> AnyProcess(bool mine) const {
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

  Status TrainEpoch(DistributedDataset& dataset, const StepFn& step, bool* stopped);
  Status TrainBatches(DistributedDataset& dataset, const StepFn& step,
                      SteadyClock::time_point start, Totals& totals, bool* stopped);
  void ShowProgress(const Totals& totals, double seconds, std::int64_t batches,
                    bool finished) const;
};

// While Fit has its data set.
class Trainer::Feeding {
 public:
  Feeding(State& state, const DistributedDataset& feed) : state_(state) { state_.feed = &feed; }
  ~Feeding() {
    state_.overtaken = state_.feed->Overtaken();
    state_.feed = nullptr;
  }
  Feeding(const Feeding&) = delete;
  Feeding& operator=(const Feeding&) = delete;

 private:
  State& state_;
};

Trainer::Trainer(Strategy& strategy, ParameterSet& parameters, TrainerOptions options)
    : state_(std::make_unique<State>(strategy, parameters, std::move(options))) {
  Require(parameters.built(), "a Trainer is given parameters after Build");
}

Trainer::~Trainer() = default;

// `trained` becomes what it came to, also where it ends with an error.
Status Trainer::State::TrainEpoch(DistributedDataset& dataset, const StepFn& step, bool* stopped) {
  const SteadyClock::time_point start = SteadyClock::now();
  Totals totals;
  totals.result().epoch = epoch;
  Status status = TrainBatches(dataset, step, start, totals, stopped);
  trained = totals.Finish(start);
  return status;
}

Status Trainer::State::TrainBatches(DistributedDataset& dataset, const StepFn& step,
                                    SteadyClock::time_point start, Totals& totals, bool* stopped) {
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
void Trainer::State::ShowProgress(const Totals& totals, double seconds, std::int64_t batches,
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

// After an error: OK when the strategy is as it was when Fit began, a lost process being replaced
// or done without.
Status Trainer::State::GoBack(const Status& error) {
  if (!loss.has_value()) {
    loss = Loss{.step = strategy.step(), .since = SteadyClock::now()};
  }
  const auto abandon = [this] {
    if (behind.begun()) {
      (void)behind.Abandon();  // what it has written counts
    }
  };
  const auto has_save = [this] { return store.has_value() && store->OpenLatest().ok(); };
  COHORT_RETURN_IF_ERROR(strategy.Recover(error, {.let_go = abandon, .to_save = has_save}));
  epoch = beginning.epoch;
  batch = beginning.batch;
  data_position = beginning.data_position;
  begun = beginning.begun;
  saved_step = -1;
  return {};
}

// When the job has gone back.
void Trainer::State::ReportLoss() {
  events.ResumeAt(strategy.step() + 1);
  if (strategy.is_chief()) {
    options.log.Warning(
        fmt::format("rolled back {} steps to step {}; the job goes on after {:.1f} s",
                    std::max<std::int64_t>(loss->step - strategy.step(), 0), strategy.step(),
                    SecondsSince(loss->since)));
  }
  loss.reset();
}

// At the end of an epoch's training.
Status Trainer::State::NoteEpoch(EpochResult result, History& history) {
  const Status status = events.Write("train", strategy.step(), result.loss, result.metrics,
                                     result.seconds > 0 ? result.examples / result.seconds : 0);
  history.epochs.push_back(std::move(result));
  return status;
}

// When the job has gone back to the end of an epoch's training, and no further: a save was whole
// before this process had left that epoch.
Status Trainer::State::NoteTrained(History& history) {
  const bool at_its_end = trained.has_value() && batch == 0 && trained->epoch == epoch - 1;
  return at_its_end && !HasEpoch(history.epochs, epoch - 1) ? NoteEpoch(*trained, history)
                                                            : OkStatus();
}

// When the job has gone back: has any process trained the epoch before this place, and not the
// evaluation that follows it? It may have failed on some processes only.
Result<bool> Trainer::State::OwesEvaluation(const History& history) const {
  return AnyProcess(batch == 0 && HasEpoch(history.epochs, epoch - 1) &&
                    !HasEpoch(history.evaluations, epoch - 1));
}

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

// The report ends who writes the save, too. Behind this nobody uses the strategy but its program,
// which may leave the job while the trainer lives.
void Trainer::State::AbandonSave(const Status& why) {
  strategy.ReportError(why);
  const Result<std::string> written = behind.Abandon();
  if (strategy.is_chief() && written.ok()) {
    options.log.Info("the save that was under way is whole: " + *written);
  } else if (strategy.is_chief()) {
    options.log.Warning("the save that was under way is not there, and the one before it counts: " +
                        written.status().ToString());
  }
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
  COHORT_ASSIGN_OR_RETURN(const auto dataset,
                          s.strategy.Distribute(training_data, {.policy = s.options.policy}));
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

Result<EpochResult> Trainer::Evaluate(const data::Dataset& dataset, const StepFn& step) {
  State& s = *state_;
  const SteadyClock::time_point start = SteadyClock::now();
  Totals totals;
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

Status Trainer::Save() { return state_->SaveAt(state_->epoch, state_->batch); }

Status Trainer::State::FinishSave() {
  if (!behind.begun()) {
    return {};
  }
  COHORT_RETURN_IF_ERROR(behind.Finish(&saved_path));
  if (strategy.is_chief()) {
    metrics.AddCheckpoint(behind_since, behind.ended());
  }
  saved_step = behind.state().step;
  saved_epoch = behind.state().epoch;
  saved_batch = behind.state().batch;
  return {};
}

Status Trainer::State::SaveAt(std::int64_t at_epoch, std::int64_t at_batch, Write when) {
  if (when == Write::kBehind && behind.begun() && behind.state().step == strategy.step()) {
    return {};  // this very state is being written
  }
  if (const Status before = FinishSave(); !before.ok()) {
    const bool of_the_job = before.code() == StatusCode::kUnavailable ||
                            before.code() == StatusCode::kAborted ||
                            before.code() == StatusCode::kDeadlineExceeded;
    if (of_the_job) {
      return before;
    }
    // Every process has heard the same.
    if (strategy.is_chief()) {
      options.log.Warning("a save has failed, training went on, and the save before it counts: " +
                          before.ToString());
    }
  }
  if (saved_between_updates && strategy.is_chief()) {
    COHORT_RETURN_IF_ERROR(strategy.PullState());  // for the step
  }
  if (saved_step == strategy.step()) {
    return {};  // this very state is there already
  }
  Require(store.has_value(), "Save needs TrainerOptions::checkpoint_dir");
  std::string place = data_position;
  if (training.has_value()) {
    COHORT_ASSIGN_OR_RETURN(const data::DataPosition position, PositionAt(at_epoch, at_batch));
    place = position.ToString();
  }
  const io::CheckpointState state = {.step = strategy.step(),
                                     .epoch = at_epoch,
                                     .batch = at_batch,
                                     .seed = options.seed,
                                     .dataset_fingerprint = dataset_fingerprint,
                                     .data_position = place,
                                     .optimizer = strategy.optimizer()->config(),
                                     .strategy = std::string(strategy.kind()),
                                     .world_size = strategy.num_replicas_in_sync()};
  const SteadyClock::time_point before = SteadyClock::now();
  if (!handed_out) {
    const Result<bool> writes_behind =
        behind.Begin(strategy, parameters, *store, state, options.full_save_every);
    if (!writes_behind.ok()) {
      if (when == Write::kNow && behind.begun()) {
        (void)behind.Abandon();  // nothing is under way when this returns
      }
      return writes_behind.status();
    }
    if (*writes_behind) {
      behind_since = before;
      return when == Write::kBehind ? OkStatus() : FinishSave();
    }
  }
  COHORT_RETURN_IF_ERROR(
      SaveSnapshot(strategy, parameters, *store, state, options.full_save_every, &saved_path));
  if (strategy.is_chief()) {
    metrics.AddCheckpoint(before);
  }
  saved_step = state.step;
  saved_epoch = at_epoch;
  saved_batch = at_batch;
  return {};
}

Result<bool> Trainer::Restore() {
  State& s = *state_;
  Require(s.store.has_value(), "Restore needs TrainerOptions::checkpoint_dir");
  COHORT_RETURN_IF_ERROR(s.FinishSave());
  const Result<io::CheckpointState> state =
      LoadSnapshot(s.strategy, s.parameters, *s.store, s.options.seed);
  if (state.status().code() == StatusCode::kNotFound) {
    return false;
  }
  COHORT_RETURN_IF_ERROR(state.status());
  s.epoch = state->epoch;
  s.batch = state->batch;
  s.dataset_fingerprint = state->dataset_fingerprint;
  s.data_position = state->data_position;
  s.saved_step = state->step;
  return true;
}

}  // namespace cohort
