// NcclLink for its callers: operations, and what they wait for.
#include "nccl/nccl_link.h"

#include <sched.h>

#include <algorithm>
#include <utility>

#include "algorithms/choose.h"
#include "nccl/nccl_meeting.h"
#include "nccl/nccl_verdict.h"
#include "transport.h"

namespace cohort {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr auto kSpin = microseconds(50);  // a waiting caller's, before it sleeps
constexpr Duration kFirstNap = microseconds(20);
constexpr Duration kLongestNap = microseconds(500);
constexpr Duration kSlice = milliseconds(200);  // of a wait at the store

Deadline Now() { return std::chrono::steady_clock::now(); }

// An operation that failed before anything stood on the stream.
class FailedEvent final : public Event {
 public:
  explicit FailedEvent(Status status) : status_(std::move(status)) {}
  bool done() const override { return true; }
  Status Wait(Deadline /*deadline*/) override { return status_; }

 private:
  const Status status_;
};

// Of `record` after a collective of print `before`. Counts that vary from step to step by design
// are left out.
std::uint64_t PairOf(std::uint64_t before, std::uint64_t print) {
  return (before ^ (print + 0x9e3779b97f4a7c15U)) * 0xbf58476d1ce4e5b9U;
}
std::uint64_t PrintOf(OperationRecord record) {
  if (record.kind == OperationKind::kAllGatherV) {
    record.shape = 0;
    record.count = 0;
  }
  return record.Fingerprint();
}

}  // namespace

std::shared_ptr<NcclLink> NcclLink::Make(NcclLinkParts parts, CommunicatorOptions options) {
  std::shared_ptr<NcclLink> link(new NcclLink(std::move(parts), std::move(options)));
  // The thread may outlive the owner, if NCCL does not come back.
  link->thread_ = std::thread([link] { link->Watch(); });
  return link;
}

NcclLink::NcclLink(NcclLinkParts parts, CommunicatorOptions options)
    : parts_(std::move(parts)),
      options_(std::move(options)),
      board_(*parts_.board),
      counts_(options_.metrics),
      handle_(parts_.handle),
      sends_(static_cast<std::size_t>(parts_.size)),
      receives_(static_cast<std::size_t>(parts_.size)),
      moved_(Now()),
      wake_at_(moved_) {}

void NcclLink::Close() {
  {
    Lock lock(mutex_);
    stopping_ = true;
    Deadline last = Now();
    for (const auto& operation : under_way_) {
      last = std::max(last, operation->deadline);
    }
    wake_.notify_one();
    if (!changed_.wait_until(lock, last + parts_.patience, [this] { return closed_; })) {
      counts_.Stop();
      options_.log.Error(Name(rank()) +
                         ": NCCL does not end the communicator; a thread and the memory of its "
                         "operations are left to it");
      thread_.detach();
      return;
    }
  }
  thread_.join();
}

std::string NcclLink::Name(int rank) const { return NameOf(options_, rank); }

Status NcclLink::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

Result<std::string> NcclLink::DumpFlightRecord(std::string_view reason) const {
  return WriteFlightRecord(
      options_.flight_folder,
      {options_.name,
       options_.peer_name ? options_.peer_name(rank()) : "rank " + std::to_string(rank()), "nccl",
       rank(), size(), options_.generation, std::string(reason), failure()},
      flight_);
}

std::shared_ptr<NcclOperation> NcclLink::Begin(OperationRecord record, milliseconds timeout) {
  const Deadline now = Now();
  record.generation = options_.generation;
  record.algorithm = static_cast<std::uint8_t>(Algorithm::kNccl);
  if (record.point_to_point()) {
    auto& pairs = record.kind == OperationKind::kSend ? sends_ : receives_;
    record.pair_sequence = ++pairs[static_cast<std::size_t>(record.root)];
    record.sequence = collectives_;
  } else {
    record.sequence = ++collectives_;
  }
  auto operation = std::make_shared<NcclOperation>();
  operation->record = std::move(record);
  operation->timeout = timeout;
  operation->deadline = now + timeout;
  operation->flight = flight_.Queued(operation->record, now);
  last_ = operation->record;
  moved_ = now;
  under_way_.push_back(operation);
  if (operation->deadline < wake_at_) {
    wake_.notify_one();
  }
  return operation;
}

