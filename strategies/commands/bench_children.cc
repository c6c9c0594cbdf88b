#include "bench_children.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "parameter_server/server.h"

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

Result<std::unique_ptr<ServerProcess>> ServerProcess::Start(Children& children) {
  int told[2];
  int lives[2];
  if (::pipe2(told, O_CLOEXEC) != 0 || ::pipe2(lives, O_CLOEXEC) != 0) {
    return Internal(std::string("pipe: ") + std::strerror(errno));
  }
  std::unique_ptr<ServerProcess> process(new ServerProcess);
  process->lives_ = lives[1];
  const Result<pid_t> pid = children.Start("server", [&]() -> Status {
    ::close(lives[1]);
    COHORT_ASSIGN_OR_RETURN(const auto server, ps::Server::Start("127.0.0.1:0", 0, Log()));
    const int port = server->port();
    if (::write(told[1], &port, sizeof(port)) != sizeof(port)) {
      return Internal(std::string("pipe: ") + std::strerror(errno));
    }
    char nothing = 0;
    (void)!::read(lives[0], &nothing, 1);
    return {};
  });
  ::close(told[1]);
  ::close(lives[0]);
  int port = 0;
  const bool known = pid.ok() && ::read(told[0], &port, sizeof(port)) == sizeof(port);
  ::close(told[0]);
  COHORT_RETURN_IF_ERROR(pid.status());
  if (!known) {
    return Internal("the server ended before it served");
  }
  process->pid_ = *pid;
  process->address_ = "127.0.0.1:" + std::to_string(port);
  return process;
}

ServerProcess::~ServerProcess() { End(); }

void ServerProcess::End() {
  if (lives_ >= 0) {
    ::close(std::exchange(lives_, -1));
  }
}

}  // namespace cohort
