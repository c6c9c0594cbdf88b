// Processes of a benchmark, forked before gRPC has a part in this one.

#pragma once

#include <sys/types.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <cohort/core/status.h>

namespace cohort {

Status SystemError(const std::string& what);  // Internal: what errno says

// All of it through a socket; Unavailable: the other process has ended.
Status SendAll(int socket, const void* from, std::size_t bytes);
Status ReceiveAll(int socket, void* to, std::size_t bytes);

// The processes end with this one, or with the object. One thread.
class Children {
 public:
  Children() = default;
  Children(const Children&) = delete;
  Children& operator=(const Children&) = delete;
  ~Children();

  // `work` in another process, which ends with its status; `name` is for messages.
  Result<pid_t> Start(const std::string& name, const std::function<Status()>& work);
  // Until all have ended; Internal if one did so with an error.
  Status Wait();
  // SIGKILL, and until it has ended.
  void Kill(pid_t pid);
  // Internal: one of them has ended.
  Status AllRun();

 private:
  struct Child {
    pid_t pid;
    std::string name;
  };
  std::vector<Child> running_;
};

// One of the children, and a socket to it.
class ConnectedProcess {
 public:
  // `work` has the other end, and is to return when there is no more to be received. Ends of
  // processes that were started before are open in it too: they see their end after it has ended.
  static Result<std::unique_ptr<ConnectedProcess>> Start(
      Children& children, const std::string& name, const std::function<Status(int socket)>& work);
  ~ConnectedProcess();
  ConnectedProcess(const ConnectedProcess&) = delete;
  ConnectedProcess& operator=(const ConnectedProcess&) = delete;

  pid_t pid() const { return pid_; }
  int socket() const { return socket_; }
  void End();  // closes the socket; Children::Wait tells how the process ended

 private:
  explicit ConnectedProcess(int socket) : socket_(socket) {}

  pid_t pid_ = 0;
  int socket_;
};

// A parameter server in a process of its own, on a free port of this host. It ends when told to,
// with this object, or with the children.
class ServerProcess {
 public:
  static Result<std::unique_ptr<ServerProcess>> Start(Children& children);

  pid_t pid() const { return process_->pid(); }
  const std::string& address() const { return address_; }
  void End() { process_->End(); }

 private:
  ServerProcess() = default;

  std::unique_ptr<ConnectedProcess> process_;
  std::string address_;
};

}  // namespace cohort
