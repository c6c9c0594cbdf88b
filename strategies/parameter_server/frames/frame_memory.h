// FrameMemory: memory of a client from which frames need not be copied. Servers of its host map it
// and read it where it lies (frame_ring.h says how a frame tells them so).
//
// Each allocation is a memfd, which has no name and goes with the last process that maps it. A
// server gets its descriptor over the socket of a connection, before the first frame that lies in
// it.
//
// What is lent must not change before the frame is answered, and a client does not write while
// FrameLink::Run runs. Where a connection is given up, its server may still be reading: Renew then
// puts other pages with the same contents under the same addresses, and what the server has never
// changes again. So a frame has its effect with the bytes that it was sent with, or none.
//
// Thread rules: Allocate, and the end of what it gave, between two Runs; the rest within. One link
// uses it at a time.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <cohort/comm/memory.h>
#include <cohort/core/status.h>

#include "mapping.h"
#include "tcp/socket.h"

namespace cohort::ps {

// A piece of lent memory, as it travels in a ring in the place of what lies there.
struct FrameLoan {
  std::uint64_t segment = 0;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
};

// What a client says of a segment on the socket of a connection, with its descriptor unless it is
// no more (0 bytes).
struct FrameSegment {
  std::uint64_t segment = 0;
  std::uint64_t bytes = 0;
};

class FrameMemory : public std::enable_shared_from_this<FrameMemory> {
 public:
  static std::shared_ptr<FrameMemory> Make() {
    return std::shared_ptr<FrameMemory>(new FrameMemory);
  }

  // Zeroed, aligned to pages.
  Result<std::unique_ptr<Memory>> Allocate(std::size_t bytes);

  // Where `data` lies in what was allocated.
  std::optional<FrameLoan> Find(std::span<const std::byte> data) const;
  // Sends a server the news of what is lent and, unless it is to `keep` that, of what is so no
  // more; `told`: the segments that it knows. Cheap where there is none.
  using Send = std::function<Status(const FrameSegment& news, const Socket* fd)>;
  Status Tell(std::vector<std::uint64_t>* told, bool keep, const Send& send) const;

  // See above. Where that cannot be, status() says why from then on, and nothing must be sent.
  void Renew();
  const Status& status() const { return status_; }

 private:
  FrameMemory() = default;
  class Allocation;
  struct Segment {
    std::uint64_t id = 0;
    Socket fd;
    std::span<std::byte> memory;  // as it is mapped
  };
  Status Renew(Segment& segment);

  std::vector<Segment> segments_;
  std::uint64_t next_id_ = 1;
  Status status_;
};

// A server's view of what one client lends.
class BorrowedMemory {
 public:
  // InvalidArgument: the file is not as large as that.
  Status Map(const FrameSegment& news, const Socket& fd);
  void Forget(std::uint64_t segment) { segments_.erase(segment); }
  // Nothing: it lies in no segment that the client has told of.
  std::optional<std::span<const std::byte>> Resolve(const FrameLoan& loan) const;

 private:
  std::map<std::uint64_t, Mapping> segments_;
};

}  // namespace cohort::ps
