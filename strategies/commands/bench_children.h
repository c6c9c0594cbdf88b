// Processes of a benchmark, forked before gRPC has a part in this one.

#pragma once

#include <sys/types.h>

#include <functional>
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

}  // namespace cohort
