// NcclLink: one rank's side of an NCCL communicator: the handle, what is under way on it, and what
// becomes of it when something goes wrong.
//
// Operations are put on one stream by the calling thread, each followed by an event. A thread of
// the link watches: it looks at events, NCCL's own errors and deadlines while something is under
// way, and at the board where nothing has moved for a while. Whoever waits looks too; but only that
// thread decides that the link has failed, ends its operations with one status, and aborts.
//
//   a rank notes an error        its verdict goes on the board, unless there is one: that counts
//   a deadline passes            the ranks tell where they are; from that follows the verdict
//   there is trouble of others   the rank tells where it is, and takes over the verdict
//
// Operations that are new after the one before them are compared with those of the rank before this
// one, through the board, before anything is put on the stream: a program that goes round in a
// loop pays in its first round, and wherever two ranks leave the common order, one of them does
// something new.

#pragma once

#include <cohort/comm/communicator.h>
#include <cohort/device/device.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

#include "collective_counts.h"
#include "flight_recorder.h"
#include "nccl/board.h"
#include "nccl/nccl_api.h"
#include "operation.h"

namespace cohort {

// One operation; the link's mutex guards what is not constant.
struct NcclOperation {
  OperationRecord record;
  std::chrono::milliseconds timeout;
  Deadline deadline;
  std::uint64_t flight = 0;      // its index in the flight record
  std::uint64_t bytes = 0;       // of buffers, of all ranks' parts together
  std::shared_ptr<Event> event;  // behind it; nullptr until it is on the stream
  bool done = false;
  Status status;
};

struct NcclLinkParts {
  std::shared_ptr<NcclApi> api;
  NcclApi::Handle handle = nullptr;
  std::shared_ptr<Device> device;
  std::unique_ptr<Stream> stream;  // the operations'
  std::optional<Board> board;
  // When nothing has moved for so long, the board is asked whether there is trouble.
  Duration quiet = std::chrono::milliseconds(500);
  // What NCCL, or the store, has not ended so long after the last deadline is left to itself.
  Duration patience = std::chrono::seconds(60);
  int rank = 0;
  int size = 1;
};

// Thread rules: Run and Split by one thread at a time; all else from any.
class NcclLink : public std::enable_shared_from_this<NcclLink> {
 public:
  using Calls =
      std::function<NcclApi::Outcome(NcclApi& api, NcclApi::Handle handle, Stream& stream)>;

  static std::shared_ptr<NcclLink> Make(NcclLinkParts parts, CommunicatorOptions options);
  // The owner calls it once, last. Waits for what is under way, at most until its deadlines and as
  // long as its patience is. What ends later counts in no metrics, which may be gone by then.
  void Close();

  // Puts `calls` on the stream, after `after`. `bytes`: of the buffers. The failure, if there is
  // one by then.
  Result<std::shared_ptr<NcclOperation>> Run(OperationRecord record, std::uint64_t bytes,
                                             std::chrono::milliseconds timeout,
                                             std::shared_ptr<Event> after, const Calls& calls);
  // Ranks of no group ask nothing of NCCL. A failure in the making is one of the link.
  struct Group {
    NcclLinkParts parts;
    std::vector<int> members;  // ranks of this link; empty: this rank is in no group
    std::string id;
  };
  Result<Group> Split(int color, int key);
  void Abort(const Status& reason);

  bool Done(const NcclOperation& operation);
  // DeadlineExceeded at `deadline`: the operation goes on.
  Status Wait(const NcclOperation& operation, Deadline deadline);
  void Order(const NcclOperation& operation, Stream& stream);

  int rank() const { return parts_.rank; }
  int size() const { return parts_.size; }
  Device& device() const { return *parts_.device; }
  const CommunicatorOptions& options() const { return options_; }
  const FlightRecorder& flight() const { return flight_; }
  Status failure() const;
  std::string Name(int rank) const;  // "rank 1 (worker:1)"
  Result<std::string> DumpFlightRecord(std::string_view reason) const;

 private:
  using Lock = std::unique_lock<std::mutex>;

  NcclLink(NcclLinkParts parts, CommunicatorOptions options);

  void Watch();  // the thread
  // All below: with mutex_ held, through `lock` where they let go of it.
  std::shared_ptr<NcclOperation> Begin(OperationRecord record, std::chrono::milliseconds timeout);
  void Finish(NcclOperation& operation, const Status& status);
  void Look();
  void Note(Status status);  // of what went wrong here: the thread makes it the failure
  Status AwaitFailure(Lock& lock);
  bool Settled(Deadline now) const;
  void Fail(Lock& lock, const Status& status);
  void TakeDown(Lock& lock);
  void AskBoard(Lock& lock);
  void FindCulprit(Lock& lock, const std::shared_ptr<NcclOperation>& stalled);
  void Leave(Lock& lock);
  std::shared_ptr<NcclOperation> FirstOverdue(Deadline now) const;
  Whereabouts Here() const;
  std::string Where() const;
  Status Compare(Lock& lock, const NcclOperation& operation);
  Result<std::string> Hear(Lock& lock, const std::string& name, int rank);
  Status Connect(Lock& lock, NcclLinkParts& group, const std::string& what);
  // Until what `outcome` is of has ended; a failure of it is noted, and awaited.
  Status Await(Lock& lock, NcclApi::Outcome outcome, const std::string& what);

  const NcclLinkParts parts_;
  const CommunicatorOptions options_;
  Board board_;
  FlightRecorder flight_;
  CollectiveCounts counts_;  // guarded by mutex_

  mutable std::mutex mutex_;
  std::condition_variable changed_;  // operations ended, or the link closed
  std::condition_variable wake_;     // of the thread
  NcclApi::Handle handle_;           // nullptr: taken down
  std::deque<std::shared_ptr<NcclOperation>> under_way_;
  OperationRecord last_;  // begun
  std::uint64_t collectives_ = 0;
  std::vector<std::uint64_t> sends_;         // to each rank
  std::vector<std::uint64_t> receives_;      // from each rank
  std::uint64_t last_print_ = 0;             // of the collective before
  std::unordered_set<std::uint64_t> known_;  // pairs of collectives, one after the other
  Deadline moved_;    // when an operation last began or ended, or the board was asked
  Deadline wake_at_;  // when the thread looks again
  Status noted_;
  Status failure_;
  Deadline failed_at_;
  bool settled_ = false;  // taken down, and no operation left
  bool told_ = false;     // the others know of the failure
  bool stopping_ = false;
  bool closed_ = false;
  std::thread thread_;
};

}  // namespace cohort
