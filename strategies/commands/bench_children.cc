#include "bench_children.h"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace cohort {

Children::~Children() {
  for (const pid_t pid : running_) {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
  }
}

Result<pid_t> Children::Start(const std::string& name, const std::function<Status()>& work) {
  const pid_t pid = ::fork();
  if (pid < 0) {
    return Internal(std::string("fork: ") + std::strerror(errno));
  }
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const Status status = work();
    if (!status.ok()) {
      std::fprintf(stderr, "%s: %s\n", name.c_str(), status.ToString().c_str());
    }
    std::_Exit(ExitCode(status));
  }
  running_.push_back(pid);
  return pid;
}

Status Children::Wait() {
  Status first;
  for (const pid_t pid : std::exchange(running_, {})) {
    int code = 0;
    ::waitpid(pid, &code, 0);
    if (code != 0 && first.ok()) {
      first = Internal("a process of the job ended with an error");
    }
  }
  return first;
}

void Children::Kill(pid_t pid) {
  std::erase(running_, pid);
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
}

Status Children::AllRun() {
  for (const pid_t pid : running_) {
    if (::waitpid(pid, nullptr, WNOHANG) == pid) {
      std::erase(running_, pid);
      return Internal("a process of the job ended too early");
    }
  }
  return {};
}

}  // namespace cohort
