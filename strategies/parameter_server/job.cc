#include "parameter_server/job.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "parameter_server/chief/retirements.h"
#include "parameter_server/frames/frame_address.h"
#include "parameter_server/frames/frame_memory.h"
#include "parameter_server/view_watch.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;

constexpr char kInitialisedKey[] = "parameter_server/initialised";

}  // namespace

// What may still report a lost worker goes before what is told of it.
Job::~Job() {
  watch_.reset();
  coordination_.reset();
  scheduler_server_.reset();
  coordination_server_.reset();
  StopRetirements();
}

Job::Job(ClusterConfig config, const StrategyOptions& options)
    : config_(std::move(config)),
      join_timeout_(options.join_timeout),
      heartbeat_timeout_(options.heartbeat_timeout),
      rejoin_grace_(options.rejoin_grace),
      server_loss_(options.server_loss),
      start_(options.start),
      journal_folder_(config_.cluster.Chief().type == TaskType::kChief &&
                              options.rejoin_grace.count() > 0
                          ? options.journal_folder
                          : ""),
      log_(options.log),
      backup_workers_(options.consistency.backup_workers),
      read_timeout_(options.communication.timeout),
      wire_(options.server_wire),
      transport_(OrThrow(TransportOf(options.communication))),
      frame_memory_(transport_ == FrameTransport::kTcp ? nullptr : FrameMemory::Make()),
      chief_(config_.cluster.Chief()),
      workers_(config_.cluster.TrainingTasks()),
      num_servers_(config_.cluster.Count(TaskType::kPs)),
      roll_(num_servers_) {}

int Job::rank() const {
  return static_cast<int>(std::find(workers_.begin(), workers_.end(), config_.task) -
                          workers_.begin());
}

double Job::SecondsSince(std::chrono::steady_clock::time_point begun) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
}

// ---- Clients ------------------------------------------------------------------------------------

Client& Job::Connect(const ModelSpec& spec) {
  spec_ = spec;
  MakeClients(epoch_, /*servers_stand=*/false);
  if (is_chief()) {
    StartRetirements();
  }
  return *client_;
}

// Of `epoch`, at server_addresses_. Where servers that are not lost go on as they are, so do the
// numbers of pushes; else they begin anew. `servers_stand`: they are as they were before.
void Job::MakeClients(std::uint64_t epoch, bool servers_stand) {
  const ClientOptions options{
      .client = number_ != 0 ? number_ : coordination_->incarnation(),
      .task = config_.task.ToString(),
      .epoch = epoch,
      .peer_timeout = heartbeat_timeout_,
      .read_timeout = read_timeout_,
      // What the chief has is saved, and evaluated.
      .wire = {.push = wire_.push, .pull = is_chief() ? DType::kFloat32 : wire_.pull},
      .transport = transport_,
      .memory = frame_memory_,
      .comes_again = keeps(),
      .pushes = pushes_,
      .row_pushes = row_pushes_};
  auto client = Client::Make(spec_, server_addresses_, options);
  if (servers_stand && client_ != nullptr) {
    client->TakeOver(*client_);
  }
  auto row_client =
      spec_.tables.empty() ? nullptr : RowClient::Make(spec_, server_addresses_, options);
  if (servers_stand && row_client_ != nullptr && row_client != nullptr) {
    row_client->TakeOver(*row_client_);
  }
  if (row_client_ != nullptr) {  // what was not taken over
    const RowClient::Residuals left = row_client_->residuals();
    dropped_residuals_ += left.dropped + left.rows;
  }
  if (scheduler_client_ != nullptr) {
    scheduler_client_->SetEpoch(epoch);
  }
  const std::lock_guard lock(failure_mutex_);
  epoch_ = epoch;
  client_.swap(client);
  row_client_.swap(row_client);
  if (!failure_.ok()) {
    AbortClients(failure_);
  } else if (!roll_.complete()) {
    AbortClients(roll_.why());
  } else if (view_.recovering || view_.epoch > epoch_) {
    AbortClients(Unavailable(view_.recovering ? view_.why : "the servers have been rolled back"));
  }
}

