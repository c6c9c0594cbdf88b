#include <cohort/comm/shm.h>

#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <functional>
#include <utility>
#include <vector>

#include "shm/segments.h"
#include "shm/shared_transport.h"
#include "tcp/rendezvous.h"
#include "tcp/unix_socket.h"
#include "transport_communicator.h"

namespace cohort {
namespace {

// Owners: the group's transport.
struct ShmMemory {
  std::vector<Mapping>
      regions;  // by rank: the own one to write, the others to read (but see RegionBoard)
  std::vector<Socket> bells;
};

struct ShmGroup {
  int rank = 0;
  std::string name;
  std::uint64_t generation = 1;
  std::function<std::string(int rank)> peer_name;
  Log log;
};

Result<std::unique_ptr<Transport>> MakeShmTransport(ShmGroup group, Connections connections,
                                                    Deadline deadline);

class ShmTransport final : public SharedTransport {
 public:
  ShmTransport(ShmGroup group, SharedParts parts)
      : SharedTransport(std::move(parts)), group_(std::move(group)) {}

  std::string_view backend() const override { return "shm"; }
  Result<std::string> Offer() override {
    COHORT_ASSIGN_OR_RETURN(offered_, ListenUnix());
    return offered_.address;
  }
  Result<std::unique_ptr<Transport>> Join(const std::string& id, const std::vector<int>& members,
                                          int my_index, const std::vector<std::string>& offers,
                                          Deadline deadline) override {
    const Listener listener = std::exchange(offered_, Listener());
    if (members.empty()) {
      return std::unique_ptr<Transport>();
    }
    ShmGroup group = group_;
    group.rank = my_index;
    group.name += "/" + id;
    group.peer_name = [members, name = group_.peer_name](int r) {
      return name(members[static_cast<std::size_t>(r)]);
    };
    const auto offer = [&](int r) { return offers[static_cast<std::size_t>(r)]; };
    const Directory directory = {[&](int r, Deadline) -> Result<std::string> { return offer(r); },
                                 offer, group.peer_name};
    COHORT_ASSIGN_OR_RETURN(
        Connections connections,
        ConnectGroup({group.name, my_index, static_cast<int>(members.size()), group.generation},
                     listener, directory, group.log, deadline));
    return MakeShmTransport(std::move(group), std::move(connections), deadline);
  }

 private:
  const ShmGroup group_;
  Listener offered_;
};

// Each rank makes its region and gives the others what they need to see and to wake it.
Result<std::unique_ptr<Transport>> MakeShmTransport(ShmGroup group, Connections connections,
                                                    Deadline deadline) {
  const auto size = static_cast<int>(connections.cores.size());
  const auto at = [](int r) { return static_cast<std::size_t>(r); };
  std::vector<Socket> sockets;
  for (int r = 0; r < size; ++r) {  // one connection is enough
    sockets.push_back(std::move(connections.sockets[at(r * kChannels + kControlChannel)]));
  }
  RegionLayout layout;
  layout.ranks = at(size);
  COHORT_ASSIGN_OR_RETURN(auto segment, MakeSegment(layout.bytes()));
  MakeRegion(segment.second.data(), group.rank, layout);
  Socket bell(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!bell.open()) {
    return ErrnoStatus(errno, "eventfd");
  }
  SegmentNotice notice = {.bytes = segment.second.bytes()};
  for (int r = 0; r < size; ++r) {
    if (r != group.rank) {
      COHORT_RETURN_IF_ERROR(
          SendNotice(sockets[at(r)], notice, {segment.first.fd(), bell.fd()}, deadline)
              .Annotate(group.peer_name(r)));
    }
  }
  auto memory = std::make_shared<ShmMemory>();
  memory->regions.resize(at(size));
  memory->bells.resize(at(size));
  memory->regions[at(group.rank)] = std::move(segment.second);
  memory->bells[at(group.rank)] = std::move(bell);
  for (int r = 0; r < size; ++r) {
    if (r == group.rank) {
      continue;
    }
    Result<ReceivedNotice> received = AwaitNotice(sockets[at(r)], deadline);
    COHORT_RETURN_IF_ERROR(received.status().Annotate(group.peer_name(r)));
    ReceivedNotice& theirs = received.value();
    if (theirs.notice.bytes != notice.bytes || theirs.fds.size() != 2) {
      return FailedPrecondition(group.peer_name(r) + " shares memory of another layout [run the " +
                                "same version in all processes]");
    }
    COHORT_ASSIGN_OR_RETURN(
        memory->regions[at(r)],
        Mapping::OfFile(theirs.fds[0].fd(), theirs.notice.bytes, Mapping::Access::kRead, true));
    if (size == 2) {  // see RegionBoard
      RegionBoard& board = reinterpret_cast<Region*>(memory->regions[at(r)].data())->board;
      COHORT_RETURN_IF_ERROR(Mapping::AllowWrites(std::as_writable_bytes(std::span(&board, 1))));
    }
    memory->bells[at(r)] = std::move(theirs.fds[1]);
  }
  SharedParts parts;
  parts.rank = group.rank;
  parts.layout = layout;
  for (const Mapping& region : memory->regions) {
    parts.regions.push_back(region.data());
  }
  for (const Socket& b : memory->bells) {
    parts.bells.push_back(b.fd());
  }
  parts.crowded = AreCrowded(connections.cores);
  parts.memory = std::move(memory);
  parts.segments = std::make_shared<SharedSegments>(std::move(sockets));
  return std::make_unique<ShmTransport>(std::move(group), std::move(parts));
}

}  // namespace

std::string HostIdentity() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string boot;
  std::getline(file, boot);
  std::array<char, 64> space = {};
  const ssize_t n = ::readlink("/proc/self/ns/net", space.data(), space.size() - 1);
  return boot + " " + std::string(space.data(), n > 0 ? static_cast<std::size_t>(n) : 0);
}

Result<std::unique_ptr<Communicator>> MakeShmCommunicator(int rank, int size, KeyValueStore& store,
                                                          const std::string& prefix,
                                                          const ShmOptions& shm,
                                                          const CommunicatorOptions& options) {
  Require(size >= 1 && rank >= 0 && rank < size, "MakeShmCommunicator: rank is in [0, size)");
  const Deadline deadline = DeadlineAfter(shm.connect_timeout);
  COHORT_ASSIGN_OR_RETURN(const Listener listener, ListenUnix());
  ShmGroup group;
  group.rank = rank;
  group.name = prefix;
  group.generation = options.generation;
  group.peer_name = [options](int r) { return NameOf(options, r); };
  group.log = options.log;
  COHORT_ASSIGN_OR_RETURN(
      Connections connections,
      MeetInStore({prefix, rank, size, options.generation}, listener, store,
                  prefix + "/" + std::to_string(options.generation) + "/shm", options, deadline));
  TransportCommunicatorParts parts;
  COHORT_ASSIGN_OR_RETURN(parts.transport,
                          MakeShmTransport(std::move(group), std::move(connections), deadline));
  parts.rank = rank;
  parts.size = size;
  parts.shared_memory = true;
  return std::make_unique<TransportCommunicator>(std::move(parts), options);
}

}  // namespace cohort
