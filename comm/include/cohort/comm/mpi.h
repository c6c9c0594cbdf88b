// Ranks as processes started by mpirun.

#pragma once

#include <chrono>
#include <memory>
#include <string>

#include <cohort/comm/communicator.h>

namespace cohort {

bool MpiBuilt();  // was this library built with MPI

struct MpiOptions {
  // "cohort": our algorithms over MPI point-to-point. "mpi": MPI_Iallreduce and its kin, but in
  // groups made by Split, for which MPI cannot be asked with a deadline.
  std::string implementation = "cohort";
  std::chrono::milliseconds connect_timeout{300'000};  // for all ranks to make the communicator
  // For all processes to come to MPI_Finalize in the end: the others wait there for one that still
  // evaluates or saves.
  std::chrono::milliseconds finish_timeout{3'600'000};
  // Asks MPI for MPI_THREAD_FUNNELED only, as if it had no more.
  bool funneled = false;
};

// Over MPI_COMM_WORLD, all of whose ranks must call; DeadlineExceeded names those that did not.
// Initialises MPI if the program has not, and then finalises it when the last communicator goes:
// that waits for the other processes (finish_timeout; a second where a communicator has failed),
// and the process may then end without. mpirun takes that for a failure and ends the job. A program
// that initialises MPI itself waits for ever in MPI_Finalize where a process has stopped.
// Unimplemented where MPI was not built in. MPI_THREAD_FUNNELED is enough where cohort initialises
// MPI: a thread of its own then makes all calls. FailedPrecondition where the program did, with
// less than MPI_THREAD_SERIALIZED.
Result<std::unique_ptr<Communicator>> MakeMpiCommunicator(const MpiOptions& mpi = {},
                                                          const CommunicatorOptions& options = {});

}  // namespace cohort