void Job::AbortClients(const Status& why) {
  if (client_ != nullptr) {
    client_->Abort(why);
  }
  if (row_client_ != nullptr) {
    row_client_->Abort(why);
  }
}

void Job::StepDone() {
  ++steps_;
  PushDone();
}

void Job::PushDone() {
  if (keeps()) {
    pushes_ = client_->pushes();
    row_pushes_ = row_client_ == nullptr ? std::vector<std::uint64_t>() : row_client_->pushes();
  }
}

void Job::StartRetirements() {
  // Unless the servers go into another epoch first, which begins with all of them.
  auto retirements = std::make_unique<Retirements>(
      [client = client_.get()](std::uint64_t gone) { return client->Retire(gone); },
      [this](const Status& why) {
        log_.Warning("a worker that was given up is not known to all servers yet: " +
                     why.message());
      });
  const std::lock_guard lock(failure_mutex_);
  for (const std::uint64_t client : std::exchange(untold_, {})) {
    retirements->Add(client);
  }
  retirements_ = std::move(retirements);
}

void Job::StopRetirements() {
  std::unique_ptr<Retirements> stopped;
  const std::lock_guard lock(failure_mutex_);
  stopped = std::move(retirements_);
}

// All servers know of all workers that were given up.
bool Job::RetirementsTold() const {
  const std::lock_guard lock(failure_mutex_);
  return retirements_ == nullptr || retirements_->idle();
}

void Job::Gone(std::uint64_t client) {
  const std::lock_guard lock(failure_mutex_);
  gone_.Add(client);
  if (retirements_ != nullptr) {
    retirements_->Add(client);
  } else {
    untold_.push_back(client);
  }
}

// ---- Failures -----------------------------------------------------------------------------------

void Job::Fail(const Status& why) {
  const std::lock_guard lock(failure_mutex_);
  if (failure_.ok()) {
    failure_ = why;
  }
  AbortClients(why);
  if (scheduler_client_ != nullptr) {
    scheduler_client_->Abort(why);
  }
  if (scheduler_ != nullptr) {
    scheduler_->Fail(why);
  }
  view_changed_.notify_all();
}

Status Job::Explain(const Status& status) const {
  const bool of_a_peer = status.code() == StatusCode::kUnavailable ||
                         status.code() == StatusCode::kAborted ||
                         status.code() == StatusCode::kDeadlineExceeded;
  if (of_a_peer && coordination_ != nullptr) {
    if (const Status failure = coordination_->failure(); !failure.ok()) {
      return failure;
    }
  }
  return status;
}

void Job::ReportError(const Status& error) {
  if (coordination_ != nullptr && !error.ok() && !cut_off_) {
    // If nobody can be told, nobody is there.
    (void)coordination_->ReportError(error);
  }
}

// ---- While the job runs -------------------------------------------------------------------------

Status Job::Initialised() {
  if (is_chief()) {
    return coordination_->Insert(kInitialisedKey, "1");
  }
  COHORT_RETURN_IF_ERROR(
      coordination_->Wait(kInitialisedKey, DeadlineAfter(join_timeout_)).status());
  met_ = true;
  return {};
}

