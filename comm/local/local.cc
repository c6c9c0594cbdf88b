#include <cohort/comm/local.h>

#include "local/local_transport.h"
#include "transport_communicator.h"

namespace cohort {

std::vector<std::unique_ptr<Communicator>> MakeLocalCommunicators(
    int size, const CommunicatorOptions& options) {
  Require(size >= 1, "a communicator has at least one rank");
  const std::shared_ptr<LocalHub> hub = MakeLocalHub(size);
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (int rank = 0; rank < size; ++rank) {
    TransportCommunicatorParts parts;
    parts.transport = MakeLocalTransport(hub, rank);
    parts.rank = rank;
    parts.size = size;
    parts.shared_memory = true;
    communicators.push_back(std::make_unique<TransportCommunicator>(std::move(parts), options));
  }
  return communicators;
}

}  // namespace cohort
