// Joining a job of several training processes.
//
// Two things connect them: the communicator, which moves gradients, and the coordination service in
// the chief, through which they find each other and hear of each other's end. Where addresses are
// known (TF_CONFIG, torchrun, Slurm) the service comes first and carries the communicator's
// addresses; under mpirun the communicator comes first and carries the service's.
//
//   a process dies        its connections break: collectives under way fail, naming it
//   it falls silent       (stopped, host gone) the heartbeat misses it, and aborts the communicator
//   it gives up           it says why; everybody's collectives return that
//
// In each case every process's next or present operation returns an error that names the task, and
// nobody waits for a deadline that is longer than the heartbeat's.
//
// A server of sparse tables that is lost while the job trains need not end it, nor need the loss of
// a worker where there are such servers: see server_watch.h.

#pragma once

#include <memory>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/core/status.h>
#include <cohort/strategies/strategy_options.h>

#include "synchronous/membership.h"

namespace cohort {

// Blocks until all tasks of config.cluster have met; ps tasks, which hold sparse tables, join with
// MakeRowServer. Errors: see CoordinationClient::Join,
// MakeTcpCommunicator and MakeMpiCommunicator; FailedPrecondition if MPI's world is not the
// cluster.
Result<std::unique_ptr<Membership>> JoinJob(const ClusterConfig& config,
                                            const StrategyOptions& options);

}  // namespace cohort