Status Job::Broadcast(std::span<std::byte> bytes) {
  const std::string key = "parameter_server/broadcast/" + std::to_string(broadcasts_++);
  if (is_chief()) {
    return coordination_->Insert(
        key, std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  }
  Result<std::string> value = coordination_->Wait(key, DeadlineAfter(join_timeout_));
  while (!value.ok()) {
    COHORT_RETURN_IF_ERROR(chief_may_be_lost() ? Rejoin(value.status()) : value.status());
    value = coordination_->Wait(key, DeadlineAfter(join_timeout_));
  }
  if (value->size() != bytes.size()) {
    return FailedPrecondition("Broadcast " + key + " of " + std::to_string(value->size()) +
                              " bytes, this process expects " + std::to_string(bytes.size()) +
                              " [run the same program everywhere]");
  }
  std::memcpy(bytes.data(), value->data(), value->size());
  return {};
}

Status Job::OpenDataset(int dataset, const DatasetInfo& info) {
  for (;;) {
    const Status status = Explain(scheduler_client_->OpenDataset(dataset, info));
    if (status.ok() || is_chief() || !chief_may_be_lost()) {
      return status;
    }
    COHORT_RETURN_IF_ERROR(Rejoin(status));
  }
}

void Job::Acknowledge(const EpochKey& epoch, const FinishedSplit& finished) {
  scheduler_->Acknowledge(
      {.task = config_.task, .incarnation = coordination_->incarnation(), .epoch = epoch_}, epoch,
      finished);
}

Status Job::ServeVariables() {
  while (!server_->WaitDrained(DeadlineAfter(kLook))) {
    if (const Status failure = coordination_->failure(); !failure.ok()) {
      if (!ChiefLost()) {
        return failure;
      }
      COHORT_RETURN_IF_ERROR(FindChief());
      if (const Status published = Publish(); !published.ok() && !AwaitChiefLost(published)) {
        return published;
      }
      log_.Info("has joined " + chief_.ToString() + " anew");
    }
  }
  const StoreStats stats = server_->store().stats();
  log_.Info(config_.task.ToString() + " served " + std::to_string(stats.pushes) + " pushes (" +
            std::to_string(stats.duplicates) + " repeated, " + std::to_string(stats.rejected) +
            " rejected), staleness mean " + std::to_string(stats.mean_staleness) + ", at most " +
            std::to_string(stats.max_staleness) + "; " + std::to_string(stats.late) +
            " parts too late, " + std::to_string(stats.parked) + " reads parked");
  if (const RowStoreStats rows = server_->rows().stats(); rows.pulls + rows.pushes > 0) {
    log_.Info(config_.task.ToString() + " holds " + std::to_string(rows.rows) + " rows in " +
              std::to_string(rows.row_bytes >> 20) + " MiB; " + std::to_string(rows.pulls) +
              " pulls and " + std::to_string(rows.pushes) + " pushes of rows (" +
              std::to_string(rows.duplicates) + " repeated, " + std::to_string(rows.rejected) +
              " rejected)");
  }
  for (const TableCounts& counts : server_->rows().counts()) {
    if (counts.evicted + counts.dropped + counts.skipped + counts.refused > 0) {
      const std::string of = config_.task.ToString() + ", table \"" + counts.name + "\": ";
      log_.Write(counts.skipped > 0 ? LogLevel::kWarning : LogLevel::kInfo,
                 of + std::to_string(counts.evicted) + " rows were evicted; of gradients " +
                     std::to_string(counts.dropped) + " were of ids that are not admitted, " +
                     std::to_string(counts.skipped) + " not finite and skipped; " +
                     std::to_string(counts.refused) + " pushes were refused");
    }
  }
  return {};
}

Status Job::Coordinate(const std::function<Status()>& look) {
  for (;;) {
    COHORT_ASSIGN_OR_RETURN(const bool over, scheduler_->WaitOver(kLook));
    if (over) {
      return {};
    }
    COHORT_RETURN_IF_ERROR(coordination_->failure());
    if (look) {
      COHORT_RETURN_IF_ERROR(look());
    }
  }
}

Status Job::BetweenUpdates(const std::function<Status(const Scheduler::Cut& cut)>& fn,
                           const std::function<void(const std::string& why)>& late) {
  // A process that trains as well must not wait for work that may be left to itself: what a lost
  // worker held, or a part of the round. The next step is as good a place to save.
  const bool trains = config_.task.type != TaskType::kChief;
  const auto begun = std::chrono::steady_clock::now();
  const Deadline patience = begun + 2 * heartbeat_timeout_;
  const Deadline give_up = std::max(patience, begun + 2 * scheduler_->longest_piece());
  const auto left_to_itself = [&] {
    return (trains && (scheduler_->WorkIsBack() ||
                       (backup_workers_ > 0 && std::chrono::steady_clock::now() >= patience))) ||
           (scheduler_->WorkIsBack() && scheduler_->WorkersHaveLeft());
  };
  if (left_to_itself()) {
    return {};
  }
  for (;;) {
    Result<std::optional<Scheduler::Cut>> cut = scheduler_->BeginCut(kLook);
    Status status = cut.status();
    bool again = false;
    if (status.ok() && cut->has_value() && RetirementsTold()) {
      status = fn(**cut);
    } else if (status.ok()) {
      status = coordination_->failure();
      again = status.ok() && !left_to_itself();
      if (again && std::chrono::steady_clock::now() >= give_up) {
        again = false;
        late(fmt::format(
            "{} for {:.1f} s",
            cut->has_value() ? "servers do not answer" : scheduler_->AtWork() + " was waited for",
            SecondsSince(begun)));
      }
      if (again && cut->has_value()) {
        std::this_thread::sleep_for(milliseconds(5));  // servers are being told
      }
    }
    if (!again) {
      scheduler_->EndCut();
      return status;
    }
  }
}

Result<bool> Job::BetweenCalls(const std::function<void(std::int64_t calls)>& fn,
                               Deadline deadline) {
  COHORT_ASSIGN_OR_RETURN(const std::optional<std::int64_t> calls,
                          scheduler_->BeginCallCut(deadline));
  if (!calls.has_value()) {
    return false;
  }
  Status status = coordination_->failure();
  while (status.ok() && !RetirementsTold() && !scheduler_->recovering()) {
    if (std::chrono::steady_clock::now() >= deadline) {
      status = DeadlineExceeded(
          "Save at its deadline: servers do not answer that are told of a worker that is gone");
    } else {
      std::this_thread::sleep_for(milliseconds(5));  // they are being told
      status = coordination_->failure();
    }
  }
  const bool there = !scheduler_->recovering();
  if (status.ok() && there) {
    fn(*calls);
  }
  scheduler_->EndCallCut();
  COHORT_RETURN_IF_ERROR(status);
  return there;
}

Status Job::Done() {
  if (left_ || coordination_ == nullptr) {
    return {};
  }
  if (scheduler_client_ == nullptr) {
    return coordination_->failure();
  }
  for (;;) {
    Status status = coordination_->failure();
    if (status.ok()) {
      status = Explain(scheduler_client_->Done());
    }
    if (status.ok() || is_chief() || !chief_may_be_lost()) {
      return status;
    }
    COHORT_RETURN_IF_ERROR(Rejoin(status));  // to tell another chief, where this one is gone
  }
}

Status Job::Leave() {
  if (left_ || coordination_ == nullptr) {
    return {};
  }
  if (is_server() && server_->WaitDrained(std::chrono::steady_clock::now())) {
    // The job is over. The chief ends when it hears that this server does, also where its answer to
    // that is lost.
    const Status left = coordination_->Shutdown();
    left_ = left.ok() || coordination_->service_lost();
    return left_ ? OkStatus() : left;
  }
  COHORT_RETURN_IF_ERROR(Done());
  if (trains() && !is_chief()) {
    left_ = true;
    coordination_.reset();  // says goodbye; the others go on
    return {};
  }
  if (is_chief()) {
    if (trains()) {
      COHORT_RETURN_IF_ERROR(Coordinate());  // until the other workers are done too
    }
    StopRetirements();
    {
      const std::lock_guard lock(failure_mutex_);
      stage_ = Stage::kLeaving;
    }
    if (client_ != nullptr) {
      COHORT_RETURN_IF_ERROR(Explain(client_->Drain()));
    }
    if (journal_ != nullptr) {
      COHORT_RETURN_IF_ERROR(journal_->Remove());
    }
  }
  COHORT_RETURN_IF_ERROR(coordination_->Shutdown());
  left_ = true;
  return {};
}

}  // namespace cohort::ps
