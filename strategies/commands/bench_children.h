// Processes of a benchmark, forked before gRPC has a part in this one.

#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <cohort/core/status.h>

namespace cohort {

// The processes end with this one, or with the object. One thread.
class Children {
 public:
  Children() = default;
  Children(const Children&) = delete;
  Children& operator=(const Children&) = delete;
  ~Children();

  // `work` in another process, which ends with its status; `name` is for the message.
  Result<pid_t> Start(const std::string& name, const std::function<Status()>& work);
  // Until all have ended; Internal if one did so with an error.
  Status Wait();
  // SIGKILL, and until it has ended.
  void Kill(pid_t pid);
  // Internal: one of them has ended.
  Status AllRun();

 private:
  std::vector<pid_t> running_;
};

// A parameter server in a process of its own, on a free port of this host. It ends when told to,
// with this object, or with the children.
class ServerProcess {
 public:
  static Result<std::unique_ptr<ServerProcess>> Start(Children& children);
  ~ServerProcess();
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  pid_t pid() const { return pid_; }
  const std::string& address() const { return address_; }
  void End();  // Children::Wait tells how it did

 private:
  ServerProcess() = default;

  pid_t pid_ = 0;
  std::string address_;
  int lives_ = -1;  // the end of a pipe of which it waits for the end
};

}  // namespace cohort
