// How a job ends. It is in one of three phases:
//
//   running    until a task fails that the job needs (-> stopping, with that task's code), or the
//              tasks that train have ended well (-> finishing); servers that fail are started again
//              where that was asked for
//   finishing  what is left (parameter servers) has the grace to end by itself, then is told to
//              (-> stopping, with code 0)
//   stopping   SIGTERM was sent, or the signal that a person sent was passed on; after the grace
//              SIGKILL
//
// Everything happens in one poll loop, on one thread: signals arrive through a signalfd, output
// through the children's pipes.

#include "local_job.h"

#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <deque>
#include <memory>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/cluster/resolve.h>
#include <cohort/core/clock.h>
#include <cohort/core/status.h>

#include "core/commands/child_process.h"
#include "line_output.h"
#include "port_reservation.h"

namespace cohort {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::string_view kWho = "cohort launch: ";
constexpr std::size_t kLastLines = 10;

struct Task {
  TaskId id;
  ChildProcess process;
  LineSplitter out, err;
  std::string out_prefix, err_prefix;
  std::deque<std::string> last_words;  // of stderr
  bool restarted = false;
};

// Worse causes come first: what another task died of is seldom that it lost a peer.
int Suspicion(const ProcessEnd& end) {
  const int peer_lost = ExitCode(Unavailable({}));
  return end.code == peer_lost || end.signal == SIGTERM ? 0 : end.signal != 0 ? 2 : 1;
}

// Colours on terminals, unless the user wants none.
bool Coloured(int fd, const Environment& env) {
  return ::isatty(fd) == 1 && env.Get("NO_COLOR").value_or("").empty() && env.Get("TERM") != "dumb";
}

std::string Prefix(const TaskId& id, std::size_t position, bool coloured) {
  constexpr std::array kColours = {36, 33, 32, 35, 34, 31};
  return coloured ? fmt::format("\x1b[{}m[{}]\x1b[0m ", kColours[position % kColours.size()],
                                id.ToString())
                  : fmt::format("[{}] ", id.ToString());
}

class LocalJob {
 public:
  explicit LocalJob(const LocalJobOptions& options) : options_(options) {}
  LocalJob(const LocalJob&) = delete;
  LocalJob& operator=(const LocalJob&) = delete;
  ~LocalJob() {
    if (signals_ >= 0) {
      ::close(signals_);
    }
  }

  int Run() {
    if (const Status started = TakeSignals(); !started.ok()) {
      return Refuse(started);
    }
    for (int again = 1;; ++again) {
      if (const Status started = StartAll(); !started.ok()) {
        return Refuse(started);
      }
      while (AnyRunning()) {
        WaitForEvents();
        TakeOutput();
        TakeSignalsThatCame();
        CollectTheDead();
        ActOnDeadline();
      }
      TakeLastOutput();
      Summarise();
      if (again > options_.job_restarts || !MayStartAgain()) {
        break;
      }
      PauseBeforeTheNext();
      if (told_to_end_) {
        break;
      }
      Say(fmt::format("the job is started again, {} of {} times", again, options_.job_restarts));
      Reset();
    }
    Flush(DeadlineAfter(options_.grace));
    return code_;
  }

 private:
  enum class Phase { kRunning, kFinishing, kStopping };
  static constexpr int kUsage = 2;
  static constexpr int kPauseMs = 500;

  // ---- start ----

  Status TakeSignals() {
    sigset_t taken;
    ::sigemptyset(&taken);
    for (const int signal : {SIGINT, SIGHUP, SIGTERM, SIGCHLD}) {
      struct sigaction inherited = {};
      ::sigaction(signal, nullptr, &inherited);
      const bool may_stay_ignored = signal == SIGINT || signal == SIGHUP;  // a shell's &, nohup
      if (!may_stay_ignored || inherited.sa_handler != SIG_IGN) {
        ::sigaddset(&taken, signal);
      }
    }
    ::signal(SIGCHLD, SIG_DFL);  // NOLINT(concurrency-mt-unsafe): there is one thread
    ::signal(SIGPIPE, SIG_IGN);  // NOLINT(concurrency-mt-unsafe): there is one thread
    if (::sigprocmask(SIG_BLOCK, &taken, nullptr) != 0) {  // NOLINT(concurrency-mt-unsafe)
      return ErrnoStatus(errno, "sigprocmask");
    }
    signals_ = ::signalfd(-1, &taken, SFD_CLOEXEC | SFD_NONBLOCK);
    return signals_ < 0 ? ErrnoStatus(errno, "signalfd") : OkStatus();
  }

