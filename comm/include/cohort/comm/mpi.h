// Ranks as processes started by mpirun.

#pragma once

#include <chrono>
#include <memory>
#include <string>

#include <cohort/comm/communicator.h>

namespace cohort {

bool MpiBuilt();  // was this library built with MPI

struct MpiOptions {
  // "cohort": our algorithms over MPI point-to-point. "mpi": MPI_Iallreduce and its kin.
  std::string implementation = "cohort";
  std::chrono::milliseconds connect_timeout{300'000};  // for all ranks to make the communicator
};

// Over MPI_COMM_WORLD, all of whose ranks must call; DeadlineExceeded names those that did not.
// Initialises MPI if the program has not, and then finalises it when the last communicator goes.
// Unimplemented where MPI was not built in. Needs MPI_THREAD_SERIALIZED or better;
// FailedPrecondition says so.
Result<std::unique_ptr<Communicator>> MakeMpiCommunicator(const MpiOptions& mpi = {},
                                                          const CommunicatorOptions& options = {});

}  // namespace cohort
