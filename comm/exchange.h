// Exchange: one rank's side of the operations of a communicator, between the algorithms above and
// the transport below.
//
// It opens every operation towards each peer it sends to with that operation's record, which goes
// ahead of the data (over TCP and MPI in one message with them), compares the peers' records with
// its own before their data is used, keeps the operation's deadline, and turns whatever goes wrong
// into one status that all ranks get. A collective in which this rank waits for 2 ms is opened
// towards the next rank, too, whatever its algorithm sends: wherever two ranks disagree, two
// neighbours on the ring do, and one of them sees it even if both wait for others. What an
// operation sends, or shows, links all ranks: where they disagree each of them waits, and where
// they agree nothing more is sent than that, but by who waits.
//
//   records differ      InvalidArgument naming both sides; told to all. The operation is given up,
//                       the communicator goes on
//   peer gone           Unavailable naming it; told to all
//   deadline            DeadlineExceeded. Ranks whose operation reached its deadline say so to all
//                       others, wait a little for their signs of life, and name those that gave
//                       none or are in an earlier operation: not merely the neighbour waited for.
//                       Who has nobody to name waits as long again for the word of one who has
//   told by a peer      the peer's status, passed on to all
//
// Giving up an operation. Every collective is made so that no rank ends it well before all have
// entered the same one, so where two ranks differ, all can give it up. A rank that finds the
// difference, or is told of it, tells all others, forgets what it has posted, and ends the
// operation at once with the same words; one that comes to that operation later ends it as it
// begins. Nobody waits for anybody, but for who would show something next (AwaitRejects). The word
// (kReject) travels among the data too: from each peer what came before its word is dropped, what
// comes after belongs to the operations that follow. A mismatch in which a Send or Receive takes
// part is final: it has no number that all ranks know.
//
// Joining. A rank that has no operations of its own left tells all others how many it has called
// (kJoin), and from then on takes part in theirs: they open each towards it as they begin it, and
// the record says in which. It is done when all have joined and it has taken part in as many as the
// last of them called. A rank that is done may open new operations, give them up, and join again
// before others know that all have joined. So records and rejects say how many joins their rank has
// behind it, and none is taken for one to take part in.
//
// All other failures are final. Thread rules: one thread at a time, the communicator's driver, but
// for RequestAbort and Wake.

#pragma once

#include <cohort/comm/communicator.h>

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "operation.h"
#include "transport.h"

namespace cohort {

class Exchange final : private TransportListener {
 public:
  // `on_failure` hears of the first failure, on the driver's thread.
  Exchange(std::unique_ptr<Transport> transport, int rank, int size,
           const CommunicatorOptions& options, std::function<void(const Status&)> on_failure);

  int rank() const { return rank_; }
  int size() const { return size_; }
  Transport& transport() { return *transport_; }
  const Transport& transport() const { return *transport_; }
  // The unit of pipelining: a positive multiple of `element_bytes`.
  std::size_t SegmentBytes(std::size_t element_bytes) const;
  std::int64_t segment_option() const { return segment_bytes_; }
  // Room for one operation at a time; kept from one to the next, since new pages cost more than a
  // copy.
  MutableBytes Scratch(std::size_t bytes);
  std::string Name(int rank) const;  // "rank 1 (worker:1)"

  // One operation runs between Begin and End. Numbers are given here: the same on every rank when
  // all call the same operations.
  Status Begin(OperationRecord&& record, Deadline started, Deadline deadline);
  // The times of the operation under way, where Begin was given others: before anything waits.
  void SetTimes(Deadline started, Deadline deadline) {
    started_ = started;
    deadline_ = deadline;
  }
  // `status`: how the operation went; a failure is made known to all. Returns the final word.
  Status End(const Status& status);
  // For algorithms that find the ranks' arguments to differ: as for records that do.
  Status Mismatch(Status status);
  const OperationRecord& record() const { return record_; }
  Deadline started() const { return started_; }
  Deadline deadline() const { return deadline_; }

  // `data` stays put until the ticket is done, or the operation ended.
  Ticket Send(int peer, Bytes data);
  Ticket Receive(int peer, MutableBytes data, const CombineWith& combine = {});
  Status Wait(const Ticket& ticket);
  Status WaitAll();  // everything posted in this operation
  // Until `done`, asked again at least every `period`: for what the transport does not carry.
  Status Poll(const std::function<bool()>& done, const std::string& what, Duration period);
  // Where ranks see by other means that all are in one operation: until arrived(peer) for all
  // others.
  Status AwaitPeers(const std::function<bool(int peer)>& arrived);
  // In a collective, before this rank shows anything, after one that was given up: until all others
  // have given that up too: they have read what was shown before it and goes now, and show nothing
  // for it any more.
  Status AwaitRejects();
  bool gave_up() const { return gave_up_; }  // and nothing was shown since
  // `peer` is in an operation of another fingerprint: until records have shown which.
  Status AwaitDisagreement(int peer);
  // Until the work before `event` has run. Peers are heard meanwhile.
  Status WaitForStream(Event& event);

  // Joining, between operations. Tells the others; then what to take part in next, or nothing when
  // all have joined: LastJoined is then the last, by number of operations and then by rank.
  // DeadlineExceeded names who has not joined.
  Status BeginJoin();
  Result<std::optional<OperationRecord>> NextShadow(Deadline deadline);
  int EndJoin();

