#include "multi_worker/server_watch.h"

#include <algorithm>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "parameter_server/job.h"

namespace cohort {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// What the chief says at the end of a term, unless it is which server was lost.
constexpr char kOver[] = "training is over";

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

}  // namespace

bool ServerWatch::GoesOn(const ClusterConfig& config, const StrategyOptions& options) {
  return config.cluster.Count(TaskType::kPs) > 0 && options.rejoin_grace.count() > 0;
}

ServerWatch::ServerWatch(const ClusterConfig& config, const StrategyOptions& options, Parts parts)
    : config_(config),
      join_timeout_(options.join_timeout),
      heartbeat_timeout_(options.heartbeat_timeout),
      collective_timeout_(options.communication.timeout),
      rejoin_grace_(options.rejoin_grace),
      worker_patience_(options.worker_patience),
      min_workers_(options.min_workers),
      goes_on_(GoesOn(config, options)),
      log_(options.log),
      server_(parts.server),
      client_(parts.client),
      end_calls_(std::move(parts.end_calls)),
      num_servers_(config.cluster.Count(TaskType::kPs)),
      crew_(config.cluster.TrainingTasks()),
      roll_(num_servers_) {
  if (is_chief()) {
    server_->OnTaskLost([this](const TaskId& task, const Status& how) { TaskLost(task, how); });
  }
}

ServerWatch::~ServerWatch() { Stop(); }

void ServerWatch::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) {
    thread_.join();
  }
}

std::uint64_t ServerWatch::term() const {
  const std::lock_guard lock(mutex_);
  return term_;
}

Status ServerWatch::loss() const {
  const std::lock_guard lock(mutex_);
  return loss_;
}

std::string ServerWatch::Key(const std::string& what) const {
  return "in_step/" + std::to_string(term()) + "/" + what;
}

// ---- The end of a term --------------------------------------------------------------------------

// On a thread of the coordination service.
void ServerWatch::TaskLost(const TaskId& task, const Status& how) {
  if (task.type == TaskType::kPs) {
    ServerLost(task.index, Unavailable(how.message()));  // also where another has replaced it
  } else {
    WorkerLost(task, how);
  }
}

void ServerWatch::ServerLost(int server, const Status& why) {
  const std::optional<std::uint64_t> present = server_->Incarnation({TaskType::kPs, server});
  {
    const std::lock_guard lock(mutex_);
    const std::uint64_t known = roll_.process(server);
    if (stopped_ || known == 0 || present == known || stage_ == Stage::kLeaving) {
      return;  // nobody knows the one that was lost, or knows it any more
    }
    if (stage_ == Stage::kTraining && goes_on_) {
      roll_.Lost(server, why);
      Lose(why);
      return;
    }
  }
  (void)server_->Fail(why);
}

void ServerWatch::WorkerLost(const TaskId& worker, const Status& how) {
  const std::optional<std::uint64_t> present = server_->Incarnation(worker);
  {
    const std::lock_guard lock(mutex_);
    const std::uint64_t known = workers_.process(worker);
    const bool of_the_crew = known != 0 && workers_.loss(worker) == nullptr && present != known;
    if (stopped_ || (stage_ != Stage::kSetup && !of_the_crew)) {
      return;  // it waited to be asked to come, or is known to be lost
    }
    // One that leaves by itself has had an error that is its own.
    if (stage_ == Stage::kTraining && how.code() != StatusCode::kCancelled) {
      const Status why = Unavailable(how.message());
      workers_.Lost(worker, why);
      Lose(why);
      return;
    }
  }
  (void)server_->Fail(EndOf(how));
}

Status ServerWatch::EndOf(const Status& how) {
  return how.code() == StatusCode::kCancelled
             ? Cancelled(how.message() +
                         " before its end [Shutdown, called by every task, ends a job in order]")
             : how;
}

void ServerWatch::Lose(const Status& why) {
  if (loss_.ok()) {
    loss_ = why;
    changed_.notify_all();
  }
}

void ServerWatch::BeginTerm() {
  if (thread_.joinable()) {
    thread_.join();  // its term is over: no call of the next one is hit
  }
  {
    const std::lock_guard lock(mutex_);
    ++term_;
    stage_ = Stage::kTraining;
    over_ = false;
    loss_ = Status();
    for (const Status& why : {roll_.why(), workers_.why()}) {
      if (!why.ok()) {  // one more was lost since
        Lose(why);
      }
    }
  }
  thread_ = std::thread([this, key = Key("end")] { Watch(key); });
}

