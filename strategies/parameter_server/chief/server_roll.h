// ServerRoll: which processes are the servers of a job, as its chief knows them: which one is in
// whose place, and which are lost.
//
// A process is told by its incarnation (cohort/rpc/coordination.h). Nothing here waits, or asks
// anybody; every call costs what a look at a map of the servers does.
//
// Thread rules: none of its own. Its owner's lock guards it, as losses come on another thread.

#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <cohort/core/status.h>

namespace cohort::ps {

class ServerRoll {
 public:
  explicit ServerRoll(int num_servers);

  // 0: not known yet.
  std::uint64_t process(int server) const { return processes_[static_cast<std::size_t>(server)]; }
  // It is the server from now on, which is no longer lost.
  void Enter(int server, std::uint64_t process);

  // A server in whose place nobody is known, and since when.
  struct Loss {
    Status why;
    std::chrono::steady_clock::time_point since;
  };
  // Of a server that is lost already the first loss stays; losses() counts this one, too.
  void Lost(int server, const Status& why);
  // Where it is lost: else null. Until the next Enter or Lost.
  const Loss* loss(int server) const;
  // Is any? Why the first of them is; OK: none.
  bool complete() const { return lost_.empty(); }
  Status why() const { return complete() ? Status() : lost_.begin()->second.why; }
  std::string NamesOfLost() const;  // "ps:0, ps:2"
  int losses() const { return losses_; }

 private:
  std::vector<std::uint64_t> processes_;  // by server
  std::map<int, Loss> lost_;
  int losses_ = 0;
};

}  // namespace cohort::ps