Result<std::shared_ptr<NcclOperation>> NcclLink::Run(OperationRecord record, std::uint64_t bytes,
                                                     milliseconds timeout,
                                                     std::shared_ptr<Event> after,
                                                     const Calls& calls) {
  Lock lock(mutex_);
  if (!failure_.ok()) {
    return failure_;
  }
  std::shared_ptr<NcclOperation> operation = Begin(std::move(record), timeout);
  operation->bytes = bytes;
  COHORT_RETURN_IF_ERROR(Compare(lock, *operation));
  const std::string what = operation->record.Numbered();
  try {
    if (after != nullptr) {
      parts_.stream->WaitFor(std::move(after));
    }
    NcclApi::Outcome outcome = parts_.api->GroupStart();
    if (outcome.status.ok()) {
      const NcclApi::Outcome called = calls(*parts_.api, handle_, *parts_.stream);
      outcome = parts_.api->GroupEnd();  // also of a group with a failed call
      if (!called.status.ok()) {
        outcome = called;
      }
    }
    COHORT_RETURN_IF_ERROR(Await(lock, std::move(outcome), what));
    flight_.Started(operation->flight, operation->record, Now());
    operation->event = parts_.stream->Record();
  } catch (const StatusError& error) {
    Note(error.status().Annotate(what + " on " + Name(rank())));
    return AwaitFailure(lock);
  }
  return operation;
}

Status NcclLink::Await(Lock& lock, NcclApi::Outcome outcome, const std::string& what) {
  for (int tries = 0; outcome.status.ok() && outcome.under_way; ++tries) {
    lock.unlock();
    if (tries < 200) {
      ::sched_yield();
    } else {
      std::this_thread::sleep_for(microseconds(50));
    }
    lock.lock();
    if (!noted_.ok() || !failure_.ok()) {
      return AwaitFailure(lock);
    }
    outcome = parts_.api->Poll(handle_);
  }
  if (!outcome.status.ok()) {
    Note(outcome.status.Annotate(what + " on " + Name(rank())));
    return AwaitFailure(lock);
  }
  return {};
}

Status NcclLink::Compare(Lock& lock, const NcclOperation& operation) {
  const OperationRecord& record = operation.record;
  if (size() == 1 || record.point_to_point()) {
    return {};
  }
  const std::uint64_t print = PrintOf(record);
  if (!known_.insert(PairOf(std::exchange(last_print_, print), print)).second) {
    return {};
  }
  const std::string key = "print/" + std::to_string(record.sequence);
  lock.unlock();
  const Status told = board_.Tell(key, EncodeRecord(record));
  lock.lock();
  if (!told.ok()) {
    Note(told.Annotate(record.Numbered() + " on " + Name(rank())));
    return AwaitFailure(lock);
  }
  const int before = (rank() + size() - 1) % size();
  COHORT_ASSIGN_OR_RETURN(const std::string text, Hear(lock, key, before));
  const std::optional<OperationRecord> theirs = DecodeRecord(text);
  if (!theirs || !record.Matches(*theirs)) {
    Note(theirs ? MismatchOf(rank(), record, before, *theirs, [this](int r) { return Name(r); })
                : Internal(Name(before) + " told of an operation that cannot be read"));
    return AwaitFailure(lock);
  }
  return {};
}

// What `rank` tells under `name`. The thread sees to the deadline of the operation under way.
Result<std::string> NcclLink::Hear(Lock& lock, const std::string& name, int rank) {
  for (;;) {
    if (!noted_.ok() || !failure_.ok()) {
      return AwaitFailure(lock);
    }
    lock.unlock();
    Result<std::string> heard = board_.Hear(name, rank, DeadlineAfter(kSlice));
    lock.lock();
    if (heard.ok() && noted_.ok() && failure_.ok()) {
      return heard;
    }
    if (!heard.ok() && heard.status().code() != StatusCode::kDeadlineExceeded) {
      Note(heard.status().Annotate("hearing of " + Name(rank)));
    }
  }
}

