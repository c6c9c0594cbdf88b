// Launchers: what mpirun, torchrun, Kubeflow, Slurm and SageMaker say in environment variables.

#pragma once

#include <string>
#include <vector>

#include <cohort/core/environment.h>

#include "problems.h"

namespace cohort {

// A launcher's word on which of how many processes this one is.
struct RankSource {
  std::string name;       // "Open MPI", "torchrun", ...
  std::string variables;  // where it stands: "OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_SIZE"
  int rank = 0;
  int size = 1;
  int local_rank = 0;
  int local_size = 1;
  std::vector<std::string> hosts;  // by rank, where the launcher tells; else empty
  int host_port = 0;               // on which each of `hosts` listens; 0: chosen when bound
  int meeting_port = 0;    // on which the chief's host answers roll-call, where `hosts` do not
                           // say
  std::string rendezvous;  // where rank 0 answers, for launchers that tell its host only
  bool tells_meeting_place = true;  // false: an address was due and is missing
  bool mpi = false;                 // the processes can find each other through MPI
  // It starts processes on each node through an agent; the variables of launchers after it in the
  // list are then those of the agent, and say nothing about this process.
  bool agent = false;
};

// All that are present and complete, in order of precedence. Those that are present and malformed
// are errors.
std::vector<RankSource> FindLaunchers(const Environment& env, Problems& problems);

}  // namespace cohort