  // Between operations: hears what peers say, until Wake or `until`.
  void Idle(Deadline until);
  void Fail(const Status& status);
  const Status& failure() const { return failure_; }
  std::uint64_t told() const { return told_.load(std::memory_order_relaxed); }  // from any thread
  // No failure, none to be dealt with.
  bool Well() const { return failure_.ok() && noted_.ok() && !abort_requested_; }
  // Why the operation under way is over before its end, if it is.
  const Status& Trouble() const { return failure_.ok() ? rejected_ : failure_; }
  void Close();  // says goodbye

  void RequestAbort(const Status& reason);
  void Wake() { transport_->Wake(); }

 private:
  enum class Verdict { kSame, kLater, kMismatch };
  enum class Presence { kHere, kLeft, kLost };
  struct Peer {
    Presence presence = Presence::kHere;
    Deadline left_at;
    bool told_open = false;   // this operation was opened towards it
    bool heard_open = false;  // and by it
    bool heard_stalled = false;
    OperationRecord stalled_in;         // where it is, if heard_stalled
    std::uint64_t last_heard = 0;       // the collective that it was in when it last told
    std::deque<OperationRecord> opens;  // operations it has begun and we have not
    std::deque<std::uint64_t> joins;    // collectives it had called at each of its joins
    std::uint64_t sends = 0;            // point-to-point operations, for their numbers
    std::uint64_t receives = 0;
  };

  bool OnControl(int peer, FrameKind kind, Bytes body) override;
  void OnLost(int peer, const Status& why) override;
  void OnWrongSize(int peer, std::size_t sent, std::size_t expected) override;

  Verdict Judge(int peer, const OperationRecord& theirs) const;
  void Open(int peer);              // tells it of this operation, once
  Deadline TellNext(Deadline now);  // where this rank waits for long; returns when to look again
  void Tell(int peer, FrameKind kind, Bytes body);
  bool JudgeFirstOpen(int peer);  // false: a failure is pending
  void GiveSignOfLife(int peer, bool ask);
  void AskForSignsOfLife();  // of all others
  bool AllAnswered() const;  // who can, and takes part
  Status WaitUntil(const std::function<bool()>& done, Duration period = std::chrono::hours(1));
  void Step(Deadline until);
  bool TakeAbortRequest();  // whether there was one
  Deadline CheckLeavers(Deadline now);
  Deadline WarnOfSlowPeers(Deadline now);
  bool Owes(int peer) const;
  bool Awaited(int peer) const;
  std::string AwaitedNames() const;
  Status TimedOut(const std::function<bool()>& done);
  std::string Culprits() const;  // empty: nobody is known to be
  std::string Where() const;     // "during AllReduce ..." or "while idle after ..."
  // Becomes the failure after the current step, unless one is noted.
  void Note(Status status);
  void NoteMismatch(Status status);  // ends the operation under way instead
  bool Settle();                     // deals with what is noted; false: the operation is over
  void Reject(const Status& status);
  bool OnReject(int from, Bytes body);
  bool OnJoin(int from, Bytes body);
  bool AllJoined() const;
  std::optional<OperationRecord> ToShadow();
  Peer& peer(int rank) { return peers_[static_cast<std::size_t>(rank)]; }
  const Peer& peer(int rank) const { return peers_[static_cast<std::size_t>(rank)]; }

  const std::unique_ptr<Transport> transport_;
  const int rank_;
  const int size_;
  const std::uint64_t generation_;
  const std::chrono::milliseconds slow_peer_warning_;
  const std::function<std::string(int)> peer_name_;
  const Log log_;
  const std::function<void(const Status&)> on_failure_;
  const std::int64_t segment_bytes_;

  std::vector<Peer> peers_;
  bool peers_silent_ = true;  // peers_ is as an operation finds it where nothing was said or told
  std::unique_ptr<std::byte[]> scratch_;
  std::size_t scratch_bytes_ = 0;
  OperationRecord record_;  // of the operation under way, or the last one
  bool active_ = false;
  std::uint64_t collectives_ = 0;  // begun so far
  std::uint64_t completed_ = 0;    // the last one that succeeded: all ranks have been in it
  std::uint64_t joined_at_ = 0;    // collectives_ at this rank's join
  int joins_ = 0;                  // of all peers, in `joins`
  std::uint16_t joins_done_ = 0;   // of this rank
  Deadline started_;
  Deadline deadline_;
  std::atomic<std::uint64_t> told_ = 0;  // frames that are no data
  bool told_next_ = false;               // the next rank, of the operation under way
  bool asked_ = false;                   // at the warning, where slow peers are
  Deadline answer_by_;                   // if asked_
  bool warned_ = false;
  std::string awaited_elsewhere_;                      // what Poll waits for
  const std::function<bool(int)>* arrived_ = nullptr;  // what AwaitPeers waits for
  Status failure_;
  Status noted_;
  bool noted_mismatch_ = false;
  Status rejected_;                  // why the operation under way was given up
  std::uint64_t last_rejected_ = 0;  // collectives are rejected in order
  bool gave_up_ = false;             // see AwaitRejects
  struct Rejection {
    Status why;
    std::uint16_t joins = 0;  // as of an OperationRecord
  };
  std::map<std::uint64_t, Rejection> rejections_;  // of collectives that this rank has not begun
  std::uint64_t received_before_ = 0;              // bytes, when the operation began

  std::atomic<bool> abort_requested_ = false;
  std::mutex abort_mutex_;
  Status abort_reason_;  // guarded by abort_mutex_
};

}  // namespace cohort
