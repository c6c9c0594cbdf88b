#include "exchange.h"

#include <algorithm>
#include <utility>

namespace cohort {
namespace {

using std::chrono::milliseconds;

std::string Seconds(Duration duration) {
  const auto ms = std::chrono::duration_cast<milliseconds>(duration).count();
  std::string text = std::to_string(ms / 1000);
  if (ms % 1000 != 0) {
    text += "." + std::to_string(1000 + ms % 1000).substr(1);
  }
  return text + " s";
}

// How long the others have to say where they are: on a busy machine a rank may be off its core for
// a tenth of a second.
Duration GraceOf(Duration waited) {
  const Duration least = std::clamp<Duration>(waited / 2, milliseconds(50), milliseconds(200));
  return std::clamp<Duration>(waited / 10, least, milliseconds(1000));
}

}  // namespace

Exchange::Exchange(std::unique_ptr<Transport> transport, int rank, int size,
                   const CommunicatorOptions& options,
                   std::function<void(const Status&)> on_failure)
    : transport_(std::move(transport)),
      rank_(rank),
      size_(size),
      generation_(options.generation),
      slow_peer_warning_(options.slow_peer_warning),
      peer_name_(options.peer_name),
      log_(options.log),
      on_failure_(std::move(on_failure)),
      segment_bytes_(options.segment_bytes > 0 ? options.segment_bytes
                                               : transport_->default_segment_bytes()),
      peers_(static_cast<std::size_t>(size)) {
  transport_->Attach(this);
}

std::size_t Exchange::SegmentBytes(std::size_t element_bytes) const {
  return std::max<std::size_t>(
      static_cast<std::size_t>(segment_bytes_) / element_bytes * element_bytes, element_bytes);
}

MutableBytes Exchange::Scratch(std::size_t bytes) {
  if (bytes > scratch_bytes_) {
    scratch_.reset();
    scratch_bytes_ = 0;
    scratch_ = std::make_unique_for_overwrite<std::byte[]>(bytes);
    scratch_bytes_ = bytes;
  }
  return {scratch_.get(), bytes};
}

std::string Exchange::Name(int rank) const { return NameOf(peer_name_, rank); }

Status Exchange::Begin(OperationRecord&& record, Deadline started, Deadline deadline) {
  COHORT_RETURN_IF_ERROR(failure_);
  record_ = std::move(record);
  record_.generation = generation_;
  record_.segment_bytes = segment_bytes_;
  record_.joins = joins_done_;
  if (!record_.point_to_point()) {
    ++collectives_;
  } else if (record_.kind == OperationKind::kSend) {
    record_.pair_sequence = ++peer(record_.root).sends;
  } else {
    record_.pair_sequence = ++peer(record_.root).receives;
  }
  record_.sequence = collectives_;
  active_ = true;
  asked_ = false;
  warned_ = false;
  if (!rejected_.ok()) {
    rejected_ = Status();
  }
  received_before_ = transport_->bytes_received();
  SetTimes(started, deadline);
  if (const auto rejection = rejections_.find(collectives_);
      rejection != rejections_.end() && !record_.point_to_point()) {
    NoteMismatch(rejection->second.why);
    rejections_.erase(rejection);
  }
  if (!peers_silent_) {
    peers_silent_ = true;
    for (Peer& other : peers_) {
      other.told_open = false;
      other.heard_open = false;
      other.heard_stalled = false;
    }
    for (int p = 0; p < size_ && noted_.ok(); ++p) {
      JudgeFirstOpen(p);
    }
    for (const Peer& other : peers_) {
      peers_silent_ &= other.opens.empty() && !other.heard_open;
    }
  }
  told_next_ = record_.point_to_point() || size_ == 1;
  if (Settle() && !record_.point_to_point()) {
    for (int p = 0; p < size_ && joins_ > 0; ++p) {
      if (!peer(p).joins.empty()) {
        Open(p);
      }
    }
  }
  return Trouble();
}

void Exchange::Open(int to) {
  if (!peer(to).told_open) {
    peers_silent_ = false;
    peer(to).told_open = true;
    Tell(to, FrameKind::kOpen, record_.Encode());
  }
}

void Exchange::Tell(int to, FrameKind kind, Bytes body) {
  told_.store(told_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  transport_->Control(to, kind, body);
}

Deadline Exchange::TellNext(Deadline now) {
  constexpr auto kTell = milliseconds(2);  // time for the others to come
  if (!told_next_ && now >= started_ + kTell) {
    told_next_ = true;
    Open((rank_ + 1) % size_);
  }
  return told_next_ ? Deadline::max() : started_ + kTell;
}

Status Exchange::End(const Status& status) {
  if (!status.ok() && rejected_.ok()) {
    Fail(status);
  }
  // Where bytes cannot be called back, the buffers are free when they have moved.
  const auto free = [&] {
    for (int p = 0; p < size_; ++p) {
      if (Awaited(p)) {
        return false;
      }
    }
    return true;
  };
  while (!rejected_.ok() && failure_.ok() && !free()) {
    const Deadline now = std::chrono::steady_clock::now();
    if (now >= deadline_) {
      Fail(InvalidArgument(rejected_.message() + "; then " + AwaitedNames() +
                           " took no part in giving it up"));
    } else {
      Step(deadline_);
    }
  }
  active_ = false;
  if (Trouble().ok() && !record_.point_to_point()) {
    completed_ = record_.sequence;
  }
  return Trouble();
}

Status Exchange::Mismatch(Status status) {
  NoteMismatch(std::move(status));
  Settle();
  return Trouble();
}

Ticket Exchange::Send(int to, Bytes data) {
  Open(to);
  return transport_->Send(to, data);
}

Ticket Exchange::Receive(int from, MutableBytes data, const CombineWith& combine) {
  return transport_->Receive(from, data, combine);
}

Status Exchange::Wait(const Ticket& ticket) {
  if (Trouble().ok() && noted_.ok() && transport_->Done(ticket)) {
    return {};
  }
  return WaitUntil([&] { return transport_->Done(ticket); });
}

Status Exchange::WaitAll() {
  return WaitUntil([&] {
    for (int p = 0; p < size_; ++p) {
      if (transport_->Owes(p) || transport_->Unsent(p)) {
        return false;
      }
    }
    return true;
  });
}

Status Exchange::Poll(const std::function<bool()>& done, const std::string& what, Duration period) {
  awaited_elsewhere_ = what;
  Status status = WaitUntil(done, period);
  awaited_elsewhere_.clear();
  return status;
}

Status Exchange::AwaitPeers(const std::function<bool(int)>& arrived) {
  arrived_ = &arrived;
  Status status = WaitUntil([&] {
    for (int p = 0; p < size_; ++p) {
      if (p != rank_ && !arrived(p)) {
        return false;
      }
    }
    return true;
  });
  arrived_ = nullptr;
  return status;
}

Status Exchange::AwaitRejects() {
  if (gave_up_ && !record_.point_to_point()) {
    COHORT_RETURN_IF_ERROR(AwaitPeers([this](int p) { return !transport_->IsBehind(p); }));
    gave_up_ = false;
  }
  return {};
}

Status Exchange::AwaitDisagreement(int other) {
  Open(other);
  return WaitUntil([] { return false; });
}

Status Exchange::WaitForStream(Event& event) {
  constexpr auto kSlice = milliseconds(20);  // how late a peer's abort is heard
  while (!event.done()) {
    const Deadline now = std::chrono::steady_clock::now();
    if (now >= deadline_) {
      return DeadlineExceeded(record_.Numbered() + " on " + Name(rank_) + ": its stream has not " +
                              "run what came before it within " + Seconds(deadline_ - started_));
    }
    TellNext(now);
    Step(now);
    COHORT_RETURN_IF_ERROR(Trouble());
    // Its status is asked for below: the event may happen between the slice's end and here.
    (void)event.Wait(std::min(deadline_, now + kSlice));
  }
  return event.Wait(deadline_).Annotate("the stream before " + record_.Numbered());
}

// --- progress, and waiting for it

void Exchange::Idle(Deadline until) { Step(until); }

bool Exchange::TakeAbortRequest() {
  if (!abort_requested_.exchange(false)) {
    return false;
  }
  Status reason;
  {
    const std::lock_guard lock(abort_mutex_);
    reason = abort_reason_;
  }
  Fail(Status(reason.code(), Name(rank_) + " aborted the communicator: " + reason.message()));
  return true;
}

// One round of progress, and what it brought to light.
void Exchange::Step(Deadline until) {
  const bool aborted = TakeAbortRequest();  // then whoever waits is not to wait on
  transport_->Progress(aborted ? std::chrono::steady_clock::now() : until);
  Settle();
}

bool Exchange::Settle() {
  if (!noted_.ok()) {
    const Status status = std::exchange(noted_, Status());
    if (std::exchange(noted_mismatch_, false)) {
      Reject(status);
    } else {
      Fail(status);
    }
  }
  return Trouble().ok();
}

Status Exchange::WaitUntil(const std::function<bool()>& done, Duration period) {
  for (;;) {
    if (!Settle()) {
      return Trouble();
    }
    if (done()) {
      return {};
    }
    const Deadline now = std::chrono::steady_clock::now();
    const Deadline leavers = CheckLeavers(now);
    COHORT_RETURN_IF_ERROR(failure_);
    if (now >= deadline_) {
      return TimedOut(done);
    }
    const Deadline tell_at = TellNext(now);
    Step(std::min({deadline_, leavers, WarnOfSlowPeers(now), tell_at, now + period}));
  }
}

bool Exchange::Owes(int p) const {
  return transport_->Owes(p) || (arrived_ != nullptr && p != rank_ && !(*arrived_)(p));
}

bool Exchange::Awaited(int p) const { return Owes(p) || transport_->Unsent(p); }

std::string Exchange::AwaitedNames() const {
  std::string text;
  for (int p = 0; p < size_; ++p) {
    if (Awaited(p)) {
      text += (text.empty() ? "" : ", ") + Name(p);
      if (const auto doubt = transport_->DoubtOf(p, Duration::max())) {
        text += " (" + doubt->what + ")";
      }
    }
  }
  return text.empty() ? awaited_elsewhere_ : text;
}

// Asks the others where they are, and tells a little later who is behind, which need not be whom
// this rank waits for. Returns when to look again.
Deadline Exchange::WarnOfSlowPeers(Deadline now) {
  const Deadline ask_at = started_ + slow_peer_warning_;
  if (warned_ || now < ask_at) {
    return warned_ ? Deadline::max() : ask_at;
  }
  if (!asked_) {
    asked_ = true;
    answer_by_ = now + GraceOf(slow_peer_warning_);
    AskForSignsOfLife();
  }
  if (now < answer_by_ && !AllAnswered()) {
    return answer_by_;
  }
  warned_ = true;
  const std::string culprits = Culprits();
  log_.Warning(record_.Numbered() + " on " + Name(rank_) + " has waited " +
               Seconds(now - started_) +
               (culprits.empty() ? " for " + AwaitedNames() : ": " + culprits));
  return Deadline::max();
}

// A peer that left in good order has sent all it ever will. It has also taken all it ever will, but
// the transport may hear of that a little later. Returns when to look again.
Deadline Exchange::CheckLeavers(Deadline now) {
  constexpr auto kTaken = milliseconds(200);
  Deadline again = Deadline::max();
  for (int p = 0; p < size_; ++p) {
    const Peer& other = peer(p);
    if (other.presence != Presence::kLeft || !Awaited(p)) {
      continue;
    }
    if (Owes(p) || now >= other.left_at + kTaken) {
      Fail(Unavailable(Name(p) + " left the communicator; " + Name(rank_) + " still needs it for " +
                       record_.Numbered()));
      return now;
    }
    again = std::min(again, other.left_at + kTaken);
  }
  return again;
}

std::string Exchange::Where() const {
  if (active_) {
    return "during " + record_.Numbered();
  }
  return record_.sequence + record_.pair_sequence == 0
             ? "before the first operation (generation " + std::to_string(generation_) + ")"
             : "after " + record_.Numbered();
}

void Exchange::AskForSignsOfLife() {
  for (int p = 0; p < size_; ++p) {
    peer(p).heard_stalled = false;  // what it said at a warning is long ago
    GiveSignOfLife(p, true);
  }
}

bool Exchange::AllAnswered() const {
  for (int p = 0; p < size_; ++p) {
    const Peer& other = peer(p);
    const bool concerned = !record_.point_to_point() || p == record_.root;
    if (p != rank_ && concerned && other.presence == Presence::kHere && !other.heard_stalled) {
      return false;
    }
  }
  return true;
}

Status Exchange::TimedOut(const std::function<bool()>& done) {
  const Duration timeout = deadline_ - started_;
  AskForSignsOfLife();
  const Duration grace = GraceOf(timeout);
  constexpr auto kSlice = milliseconds(20);
  constexpr auto kPrompt = milliseconds(5);
  const Deadline asked = std::chrono::steady_clock::now();
  Duration standstill{0};    // of this process: what others say has its time besides
  Deadline judging = asked;  // not at once after it
  for (Deadline now = asked;;) {
    const Deadline first = std::max(asked + grace + standstill, judging);
    const Deadline second = asked + 2 * grace + standstill;
    const bool over = AllAnswered() || now >= first;
    if (now >= second || (over && !Culprits().empty())) {
      break;
    }
    const Deadline until = std::min({over ? second : first, second, now + kSlice});
    Step(until);
    const Duration late = std::chrono::steady_clock::now() - until;
    COHORT_RETURN_IF_ERROR(Trouble());
    if (done()) {  // which may take a while
      return {};
    }
    now = std::chrono::steady_clock::now();
    if (late > kPrompt && standstill < grace / 2) {
      standstill = std::min<Duration>(standstill + late, grace / 2);
      judging = now + kSlice;
    }
  }
  const std::string culprits = Culprits();
  Fail(DeadlineExceeded(record_.Numbered() + " on " + Name(rank_) + " not done after " +
                        Seconds(timeout) + ": " +
                        (culprits.empty() ? "waiting for " + AwaitedNames() : culprits)));
  return failure_;
}

std::string Exchange::Culprits() const {
  std::string certain;
  std::string behind;
  const auto name = [&](std::string& text, int p, const std::string& fault) {
    text += (text.empty() ? "" : ", ") + Name(p) + fault;
  };
  int silent = 0;
  for (int p = 0; p < size_; ++p) {
    const Peer& other = peer(p);
    if (p == rank_ || other.presence != Presence::kHere) {  // see CheckLeavers
      continue;
    }
    if (!other.heard_stalled) {
      ++silent;
    }
    if (record_.point_to_point() && p != record_.root) {
      continue;
    }
    if (!other.heard_stalled) {
      const std::uint64_t last = std::max(other.last_heard, completed_);
      name(certain, p,
           " gives no sign of life" +
               (last > 0 ? " (last heard of in operation #" + std::to_string(last) + ")" : ""));
    } else if (!record_.point_to_point() && other.stalled_in.sequence < record_.sequence) {
      name(behind, p,
           other.stalled_in.sequence + other.stalled_in.pair_sequence == 0
               ? " has not entered it, nor any operation before"
               : " has not entered it; its last is " + other.stalled_in.Numbered());
    } else if (const auto doubt =
                   transport_->DoubtOf(p, (std::chrono::steady_clock::now() - started_) / 2);
               doubt && doubt->certain) {
      name(certain, p, " answers, but " + doubt->what);
    }
  }
  if (silent == size_ - 1 && silent > 1) {
    return Name(rank_) + " hears of no other rank [its own network, or all others, may be down]";
  }
  return certain.empty() ? behind : certain;  // who is behind may wait for one of those
}

// A stalled frame: one byte that says whether an answer is asked for, then where this rank is.
void Exchange::GiveSignOfLife(int p, bool ask) {
  if (p == rank_ || peer(p).presence != Presence::kHere) {
    return;
  }
  std::vector<std::byte> body = record_.Encode();
  body.insert(body.begin(), std::byte(ask ? 1 : 0));
  Tell(p, FrameKind::kStalled, body);
}

void Exchange::Close() {
  TakeAbortRequest();
  for (int p = 0; p < size_; ++p) {
    if (failure_.ok() && p != rank_ && peer(p).presence == Presence::kHere) {
      Tell(p, FrameKind::kBye, {});
    }
  }
  transport_->Close(DeadlineAfter(failure_.ok() ? milliseconds(2000) : milliseconds(1000)));
}

void Exchange::RequestAbort(const Status& reason) {
  {
    const std::lock_guard lock(abort_mutex_);
    if (abort_reason_.ok()) {
      abort_reason_ = reason;
    }
  }
  abort_requested_ = true;
  transport_->Wake();
}

}  // namespace cohort
