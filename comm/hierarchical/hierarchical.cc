#include <cohort/comm/hierarchical.h>
#include <cohort/comm/shm.h>

#include <algorithm>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "algorithms/choose.h"
#include "hierarchical/hierarchical_collectives.h"
#include "tcp/rendezvous.h"
#include "transport_communicator.h"

namespace cohort {
namespace {

// All that is made has this time together.
std::chrono::milliseconds Left(Deadline deadline) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
      std::max<Duration>(deadline - std::chrono::steady_clock::now(), Duration(0)));
}

TcpOptions Until(Deadline deadline, TcpOptions tcp) {
  tcp.connect_timeout = Left(deadline);
  return tcp;
}

// Errors name ranks as those of the whole group.
CommunicatorOptions OptionsOf(const std::vector<int>& ranks, const CommunicatorOptions& options) {
  CommunicatorOptions result = options;
  result.peer_name = [ranks, name = options.peer_name](int r) {
    return NameOf(name, ranks[static_cast<std::size_t>(r)]);
  };
  // The operation is counted, and recorded, once: by the communicator over TCP.
  result.metrics = nullptr;
  result.flight_folder.clear();
  return result;
}

Result<std::unique_ptr<Communicator>> MakeHost(int rank, int size, KeyValueStore& store,
                                               const std::string& prefix,
                                               const HierarchicalOptions& hierarchical,
                                               const CommunicatorOptions& options,
                                               Deadline deadline) {
  if (hierarchical.make_host) {
    return hierarchical.make_host(rank, size, prefix, options);
  }
  return MakeShmCommunicator(rank, size, store, prefix, {.connect_timeout = Left(deadline)},
                             options);
}

Status CheckAcross(const std::string& name, const CommunicatorOptions& options) {
  if (name == AlgorithmName(Algorithm::kAuto)) {
    return {};
  }
  const std::span<const Algorithm> all = AlgorithmsOf(OperationKind::kAllReduce);
  std::vector<Algorithm> sorted(all.begin(), all.end());
  const auto refused = std::ranges::stable_partition(
      sorted, [&](Algorithm algorithm) { return !options.deterministic || KeepsOrder(algorithm); });
  return AlgorithmNamed(OperationKind::kAllReduce, name, {sorted.begin(), refused.begin()},
                        {refused.begin(), refused.end()})
      .status()
      .Annotate("across hosts");
}

// The two communicators, and what is made of them. All ranks call.
Result<std::unique_ptr<NativeCollectives>> MakeCollectives(
    Communicator& flat, const HostLayout& layout, const HierarchicalOptions& hierarchical,
    KeyValueStore& store, const std::string& prefix, const CommunicatorOptions& options,
    Deadline deadline) {
  const int host = layout.host(flat.rank());
  const int place = layout.local_rank(flat.rank());
  const std::vector<int>& ranks = layout.ranks(host);
  const std::string host_prefix = prefix + "/on_host/" + std::to_string(host);
  COHORT_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> inside,
                          MakeHost(place, static_cast<int>(ranks.size()), store, host_prefix,
                                   hierarchical, OptionsOf(ranks, options), deadline));
  // Of the ranks with this one's place, by host; where hosts differ in size, of the first ranks.
  std::unique_ptr<Communicator> across;
  if (layout.even() || place == 0) {
    std::vector<int> peers;
    for (int h = 0; h < layout.hosts(); ++h) {
      peers.push_back(layout.ranks(h)[static_cast<std::size_t>(place)]);
    }
    COHORT_ASSIGN_OR_RETURN(
        across, MakeTcpCommunicator(host, layout.hosts(), store,
                                    prefix + "/across/" + std::to_string(place),
                                    Until(deadline, hierarchical.tcp), OptionsOf(peers, options)));
  }
  return std::make_unique<HierarchicalCollectives>(layout, std::move(inside), std::move(across),
                                                   hierarchical.across);
}

}  // namespace

Result<std::unique_ptr<Communicator>> MakeHierarchicalCommunicator(
    int rank, int size, KeyValueStore& store, const std::string& prefix,
    const HierarchicalOptions& hierarchical, const CommunicatorOptions& options) {
  Require(size >= 1 && rank >= 0 && rank < size,
          "MakeHierarchicalCommunicator: rank is in [0, size)");
  COHORT_RETURN_IF_ERROR(CheckAcross(hierarchical.across, options));
  const std::string mine = prefix + "/" + std::to_string(options.generation);
  const std::string host = hierarchical.host.empty() ? HostIdentity() : hierarchical.host;
  const Deadline deadline = DeadlineAfter(hierarchical.tcp.connect_timeout);
  COHORT_ASSIGN_OR_RETURN(
      const std::vector<std::string> hosts,
      WordsOfAll(rank, size, host, store, mine + "/host", "its host", options, deadline));
  const HostLayout layout(hosts);
  if (layout.hosts() == 1 && size > 1) {
    return MakeHost(rank, size, store, prefix, hierarchical, options, deadline);
  }
  COHORT_ASSIGN_OR_RETURN(
      std::unique_ptr<Communicator> flat,
      MakeTcpCommunicator(rank, size, store, prefix, Until(deadline, hierarchical.tcp), options));
  if (layout.hosts() == size) {
    return flat;
  }
  auto collectives = MakeCollectives(*flat, layout, hierarchical, store, mine, options, deadline);
  if (!collectives.ok()) {
    flat->Abort(collectives.status());
    return collectives.status();
  }
  static_cast<TransportCommunicator&>(*flat).Adopt(std::move(collectives).value());
  return flat;
}

}  // namespace cohort
