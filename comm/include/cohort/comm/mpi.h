// Ranks as processes started by mpirun.

#pragma once

#include <memory>
#include <string>

#include <cohort/comm/communicator.h>

namespace cohort {

bool MpiBuilt();  // was this library built with MPI

struct MpiOptions {
  // "cohort": our algorithms over MPI point-to-point. "mpi": MPI_Iallreduce and its kin.
  std::string implementation = "cohort";
};

// Over MPI_COMM_WORLD. Initialises MPI if the program has not, and then finalises it when the last
// communicator goes. Unimplemented where MPI was not built in. Needs MPI_THREAD_SERIALIZED or
// better; FailedPrecondition says so.
Result<std::unique_ptr<Communicator>> MakeMpiCommunicator(const MpiOptions& mpi = {},
                                                          const CommunicatorOptions& options = {});

}  // namespace cohort
