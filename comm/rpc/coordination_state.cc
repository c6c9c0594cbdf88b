#include "coordination_state.h"

#include <fmt/format.h>

#include <algorithm>

#include "cluster_difference.h"

namespace cohort {
namespace {

constexpr std::size_t kLongestName = 4 << 10;

double Seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace

CoordinationState::CoordinationState(ClusterSpec cluster, CoordinationOptions options)
    : cluster_(std::move(cluster)),
      options_(std::move(options)),
      fingerprint_(cluster_.Fingerprint()),
      cluster_json_(cluster_.ToJson()),
      last_tick_(options_.clock->Now()) {
  Require(!cluster_.empty(), "a coordination service needs a cluster of at least one task");
  for (const TaskId& id : cluster_.Tasks()) {
    tasks_[id].may_leave = options_.may_leave && options_.may_leave(id);
    tasks_[id].has_joined = tasks_[id].may_leave && options_.ended.contains(id);
    tasks_[id].of_quorum =
        tasks_[id].may_leave && options_.quorum.has_value() && options_.quorum->of(id);
  }
}

// Joining.

std::string CoordinationState::Describe(const TaskId& id, const Task& task) const {
  return fmt::format("{} (host {}, pid {})", id.ToString(), task.host, task.pid);
}

Status CoordinationState::Register(const Registration& registration) {
  Completions completions;
  const std::lock_guard lock(mutex_);
  const TaskId& id = registration.caller.task;
  const auto entry = tasks_.find(id);
  if (entry == tasks_.end()) {
    return InvalidArgument(fmt::format("{} is no task of this cluster, which has {}", id.ToString(),
                                       TaskNames(cluster_.Tasks())));
  }
  if (registration.fingerprint != fingerprint_) {
    return FailedPrecondition(fmt::format(
        "{} (host {}, pid {}) was started with another cluster: {} [start every task of a job "
        "with the same cluster]",
        id.ToString(), registration.host, registration.pid,
        FirstClusterDifference(registration.cluster_json, id.ToString(), cluster_json_,
                               cluster_.Chief().ToString())));
  }
  Task& task = entry->second;
  if (task.phase != Phase::kAbsent) {
    COHORT_RETURN_IF_ERROR(CheckTaken(registration, task, completions));
    if (task.present()) {  // the same process asks again
      task.last_seen = options_.clock->Now();
      return OkStatus();
    }
  }
  if (!failure_.ok()) {
    return failure_.Annotate("the job has failed");
  }
  if (over_) {
    return FailedPrecondition("the job is over: every task has left");
  }
  return Admit(registration, task, completions);
}

// A task that has been registered before: OK if the caller is the same process, or may take its
// place (the old one is lost then).
Status CoordinationState::CheckTaken(const Registration& registration, Task& task,
                                     Completions& completions) {
  const TaskId& id = registration.caller.task;
  const bool same = registration.caller.incarnation == task.incarnation;
  if (same && task.present()) {
    return OkStatus();
  }
  if (same) {
    return task.phase == Phase::kLost ? task.end
                                      : Aborted(Describe(id, task) + " has left the job");
  }
  const Duration silent = options_.clock->Now() - task.last_seen;
  const bool seems_alive = task.present() && !task.broken_since &&
                           !(task.may_leave && silent > 3 * options_.heartbeat_interval);
  if (seems_alive) {
    return AlreadyExists(fmt::format(
        "{} is taken: it runs on host {}, pid {}, since {:.1f} s [start each task once; compare "
        "the task's index with the other process's]",
        id.ToString(), task.host, task.pid, Seconds(options_.clock->Now() - task.started)));
  }
  Status restarted = Aborted(fmt::format(
      "{} was restarted: incarnation {:016x} (host {}, pid {}) comes after incarnation {:016x} "
      "(host {}, pid {})",
      id.ToString(), registration.caller.incarnation, registration.host, registration.pid,
      task.incarnation, task.host, task.pid));
  if (!task.may_leave) {
    if (task.present()) {
      Fail(restarted, completions);
    }
    return restarted;
  }
  if (task.present()) {
    Lose(id, task, restarted, completions);
  }
  return OkStatus();
}

Status CoordinationState::Admit(const Registration& registration, Task& task,
                                Completions& completions) {
  const Deadline now = options_.clock->Now();
  task.phase = Phase::kJoined;
  task.has_joined = true;
  task.incarnation = registration.caller.incarnation;
  task.host = registration.host;
  task.pid = registration.pid;
  task.started = now - registration.uptime;
  task.last_seen = now;
  task.watch = 0;
  task.unwatched.FinishAll(Aborted("replaced by another process"), completions);
  task.broken_since.reset();
  task.end = OkStatus();
  task.progress.reset();
  const auto joined = std::count_if(tasks_.begin(), tasks_.end(),
                                    [](const auto& t) { return t.second.has_joined; });
  const std::string line = fmt::format("{} joined, {}/{}", Describe(registration.caller.task, task),
                                       joined, tasks_.size());
  completions.Add([log = options_.log, line] { log.Info(line); });
  const bool all_others = std::all_of(tasks_.begin(), tasks_.end(), [](const auto& t) {
    return t.second.has_joined || t.second.of_quorum;
  });
  if (!complete_ && all_others && LackingQuorum() == 0) {
    complete_ = true;
    roll_call_.FinishAll(OkStatus(), completions);
  }
  return OkStatus();
}

std::int64_t CoordinationState::LackingQuorum() const {
  const std::int64_t least = options_.quorum.has_value() ? options_.quorum->least : 0;
  const auto there = std::count_if(tasks_.begin(), tasks_.end(), [](const auto& t) {
    return t.second.of_quorum && t.second.has_joined;
  });
  return std::max<std::int64_t>(0, least - there);
}

void CoordinationState::RollCall(const Caller& caller, Deadline until, Done done) {
  Completions completions;
  const std::lock_guard lock(mutex_);
  const Result<Task*> task = FindActive(caller);
  if (!task.ok() || complete_) {
    completions.Add([done = std::move(done), status = task.status()] { done(status); });
    return;
  }
  roll_call_.Add(until, std::move(done));
}

void CoordinationState::AwaitWatch(const Caller& caller, Deadline until, Done done) {
  Completions completions;
  const std::lock_guard lock(mutex_);
  const Result<Task*> task = FindActive(caller);
  if (!task.ok() || (*task)->watch != 0) {
    completions.Add([done = std::move(done), status = task.status()] { done(status); });
    return;
  }
  (*task)->unwatched.Add(until, std::move(done));
}

std::vector<std::pair<TaskId, std::string>> CoordinationState::Missing() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::pair<TaskId, std::string>> missing;
  for (const auto& [id, task] : tasks_) {
    if (!task.has_joined && !complete_) {
      missing.emplace_back(id, cluster_.Address(id));
    }
  }
  return missing;
}

void CoordinationState::SetReasons(std::map<TaskId, std::string> reasons) {
  const std::lock_guard lock(mutex_);
  reasons_ = std::move(reasons);
}

std::string CoordinationState::MissingText() const {
  const std::lock_guard lock(mutex_);
  return MissingTextLocked();
}

std::string CoordinationState::MissingTextLocked() const {
  std::string names;
  int missing = 0;
  int of_quorum = 0;
  for (const auto& [id, task] : tasks_) {
    if (!task.has_joined && !complete_) {
      of_quorum += task.of_quorum ? 1 : 0;
      const auto reason = reasons_.find(id);
      names += fmt::format("{}{} ({}, {})", missing++ == 0 ? "" : ", ", id.ToString(),
                           cluster_.Address(id),
                           reason == reasons_.end() ? "not registered" : reason->second);
    }
  }
  if (of_quorum > 0) {
    names += fmt::format("; the job begins with {} of {} of these", LackingQuorum(), of_quorum);
  }
  return missing == 0 ? std::string() : fmt::format("{}/{}: {}", missing, tasks_.size(), names);
}

// Being there.

Result<CoordinationState::Task*> CoordinationState::Find(const Caller& caller) {
  const auto entry = tasks_.find(caller.task);
  if (entry == tasks_.end()) {
    return InvalidArgument(fmt::format("{} is no task of this cluster, which has {}",
                                       caller.task.ToString(), TaskNames(cluster_.Tasks())));
  }
  Task& task = entry->second;
  if (task.phase == Phase::kAbsent) {
    return Aborted(fmt::format(
        "{}, incarnation {:016x}, is not registered with this coordination service: {} was "
        "restarted [restart the whole job]",
        caller.task.ToString(), caller.incarnation, cluster_.Chief().ToString()));
  }
  if (task.incarnation != caller.incarnation) {
    return Aborted(fmt::format(
        "{}, incarnation {:016x}, was replaced by incarnation {:016x} (host "
        "{}, pid {})",
        caller.task.ToString(), caller.incarnation, task.incarnation, task.host, task.pid));
  }
  if (task.phase == Phase::kLost) {
    return task.end;
  }
  return &task;
}

Result<CoordinationState::Task*> CoordinationState::FindActive(const Caller& caller) {
  COHORT_ASSIGN_OR_RETURN(Task* const task, Find(caller));
  if (task->phase == Phase::kLeft) {
    return FailedPrecondition(Describe(caller.task, *task) + " has left the job");
  }
  if (!failure_.ok()) {
    task->heard = true;
    return failure_;
  }
  return task;
}

Status CoordinationState::Heartbeat(const Caller& caller,
                                    const std::optional<TaskProgress>& progress) {
  const std::lock_guard lock(mutex_);
  COHORT_ASSIGN_OR_RETURN(Task* const task, Find(caller));
  task->last_seen = options_.clock->Now();
  if (progress) {
    task->progress = progress;
    task->progress_at = task->last_seen;
  }
  return task->phase == Phase::kLeft ? OkStatus() : failure_;
}

std::uint64_t CoordinationState::Watch(const Caller& caller, Deadline until, Done done) {
  Completions completions;
  const std::lock_guard lock(mutex_);
  const Result<Task*> task = Find(caller);
  if (!task.ok() || !failure_.ok() || (*task)->phase == Phase::kLeft) {
    const Status status = !task.ok()                       ? task.status()
                          : (*task)->phase == Phase::kLeft ? OkStatus()
                                                           : failure_;
    if (task.ok()) {
      (*task)->heard = true;
    }
    completions.Add([done = std::move(done), status] { done(status); });
    return 0;
  }
  (*task)->last_seen = options_.clock->Now();
  (*task)->broken_since.reset();
  (*task)->watch = ++watches_;
  (*task)->unwatched.FinishAll(OkStatus(), completions);
  watching_.Add(until, std::move(done));
  return watches_;
}

void CoordinationState::WatchBroken(const Caller& caller, std::uint64_t watch) {
  const std::lock_guard lock(mutex_);
  const Result<Task*> task = Find(caller);
  if (task.ok() && (*task)->present() && (*task)->watch == watch) {
    (*task)->broken_since = options_.clock->Now();
  }
}

// Keys and barriers.

Status CoordinationState::Insert(const Caller& caller, const std::string& key, std::string value,
                                 std::uint64_t sequence) {
  Completions completions;
  const std::lock_guard lock(mutex_);
  COHORT_RETURN_IF_ERROR(FindActive(caller).status());
  return keys_.Insert(
      key, std::move(value),
      fmt::format("{} {:x} {}", caller.task.ToString(), caller.incarnation, sequence), completions);
}

Result<std::string> CoordinationState::Get(const Caller& caller, const std::string& key) {
  const std::lock_guard lock(mutex_);
  COHORT_RETURN_IF_ERROR(FindActive(caller).status());
  return keys_.Get(key);
}

void CoordinationState::Wait(const Caller& caller, const std::string& key, Deadline deadline,
                             ValueDone done) {
  Completions completions;
  const std::lock_guard lock(mutex_);
  const Result<Task*> task = FindActive(caller);
  if (!task.ok()) {
    completions.Add([done = std::move(done), status = task.status()] { done(status); });
    return;
  }
  keys_.Wait(key, deadline, std::move(done), completions);
}

void CoordinationState::Barrier(const Caller& caller, const std::string& name, Deadline deadline,
                                const std::vector<TaskId>& participants, Done done) {
  Completions completions;
  const std::lock_guard lock(mutex_);
  const auto answer = [&completions, &done](const Status& status) {
    completions.Add([done, status] { done(status); });
  };
  const Result<Task*> task = FindActive(caller);
  if (!task.ok()) {
    return answer(task.status().Annotate("barrier \"" + name + "\""));
  }
  if (name.empty() || name.size() > kLongestName) {
    return answer(InvalidArgument(
        fmt::format("a barrier needs a name of 1 to {} bytes, not {}", kLongestName, name.size())));
  }
  BarrierTable::Call call{.name = name,
                          .task = caller.task,
                          .participants = {participants.begin(), participants.end()},
                          .everyone = participants.empty(),
                          .now = options_.clock->Now(),
                          .deadline = deadline};
  for (const TaskId& id : call.participants) {
    if (!tasks_.contains(id)) {
      return answer(InvalidArgument(fmt::format(
          "barrier \"{}\": participant {} is no task of this cluster", name, id.ToString())));
    }
  }
  if (call.everyone) {
    for (const auto& [id, other] : tasks_) {
      if (!other.may_leave || Gone(id, other).ok()) {
        call.participants.insert(id);
      }
    }
  }
  barriers_.Arrive(call, std::move(done), completions);
  for (const TaskId& id : call.participants) {
    if (const Status gone = Gone(id, tasks_.at(id)); !gone.ok() && id != caller.task) {
      barriers_.TaskGone(id, gone, /*dispensable=*/false, completions);
    }
  }
}

// Why a task that has joined will arrive at no further barrier; OK if it may.
Status CoordinationState::Gone(const TaskId& id, const Task& task) const {
  switch (task.phase) {
    case Phase::kLost:
      return task.end;
    case Phase::kLeft:
      return Cancelled(Describe(id, task) + " left the job");
    case Phase::kLeaving:
      return Cancelled(Describe(id, task) + " shuts down");
    default:
      return OkStatus();
  }
}

// Progress.

// "AllReduce 'bucket 1' float32[8] #480 (generation 1) 121.0 s ago"; empty if it is not known.
std::string CoordinationState::LastEntered(const Task& task) const {
  if (!task.progress || task.progress->sequence == 0) {
    return {};
  }
  const Duration age = task.progress->age + (options_.clock->Now() - task.progress_at);
  return fmt::format("{} #{} (generation {}) {:.1f} s ago", task.progress->operation,
                     task.progress->sequence, task.progress->generation, Seconds(age));
}

// Who is behind the others: "worker:2 last entered ... 121.0 s ago; the other 7 are in #481". Empty
// if nobody is, as far as the heartbeats tell.
std::string CoordinationState::ProgressText() const {
  constexpr std::size_t kMostNames = 4;
  std::uint64_t generation = 0;
  std::uint64_t front = 0;
  for (const auto& [id, task] : tasks_) {
    if (task.progress && task.phase != Phase::kLost) {
      generation = std::max(generation, task.progress->generation);
    }
  }
  std::size_t known = 0;
  Deadline entered_front;
  for (const auto& [id, task] : tasks_) {
    if (!task.progress || task.progress->generation != generation || task.phase == Phase::kLost) {
      continue;
    }
    ++known;
    const Deadline entered = task.progress_at - task.progress->age;
    if (task.progress->sequence > front) {
      front = task.progress->sequence;
      entered_front = entered;
    } else if (task.progress->sequence == front) {
      entered_front = std::min(entered_front, entered);
    }
  }
  // What the others' heartbeats say must be as new as that.
  if (options_.clock->Now() - entered_front < 2 * options_.heartbeat_interval) {
    return {};
  }
  std::string text;
  std::size_t behind = 0;
  for (const auto& [id, task] : tasks_) {
    if (!task.progress || task.progress->generation != generation ||
        task.progress->sequence == front || task.phase == Phase::kLost) {
      continue;
    }
    if (++behind <= kMostNames) {
      const std::string entered = LastEntered(task);
      text += (text.empty() ? "" : ", ") + id.ToString() +
              (entered.empty() ? " has entered no operation" : " last entered " + entered);
    }
  }
  if (behind == 0) {
    return {};
  }
  if (behind > kMostNames) {
    text += fmt::format(" and {} more", behind - kMostNames);
  }
  return text + fmt::format("; the other {} {} in #{}", known - behind,
                            known - behind == 1 ? "is" : "are", front);
}

// When those tasks were heard of last that `text` names, as a communicator names its ranks.
std::string CoordinationState::LastHeartbeats(const TaskId& reporter,
                                              const std::string& text) const {
  std::string result;
  for (const auto& [id, task] : tasks_) {
    if (id != reporter && task.has_joined &&
        text.find("(" + id.ToString() + ")") != std::string::npos) {
      const std::string entered = LastEntered(task);
      result += fmt::format("; {}: last heartbeat {:.1f} s ago{}", id.ToString(),
                            Seconds(options_.clock->Now() - task.last_seen),
                            entered.empty() ? "" : ", in which it was in or after " + entered);
    }
  }
  return result;
}

// Generations.

void CoordinationState::Regroup(const Caller& caller, std::uint64_t previous, int min_size,
                                Duration patience, Deadline deadline, RegroupTable::Done done) {
  Completions completions;
  const std::lock_guard lock(mutex_);
  const Result<Task*> task = FindActive(caller);
  if (!task.ok()) {
    completions.Add(
        [done = std::move(done), status = task.status().Annotate("regroup")] { done(status); });
    return;
  }
  const Deadline now = options_.clock->Now();
  regroup_.Arrive({.caller = {caller.task, caller.incarnation},
                   .previous = previous,
                   .min_size = min_size,
                   .now = now,
                   .patience = now + patience,
                   .deadline = deadline},
                  std::move(done), completions);
  ReviewRegroup(completions);
}

Status CoordinationState::RegroupAsked(const Caller& caller) const {
  const std::lock_guard lock(mutex_);
  return regroup_.Asked(caller.task);
}

void CoordinationState::ReviewRegroup(Completions& completions) {
  std::map<TaskId, std::uint64_t> present;
  for (const auto& [id, task] : tasks_) {
    if (task.phase == Phase::kJoined) {
      present[id] = task.incarnation;
    }
  }
  regroup_.Review(options_.clock->Now(), present, cluster_.Tasks(), completions);
}

// Ends.

void CoordinationState::Fail(const Status& failure, Completions& completions) {
  if (!failure_.ok() || over_) {
    return;
  }
  failure_ = failure;
  completions.Add(
      [log = options_.log, failure] { log.Error("the job fails: " + failure.ToString()); });
  EndWaits(failure, completions);
}

Status CoordinationState::Fail(const Status& why) {
  Completions completions;
  const std::lock_guard lock(mutex_);
  Fail(why, completions);
  return failure_.ok() ? why : failure_;
}

void CoordinationState::EndWaits(const Status& status, Completions& completions) {
  for (auto& [id, task] : tasks_) {
    task.unwatched.FinishAll(status, completions);
  }
  roll_call_.FinishAll(status, completions);
  watching_.FinishAll(status, completions);
  shutdown_.FinishAll(status, completions);
  keys_.FailAll(status, completions);
  barriers_.FailAll(status, completions);
  regroup_.FailAll(status, completions);
}

void CoordinationState::Lose(const TaskId& id, Task& task, const Status& why,
                             Completions& completions) {
  task.phase = Phase::kLost;
  task.broken_since.reset();
  task.end = why;
  if (!task.may_leave) {
    return Fail(why, completions);
  }
  completions.Add([log = options_.log, why] { log.Warning("a task is lost: " + why.message()); });
  lost_.emplace_back(id, why);
  barriers_.TaskGone(id, why, /*dispensable=*/true, completions);
}

Status CoordinationState::ReportError(const Caller& caller, const Status& error) {
  Completions completions;
  const std::lock_guard lock(mutex_);
  COHORT_RETURN_IF_ERROR(Find(caller).status());
  if (error.ok()) {
    return InvalidArgument("OK is no error to report");
  }
  const std::string name = caller.task.ToString();
  Status told = error.message().starts_with(name + ":") ? error : error.Annotate(name);
  if (error.code() == StatusCode::kDeadlineExceeded) {
    if (const std::string progress = ProgressText(); !progress.empty()) {
      told = Status(told.code(), told.message() + "; by the heartbeats, " + progress);
    }
  } else if (error.code() == StatusCode::kUnavailable) {
    told = Status(told.code(), told.message() + LastHeartbeats(caller.task, error.message()));
  }
  Fail(told, completions);
  return OkStatus();
}

Status CoordinationState::Leave(const Caller& caller) {
  Completions completions;
  const std::lock_guard lock(mutex_);
  COHORT_ASSIGN_OR_RETURN(Task* const task, Find(caller));
  if (task->phase == Phase::kLeft) {
    return OkStatus();
  }
  task->phase = Phase::kLeft;
  task->broken_since.reset();
  const Status left = Gone(caller.task, *task);
  if (!task->may_leave) {
    Fail(Cancelled(left.message() +
                   " before its end [Shutdown, called by every task, ends a job in order]"),
         completions);
    return OkStatus();
  }
  lost_.emplace_back(caller.task, left);
  barriers_.TaskGone(caller.task, left, /*dispensable=*/true, completions);
  return OkStatus();
}

std::vector<TaskId> CoordinationState::NotInShutdown() const {
  std::vector<TaskId> missing;
  for (const auto& [id, task] : tasks_) {
    const bool awaited =
        task.phase == Phase::kJoined || (!task.may_leave && task.phase == Phase::kAbsent);
    if (awaited) {
      missing.push_back(id);
    }
  }
  return missing;
}

void CoordinationState::Shutdown(const Caller& caller, Deadline deadline, Done done) {
  Completions completions;
  const std::lock_guard lock(mutex_);
  const Result<Task*> found = Find(caller);
  if (!found.ok() || !failure_.ok() || (*found)->phase == Phase::kLeft) {
    const Status status = !found.ok() ? found.status() : failure_;
    completions.Add([done = std::move(done), status] { done(status); });
    return;
  }
  Task& task = **found;
  if (shutdown_.empty()) {
    shutdown_begun_ = options_.clock->Now();
  }
  shutdown_.Add(deadline, std::move(done));
  if (task.phase == Phase::kJoined) {
    task.phase = Phase::kLeaving;
    barriers_.TaskGone(caller.task, Gone(caller.task, task), task.may_leave, completions);
  }
  FinishShutdownIfComplete(completions);
}

void CoordinationState::FinishShutdownIfComplete(Completions& completions) {
  if (shutdown_.empty() || !lost_.empty() || telling_ || !NotInShutdown().empty()) {
    return;
  }
  over_ = true;
  for (auto& [id, task] : tasks_) {
    if (task.phase == Phase::kLeaving) {
      task.phase = Phase::kLeft;
      task.broken_since.reset();
    }
  }
  shutdown_.FinishAll(OkStatus(), completions);
  watching_.FinishAll(OkStatus(), completions);
}

void CoordinationState::Stop(const Status& why) {
  Completions completions;
  const std::lock_guard lock(mutex_);
  Fail(why, completions);
  // Of a job that is over, or failed before: whoever came late.
  EndWaits(why, completions);
}

// Time.

Deadline CoordinationState::Tick() {
  Completions completions;
  const std::lock_guard lock(mutex_);
  const Deadline now = options_.clock->Now();
  ForgivePause(now);
  CheckLiveness(now, completions);
  CheckShutdown(now, completions);
  ReviewRegroup(completions);
  barriers_.Expire(now, completions);
  keys_.Expire(now, completions);
  for (auto& [id, task] : tasks_) {
    task.unwatched.FinishExpired(now, OkStatus(), completions);
  }
  roll_call_.FinishExpired(now, OkStatus(), completions);
  watching_.FinishExpired(now, OkStatus(), completions);
  return NextEvent(now);
}

void CoordinationState::ForgivePause(Deadline now) {
  const Duration expected = options_.heartbeat_interval;
  const Duration gap = now - std::exchange(last_tick_, now);
  if (gap <= std::max<Duration>(2 * expected, options_.heartbeat_timeout / 4)) {
    return;
  }
  for (auto& [id, task] : tasks_) {
    task.last_seen = std::min(now, task.last_seen + gap - expected);
    if (task.broken_since) {
      task.broken_since = std::min(now, *task.broken_since + gap - expected);
    }
  }
}

void CoordinationState::CheckLiveness(Deadline now, Completions& completions) {
  for (auto& [id, task] : tasks_) {
    if (!task.present()) {
      continue;
    }
    const Duration silent = now - task.last_seen;
    const std::string entered = LastEntered(task);
    const std::string where = entered.empty() ? "" : "; it last entered " + entered;
    if (task.broken_since && now - *task.broken_since > options_.reconnect_grace) {
      Lose(id, task,
           Unavailable(fmt::format(
               "{} closed its connection and did not come back within {:.1f} "
               "s; last heartbeat {:.1f} s ago{} [its own log tells why it ended]",
               Describe(id, task), Seconds(now - *task.broken_since), Seconds(silent), where)),
           completions);
    } else if (silent > options_.heartbeat_timeout) {
      Lose(id, task,
           Unavailable(fmt::format("{} sent no heartbeat for {:.1f} s{} [its own log tells why; a "
                                   "stopped process or a lost network look like this]",
                                   Describe(id, task), Seconds(silent), where)),
           completions);
    }
  }
}

void CoordinationState::CheckShutdown(Deadline now, Completions& completions) {
  if (shutdown_.empty() || shutdown_.Next() > now) {
    return;
  }
  const std::vector<TaskId> missing = NotInShutdown();
  const double elapsed = Seconds(now - shutdown_begun_);
  shutdown_.FinishAll(
      DeadlineExceeded(
          fmt::format("shutdown: {}/{} tasks wanted to leave within {:.1f} s; missing: "
                      "{}",
                      tasks_.size() - missing.size(), tasks_.size(), elapsed, TaskNames(missing))),
      completions);
  Fail(Internal(fmt::format("shutdown was initiated without {}, which did not call Shutdown within "
                            "{:.1f} s",
                            TaskNames(missing), elapsed)),
       completions);
}

Deadline CoordinationState::NextEvent(Deadline now) const {
  Deadline next =
      std::min({now + options_.heartbeat_interval, barriers_.Next(), keys_.Next(),
                roll_call_.Next(), watching_.Next(), shutdown_.Next(), regroup_.Next(now)});
  // A task is dead once its time has passed, not when it is reached.
  constexpr std::chrono::milliseconds kPassed{1};
  for (const auto& [id, task] : tasks_) {
    next = std::min(next, task.unwatched.Next());
    if (task.present()) {
      next = std::min(next, task.last_seen + options_.heartbeat_timeout + kPassed);
      if (task.broken_since) {
        next = std::min(next, *task.broken_since + options_.reconnect_grace + kPassed);
      }
    }
  }
  return next;
}

// What others ask.

std::vector<std::pair<TaskId, Status>> CoordinationState::TakeLost() {
  const std::lock_guard lock(mutex_);
  telling_ = !lost_.empty();
  return std::exchange(lost_, {});
}

void CoordinationState::Told() {
  Completions completions;
  const std::lock_guard lock(mutex_);
  telling_ = false;
  FinishShutdownIfComplete(completions);
}

// Who watches has been answered. Who has joined watches soon.
bool CoordinationState::unheard() const {
  const std::lock_guard lock(mutex_);
  return !failure_.ok() && std::ranges::any_of(tasks_, [](const auto& entry) {
    const Task& task = entry.second;
    return task.present() && task.watch == 0 && !task.heard;
  });
}

Status CoordinationState::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

bool CoordinationState::complete() const {
  const std::lock_guard lock(mutex_);
  return complete_;
}

std::vector<TaskId> CoordinationState::Alive() const {
  const std::lock_guard lock(mutex_);
  std::vector<TaskId> alive;
  for (const auto& [id, task] : tasks_) {
    if (task.present()) {
      alive.push_back(id);
    }
  }
  return alive;
}

std::optional<std::uint64_t> CoordinationState::Incarnation(const TaskId& id) const {
  const std::lock_guard lock(mutex_);
  const auto task = tasks_.find(id);
  return task != tasks_.end() && task->second.present() ? std::optional(task->second.incarnation)
                                                        : std::nullopt;
}

}  // namespace cohort