  Status StartAll() {
    std::vector<TaskId> ids;
    for (const auto& [type, count] : {std::pair(TaskType::kChief, options_.chief ? 1 : 0),
                                      std::pair(TaskType::kWorker, options_.workers),
                                      std::pair(TaskType::kPs, options_.servers)}) {
      for (int index = 0; index < count; ++index) {
        ids.push_back({type, index});
      }
    }
    COHORT_ASSIGN_OR_RETURN(PortReservation ports,
                            PortReservation::Make(static_cast<int>(ids.size())));
    std::map<TaskId, std::string> addresses;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      addresses[ids[i]] = fmt::format("127.0.0.1:{}", ports.ports()[i]);
    }
    cluster_ = ClusterSpec(std::move(addresses)).ToJson();
    const Environment own = Environment::OfProcess();
    const bool out_coloured = Coloured(STDOUT_FILENO, own);
    const bool err_coloured = Coloured(STDERR_FILENO, own);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ports.Release(i);
      COHORT_ASSIGN_OR_RETURN(
          ChildProcess process,
          ChildProcess::Start(options_.program, EnvironmentOf(ids[i], cluster_, own)));
      tasks_.push_back({ids[i],
                        std::move(process),
                        {},
                        {},
                        Prefix(ids[i], i, out_coloured),
                        Prefix(ids[i], i, err_coloured),
                        {}});
    }
    return OkStatus();
  }

  std::vector<std::string> EnvironmentOf(const TaskId& id, const std::string& cluster,
                                         const Environment& own) const {
    std::map<std::string, std::string, std::less<>> variables;
    for (const auto& [name, value] : own.variables()) {
      if (!IsLauncherVariable(name)) {
        variables[name] = value;
      }
    }
    for (const auto& [name, value] : options_.extra) {
      variables[name] = value;
    }
    variables["TF_CONFIG"] = fmt::format(R"({{"cluster":{},"task":{{"type":"{}","index":{}}}}})",
                                         cluster, TaskTypeName(id.type), id.index);
    std::vector<std::string> result;
    result.reserve(variables.size());
    for (const auto& [name, value] : variables) {
      result.push_back(name + "=" + value);
    }
    return result;
  }

  int Refuse(const Status& status) {
    err_.Add(fmt::format("{}{}\n", kWho, status.message()));
    Flush(DeadlineAfter(options_.grace));
    return ExitCode(status);
  }

  // ---- events ----

  bool AnyRunning() const {
    return std::any_of(tasks_.begin(), tasks_.end(),
                       [](const Task& task) { return task.process.running(); });
  }

  void WaitForEvents() {
    std::vector<pollfd> events = {{signals_, POLLIN, 0}};
    for (const Task& task : tasks_) {
      if (!out_.full() && task.process.stdout_fd() >= 0) {
        events.push_back({task.process.stdout_fd(), POLLIN, 0});
      }
      if (!err_.full() && task.process.stderr_fd() >= 0) {
        events.push_back({task.process.stderr_fd(), POLLIN, 0});
      }
    }
    for (const OutputQueue* queue : {&out_, &err_}) {
      if (!queue->empty()) {
        events.push_back({queue->fd(), POLLOUT, 0});
      }
    }
    int timeout = -1;  // a signal ends the wait, and the end of a child is one
    if (deadline_) {
      const auto left = std::chrono::ceil<milliseconds>(*deadline_ - steady_clock::now());
      timeout = static_cast<int>(std::max<std::int64_t>(0, left.count()));
    }
    ::poll(events.data(), events.size(), timeout);
  }

  void TakeOutput() {
    for (Task& task : tasks_) {
      TakeOutputOf(task);
    }
    out_.Write();
    err_.Write();
    if ((out_.broken() || err_.broken()) && phase_ != Phase::kStopping) {
      Stop(SIGTERM, 128 + SIGPIPE);  // as any program whose reader has gone
    }
  }

  void TakeOutputOf(Task& task) {
    if (!out_.full() && task.process.stdout_fd() >= 0 &&
        !ReadLines(task.process.stdout_fd(), task.out,
                   [&](const std::string& line) { out_.Add(task.out_prefix + line + "\n"); })) {
      task.process.CloseStdout();
    }
    if (!err_.full() && task.process.stderr_fd() >= 0 &&
        !ReadLines(task.process.stderr_fd(), task.err, [&](const std::string& line) {
          err_.Add(task.err_prefix + line + "\n");
          task.last_words.push_back(line.substr(0, 500));
          if (task.last_words.size() > kLastLines) {
            task.last_words.pop_front();
          }
        })) {
      task.process.CloseStderr();
    }
  }

  // Everything that is there now, up to 256 KiB so that no task keeps the others waiting. False at
  // the end of the stream.
  template <typename Sink>
  bool ReadLines(int fd, LineSplitter& splitter, const Sink& sink) {
    for (int round = 0; round < 4; ++round) {
      const ssize_t got = ::read(fd, buffer_.data(), buffer_.size());
      if (got > 0) {
        has_read_ = true;
        for (const std::string& line :
             splitter.Add({buffer_.data(), static_cast<std::size_t>(got)})) {
          sink(line);
        }
        continue;
      }
      if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
        return true;
      }
      if (const std::string rest = splitter.TakeRest(); !rest.empty()) {
        sink(rest);
      }
      return false;
    }
    return true;
  }

  // What is left in the pipes when every task has ended. Also ends what the tasks left behind.
  void TakeLastOutput() {
    const Deadline deadline = DeadlineAfter(options_.grace);
    for (const Task& task : tasks_) {
      task.process.Signal(SIGKILL);
    }
    do {
      has_read_ = false;
      for (Task& task : tasks_) {
        TakeOutputOf(task);
      }
      Flush(deadline);
    } while (has_read_ && steady_clock::now() < deadline);
  }

  void TakeSignalsThatCame() {
    signalfd_siginfo info = {};
    while (::read(signals_, &info, sizeof info) == sizeof info) {
      const int signal = static_cast<int>(info.ssi_signo);
      if (signal == SIGCHLD) {
        continue;  // CollectTheDead looks at each anyway
      }
      told_to_end_ = true;
      if (phase_ == Phase::kStopping) {
        Say(fmt::format("{} again: killing what is left", SignalName(signal)));
        SendAll(SIGKILL);
      } else {
        Say(fmt::format("{}: passed on to every task, SIGKILL follows after {:g} s",
                        SignalName(signal), Seconds(options_.grace)));
        Stop(signal, 128 + signal);
      }
    }
  }

  void CollectTheDead() {
    std::vector<Task*> dead;
    for (Task& task : tasks_) {
      if (task.process.running() && task.process.Poll()) {
        // What it wrote is in its pipes; a child of its own may hold them open for ever.
        TakeOutputOf(task);
        dead.push_back(&task);
      }
    }
    if (!dead.empty() && phase_ != Phase::kStopping) {
      Judge(dead);
    }
  }

  // ---- the course of the job ----

  void Judge(const std::vector<Task*>& dead) {
    Task* cause = nullptr;
    for (Task* task : dead) {
      const ProcessEnd& end = *task->process.Poll();
      if (end.code == 0) {
        continue;
      }
      if (MayRestart(*task)) {
        const std::string how = end.ToString();
        const Status started = Restart(*task);
        Say(fmt::format("{} is lost: {}; {}", task->id.ToString(), how,
                        started.ok()
                            ? fmt::format("started again, {} of {} times (pid {})", restarted_,
                                          options_.restarts, task->process.pid())
                            : "it could not be started again: " + started.message()));
        if (started.ok()) {
          continue;
        }
      }
      // One that was started again may have come too late for the others, who need it not then.
      if (task->id.type == TaskType::kWorker && (options_.keep_going || task->restarted)) {
        lost_.push_back(task);
        if (phase_ == Phase::kRunning) {
          Say(fmt::format("{} is lost: {}; the job goes on without it", task->id.ToString(),
                          end.ToString()));
        }
      } else if (cause == nullptr || Suspicion(end) > Suspicion(*cause->process.Poll())) {
        cause = task;
      }
    }
    if (cause == nullptr && phase_ == Phase::kRunning && AllWorkersLost()) {
      cause = lost_.front();
    }
    if (cause != nullptr) {
      cause_ = cause;
      failed_at_work_ = phase_ == Phase::kRunning;
      Stop(SIGTERM, cause->process.Poll()->code);
    } else if (phase_ == Phase::kRunning && IsComplete()) {
      phase_ = Phase::kFinishing;
      deadline_ = DeadlineAfter(options_.grace);
    }
  }

  // Of chiefs and workers only those that were killed: one that ends by itself tells the others. Of
  // servers not one that was used wrongly, which would end so again; a later process, also a
  // worker, may be told so because the one before it is not known to be gone yet.
  bool MayRestart(Task& task) {
    const ProcessEnd& end = *task.process.Poll();
    const bool told_so = task.restarted && end.code == kUsage;
    bool may = false;
    if (task.id.type == TaskType::kPs) {
      may = told_so || end.code != kUsage;
    } else if (task.id.type == TaskType::kChief) {
      may = end.signal != 0;
    } else {
      const bool leads = !options_.chief && task.id.index == 0;
      may = options_.restart_workers && !leads && (told_so || end.signal != 0);
    }
    return phase_ == Phase::kRunning && may && restarted_ < options_.restarts;
  }

  // Not what was told to end, nor what was used wrongly, nor what had done its work.
  bool MayStartAgain() {
    return !told_to_end_ && cause_ != nullptr && failed_at_work_ &&
           cause_->process.Poll()->code != kUsage;
  }
  // What ends a job at once would use up all restarts before anybody has looked.
  void PauseBeforeTheNext() {
    Flush(DeadlineAfter(options_.grace));
    pollfd signal = {signals_, POLLIN, 0};
    ::poll(&signal, 1, kPauseMs);
    TakeSignalsThatCame();
  }
  void Reset() {
    tasks_.clear();
    lost_.clear();
    cause_ = nullptr;
    code_ = 0;
    phase_ = Phase::kRunning;
    deadline_.reset();
  }

  // Its output so far has been taken; the process of old takes its children with it.
  Status Restart(Task& task) {
    COHORT_ASSIGN_OR_RETURN(
        task.process,
        ChildProcess::Start(options_.program,
                            EnvironmentOf(task.id, cluster_, Environment::OfProcess())));
    task.restarted = true;
    ++restarted_;
    return {};
  }

  bool EndedWell(TaskType type) {
    return std::any_of(tasks_.begin(), tasks_.end(), [&](Task& task) {
      const std::optional<ProcessEnd>& end = task.process.Poll();
      return task.id.type == type && end && end->code == 0;
    });
  }

  bool AllWorkersLost() {
    return options_.workers > 0 && static_cast<int>(lost_.size()) == options_.workers &&
           !EndedWell(TaskType::kChief);
  }

  // The tasks that train have ended; where the chief coordinates workers that may be lost, its word
  // is enough.
  bool IsComplete() {
    if (options_.keep_going && EndedWell(TaskType::kChief)) {
      return true;
    }
    return std::none_of(tasks_.begin(), tasks_.end(), [](const Task& task) {
      return task.id.type != TaskType::kPs && task.process.running();
    });
  }

  void Stop(int signal, int code) {
    phase_ = Phase::kStopping;
    code_ = code;
    deadline_ = DeadlineAfter(options_.grace);
    SendAll(signal);
    SendAll(SIGCONT);  // a stopped process acts on nothing
  }

  void ActOnDeadline() {
    if (!deadline_ || steady_clock::now() < *deadline_ || !AnyRunning()) {
      return;
    }
    if (phase_ == Phase::kFinishing) {
      Stop(SIGTERM, 0);
      return;
    }
    Say(fmt::format("{} did not end within {:g} s: killed", RunningTasks(),
                    Seconds(options_.grace)));
    SendAll(SIGKILL);
    deadline_.reset();  // nothing survives that, so the end of the children ends the wait
  }

  void SendAll(int signal) {
    for (const Task& task : tasks_) {
      if (task.process.running()) {
        task.process.Signal(signal);
      }
    }
  }

  // ---- words ----

  static double Seconds(milliseconds time) { return static_cast<double>(time.count()) / 1000; }

  void Say(std::string_view text) { err_.Add(fmt::format("{}{}\n", kWho, text)); }

  std::string RunningTasks() const {
    std::vector<std::string> names;
    for (const Task& task : tasks_) {
      if (task.process.running()) {
        names.push_back(task.id.ToString());
      }
    }
    return fmt::format("{}", fmt::join(names, ", "));
  }

  void Summarise() {
    for (Task& task : tasks_) {  // the end of the streams of those that left a child behind
      if (const std::string rest = task.out.TakeRest(); !rest.empty()) {
        out_.Add(task.out_prefix + rest + "\n");
      }
      if (const std::string rest = task.err.TakeRest(); !rest.empty()) {
        err_.Add(task.err_prefix + rest + "\n");
        task.last_words.push_back(rest);
      }
    }
    if (cause_ == nullptr) {
      if (!lost_.empty() && code_ == 0) {
        std::vector<std::string> names;
        for (const Task* task : lost_) {
          names.push_back(task->id.ToString());
        }
        Say(fmt::format("the job ended well without {}", fmt::join(names, ", ")));
      }
      return;
    }
    const std::string name = cause_->id.ToString();
    if (!cause_->last_words.empty()) {
      Say(fmt::format("the last that {} wrote to stderr:", name));
      for (const std::string& line : cause_->last_words) {
        err_.Add("    " + line + "\n");
      }
    }
    Say(fmt::format("root cause: {} (pid {}) failed first: {}{}", name, cause_->process.pid(),
                    cause_->process.Poll()->ToString(),
                    cause_->last_words.empty() ? "" : ": " + cause_->last_words.back()));
  }

  void Flush(Deadline deadline) {
    for (OutputQueue* queue : {&out_, &err_}) {
      queue->Write();
      while (!queue->empty() && !queue->broken() && steady_clock::now() < deadline) {
        pollfd ready = {queue->fd(), POLLOUT, 0};
        ::poll(&ready, 1, 100);
        queue->Write();
      }
    }
  }

  const LocalJobOptions& options_;
  int signals_ = -1;
  std::string cluster_;  // as JSON
  int restarted_ = 0;
  bool told_to_end_ = false;
  std::deque<Task> tasks_;  // they keep their places: others point at them
  OutputQueue out_{STDOUT_FILENO};
  OutputQueue err_{STDERR_FILENO};
  std::array<char, 64 << 10> buffer_;
  bool has_read_ = false;  // something, since it was last set to false
  Phase phase_ = Phase::kRunning;
  std::optional<Deadline> deadline_;
  Task* cause_ = nullptr;  // the task that failed first
  bool failed_at_work_ = false;
  std::vector<Task*> lost_;  // workers that failed and were not needed
  int code_ = 0;
};

}  // namespace

int RunLocalJob(const LocalJobOptions& options) {
  return std::make_unique<LocalJob>(options)->Run();  // its buffer is large for a stack
}

}  // namespace cohort
