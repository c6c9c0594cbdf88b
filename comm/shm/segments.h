// SharedSegments: memory that one process allocates and its peers on the host map, to read, and to
// write there where they are let (Board::Open, Board::Staging).
//
// A segment is a memfd: it has no name, and goes with the last process that maps it, however that
// ends. Its descriptor travels over the socket to each peer before the first loan that lies in it.

#pragma once

#include <cohort/comm/memory.h>

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "mapping.h"
#include "shm/region.h"
#include "tcp/socket.h"
#include "transport.h"

namespace cohort {

// A message on the socket between two ranks. Segment 0 is the region; it comes first, with the
// bell.
struct SegmentNotice {
  std::uint64_t segment = 0;
  std::uint64_t bytes = 0;  // 0: the segment is no more
};

// Blocking until `deadline`; `fds` (at most two) travel along.
Status SendNotice(const Socket& socket, const SegmentNotice& notice, const std::vector<int>& fds,
                  Deadline deadline);
// OK and no notice: there is none now. Unavailable: the connection has ended.
struct ReceivedNotice {
  SegmentNotice notice;
  std::vector<Socket> fds;
};
Result<std::optional<ReceivedNotice>> ReceiveNotice(const Socket& socket);
// The same, waited for. DeadlineExceeded: it has not come.
Result<ReceivedNotice> AwaitNotice(const Socket& socket, Deadline deadline);

// A memfd of MappedBytes(bytes), mapped.
Result<std::pair<Socket, Mapping>> MakeSegment(std::size_t bytes, bool prefault = true);

// Thread rules: Allocate, and the end of what it gave, from any thread; the rest by the driver.
class SharedSegments : public std::enable_shared_from_this<SharedSegments> {
 public:
  explicit SharedSegments(std::vector<Socket> sockets);
  ~SharedSegments();

  const Socket& socket(int peer) const { return sockets_[static_cast<std::size_t>(peer)]; }
  int size() const { return static_cast<int>(sockets_.size()); }

  Result<std::unique_ptr<Memory>> Allocate(std::size_t bytes);
  // Where `data` lies in what this rank allocated.
  std::optional<Loan> Find(Bytes data) const;
  // What `peer` lends, as it is mapped here; nullptr: it lies in nothing that the peer announced.
  std::byte* Resolve(int peer, const Loan& loan, std::size_t bytes);
  // The whole pages in `data` get memory of their own, zeros, at the same place: peers that have
  // them mapped reach them no more, and what this rank allocated with them is lent no more. Throws
  // ContractError where there is no memory for that.
  void TakeBack(MutableBytes data);
  // Reads what `peer` announces. Unavailable: the connection has ended.
  Status Hear(int peer);
  void Close();

 private:
  class Allocation;
  struct Own {
    std::uint64_t id;
    const std::byte* base;
    std::size_t bytes;
  };
  Status Announce(const SegmentNotice& notice, const std::vector<int>& fds);
  void Release(std::uint64_t id);

  mutable std::mutex mutex_;
  std::vector<Socket> sockets_;                           // closed under mutex_
  std::vector<Own> own_;                                  // guarded by mutex_
  std::uint64_t next_id_ = 1;                             // guarded by mutex_
  std::vector<std::map<std::uint64_t, Mapping>> theirs_;  // by rank and segment
};

}  // namespace cohort
