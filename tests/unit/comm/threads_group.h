// Transports of a group of threads, made one by one: for tests that stand between a communicator
// and its transport, or look at what ranks show each other.
#pragma once

#include <sys/eventfd.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mapping.h"
#include "shm/shared_transport.h"
#include "tcp/socket.h"
#include "transport_communicator.h"

namespace cohort::testing {

class ThreadsTransport : public SharedTransport {
 public:
  using SharedTransport::SharedTransport;
  std::string_view backend() const override { return "threads"; }
  Result<std::unique_ptr<Transport>> Join(const std::string& /*id*/,
                                          const std::vector<int>& /*members*/, int /*my_index*/,
                                          const std::vector<std::string>& /*offers*/,
                                          Deadline /*deadline*/) override {
    return Unimplemented("no groups here");
  }
};

// Outlives the transports.
class ThreadsGroup {
 public:
  explicit ThreadsGroup(int ranks) {
    layout_.ranks = static_cast<std::size_t>(ranks);
    for (int rank = 0; rank < ranks; ++rank) {
      memory_.push_back(OrThrow(Mapping::Anonymous(layout_.bytes())));
      MakeRegion(memory_.back().data(), rank, layout_);
      regions_.push_back(memory_.back().data());
      bells_.emplace_back(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
      bell_fds_.push_back(bells_.back().fd());
    }
  }

  // Of a rank's transport.
  SharedParts Parts(int rank) const {
    SharedParts parts;
    parts.rank = rank;
    parts.layout = layout_;
    parts.regions = regions_;
    parts.bells = bell_fds_;
    return parts;
  }
  std::unique_ptr<Communicator> Make(int rank, std::unique_ptr<Transport> transport,
                                     const CommunicatorOptions& options) const {
    TransportCommunicatorParts parts;
    parts.transport = std::move(transport);
    parts.rank = rank;
    parts.size = static_cast<int>(layout_.ranks);
    parts.shared_memory = true;
    return std::make_unique<TransportCommunicator>(std::move(parts), options);
  }
  std::vector<Region*> regions() const {
    std::vector<Region*> regions;
    for (std::byte* const memory : regions_) {
      regions.push_back(reinterpret_cast<Region*>(memory));
    }
    return regions;
  }

 private:
  RegionLayout layout_;
  std::vector<Mapping> memory_;
  std::vector<std::byte*> regions_;
  std::vector<Socket> bells_;
  std::vector<int> bell_fds_;
};

}  // namespace cohort::testing
