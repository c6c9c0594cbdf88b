#include <cohort/comm/local.h>

#include <sys/eventfd.h>

#include <cerrno>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include <cohort/core/thread_pool.h>

#include "mapping.h"
#include "shm/shared_transport.h"
#include "tcp/socket.h"
#include "transport_communicator.h"

namespace cohort {
namespace {

// Everything is lent: the rings carry small frames only.
constexpr std::size_t kRingBytes = 64 << 10;

// The regions of a group of threads. Owners: the transports of its ranks.
class LocalGroup {
 public:
  static Result<std::shared_ptr<LocalGroup>> Make(int size) {
    auto group = std::make_shared<LocalGroup>();
    group->layout_.ranks = static_cast<std::size_t>(size);
    group->layout_.ring_bytes = kRingBytes;
    for (int rank = 0; rank < size; ++rank) {
      COHORT_ASSIGN_OR_RETURN(Mapping region, Mapping::Anonymous(group->layout_.bytes()));
      MakeRegion(region.data(), rank, group->layout_);
      group->regions_.push_back(std::move(region));
      Socket bell(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
      if (!bell.open()) {
        return ErrnoStatus(errno, "eventfd");
      }
      group->bells_.push_back(std::move(bell));
    }
    return group;
  }

  static std::unique_ptr<Transport> TransportOf(std::shared_ptr<LocalGroup> group, int rank);

  // The group `id` within this one, the same for its `members` callers.
  Result<std::shared_ptr<LocalGroup>> Within(const std::string& id, int members) {
    const std::lock_guard lock(mutex_);
    auto& [group, joined] = groups_[id];
    if (!group) {
      COHORT_ASSIGN_OR_RETURN(group, Make(members));
    }
    std::shared_ptr<LocalGroup> result = group;
    if (++joined == members) {
      groups_.erase(id);
    }
    return result;
  }

 private:
  RegionLayout layout_;
  std::vector<Mapping> regions_;
  std::vector<Socket> bells_;
  std::mutex mutex_;
  std::map<std::string, std::pair<std::shared_ptr<LocalGroup>, int>> groups_;  // guarded by mutex_
};

class LocalTransport final : public SharedTransport {
 public:
  LocalTransport(LocalGroup& group, SharedParts parts)
      : SharedTransport(std::move(parts)), group_(group) {}

  std::string_view backend() const override { return "local"; }
  Result<std::unique_ptr<Transport>> Join(const std::string& id, const std::vector<int>& members,
                                          int my_index, const std::vector<std::string>& /*offers*/,
                                          Deadline /*deadline*/) override {
    if (members.empty()) {
      return std::unique_ptr<Transport>();
    }
    COHORT_ASSIGN_OR_RETURN(std::shared_ptr<LocalGroup> group,
                            group_.Within(id, static_cast<int>(members.size())));
    return LocalGroup::TransportOf(std::move(group), my_index);
  }

 private:
  LocalGroup& group_;  // which SharedParts::memory keeps
};

std::unique_ptr<Transport> LocalGroup::TransportOf(std::shared_ptr<LocalGroup> group, int rank) {
  SharedParts parts;
  parts.rank = rank;
  parts.layout = group->layout_;
  for (const Mapping& region : group->regions_) {
    parts.regions.push_back(region.data());
  }
  for (const Socket& bell : group->bells_) {
    parts.bells.push_back(bell.fd());
  }
  parts.crowded = static_cast<int>(group->regions_.size()) > AvailableCores();
  LocalGroup& here = *group;
  parts.memory = std::move(group);
  return std::make_unique<LocalTransport>(here, std::move(parts));
}

}  // namespace

std::vector<std::unique_ptr<Communicator>> MakeLocalCommunicators(
    int size, const CommunicatorOptions& options) {
  Require(size >= 1, "a communicator has at least one rank");
  Result<std::shared_ptr<LocalGroup>> group = LocalGroup::Make(size);
  Require(group.ok(), "there is memory for the ranks: " + group.status().ToString());
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (int rank = 0; rank < size; ++rank) {
    TransportCommunicatorParts parts;
    parts.transport = LocalGroup::TransportOf(group.value(), rank);
    parts.rank = rank;
    parts.size = size;
    parts.shared_memory = true;
    communicators.push_back(std::make_unique<TransportCommunicator>(std::move(parts), options));
  }
  return communicators;
}

}  // namespace cohort
