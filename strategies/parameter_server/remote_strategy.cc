#include "parameter_server/remote_strategy.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include <cohort/core/random.h>

#include "synchronous/batch_memory.h"
#include "synchronous/cores.h"

namespace cohort {
namespace {

// The most that Broadcast sends; variables and slots go through the servers.
constexpr std::size_t kMaxBroadcastBytes = std::size_t{256} << 10;

}  // namespace

RemoteStrategy::RemoteStrategy(std::unique_ptr<ps::Job> job, StrategyOptions options)
    : options_(std::move(options)),
      job_(std::move(job)),
      device_(options_.devices.empty() ? CpuDevice() : options_.devices.front()),
      stream_(!apart() && options_.make_stream ? options_.make_stream() : device_->MakeStream()),
      intra_op_threads_(options_.intra_op_threads > 0 ? options_.intra_op_threads
                                                      : CoresPerReplica(job_->config(), 1)),
      saves_(*job_, options_.log,
             {.finish_last_round = [this] { return FinishLastRound(); },
              .refresh = [this] { return Refresh(/*everything=*/false); }}),
      balancer_(options_.balance_interval, job_->num_servers(), options_.log) {}

// ---- Serving ------------------------------------------------------------------------------------

Status RemoteStrategy::Serve() {
  began_ = true;
  if (job_->is_server()) {
    return job_->ServeVariables();
  }
  if (trains()) {
    return {};
  }
  Require(parameters_ != nullptr, "Bind before Serve");
  COHORT_RETURN_IF_ERROR(OpenData());
  saves_.CountFromHere();
  job_->BeginTraining();
  COHORT_RETURN_IF_ERROR(Outlast([this] { return Look(); }));
  COHORT_RETURN_IF_ERROR(FinishLastRound());
  COHORT_RETURN_IF_ERROR(Refresh(/*everything=*/true));
  return saves_.Remember(step_);
}

// Until the workers are done, through the losses of servers.
Status RemoteStrategy::Outlast(const std::function<Status()>& look) {
  for (;;) {
    const std::uint64_t seen = recoveries_;
    const Status status = job_->Coordinate(look);
    if (status.ok()) {
      return job_->EndTraining();
    }
    COHORT_RETURN_IF_ERROR(GoOnAfter(status, seen, Deadline::max()));  // the job's end ends it
  }
}

// GoOn, unless another thread has seen to it since there had been `seen` recoveries: the chief of a
// job that calls functions may wait on several.
Status RemoteStrategy::GoOnAfter(const Status& error, std::uint64_t seen, Deadline deadline) {
  COHORT_ASSIGN_OR_RETURN(const auto lock, LockRecovery("the wait for a lost server", deadline));
  if (recoveries_ != seen) {
    const bool of_a_loss =
        error.code() == StatusCode::kUnavailable || error.code() == StatusCode::kAborted;
    return of_a_loss ? OkStatus() : error;
  }
  COHORT_RETURN_IF_ERROR(GoOn(error));
  ++recoveries_;
  return {};
}

Status RemoteStrategy::Shutdown() {
  if (rows_ != nullptr) {
    rows_->Forget();  // their client may be replaced
  }
  if (is_chief() && trains()) {
    COHORT_RETURN_IF_ERROR(job_->Done());
    COHORT_RETURN_IF_ERROR(Outlast({}));
  }
  return job_->Leave();
}

// OK: the servers are well again. Where they were rolled back, what this process had begun since is
// void; else work_stands_. Else the reason.
Status RemoteStrategy::GoOn(const Status& error) {
  if (error.code() == StatusCode::kCancelled) {
    return error;  // the job is stopped
  }
  Status status = error;
  work_stands_ = true;
  next_.clear();
  saves_.ForgetRows();  // servers may be other ones
  if (rows_ != nullptr) {
    rows_->Forget();
  }
  const auto restore = [this](const ps::Job::Lost* only) {
    client_ = job_->client();
    ++restores_;
    restorer_ = std::this_thread::get_id();
    const Result<std::int64_t> step = saves_.Restore(only);
    restorer_ = std::thread::id();
    return step;
  };
  do {
    status = is_chief() ? job_->Recover(status, restore) : job_->Rejoin(status);
    client_ = job_->client();  // also where that failed halfway
    COHORT_RETURN_IF_ERROR(status);
    work_stands_ = work_stands_ && job_->work_stands();
    if (!job_->work_stands()) {
      if (is_chief()) {
        saves_.CountFromHere();
      }
      ++roll_backs_;
      finished_ = {};
      round_.reset();
      idle_ = true;
    }
    if (!trains()) {
      return {};
    }
    if (work_stands_ && options_.consistency.synchronous()) {
      return {};  // it has the values that its round began with, which servers may be beyond
    }
    status = client_->Pull(NewValues(), /*everything=*/true);
    step_ = static_cast<std::int64_t>(client_->version());
  } while (!status.ok());
  return {};
}

Status RemoteStrategy::Surviving(const std::function<Status()>& fn) {
  if (is_chief() && functions_) {
    return SurvivingCalls("BeginEpoch", fn);
  }
  for (Status status = fn(); !status.ok(); status = fn()) {
    COHORT_RETURN_IF_ERROR(GoOn(status));
    void_ = void_ || !work_stands_;
  }
  return {};
}

// It is complete, but the workers may not have told the servers yet, and may not live to do it.
Status RemoteStrategy::FinishLastRound() {
  ps::RoundCommit commit;
  const std::uint64_t round = job_->scheduler()->LastRound(&commit);
  if (round > 0 && elects()) {
    COHORT_RETURN_IF_ERROR(job_->Explain(CatchUp(commit)));
    if (rows_ == nullptr || !backs_up()) {
      return {};
    }
    job_->rows()->ReadAfter(round);
    return job_->Explain(job_->rows()->AwaitRounds());
  }
  if (round > 0 && optimizer_->global_clip_norm() > 0) {
    return job_->Explain(client_->Settle(round, {}, optimizer_->global_clip_norm()));
  }
  return {};
}

// A chief that trains as well shows its own (TrainerOptions::progress).
void RemoteStrategy::ShowProgress() {
  const auto now = std::chrono::steady_clock::now();
  if (trains() || functions_ || !progress_.Due(now)) {
    return;
  }
  const ps::Scheduler& scheduler = *job_->scheduler();
  if (const auto line = progress_.Of(scheduler.coverage(), scheduler.workers(), now)) {
    options_.log.Info(*line);
  }
}

// In the chief, a few times a second while others train.
Status RemoteStrategy::Look() {
  ShowProgress();
  const std::atomic<bool>* const stop = saves_.plan().stop;
  if (stop != nullptr && stop->load() && !trains()) {
    return StopWork("the job is stopped, as " + cluster().task.ToString() + " was asked to");
  }
  if (stopped_) {
    return {};
  }
  COHORT_RETURN_IF_ERROR(saves_.SaveIfDue());
  if (rows_ == nullptr || !balancer_.Due()) {
    return {};
  }
  std::unique_lock lock(recovery_mutex_, std::defer_lock);
  if (functions_ && !lock.try_lock()) {
    return {};  // another thread saves
  }
  rows_->Wait();
  return job_->Explain(balancer_.Balance(*job_->rows(), tables_));
}

Status RemoteStrategy::StopWork(const std::string& why) {
  if (!is_chief() || stopped_) {
    return {};
  }
  ps::Scheduler& scheduler = *job_->scheduler();
  std::optional<ps::ChiefSaves::Frozen> frozen;
  const auto stop = [&](const ps::Scheduler::Cut& cut) -> Status {
    if (saves_.plan().save) {
      COHORT_ASSIGN_OR_RETURN(
          frozen, saves_.TryFreeze(
                      cut, "the job is stopped and not saved, and the save before it counts: "));
    }
    scheduler.StopWork(Cancelled(why));
    return {};
  };
  const Deadline patience = DeadlineAfter(2 * options_.heartbeat_timeout);
  std::string left = "work of a process that is gone is left over, and nobody to do it";
  for (bool again = true; again && !stopped_;) {
    again = !scheduler.WorkersHaveLeft() && std::chrono::steady_clock::now() < patience;
    COHORT_RETURN_IF_ERROR(job_->BetweenUpdates(
        [&](const ps::Scheduler::Cut& cut) {
          const Status status = stop(cut);
          stopped_ = status.ok();
          return status;
        },
        [&](const std::string& late) {
          left = late;
          again = false;
        }));
    if (again && !stopped_) {  // somebody else may take what is left over
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
  if (!stopped_) {
    stopped_ = true;
    scheduler.StopWork(Cancelled(why));
    options_.log.Warning(left +
                         ": where the job is stopped it is not saved, and the save before "
                         "it counts");
    return {};
  }
  return frozen.has_value() ? saves_.Save(std::move(*frozen)) : OkStatus();
}

// Only now: what the chief assigned to the servers before is what training starts from.
Status RemoteStrategy::OpenData() {
  const std::span<const float> initial = values();
  const std::uint64_t digest =
      options_.journal_folder.empty()
          ? 0
          : Hash64({reinterpret_cast<const char*>(initial.data()), initial.size_bytes()});
  return job_->scheduler()->Open(static_cast<std::int64_t>(client_->version()), digest);
}

// ---- Parameters ---------------------------------------------------------------------------------

Status RemoteStrategy::Bind(ParameterSet& parameters, std::unique_ptr<Optimizer> optimizer) {
  Require(parameters_ == nullptr, "Bind once");
  Require(parameters.built() && optimizer != nullptr, "built parameters and an optimizer");
  COHORT_ASSIGN_OR_RETURN(const ps::ModelSpec spec, ModelOf(parameters, *optimizer));
  tables_ = spec.tables;
  if (job_->is_server()) {
    COHORT_RETURN_IF_ERROR(job_->server()->Declare(spec, cluster().task.ToString()));
  } else {
    client_ = &job_->Connect(spec);
  }
  parameters_ = &parameters;
  if (job_->rows() != nullptr) {
    rows_ = std::make_unique<ps::RemoteRows>([this]() -> ps::RowClient& { return *job_->rows(); },
                                             tables_, [this] { return RoundsToSee(); }, step_);
    parameters.SetRows(rows_.get());
  }
  saves_.Bind(tables_, rows_.get());
  optimizer_ = std::move(optimizer);
  if (client_ == nullptr) {
    return {};
  }
  COHORT_RETURN_IF_ERROR(MakeReplica(parameters));
  COHORT_RETURN_IF_ERROR(is_chief() ? GiveValues() : TakeValues());
  fresh_ = false;  // the chief may set them yet
  if (trains()) {
    sink_ = std::make_unique<ps::LocalSink>(parameters, replica_.get(), job_->frame_memory());
    fixed_ = std::make_unique<ps::FixedValues>(parameters);
  }
  return {};
}

// What clients and servers agree on, where the options and the optimizer go together.
Result<ps::ModelSpec> RemoteStrategy::ModelOf(const ParameterSet& parameters,
                                              const Optimizer& optimizer) const {
  COHORT_RETURN_IF_ERROR(ps::CheckServerSide(optimizer, options_.consistency));
  ps::ModelSpec spec =
      ps::ModelSpec::Of(parameters, optimizer.config(), options_.consistency, job_->num_servers());
  spec.partitioner = options_.partitioner;
  spec.copies = options_.server_loss == ServerLoss::kReplica;
  spec.counts_steps = !spec.tables.empty();
  for (const TableSpec& table : spec.tables) {
    COHORT_RETURN_IF_ERROR(table.Check());
    if (options_.consistency.synchronous()) {
      COHORT_RETURN_IF_ERROR(
          RefuseLateRows(table, "consistency " + options_.consistency.ToString()));
    }
  }
  return spec;
}

// The chief's values are those that the job begins with.
Status RemoteStrategy::GiveValues() {
  COHORT_RETURN_IF_ERROR(job_->Explain(client_->Declare()));
  COHORT_RETURN_IF_ERROR(job_->Explain(client_->Begin({}).status()));
  COHORT_RETURN_IF_ERROR(job_->Explain(client_->Assign(parameters_->all(), {}, 0)));
  saves_.BeginWith(parameters_->all(), {}, 0);
  return job_->Initialised();
}

Status RemoteStrategy::TakeValues() {
  const auto meet = [this]() -> Status {
    COHORT_RETURN_IF_ERROR(client_->Declare());
    COHORT_RETURN_IF_ERROR(job_->Initialised());
    return Refresh(/*everything=*/true);
  };
  for (Status status = meet(); !status.ok(); status = meet()) {
    COHORT_RETURN_IF_ERROR(job_->Rejoin(status));
    client_ = job_->client();
  }
  ShowValues();
  return {};
}

// Of a process that computes, on a device whose memory is apart.
Status RemoteStrategy::MakeReplica(ParameterSet& parameters) {
  replica_ = nullptr;
  if (!apart() || !(trains() || evaluates())) {
    return {};
  }
  try {
    replica_ = std::make_unique<ps::DeviceReplica>(device_, parameters, *stream_, intra_op_threads_,
                                                   trains());
  } catch (const StatusError& error) {
    return error.status();
  }
  return replica_->Drain(options_.communication.timeout);
}

Status RemoteStrategy::Refresh(bool everything) {
  // What was restored may count as those values do that were lost.
  const std::uint64_t restores = restores_;
  const Status status = client_->Pull(NewValues(), everything || refreshed_after_ != restores);
  refreshed_after_ = status.ok() ? restores : refreshed_after_;
  step_ = static_cast<std::int64_t>(client_->version());
  return job_->Explain(status);
}

std::span<const std::span<float>> RemoteStrategy::slots() {
  Require(optimizer_ != nullptr, "Bind before slots");
  while (static_cast<int>(slots_.size()) < optimizer_->num_slots()) {
    const int slot = static_cast<int>(slots_.size());
    slot_arenas_.emplace_back(DType::kFloat32,
                              Shape{static_cast<std::int64_t>(parameters_->all().size())});
    slots_.push_back(slot_arenas_.back().data<float>());
    std::fill(slots_.back().begin(), slots_.back().end(), optimizer_->slot_initial_value(slot));
  }
  return slots_;
}

Status RemoteStrategy::PullState() {
  if (client_ == nullptr) {
    return {};
  }
  if (is_chief() && !functions_ && !saves_.saving()) {
    COHORT_RETURN_IF_ERROR(FinishLastRound());
  }
  const auto pull = [this]() -> Status {
    const std::uint64_t restores = restores_;
    const Status status = client_->PullState(NewValues(), slots());
    if (status.ok()) {
      ShowValues();
      step_ = static_cast<std::int64_t>(client_->version());
      refreshed_after_ = saves_here() ? refreshed_after_ : restores;
      pulled_after_ = saves_here() ? pulled_after_ : restores;
    }
    return status;
  };
  return job_->Explain(is_chief() && functions_ && !saves_here() && !restores_here()
                           ? SurvivingCalls("PullState", pull)
                           : pull());
}

Status RemoteStrategy::PushState() {
  if (client_ == nullptr || !is_chief()) {
    return {};  // the servers take what the chief has
  }
  if (functions_ && !restores_here()) {
    return PushBetweenCalls();
  }
  if (!functions_ && !began_) {
    saves_.BeginWith(parameters_->all(), slots(), step_);
  }
  return job_->Explain(AssignState());
}

Status RemoteStrategy::AssignState() {
  if (replica_ != nullptr) {
    std::ranges::copy(parameters_->all(), NewValues().begin());
  }
  return saves_.Assign(parameters_->all(), slots(), step_);
}

Status RemoteStrategy::Broadcast(std::span<std::byte> bytes) {
  if (began_ || bytes.size() > kMaxBroadcastBytes) {
    return {};
  }
  const Status status = job_->Broadcast(bytes);
  client_ = job_->client();
  return status;
}

Result<ParameterServerStats> RemoteStrategy::stats() {
  Require(client_ != nullptr, "stats after Bind, not on a server");
  COHORT_ASSIGN_OR_RETURN(const ps::StoreStats stats, client_->Stats());
  return ParameterServerStats{.pushes = stats.pushes,
                              .duplicates = stats.duplicates,
                              .rejected = stats.rejected,
                              .mean_staleness = stats.mean_staleness,
                              .max_staleness = stats.max_staleness,
                              .late = stats.late,
                              .parked = stats.parked,
                              .max_lead = stats.max_lead,
                              .lost_updates = job_->lost_updates(),
                              .foreseen = rows_ == nullptr ? 0 : rows_->foreseen(),
                              .refreshed_rows = rows_ == nullptr ? 0 : rows_->refreshed(),
                              .failed_saves = saves_.failed(),
                              .save_pauses = saves_.pauses().count,
                              .save_pause_seconds = saves_.pauses().seconds,
                              .longest_save_pause_seconds = saves_.pauses().longest,
                              .moved_buckets = balancer_.moved(),
                              .dropped_residuals = job_->dropped_residuals(),
                              .tables = stats.tables};
}

Result<Mirrored<Tensor>> RemoteStrategy::Local(const PerReplica<Tensor>& value) const {
  Require(value.values.size() == 1, "one value per local replica");
  return Mirrored<Tensor>{value.values[0]};
}

// ---- Data ---------------------------------------------------------------------------------------

Result<std::unique_ptr<DistributedDataset>> RemoteStrategy::Distribute(
    const data::Dataset& dataset, const InputOptions& options) {
  if (dataset.batch_size() < 1) {
    return InvalidArgument("a data set to distribute is in batches [Batch(size)]");
  }
  if (data::HasOwnOrder(options.policy) || options.policy == data::ShardPolicy::kOff) {
    return InvalidArgument(
        "under a parameter server the data is handed out on demand, in splits of one order: "
        "InputOptions::policy kFile, kHint, kOwn and kOff have no meaning [kAuto or kData]");
  }
  // Rounds are batches of the order, and predictions come in it.
  const data::Dataset ordered = dataset.Deterministic(true);
  if (options.evaluation) {
    return evaluates() ? ps::MakeWholeDataset(
                             ordered,
                             [this] {
                               Require(client_ != nullptr, "Bind first");
                               return Surviving([this] { return Refresh(/*everything=*/false); });
                             },
                             BatchMemoryOf(device_))
                       : ps::MakeEmptyDataset();
  }
  if (job_->is_server()) {
    return ps::MakeEmptyDataset();
  }
  const int number = datasets_++;
  const ps::DatasetInfo info = ps::InfoOf(dataset);
  if (is_chief()) {
    COHORT_RETURN_IF_ERROR(job_->scheduler()->OpenDataset(cluster().task.ToString(), number, info));
  }
  if (!trains()) {
    return ps::MakeEmptyDataset();
  }
  const Status opened = job_->OpenDataset(number, info);
  client_ = job_->client();
  COHORT_RETURN_IF_ERROR(opened);
  return options_.consistency.synchronous() ? ps::MakeRoundDataset(ordered, number, MakeFeed())
                                            : ps::MakeSplitDataset(dataset, number, MakeFeed());
}

ps::Feed RemoteStrategy::MakeFeed() {
  ps::Feed feed{.scheduler = [this] { return job_->scheduler_client(); },
                .begin = [this]() -> Status {
                  Require(client_ != nullptr, "Bind before the first epoch");
                  began_ = true;
                  if (is_chief()) {
                    COHORT_RETURN_IF_ERROR(OpenData());
                    job_->BeginTraining();
                  }
                  return {};
                },
                .idle = [this] { return Idle(); },
                .end = [this] { return Refresh(/*everything=*/false); },
                .finished =
                    [this](std::int64_t id) {
                      void_ = false;
                      ps::FinishedSplit finished = std::exchange(finished_, {});
                      finished.id = id;
                      return finished;
                    },
                .round =
                    [this](const ps::RoundPart& part) {
                      void_ = false;
                      round_ = part;
                    },
                .looks_ahead = [this] { return LookaheadDepth(); },
                .next =
                    [this](std::uint64_t number, std::vector<ps::NumberedBatch> behind) {
                      batch_ = number;
                      next_ = std::move(behind);
                    },
                .go_on = [this](const Status& status) { return GoOn(status); },
                .roll_backs = [this] { return roll_backs_; },
                .allocate = BatchMemoryOf(device_)};
  if (is_chief()) {
    feed.save = [this](const ps::EpochKey& epoch, const ps::FinishedSplit& finished) {
      job_->Acknowledge(epoch, finished);
      return job_->Explain(Look());
    };
  }
  return feed;
}

}  // namespace cohort
