// MPI's own collectives, behind the checks and deadlines of ours.

#pragma once

#include <mpi.h>

#include <memory>

#include "mpi/mpi_runtime.h"
#include "native_collectives.h"

namespace cohort {

// Over `comm`, which outlives them. MPI does not compare what its ranks call, so each operation
// begins with a barrier of ours that carries the operation's record. float16 and bfloat16, which
// MPI cannot add, are left to us.
std::unique_ptr<NativeCollectives> MakeMpiCollectives(std::shared_ptr<MpiRuntime> runtime,
                                                      MPI_Comm comm);

}  // namespace cohort
