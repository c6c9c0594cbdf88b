#include "bench_children.h"

#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "parameter_server/server.h"

namespace cohort {

Status SystemError(const std::string& what) { return Internal(what + ": " + std::strerror(errno)); }

Status SendAll(int socket, const void* from, std::size_t bytes) {
  const auto* at = static_cast<const char*>(from);
  while (bytes > 0) {
    const ssize_t sent = ::send(socket, at, std::min<std::size_t>(bytes, 256 << 10), MSG_NOSIGNAL);
    if (sent <= 0) {
      return SystemError("send");
    }
    at += sent;
    bytes -= static_cast<std::size_t>(sent);
  }
  return {};
}

Status ReceiveAll(int socket, void* to, std::size_t bytes) {
  auto* at = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t got = ::recv(socket, at, bytes, 0);
    if (got <= 0) {
      return got == 0 ? Unavailable("the other process has ended") : SystemError("recv");
    }
    at += got;
    bytes -= static_cast<std::size_t>(got);
  }
  return {};
}

Children::~Children() {
  for (const Child& child : running_) {
    ::kill(child.pid, SIGKILL);
    ::waitpid(child.pid, nullptr, 0);
  }
}

Result<pid_t> Children::Start(const std::string& name, const std::function<Status()>& work) {
  const pid_t pid = ::fork();
  if (pid < 0) {
    return SystemError("fork");
  }
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const Status status = work();
    if (!status.ok()) {
      std::fprintf(stderr, "%s: %s\n", name.c_str(), status.ToString().c_str());
    }
    std::_Exit(ExitCode(status));
  }
  running_.push_back({pid, name});
  return pid;
}

Status Children::Wait() {
  Status first;
  for (const Child& child : std::exchange(running_, {})) {
    int code = 0;
    ::waitpid(child.pid, &code, 0);
    if (code != 0 && first.ok()) {
      first = Internal("the process of " + child.name + " ended with an error");
    }
  }
  return first;
}

void Children::Kill(pid_t pid) {
  std::erase_if(running_, [pid](const Child& child) { return child.pid == pid; });
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
}

Status Children::AllRun() {
  for (const Child& child : running_) {
    if (::waitpid(child.pid, nullptr, WNOHANG) == child.pid) {
      const Status early = Internal("the process of " + child.name + " ended too early");
      running_.erase(running_.begin() + (&child - running_.data()));
      return early;
    }
  }
  return {};
}

Result<std::unique_ptr<ConnectedProcess>> ConnectedProcess::Start(
    Children& children, const std::string& name, const std::function<Status(int socket)>& work) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    return SystemError("socketpair");
  }
  std::unique_ptr<ConnectedProcess> process(new ConnectedProcess(ends[0]));
  const Result<pid_t> pid = children.Start(name, [&] {
    process->End();
    return work(ends[1]);
  });
  ::close(ends[1]);
  COHORT_RETURN_IF_ERROR(pid.status());
  process->pid_ = *pid;
  return process;
}

ConnectedProcess::~ConnectedProcess() { End(); }

void ConnectedProcess::End() {
  if (socket_ >= 0) {
    ::close(std::exchange(socket_, -1));
  }
}

Result<std::unique_ptr<ServerProcess>> ServerProcess::Start(Children& children) {
  std::unique_ptr<ServerProcess> process(new ServerProcess);
  COHORT_ASSIGN_OR_RETURN(
      process->process_, ConnectedProcess::Start(children, "server", [](int socket) -> Status {
        COHORT_ASSIGN_OR_RETURN(const auto server, ps::Server::Start("127.0.0.1:0", 0, Log()));
        const int port = server->port();
        COHORT_RETURN_IF_ERROR(SendAll(socket, &port, sizeof(port)));
        char nothing = 0;
        (void)::recv(socket, &nothing, 1, 0);
        return {};
      }));
  int port = 0;
  if (!ReceiveAll(process->process_->socket(), &port, sizeof(port)).ok()) {
    return Internal("the server ended before it served");
  }
  process->address_ = "127.0.0.1:" + std::to_string(port);
  return process;
}

}  // namespace cohort
