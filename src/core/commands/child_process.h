// ChildProcess: a program started with pipes on its output, that dies with its owner.

#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include <cohort/core/status.h>

namespace cohort {

// How a process ended.
struct ProcessEnd {
  int code = 0;    // the exit code, or 128 + signal
  int signal = 0;  // that ended it; 0: it exited

  std::string ToString() const;  // "exit code 3", "killed by signal 9 (SIGKILL), exit code 137"
};

std::string SignalName(int signal);  // "SIGKILL"

// Leads a process group of its own; standard input is /dev/null. The kernel kills it when the
// thread that started it ends, so that must be the program's main thread. The destructor kills and
// reaps the group's leader and kills what is left of the group. One thread at a time; nothing
// blocks, except the destructor until the kernel has ended the process.
class ChildProcess {
 public:
  // NotFound or PermissionDenied, naming argv[0] (searched in PATH), if it cannot be executed.
  // `environment` holds NAME=value texts.
  static Result<ChildProcess> Start(std::vector<std::string> argv,
                                    std::vector<std::string> environment);
  ChildProcess() = default;  // no process
  ChildProcess(ChildProcess&& other) noexcept { *this = std::move(other); }
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ~ChildProcess();

  pid_t pid() const { return pid_; }
  bool running() const { return pid_ > 0 && !end_; }
  // Non-blocking ends of the pipes; -1 once closed.
  int stdout_fd() const { return stdout_; }
  int stderr_fd() const { return stderr_; }
  void CloseStdout();
  void CloseStderr();

  // To every process of its group, also after it has ended itself.
  void Signal(int signal) const;
  // Reaps it if it has ended.
  const std::optional<ProcessEnd>& Poll();

 private:
  pid_t pid_ = -1;
  int stdout_ = -1;
  int stderr_ = -1;
  std::optional<ProcessEnd> end_;
};

}  // namespace cohort
