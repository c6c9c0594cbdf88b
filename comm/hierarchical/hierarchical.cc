#include <cohort/comm/hierarchical.h>
#include <cohort/comm/shm.h>

#include <utility>
#include <vector>

#include "hierarchical/hierarchical_collectives.h"
#include "transport_communicator.h"

namespace cohort {
namespace {

// Every rank says which host it is on, and hears it of all others.
Result<HostLayout> Discover(int rank, int size, KeyValueStore& store, const std::string& prefix,
                            const std::string& host, Deadline deadline) {
  const auto key = [&](int r) { return prefix + "/host/" + std::to_string(r); };
  COHORT_RETURN_IF_ERROR(store.Insert(key(rank), host));
  std::vector<std::string> hosts;
  for (int r = 0; r < size; ++r) {
    COHORT_ASSIGN_OR_RETURN(std::string theirs, store.Wait(key(r), deadline));
    hosts.push_back(std::move(theirs));
  }
  return HostLayout(hosts);
}

// Errors name ranks as those of the whole group.
CommunicatorOptions OptionsOf(const std::vector<int>& ranks, const CommunicatorOptions& options) {
  CommunicatorOptions result = options;
  result.peer_name = [ranks, name = options.peer_name](int r) {
    const int rank = ranks[static_cast<std::size_t>(r)];
    return name ? name(rank) : "rank " + std::to_string(rank);
  };
  result.metrics = nullptr;  // the operation is counted once, by the communicator over TCP
  return result;
}

Result<std::unique_ptr<Communicator>> MakeHost(int rank, int size, KeyValueStore& store,
                                               const std::string& prefix,
                                               const HierarchicalOptions& hierarchical,
                                               const CommunicatorOptions& options) {
  if (hierarchical.make_host) {
    return hierarchical.make_host(rank, size, prefix, options);
  }
  return MakeShmCommunicator(rank, size, store, prefix,
                             {.connect_timeout = hierarchical.tcp.connect_timeout}, options);
}

// The two communicators, and what is made of them. All ranks call.
Result<std::unique_ptr<NativeCollectives>> MakeCollectives(
    Communicator& flat, const HostLayout& layout, const HierarchicalOptions& hierarchical,
    KeyValueStore& store, const std::string& prefix, const CommunicatorOptions& options) {
  const int host = layout.host(flat.rank());
  const int place = layout.local_rank(flat.rank());
  const std::vector<int>& ranks = layout.ranks(host);
  const std::string host_prefix = prefix + "/on_host/" + std::to_string(host);
  COHORT_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> inside,
                          MakeHost(place, static_cast<int>(ranks.size()), store, host_prefix,
                                   hierarchical, OptionsOf(ranks, options)));
  // Of the ranks with this one's place, by host; where hosts differ in size, of the first ranks.
  std::unique_ptr<Communicator> across;
  if (layout.even() || place == 0) {
    std::vector<int> peers;
    for (int h = 0; h < layout.hosts(); ++h) {
      peers.push_back(layout.ranks(h)[static_cast<std::size_t>(place)]);
    }
    COHORT_ASSIGN_OR_RETURN(
        across, MakeTcpCommunicator(host, layout.hosts(), store,
                                    prefix + "/across/" + std::to_string(place), hierarchical.tcp,
                                    OptionsOf(peers, options)));
  }
  return std::make_unique<HierarchicalCollectives>(layout, std::move(inside), std::move(across));
}

}  // namespace

Result<std::unique_ptr<Communicator>> MakeHierarchicalCommunicator(
    int rank, int size, KeyValueStore& store, const std::string& prefix,
    const HierarchicalOptions& hierarchical, const CommunicatorOptions& options) {
  Require(size >= 1 && rank >= 0 && rank < size,
          "MakeHierarchicalCommunicator: rank is in [0, size)");
  const std::string mine = prefix + "/" + std::to_string(options.generation);
  const std::string host = hierarchical.host.empty() ? HostIdentity() : hierarchical.host;
  COHORT_ASSIGN_OR_RETURN(
      const HostLayout layout,
      Discover(rank, size, store, mine, host, DeadlineAfter(hierarchical.tcp.connect_timeout)));
  if (layout.hosts() == 1 && size > 1) {
    return MakeHost(rank, size, store, prefix, hierarchical, options);
  }
  COHORT_ASSIGN_OR_RETURN(
      std::unique_ptr<Communicator> flat,
      MakeTcpCommunicator(rank, size, store, prefix, hierarchical.tcp, options));
  if (layout.hosts() == size) {
    return flat;
  }
  auto collectives = MakeCollectives(*flat, layout, hierarchical, store, mine, options);
  if (!collectives.ok()) {
    flat->Abort(collectives.status());
    return collectives.status();
  }
  static_cast<TransportCommunicator&>(*flat).Adopt(std::move(collectives).value());
  return flat;
}

}  // namespace cohort
