// Transport: ordered messages between the ranks of one group; the seam below every collective.
//
// Between two ranks frames arrive once and in the order they were sent. Data frames meet the
// receives posted for their sender in order; all other frames go to the listener as they arrive.
// Nothing is tagged: both sides run the same algorithm, and the records that open an operation
// (operation.h) prove it before a byte of payload is used.
//
// Thread rules: one thread at a time, whichever drives the communicator, calls everything; Wake and
// Allocate are for any thread, Watch for one besides the driver. Nothing blocks but Progress, Watch
// and Close, and those have deadlines.

#pragma once

#include <cohort/comm/communicator.h>
#include <cohort/comm/memory.h>
#include <cohort/core/clock.h>
#include <cohort/core/status.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "reduction.h"

namespace cohort {

using Bytes = std::span<const std::byte>;
using MutableBytes = std::span<std::byte>;

enum class FrameKind : std::uint8_t {
  kOpen = 1,  // the sender begins an operation: its record, before data of it go to this peer
  kData = 2,
  kStalled = 3,  // the sender's operation reached its deadline: a sign of life
  kAbort = 4,    // the sender's communicator failed; code and text
  kBye = 5,      // the sender leaves in good order
  // The sender has given up an operation whose ranks differ: its number, code and text. Keeps its
  // place among the data, and is told at once besides.
  kReject = 6,
  kJoin = 7,  // the sender calls no more collectives of its own; how many it has. Among the data
};

class Board;              // shm/board.h
class NativeCollectives;  // native_collectives.h

class TransportListener {
 public:
  virtual ~TransportListener() = default;
  // False: deliver nothing more before Progress returns.
  virtual bool OnControl(int peer, FrameKind kind, Bytes body) = 0;
  // No more frames will come from `peer`, and it said no goodbye.
  virtual void OnLost(int peer, const Status& why) = 0;
  // A data frame is not as long as the receive posted for it.
  virtual void OnWrongSize(int peer, std::size_t sent, std::size_t expected) = 0;
};

// What a receive does with arriving bytes besides storing them: to = local op arriving.
struct CombineWith {
  const Reduction* reduction = nullptr;  // nullptr: store only
  const std::byte* local = nullptr;      // may be where the receive stores
  bool local_first = true;               // false: to = arriving op local
};

// One posted send or receive. Those of one peer and direction finish in the order posted.
struct Ticket {
  int peer = -1;
  bool is_send = false;
  std::uint64_t number = 0;
};

// Of a transport that has no reason for another.
inline constexpr std::int64_t kSegmentBytes = 256 << 10;

class Transport {
 public:
  explicit Transport(int ranks) : lanes_(static_cast<std::size_t>(ranks)) {}
  virtual ~Transport() = default;
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  virtual std::string_view backend() const = 0;
  // Bytes of a segment, the unit of pipelining, when the options do not say.
  virtual std::int64_t default_segment_bytes() const { return kSegmentBytes; }

  // Before anything else; the listener outlives the transport's use.
  virtual void Attach(TransportListener* listener) = 0;
  // `data` stays put until the ticket is done. A send is done when the bytes may be overwritten,
  // which does not mean that the peer has them.
  virtual Ticket Send(int peer, Bytes data) = 0;
  virtual Ticket Receive(int peer, MutableBytes data, const CombineWith& combine) = 0;
  // `body` is copied; at most kMaxControlBytes.
  virtual void Control(int peer, FrameKind kind, Bytes body) = 0;

  bool Done(const Ticket& t) const {
    const Lane& lane = lanes_[static_cast<std::size_t>(t.peer)];
    return (t.is_send ? lane.sends_done : lane.receives_done) >= t.number;
  }
  // Posted and not done.
  bool Owes(int peer) const {  // the peer has not sent all that is expected
    const Lane& lane = lanes_[static_cast<std::size_t>(peer)];
    return lane.receives_done < lane.receives;
  }
  bool Unsent(int peer) const {
    const Lane& lane = lanes_[static_cast<std::size_t>(peer)];
    return lane.sends_done < lane.sends;
  }

  // What the way to `peer` shows, for the error of an operation that has run out of time.
  struct Doubt {
    std::string what;      // "rail 2 of 4 from it has brought nothing for 1.2 s"
    bool certain = false;  // it explains the wait: the peer is not to blame for it
  };
  // Nothing: no more is known than that something is owed or unsent. `long_enough`: a silence that
  // is no pause. Asks the system; for errors only.
  virtual std::optional<Doubt> DoubtOf(int /*peer*/, Duration /*long_enough*/) const {
    return std::nullopt;
  }

