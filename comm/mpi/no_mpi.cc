// Where MPI was not found at configure time.
#include <cohort/comm/mpi.h>

#include "mpi/mpi_peer.h"

namespace cohort {

bool MpiBuilt() { return false; }

Result<std::unique_ptr<Communicator>> MakeMpiCommunicator(const MpiOptions& /*mpi*/,
                                                          const CommunicatorOptions& /*options*/) {
  return Unimplemented("this build has no MPI [install libopenmpi-dev and configure again]");
}

std::string MpiLibrary() { return {}; }

Result<std::unique_ptr<MpiPeer>> MakeMpiPeer() {
  return Unimplemented("this build has no MPI [install libopenmpi-dev and configure again]");
}

}  // namespace cohort
