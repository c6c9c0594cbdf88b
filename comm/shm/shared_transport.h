// SharedTransport: ranks that read each other's memory: threads of one process, or processes of one
// host that map each other's regions.
//
// Frames go through rings in the sender's region. A large body that the receiver can reach is lent:
// it is combined straight from where it lies, and the frame's being taken gives it back. Any other
// goes through the ring in pieces. A rank that gives up its operation withdraws its loans: what was
// read of one after that is not used, and between threads the reader is waited for besides.
//
// Two rings to each peer: in one, frames keep their order, and what follows data that nobody awaits
// waits behind it; aborts and signs of life go through the other.

#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "shm/board.h"
#include "shm/region.h"
#include "shm/ring.h"
#include "shm/segments.h"
#include "transport.h"

namespace cohort {

struct SharedParts {
  int rank = 0;
  RegionLayout layout;
  std::vector<std::byte*> regions;           // by rank; of others only the board is written
  std::vector<int> bells;                    // eventfds
  bool crowded = false;                      // fewer cores than ranks: waiting gives the core away
  std::shared_ptr<void> memory;              // owners of regions and bells: the ranks' transports
  std::shared_ptr<SharedSegments> segments;  // nullptr: threads, which reach everything
};

// Makes the region at `memory`, which is zero.
void MakeRegion(std::byte* memory, int rank, const RegionLayout& layout);

class SharedTransport : public Transport {
 public:
  explicit SharedTransport(SharedParts parts);

  void Attach(TransportListener* listener) override { listener_ = listener; }
  Ticket Send(int peer, Bytes data) override;
  Ticket Receive(int peer, MutableBytes data, const CombineWith& combine) override;
  void Control(int peer, FrameKind kind, Bytes body) override;
  void Progress(Deadline until) override;
  void Wake() override;
  void Watch(Deadline until) override;
  Result<std::unique_ptr<Memory>> Allocate(std::size_t bytes) override;
  bool Abandon() override;
  bool IsBehind(int peer) const override {
    return peers_[static_cast<std::size_t>(peer)].dropping > 0;
  }
  void Forget() override;
  void Close(Deadline deadline) override;
  Board* board() override { return &board_; }

 protected:
  int rank() const { return rank_; }

 private:
  struct Posted {
    MutableBytes data;
    CombineWith combine;
    std::size_t got = 0;
  };
  struct Outgoing {
    FrameKind kind = FrameKind::kData;
    std::vector<std::byte> body;  // control
    Bytes data;                   // kData
    std::uint64_t ticket = 0;
    std::size_t put = 0;
  };
  struct Unreturned {  // a send that is done when the ring has been taken up to `position`
    std::uint64_t ticket;
    std::uint64_t position;
  };
  struct Peer {
    RingWriter ring;
    RingWriter urgent;
    RingReader from;
    RingReader urgent_from;
    Link* mine = nullptr;            // this rank's towards it
    const Link* theirs = nullptr;    // its towards this rank
    const Region* region = nullptr;  // its
    std::deque<Outgoing> out;
    std::deque<Outgoing> urgent_out;
    std::deque<Unreturned> unreturned;
    std::deque<Posted> posted;
    std::uint64_t shown = 0;  // on its board, when this rank last looked
    // What this rank has looked at, for Watch.
    std::atomic<std::uint64_t> looked = 0;
    std::atomic<std::uint64_t> urgent_looked = 0;
    std::atomic<bool> gone = false;
    bool farewell = false;
    // Operations that this rank has given up and the peer has not yet, as the data come; negative:
    // the other way round. Data are dropped, or left for later.
    int dropping = 0;
  };
  Peer& peer(int rank) { return peers_[static_cast<std::size_t>(rank)]; }

  void Pump();
  void Flush(int to);
  bool Put(int to, Outgoing& out);
  void Sent(int to, std::uint64_t ticket, std::uint64_t position);
  void TakeReturns(int to);
  void TakeUrgent(int from);
  void TakeFrames(int from);
  bool TakeData(int from, const RingFrame& frame, Bytes body);
  void Withdraw(Peer& p, std::uint64_t position);
  void Sleep(Deadline until);
  void HearSocket(int from);
  unsigned WaitForSignal(Deadline until);
  void TakeSignals(unsigned signals);

  const int rank_;
  const RegionLayout layout_;
  const std::shared_ptr<void> memory_;
  const std::shared_ptr<SharedSegments> segments_;  // owners: this and what it allocated
  const std::vector<int> bell_fds_;
  const bool crowded_;
  Region& region_;
  Bells bells_;
  Board board_;
  TransportListener* listener_ = nullptr;
  std::vector<Peer> peers_;
  bool moved_ = false;
  bool stop_ = false;
  bool forgotten_ = false;
  std::atomic<bool> woken_ = false;
  std::atomic<unsigned> signals_ = 0;  // what Watch has seen: kBellRang, kSocketSpoke
};

}  // namespace cohort