void ServerWatch::Watch(const std::string& key) {
  if (is_chief()) {
    SayLoss(key);
  } else {
    HearEnd(key);
  }
}

void ServerWatch::SayLoss(const std::string& key) {
  Status why;
  {
    Lock lock(mutex_);
    changed_.wait(lock, [&] { return stopped_ || !loss_.ok() || stage_ != Stage::kTraining; });
    why = loss_;
  }
  if (!why.ok()) {
    // Where that cannot be, the job is over for the others, too.
    (void)client_->Insert(key, why.message());
    end_calls_(why);
  }
}

void ServerWatch::HearEnd(const std::string& key) {
  for (;;) {
    const Result<std::string> said = client_->Wait(key, DeadlineAfter(kSlice));
    Lock lock(mutex_);
    if (stopped_) {
      return;
    }
    if (said.ok()) {
      if (*said == kOver) {
        over_ = true;
        stage_ = Stage::kOver;
        changed_.notify_all();
        return;
      }
      const Status why = Unavailable(*said);
      Lose(why);
      lock.unlock();
      end_calls_(why);
      return;
    }
    if (said.status().code() == StatusCode::kDeadlineExceeded) {
      continue;
    }
    if (!client_->failure().ok() || changed_.wait_for(lock, kPause, [this] { return stopped_; })) {
      return;
    }
  }
}

// ---- Training -----------------------------------------------------------------------------------

bool ServerWatch::BeginTraining() {
  bool training = false;  // as it is after a call that came to nothing
  {
    const std::lock_guard lock(mutex_);
    training = stage_ == Stage::kTraining;
  }
  if (goes_on_ && !training) {
    ++trainings_;
    BeginTerm();
  }
  return goes_on_;
}

Status ServerWatch::EndTraining() {
  if (!goes_on_) {
    return {};
  }
  joined_in_training_ = false;
  if (is_chief()) {
    {
      const std::lock_guard lock(mutex_);
      COHORT_RETURN_IF_ERROR(loss_);
      stage_ = Stage::kOver;
    }
    changed_.notify_all();
    return client_->Insert(Key("end"), kOver);
  }
  const Deadline deadline = DeadlineAfter(collective_timeout_);
  Lock lock(mutex_);
  while (!over_ && loss_.ok()) {
    COHORT_RETURN_IF_ERROR(client_->failure());
    if (steady_clock::now() >= deadline) {
      return DeadlineExceeded(config_.cluster.Chief().ToString() +
                              " has not said that training is over");
    }
    changed_.wait_for(lock, kPause);
  }
  return loss_;
}

Status ServerWatch::CheckLoss(const Status& error) {
  if (!goes_on_ ||
      (error.code() != StatusCode::kUnavailable && error.code() != StatusCode::kAborted)) {
    return error;
  }
  // This process may have noticed before the coordination service does.
  const Deadline deadline = DeadlineAfter(heartbeat_timeout_ + ps::kNoticed);
  Lock lock(mutex_);
  while (stage_ == Stage::kTraining && loss_.ok()) {
    if (steady_clock::now() >= deadline || !client_->failure().ok()) {
      return error;
    }
    changed_.wait_for(lock, kLook);
  }
  return stage_ == Stage::kTraining && client_->failure().ok() ? OkStatus() : error;
}

// ---- Servers of a term --------------------------------------------------------------------------

Result<std::vector<std::string>> ServerWatch::Addresses() {
  if (addresses_.empty()) {
    COHORT_RETURN_IF_ERROR(FindServers(join_timeout_));
  }
  return addresses_;
}

Status ServerWatch::SayReady(const std::vector<std::string>& addresses) {
  std::string text;
  for (const std::string& address : addresses) {
    text += (text.empty() ? "" : "\n") + address;
  }
  const Status said = client_->Insert(Key("servers"), text);
  return said.code() == StatusCode::kAlreadyExists ? Status() : said;  // of a Bind that failed
}

Result<std::vector<std::string>> ServerWatch::AwaitReady() {
  const std::string key = Key("servers");
  const Deadline deadline = DeadlineAfter(join_timeout_);
  for (;;) {
    const Result<std::string> said = client_->Wait(key, std::min(deadline, DeadlineAfter(kSlice)));
    if (said.ok()) {
      return Lines(*said);
    }
    COHORT_RETURN_IF_ERROR(loss());
    if (said.status().code() != StatusCode::kDeadlineExceeded || steady_clock::now() >= deadline) {
      return said.status();
    }
  }
}

}  // namespace cohort
