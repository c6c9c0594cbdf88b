#include "mpi/mpi_peer.h"

#include <chrono>

#include "mpi/mpi_runtime.h"

namespace cohort {

Result<double> MpiAllReduceSeconds(std::span<float> values) {
  COHORT_ASSIGN_OR_RETURN(const std::shared_ptr<MpiRuntime> runtime, MpiRuntime::Get());
  const std::lock_guard lock(runtime->mutex());
  COHORT_RETURN_IF_ERROR(MpiRuntime::Check(MPI_Barrier(MPI_COMM_WORLD), "MPI_Barrier"));
  const auto start = std::chrono::steady_clock::now();
  COHORT_RETURN_IF_ERROR(
      MpiRuntime::Check(MPI_Allreduce(MPI_IN_PLACE, values.data(), static_cast<int>(values.size()),
                                      MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD),
                        "MPI_Allreduce"));
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace cohort