  // Moves bytes; returns when something happened, after Wake, or at `until`.
  virtual void Progress(Deadline until) = 0;
  virtual void Wake() = 0;
  // While nobody drives: returns when Progress may find something, after Wake, or at `until`; may
  // also return for nothing.
  virtual void Watch(Deadline until) = 0;
  // How long a wait that Progress begins spins before it sleeps. Whoever drives says so: a caller
  // has nothing else to do with its core, the communicator's own thread takes it from somebody.
  void set_spin(Duration spin) { spin_ = spin; }

  // See Communicator::Allocate.
  virtual Result<std::unique_ptr<Memory>> Allocate(std::size_t bytes) {
    return AllocateMemory(bytes);
  }

  // Gives up the operation under way, on this side only: what is posted is forgotten, and what each
  // peer has sent so far, and still sends before its next kReject, is dropped. Later sends and
  // receives are as ever. The buffers are free once nothing is owed or unsent, which here may take
  // a while. False: this transport cannot.
  virtual bool Abandon() { return false; }
  // Whether `peer` still has to give up an operation that this rank has given up, by its word among
  // the data. False where nobody would do other things then.
  virtual bool IsBehind(int /*peer*/) const { return false; }
  // Gives up everything posted: afterwards no buffer is read or written any more. Later sends and
  // receives are forbidden; control frames still go out.
  virtual void Forget() = 0;
  // Sends what is queued, at most until `deadline`, and hangs up.
  virtual void Close(Deadline deadline) = 0;

  // A group within the group. Every rank calls Offer, the offers are exchanged over this transport,
  // and each member calls Join with the members' ranks here in their new order. `id` is equal on
  // the members and unique for each group of this transport.
  virtual Result<std::string> Offer() { return std::string(); }  // at most kMaxOfferBytes
  virtual Result<std::unique_ptr<Transport>> Join(const std::string& id,
                                                  const std::vector<int>& members, int my_index,
                                                  const std::vector<std::string>& offers,
                                                  Deadline deadline) = 0;

  // The library's own collectives over this group, where it has some and was asked for them. Made
  // once; uses the transport.
  virtual std::unique_ptr<NativeCollectives> Native();

  // Where ranks see each other's small contributions at once; nullptr where there is no such place.
  virtual Board* board() { return nullptr; }

  // For bytes that move without frames: see board.
  void Count(std::size_t sent, std::size_t received) {
    CountSent(sent);
    CountReceived(received);
  }
  std::uint64_t bytes_sent() const { return bytes_sent_.load(std::memory_order_relaxed); }
  std::uint64_t bytes_received() const { return bytes_received_.load(std::memory_order_relaxed); }

  static constexpr std::size_t kMaxControlBytes = 4096;
  static constexpr std::size_t kMaxOfferBytes = 240;

 protected:
  struct Lane {
    std::uint64_t sends = 0;  // posted
    std::uint64_t sends_done = 0;
    std::uint64_t receives = 0;
    std::uint64_t receives_done = 0;
  };
  Lane& lane(int peer) { return lanes_[static_cast<std::size_t>(peer)]; }
  Duration spin() const { return spin_; }
  void CountSent(std::size_t n) { Add(bytes_sent_, n); }
  void CountReceived(std::size_t n) { Add(bytes_received_, n); }

 private:
  // Written by the driver alone.
  static void Add(std::atomic<std::uint64_t>& count, std::size_t n) {
    count.store(count.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }

  std::vector<Lane> lanes_;
  Duration spin_ = std::chrono::microseconds(5);
  std::atomic<std::uint64_t> bytes_sent_ = 0;
  std::atomic<std::uint64_t> bytes_received_ = 0;
};

// Stores `arriving` at `to` as a receive asks for it, with `local` where it combines.
void Deliver(std::byte* to, Bytes arriving, const CombineWith& combine, const std::byte* local);

// What errors call a rank: "rank 3", or "rank 3 (worker:3)". A `peer_name` that begins with "rank "
// is all of it: that of the group that this one is a part of.
std::string NameOf(const std::function<std::string(int rank)>& peer_name, int rank);
inline std::string NameOf(const CommunicatorOptions& options, int rank) {
  return NameOf(options.peer_name, rank);
}

}  // namespace cohort
