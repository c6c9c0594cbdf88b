#include <cohort/comm/tcp.h>

#include "tcp/rendezvous.h"
#include "tcp/tcp_transport.h"
#include "transport_communicator.h"

namespace cohort {
namespace {

std::string NameOf(const CommunicatorOptions& options, int rank) {
  const std::string text = "rank " + std::to_string(rank);
  if (!options.peer_name) {
    return text;
  }
  const std::string name = options.peer_name(rank);
  return name == text ? text : text + " (" + name + ")";
}

}  // namespace

Result<std::unique_ptr<Communicator>> MakeTcpCommunicator(int rank, int size, KeyValueStore& store,
                                                          const std::string& prefix,
                                                          const TcpOptions& tcp,
                                                          const CommunicatorOptions& options) {
  Require(size >= 1 && rank >= 0 && rank < size, "MakeTcpCommunicator: rank is in [0, size)");
  const Deadline deadline = DeadlineAfter(tcp.connect_timeout);
  const auto key = [&](int r) {
    return prefix + "/" + std::to_string(options.generation) + "/rank/" + std::to_string(r);
  };
  COHORT_ASSIGN_OR_RETURN(const Listener listener, Listen(tcp.bind_address, tcp.rendezvous_host));
  COHORT_RETURN_IF_ERROR(store.Insert(key(rank), listener.address)
                             .Annotate(NameOf(options, rank) + " of generation " +
                                       std::to_string(options.generation) +
                                       " publishing its address"));
  const Directory directory = {[&](int r, Deadline until) { return store.Wait(key(r), until); },
                               [&](int r) {
                                 const Result<std::string> address = store.Get(key(r));
                                 return address.ok() ? address.value() : std::string();
                               },
                               [&options](int r) { return NameOf(options, r); }};
  TcpGroup group;
  group.rank = rank;
  group.name = prefix;
  group.generation = options.generation;
  group.bind_address = tcp.bind_address.substr(0, tcp.bind_address.rfind(':')) + ":0";
  group.rendezvous_host = tcp.rendezvous_host;
  group.log = options.log;
  group.peer_name = [options](int r) { return NameOf(options, r); };
  COHORT_ASSIGN_OR_RETURN(group.sockets, ConnectGroup({group.name, rank, size, options.generation},
                                                      listener, directory, options.log, deadline));
  TransportCommunicatorParts parts;
  COHORT_ASSIGN_OR_RETURN(parts.transport, MakeTcpTransport(std::move(group)));
  parts.rank = rank;
  parts.size = size;
  return std::make_unique<TransportCommunicator>(std::move(parts), options);
}

}  // namespace cohort