Result<NcclLink::Group> NcclLink::Split(int color, int key) {
  Lock lock(mutex_);
  if (!failure_.ok()) {
    return failure_;
  }
  const std::shared_ptr<NcclOperation> operation =
      Begin({.kind = OperationKind::kSplit}, options_.timeout);
  flight_.Started(operation->flight, operation->record, Now());
  COHORT_RETURN_IF_ERROR(Compare(lock, *operation));
  const std::string what = operation->record.Numbered();
  const std::string place = "split/" + std::to_string(operation->record.sequence);
  lock.unlock();
  const Status told = board_.Tell(place, std::to_string(color) + " " + std::to_string(key));
  lock.lock();
  if (!told.ok()) {
    Note(told.Annotate(what + " on " + Name(rank())));
    return AwaitFailure(lock);
  }
  struct Member {
    int key;
    int rank;
  };
  std::vector<Member> members;
  for (int r = 0; r < size(); ++r) {
    COHORT_ASSIGN_OR_RETURN(const std::string said, Hear(lock, place, r));
    const std::size_t space = said.find(' ');
    if (space != std::string::npos && color >= 0 &&
        said.substr(0, space) == std::to_string(color)) {
      members.push_back({std::stoi(said.substr(space + 1)), r});
    }
  }
  std::stable_sort(members.begin(), members.end(),
                   [](const Member& a, const Member& b) { return a.key < b.key; });
  Group group;
  int index = 0;
  for (const Member& member : members) {
    if (member.rank == rank()) {
      index = static_cast<int>(group.members.size());
    }
    group.members.push_back(member.rank);
  }
  if (!group.members.empty()) {
    group.id = std::to_string(operation->record.sequence) + "." + std::to_string(color);
    group.parts = {.api = parts_.api,
                   .device = parts_.device,
                   .board = board_.Below("group/" + group.id, index),
                   .quiet = parts_.quiet,
                   .patience = parts_.patience,
                   .rank = index,
                   .size = static_cast<int>(group.members.size())};
    COHORT_RETURN_IF_ERROR(Connect(lock, group.parts, what + " on " + Name(rank())));
  }
  Finish(*operation, {});
  std::erase(under_way_, operation);
  return group;
}

// A group of this link. The thread sees to the deadline, and hears of the others' failures.
Status NcclLink::Connect(Lock& lock, NcclLinkParts& group, const std::string& what) {
  lock.unlock();
  Status status;
  try {
    group.stream = group.device->MakeStream();
    status = ConnectThroughNccl(group, what, [this] {
      const std::lock_guard guard(mutex_);
      return noted_.ok() ? failure_ : noted_;
    });
  } catch (const StatusError& error) {
    status = error.status().Annotate(what);
  }
  lock.lock();
  if (status.ok()) {
    return {};
  }
  Note(std::move(status));
  status = AwaitFailure(lock);
  lock.unlock();
  (void)group.board->Judge(status);  // for members that have their group already
  lock.lock();
  return status;
}

bool NcclLink::Done(const NcclOperation& operation) {
  const std::lock_guard lock(mutex_);
  if (!operation.done) {
    Look();
  }
  return operation.done || Settled(Now());
}

Status NcclLink::Wait(const NcclOperation& operation, Deadline deadline) {
  Lock lock(mutex_);
  const Deadline spin = Now() + kSpin;
  Duration nap = kFirstNap;
  for (;;) {
    if (!operation.done) {
      Look();
    }
    if (operation.done) {
      return operation.status;
    }
    const Deadline now = Now();
    if (Settled(now)) {
      return failure_;
    }
    if (now >= deadline) {
      return DeadlineExceeded("operation '" + operation.record.name + "' is still under way");
    }
    if (now < spin) {
      lock.unlock();
      ::sched_yield();
      lock.lock();
    } else {
      changed_.wait_until(lock, std::min(deadline, now + nap));
      nap = std::min(nap * 3 / 2, kLongestNap);
    }
  }
}

void NcclLink::Order(const NcclOperation& operation, Stream& stream) {
  std::shared_ptr<Event> event;
  {
    const std::lock_guard lock(mutex_);
    event = operation.done && !operation.status.ok()
                ? std::make_shared<FailedEvent>(operation.status)
                : operation.event;
  }
  stream.WaitFor(std::move(event));
}

void NcclLink::Abort(const Status& reason) {
  const std::lock_guard lock(mutex_);
  if (failure_.ok()) {
    failure_ =
        Status(reason.code(), Name(rank()) + " aborted the communicator: " + reason.message());
    failed_at_ = Now();
    wake_.notify_one();
  }
}

}  // namespace cohort
