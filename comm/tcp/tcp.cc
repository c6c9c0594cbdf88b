#include <cohort/comm/tcp.h>

#include "tcp/rendezvous.h"
#include "tcp/tcp_transport.h"
#include "transport_communicator.h"

namespace cohort {

Result<std::unique_ptr<Communicator>> MakeTcpCommunicator(int rank, int size, KeyValueStore& store,
                                                          const std::string& prefix,
                                                          const TcpOptions& tcp,
                                                          const CommunicatorOptions& options) {
  Require(size >= 1 && rank >= 0 && rank < size, "MakeTcpCommunicator: rank is in [0, size)");
  constexpr int kMostRails = 64;
  if (tcp.rails < 1 || tcp.rails > kMostRails || tcp.stripe_bytes < 1) {
    return InvalidArgument("TcpOptions: " + std::to_string(tcp.rails) + " rails of " +
                           std::to_string(tcp.stripe_bytes) +
                           " bytes [1 to 64 rails, of at least 1 byte]");
  }
  const Deadline deadline = DeadlineAfter(tcp.connect_timeout);
  COHORT_ASSIGN_OR_RETURN(const Listener listener, Listen(tcp.bind_address, tcp.rendezvous_host));
  TcpGroup group;
  group.rank = rank;
  group.name = prefix;
  group.generation = options.generation;
  group.bind_address = tcp.bind_address.substr(0, tcp.bind_address.rfind(':')) + ":0";
  group.rendezvous_host = tcp.rendezvous_host;
  group.log = options.log;
  group.peer_name = [options](int r) { return NameOf(options, r); };
  group.channels = tcp.rails + 1;
  group.stripe_bytes = static_cast<std::size_t>(tcp.stripe_bytes);
  group.zero_copy = tcp.zero_copy;
  COHORT_ASSIGN_OR_RETURN(
      Connections connections,
      MeetInStore({prefix, rank, size, options.generation, group.channels, group.stripe_bytes},
                  listener, store, prefix + "/" + std::to_string(options.generation) + "/rank",
                  options, deadline));
  Take(group, std::move(connections));
  TransportCommunicatorParts parts;
  COHORT_ASSIGN_OR_RETURN(parts.transport, MakeTcpTransport(std::move(group)));
  parts.rank = rank;
  parts.size = size;
  return std::make_unique<TransportCommunicator>(std::move(parts), options);
}

}  // namespace cohort
