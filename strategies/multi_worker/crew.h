// Crew: the workers that train together, by rank, and the communicator that they make.
//
// At first these are all training tasks of the cluster; after a loss perhaps fewer
// (server_watch.h). Plain values.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/cluster/key_value_store.h>
#include <cohort/comm/communicator.h>
#include <cohort/comm/tcp.h>
#include <cohort/core/status.h>
#include <cohort/strategies/strategy_options.h>

namespace cohort {

struct Crew {
  std::vector<TaskId> tasks;  // by rank
  int rank = 0;               // of this process

  int size() const { return static_cast<int>(tasks.size()); }

  // FailedPrecondition: `self` is none of them.
  static Result<Crew> Of(std::vector<TaskId> tasks, const TaskId& self);
  // One task a line, and back.
  static std::string Text(const std::vector<TaskId>& tasks);
  static Result<std::vector<TaskId>> Parse(std::string_view text);
};

CommunicatorOptions CommunicatorOf(const Crew& crew, const StrategyOptions& options,
                                   std::uint64_t generation);

// Blocks until all of the crew have met through `store`, which is not kept. `host`: of the
// coordination service, by the way to which a process finds its own address. By
// options.communication: "auto" takes what the hosts of the processes allow, and TCP alone where a
// host's processes cannot share memory. Errors: the store's, and see MakeTcpCommunicator;
// FailedPrecondition where "shm" cannot be (Unavailable where, after a loss, it cannot be now).
Result<std::unique_ptr<Communicator>> ConnectCrew(const Crew& crew, const StrategyOptions& options,
                                                  KeyValueStore& store, const std::string& host,
                                                  std::uint64_t generation);
// The same by `transport`, "auto", "shm" or "tcp", under `prefix` in the store; for what all must
// agree on there is tcp.connect_timeout, too.
Result<std::unique_ptr<Communicator>> ConnectCrew(const Crew& crew, const std::string& transport,
                                                  KeyValueStore& store, const std::string& prefix,
                                                  const TcpOptions& tcp,
                                                  const CommunicatorOptions& communicator);

}  // namespace cohort
