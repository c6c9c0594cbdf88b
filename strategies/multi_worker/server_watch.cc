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
// How long a wait for a key lasts before it is seen whether there is still something to wait for.
constexpr milliseconds kSlice{500};
// Before what could not be asked is asked again.
constexpr milliseconds kPause{200};
constexpr milliseconds kLook{20};

double Seconds(milliseconds duration) { return static_cast<double>(duration.count()) / 1000; }

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
      collective_timeout_(options.collective_timeout),
      rejoin_grace_(options.rejoin_grace),
      goes_on_(GoesOn(config, options)),
      log_(options.log),
      server_(parts.server),
      client_(parts.client),
      end_calls_(std::move(parts.end_calls)),
      num_servers_(config.cluster.Count(TaskType::kPs)),
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
  if (task.type != TaskType::kPs) {
    return;
  }
  const Status why = Unavailable(how.message());  // also where another has replaced it
  const std::optional<std::uint64_t> present = server_->Incarnation(task);
  {
    const std::lock_guard lock(mutex_);
    const std::uint64_t known = roll_.process(task.index);
    if (stopped_ || known == 0 || present == known || stage_ == Stage::kLeaving) {
      return;  // nobody knows the one that was lost, or knows it any more
    }
    if (stage_ == Stage::kTraining && goes_on_) {
      roll_.Lost(task.index, why);
      Lose(why);
      return;
    }
  }
  server_->Fail(why);
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
    if (!roll_.complete()) {  // one more was lost since
      Lose(roll_.why());
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
    BeginTerm();
  }
  return goes_on_;
}

Status ServerWatch::EndTraining() {
  if (!goes_on_) {
    return {};
  }
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

Status ServerWatch::AwaitNextTerm() {
  if (is_chief()) {
    std::string names;
    {
      const std::lock_guard lock(mutex_);
      names = roll_.NamesOfLost();
    }
    log_.Warning(fmt::format(
        "{} is lost, and the workers wait: the job goes on from the last save when another process "
        "takes its place, within {:g} s",
        names, Seconds(rejoin_grace_)));
    if (const Status there = FindServers(rejoin_grace_); !there.ok()) {
      server_->Fail(there);
      const Status failure = client_->failure();
      return failure.ok() ? there : failure;
    }
    log_.Info(names + " is there: the workers go back to the last save");
  } else {
    log_.Info("waits for the servers: " + loss().message());
  }
  // The chief gives up in time, which is an error here; a worker may be in the middle of a step.
  const Deadline deadline =
      DeadlineAfter(num_servers_ * rejoin_grace_ + join_timeout_ + collective_timeout_);
  COHORT_RETURN_IF_ERROR(
      client_->Barrier(Key("stopped"), deadline, config_.cluster.TrainingTasks()));
  BeginTerm();
  return {};
}

// ---- Servers ------------------------------------------------------------------------------------

// Of the process that is the server now. Unavailable: none is.
Result<std::string> ServerWatch::AddressOf(int server, std::uint64_t* incarnation) const {
  const TaskId task = {TaskType::kPs, server};
  const std::optional<std::uint64_t> present = server_->Incarnation(task);
  Result<std::string> address = present.has_value() ? client_->Get(ps::ProcessKey(server, *present))
                                                    : Result<std::string>(NotFound(""));
  if (!address.ok()) {
    return Unavailable(task.ToString() + " is not there [start it again]");
  }
  *incarnation = *present;
  return address;
}

Status ServerWatch::FindServers(milliseconds patience) {
  addresses_.assign(static_cast<std::size_t>(num_servers_), "");
  for (int s = 0; s < num_servers_; ++s) {
    COHORT_ASSIGN_OR_RETURN(addresses_[static_cast<std::size_t>(s)], FindServer(s, patience));
  }
  return {};
}

Result<std::string> ServerWatch::FindServer(int server, milliseconds patience) {
  const auto begun = steady_clock::now();
  for (;;) {
    std::uint64_t incarnation = 0;
    const Result<std::string> address = AddressOf(server, &incarnation);
    bool entered = false;
    {
      const std::lock_guard lock(mutex_);
      const ps::ServerRoll::Loss* const loss = roll_.loss(server);
      if (address.ok() && (loss == nullptr || roll_.process(server) != incarnation)) {
        roll_.Enter(server, incarnation);
        entered = true;
      } else if (steady_clock::now() - (loss != nullptr ? loss->since : begun) >= patience) {
        return loss != nullptr ? NobodyCame(server, loss->why) : address.status();
      }
    }
    if (entered && IsStillThere(server, incarnation)) {
      return address;
    }
    COHORT_RETURN_IF_ERROR(client_->failure());
    std::this_thread::sleep_for(kLook);
  }
}

// Of one that has just been entered. If it was lost before that, TaskLost knew it not, and nobody
// says so again; if it is lost from here on, TaskLost knows it.
bool ServerWatch::IsStillThere(int server, std::uint64_t incarnation) {
  const TaskId task = {TaskType::kPs, server};
  if (server_->Incarnation(task) == incarnation) {
    return true;
  }
  const std::lock_guard lock(mutex_);
  roll_.Lost(server, Unavailable(task.ToString() + " was lost as soon as it was there"));
  return false;
}

Status ServerWatch::NobodyCame(int server, const Status& why) const {
  return Unavailable(fmt::format(
      "{}; no other process has taken its place within {:g} s (rejoin_grace) [start {} again with "
      "its TF_CONFIG in that time; the job itself, started again, goes on from its last save]",
      why.message(), Seconds(rejoin_grace_), TaskId{TaskType::kPs, server}.ToString()));
}

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

void ServerWatch::Leave() {
  {
    const std::lock_guard lock(mutex_);
    stage_ = Stage::kLeaving;
  }
  changed_.notify_all();
}

}  // namespace cohort
