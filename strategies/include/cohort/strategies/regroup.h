// Regroup: going on without restart after a process of the job was lost, or has come back.
//
// A communicator that has failed is of no further use, but the processes are. Those that are left
// (and those that were started again) call Regroup, agree through the coordination service on who
// goes on, and get a new communicator of a higher generation:
//
//   auto group = Regroup(*client, {.min_size = 2});      // everywhere, the first time too
//   while (training) {
//     Status status = step(*group->communicator);
//     if (status.ok()) status = client->RegroupAsked();  // somebody has come back
//     if (!status.ok()) {
//       group->communicator->Abort(status);              // the others hear at once
//       group = Regroup(*client, {.min_size = 2});
//       ... rank 0, which is a survivor, broadcasts what newcomers lack ...
//     }
//   }
//
// The tasks that may be lost have `may_leave` in the service's options, or their end ends the job.
// The service's own process, the chief, cannot be lost.

#pragma once

#include <memory>
#include <string>

#include <cohort/comm/communicator.h>
#include <cohort/comm/tcp.h>
#include <cohort/rpc/coordination.h>
#include <cohort/strategies/strategy.h>

namespace cohort {

struct Regrouped {
  Generation generation;
  std::unique_ptr<Communicator> communicator;  // keeps what it needs of the client: outlived by it
  KeyValueStore* store = nullptr;              // the client, in which GPUs meet for NCCL
};

struct RegroupTransport {
  // "tcp"; "shm" where all are on one host, else FailedPrecondition; "auto": what the hosts allow,
  // as communication.transport. "mpi" is Unimplemented: MPI's world cannot change.
  std::string backend = "tcp";
  TcpOptions tcp;
  CommunicatorOptions communicator;  // generation and peer_name are set by Regroup
};

// Blocks until all tasks that are there have called and their communicator stands, at most
// options.timeout; if one is lost meanwhile, they meet again. Errors are CoordinationClient's, and
// those of the last attempt to connect.
Result<Regrouped> Regroup(CoordinationClient& client, const RegroupOptions& options = {},
                          const RegroupTransport& transport = {});

// Training that goes on in a new generation: a multi_worker_mirrored strategy among group's ranks,
// bound to `parameters`, on all of them with the values, slots and step of the survivor that came
// furthest. All ranks call. `before` is this process's strategy of the generation before, whose
// last step may have failed; nullptr for a newcomer; it is no longer needed afterwards. `optimizer`
// is made as for Bind. Takes group.communicator.
//
// What follows is the program's, as at its start: Distribute, and BeginEpoch at the batch that
// step() says; a global batch is the same whatever the number of processes, and so is its gradient.
// The strategy has whole_updates, so that the next loss leaves every survivor with a whole step.
// DataLoss if every `before` was made without and had applied a step in part: restore a checkpoint.
Result<std::unique_ptr<Strategy>> Recover(Regrouped& group, ParameterSet& parameters,
                                          std::unique_ptr<Optimizer> optimizer, Strategy* before,
                                          StrategyOptions options);

}  // namespace cohort
