#include "nccl/nccl_link.h"

#include <cohort/core/thread_pool.h>
#include <sched.h>

#include <algorithm>
#include <utility>

#include "algorithms/choose.h"
#include "nccl/nccl_meeting.h"
#include "transport.h"

namespace cohort {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr auto kSpin = microseconds(50);  // a waiting caller's, before it sleeps
constexpr Duration kFirstNap = microseconds(20);
constexpr Duration kLongestNap = microseconds(500);
constexpr Duration kLook = milliseconds(20);     // the thread's, while something is under way
constexpr Duration kSlice = milliseconds(200);   // of a wait at the store
constexpr Duration kGrace = milliseconds(1500);  // for others to tell where they are
constexpr Duration kSettle = seconds(5);  // for aborted operations to let go of their buffers
constexpr Duration kFinalize = seconds(10);

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

std::string Seconds(milliseconds time) {
  const auto ms = time.count();
  return ms % 1000 == 0 ? std::to_string(ms / 1000) + " s" : std::to_string(ms) + " ms";
}

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

Status MismatchOf(int a, const OperationRecord& ours, int b, const OperationRecord& theirs,
                  const std::function<std::string(int)>& name) {
  const bool brief = ours.Brief() != theirs.Brief();
  const std::string first = name(a) + " is in " + (brief ? ours.Brief() : ours.Full());
  const std::string second = name(b) + " is in " + (brief ? theirs.Brief() : theirs.Full());
  return InvalidArgument((a < b ? first + ", " + second : second + ", " + first) + ", operation #" +
                         std::to_string(std::max(ours.sequence, theirs.sequence)) +
                         " (generation " + std::to_string(ours.generation) +
                         ") [every rank must call the same operations in the same order]");
}

Status StallVerdict(const NcclOperation& operation, int rank,
                    const std::vector<std::optional<Whereabouts>>& ranks,
                    const std::function<std::string(int)>& name) {
  using State = Whereabouts::State;
  const OperationRecord& record = operation.record;
  const auto concerned = [&](int r) {
    return r != rank && (!record.point_to_point() || r == record.root);
  };
  const int size = static_cast<int>(ranks.size());
  for (int r = 0; r < size; ++r) {
    const auto& there = ranks[static_cast<std::size_t>(r)];
    if (!concerned(r) || !there || there->state != State::kIn) {
      continue;
    }
    const OperationRecord& theirs = there->record;
    const bool same_place =
        record.point_to_point()
            ? theirs.point_to_point() && theirs.root == rank && theirs.kind != record.kind
            : !theirs.point_to_point() && theirs.sequence == record.sequence;
    const bool matches =
        record.kind == OperationKind::kSend ? theirs.Matches(record) : record.Matches(theirs);
    if (same_place && !matches) {
      return MismatchOf(rank, record, r, theirs, name);
    }
  }
  std::string culprits;
  int silent = 0;
  bool left = false;
  for (int r = 0; r < size; ++r) {
    if (!concerned(r)) {
      continue;
    }
    const auto& there = ranks[static_cast<std::size_t>(r)];
    std::string fault;
    if (!there) {
      ++silent;
      fault = " gives no sign of life";
    } else if (there->state == State::kLeft) {
      left = true;
      fault = " left the communicator";
    } else if (there->state == State::kFresh) {
      fault = " has not entered it, nor any operation before";
    } else if (record.point_to_point()
                   ? !there->record.point_to_point()
                   : there->record.sequence < record.sequence || there->record.point_to_point()) {
      fault = (there->state == State::kIn ? " is in " : " has not entered it; its last is ") +
              there->record.Numbered();
    } else {
      continue;
    }
    culprits += (culprits.empty() ? "" : ", ") + name(r) + fault;
  }
  if (silent == size - 1 && silent > 1) {
    culprits = name(rank) +
               " hears of no other rank [its way to the store, or all others, may be "
               "down]";
  }
  const std::string text = record.Numbered() + " on " + name(rank) + " not done after " +
                           Seconds(operation.timeout) + ": " +
                           (culprits.empty() ? "every rank is in it [see what NCCL_DEBUG=INFO "
                                               "prints: the network or the links between GPUs, or "
                                               "what the stream waits for]"
                                             : culprits);
  return left ? Unavailable(text) : DeadlineExceeded(text);
}

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

// --- operations

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

// --- what becomes of them

void NcclLink::Finish(NcclOperation& operation, const Status& status) {
  operation.done = true;
  operation.status = status;
  moved_ = Now();
  flight_.Ended(operation.flight, status.ok(), moved_);
  if (status.ok()) {
    counts_.Done(operation.record.kind, Algorithm::kNccl, operation.bytes);
  }
}

void NcclLink::Look() {
  while (failure_.ok() && noted_.ok() && !under_way_.empty()) {
    NcclOperation& first = *under_way_.front();
    if (first.event == nullptr || !first.event->done()) {
      break;
    }
    const Status status = first.event->Wait(Now());
    if (!status.ok()) {
      Note(status.Annotate(first.record.Numbered() + " on " + Name(rank()) +
                           ": its stream, or the one before it, failed"));
      return;
    }
    Finish(first, {});
    under_way_.pop_front();
    changed_.notify_all();
  }
  if (handle_ != nullptr && failure_.ok() && noted_.ok()) {
    const NcclApi::Outcome outcome = parts_.api->Poll(handle_);
    if (!outcome.status.ok()) {
      Note(outcome.status.Annotate(Where() + " on " + Name(rank())));
    }
  }
}

std::string NcclLink::Where() const {
  if (!under_way_.empty()) {
    return "during " + under_way_.front()->record.Numbered();
  }
  return flight_.operations() == 0 ? "before the first operation" : "after " + last_.Numbered();
}

Whereabouts NcclLink::Here() const {
  using State = Whereabouts::State;
  if (!under_way_.empty()) {
    return {State::kIn, under_way_.front()->record};
  }
  return {flight_.operations() == 0 ? State::kFresh : State::kAfter, last_};
}

void NcclLink::Note(Status status) {
  if (noted_.ok() && failure_.ok()) {
    noted_ = std::move(status);
    wake_.notify_one();
  }
}

// Whether nothing more is to be expected of a failed link.
bool NcclLink::Settled(Deadline now) const {
  return !failure_.ok() && (settled_ || now >= failed_at_ + kSettle);
}

Status NcclLink::AwaitFailure(Lock& lock) {
  while (!Settled(Now())) {  // the thread asks the board first, at most
    changed_.wait_for(lock, milliseconds(100));
  }
  return failure_;
}

// The first one counts.
void NcclLink::Fail(Lock& lock, const Status& status) {
  if (failure_.ok()) {
    failure_ = status;
    failed_at_ = Now();
  }
  lock.unlock();
  if (!options_.flight_folder.empty()) {
    const Result<std::string> path = DumpFlightRecord(failure().message());
    if (path.ok()) {
      options_.log.Info("flight record: " + path.value() +
                        " [cohort trace merges those of all ranks]");
    } else {
      options_.log.Warning("no flight record: " + path.status().ToString());
    }
  }
  lock.lock();
}

// NCCL's part of a failure: when the operations end, nobody writes to their buffers any more. Those
// who wait do not wait for ever if NCCL takes its time.
void NcclLink::TakeDown(Lock& lock) {
  const NcclApi::Handle handle = std::exchange(handle_, nullptr);
  const Status failure = failure_;
  std::vector<std::shared_ptr<Event>> events;
  for (const auto& operation : under_way_) {
    if (operation->event != nullptr) {
      events.push_back(operation->event);
    }
  }
  lock.unlock();
  parts_.api->Fail(*parts_.stream, failure);  // before its kernels end
  parts_.api->Abort(handle);
  const Deadline end = failed_at_ + kSettle;
  while (Now() < end &&
         !std::all_of(events.begin(), events.end(), [](const auto& e) { return e->done(); })) {
    std::this_thread::sleep_for(microseconds(100));
  }
  lock.lock();
  for (const auto& operation : under_way_) {
    Finish(*operation, failure_);
  }
  under_way_.clear();
  settled_ = true;
  changed_.notify_all();
}

std::shared_ptr<NcclOperation> NcclLink::FirstOverdue(Deadline now) const {
  for (const auto& operation : under_way_) {
    if (now >= operation->deadline) {
      return operation;
    }
  }
  return nullptr;
}

void NcclLink::Watch() {
  NameThisThread("nccl-" + std::to_string(rank()));
  Lock lock(mutex_);
  for (;;) {
    Look();
    const Deadline now = Now();
    if (failure_.ok() && !noted_.ok()) {
      const Status noted = noted_;
      lock.unlock();
      const Status verdict = size() > 1 ? board_.Judge(noted) : noted;
      lock.lock();
      told_ = true;
      Fail(lock, verdict);
    } else if (!failure_.ok() && !told_) {
      told_ = true;
      const Status failure = failure_;
      lock.unlock();
      if (size() > 1) {
        (void)board_.Judge(failure);
      }
      lock.lock();
      Fail(lock, failure);  // which it has: the flight record
    } else if (!failure_.ok() && handle_ != nullptr) {
      TakeDown(lock);
    } else if (const auto overdue = FirstOverdue(now); overdue != nullptr) {
      FindCulprit(lock, overdue);
    } else if (stopping_ && under_way_.empty()) {
      break;
    } else if (size() > 1 && failure_.ok() && now - moved_ >= parts_.quiet) {
      AskBoard(lock);
    } else {
      wake_at_ = under_way_.empty() ? now + parts_.quiet : now + kLook;
      if (!failure_.ok()) {
        wake_at_ = Deadline::max();
      } else if (stopping_) {
        wake_at_ = now + milliseconds(1);
      }
      for (const auto& operation : under_way_) {
        wake_at_ = std::min(wake_at_, operation->deadline);
      }
      if (wake_at_ == Deadline::max()) {
        wake_.wait(lock, [this] { return stopping_; });
      } else {
        wake_.wait_until(lock, wake_at_);
      }
    }
  }
  Leave(lock);
  closed_ = true;
  changed_.notify_all();
}

void NcclLink::AskBoard(Lock& lock) {
  const Whereabouts here = Here();
  lock.unlock();
  std::optional<Status> verdict;
  const bool trouble = board_.LookAll("trouble").ok();
  if (trouble) {
    verdict = board_.Verdict();
    if (!verdict) {
      board_.TellWhere(here);
      (void)board_.HearAll("verdict", DeadlineAfter(2 * kGrace));
      verdict = board_.Judge(Unavailable(Name(rank()) +
                                         " was told of trouble, and not of which [a peer has "
                                         "ended meanwhile: see its own log]"));
    }
  }
  lock.lock();
  moved_ = Now();
  if (verdict) {
    told_ = true;
    Fail(lock, *verdict);
  }
}

void NcclLink::FindCulprit(Lock& lock, const std::shared_ptr<NcclOperation>& stalled) {
  const Whereabouts here = Here();
  lock.unlock();
  std::vector<std::optional<Whereabouts>> ranks(static_cast<std::size_t>(size()));
  std::optional<Status> verdict;
  if (size() > 1) {
    board_.TellWhere(here);
    (void)board_.TellAll("trouble", std::to_string(rank()));
    const Deadline end = DeadlineAfter(kGrace);
    for (bool all = false; !all && !verdict && Now() < end;) {
      all = true;
      for (int r = 0; r < size(); ++r) {
        auto& there = ranks[static_cast<std::size_t>(r)];
        if (r != rank() && !there) {
          there = board_.Where(r);
          all = all && there.has_value();
        }
      }
      verdict = board_.Verdict();
      if (!all && !verdict) {
        std::this_thread::sleep_for(milliseconds(10));
      }
    }
  }
  if (!verdict) {
    verdict = StallVerdict(*stalled, rank(), ranks, [this](int r) { return Name(r); });
    if (size() > 1) {
      verdict = board_.Judge(*verdict);
    }
  }
  lock.lock();
  told_ = true;
  Fail(lock, *verdict);
}

// The end of a link.
void NcclLink::Leave(Lock& lock) {
  if (!failure_.ok()) {
    return;  // it has been taken down
  }
  const Whereabouts here = {Whereabouts::State::kLeft, last_};
  const NcclApi::Handle handle = std::exchange(handle_, nullptr);
  lock.unlock();
  if (size() > 1) {
    board_.TellWhere(here);
  }
  NcclApi::Outcome outcome = parts_.api->Finalize(handle);
  const Deadline end = DeadlineAfter(kFinalize);
  while (outcome.status.ok() && outcome.under_way && Now() < end) {
    std::this_thread::sleep_for(kFirstNap);
    outcome = parts_.api->Poll(handle);
  }
  if (outcome.status.ok() && !outcome.under_way) {
    parts_.api->Destroy(handle);
  } else {
    parts_.api->Abort(handle);
  }
  lock.lock();
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
