// MPI_Allreduce itself, as the peer in benchmarks.

#pragma once

#include <cohort/core/status.h>

#include <span>

namespace cohort {

// Seconds of one MPI_Allreduce (sum, in place) over MPI_COMM_WORLD, after a barrier. A communicator
// made by MakeMpiCommunicator must be alive and idle on every rank.
Result<double> MpiAllReduceSeconds(std::span<float> values);

}  // namespace cohort
