#include "shm/shared_transport.h"

#include <immintrin.h>
#include <poll.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <new>
#include <thread>
#include <utility>

namespace cohort {
namespace {

constexpr std::size_t kInsideBytes = 4096;     // larger bodies are lent if they can be
constexpr std::size_t kPieceBytes = 32 << 10;  // of those that cannot
constexpr std::size_t kTurnBytes = 256 << 10;  // taken from one peer before the next one's turn
constexpr int kLookEvery = 16;                 // turns, at the clock
constexpr auto kCrowdedSpin = std::chrono::microseconds(20);  // of giving the core away
constexpr unsigned kBellRang = 1;
constexpr unsigned kSocketSpoke = 2;

// Opens, joins, rejects and goodbyes keep their place among the data; all but the first two
// overtake it.
bool Overtakes(FrameKind kind) { return kind != FrameKind::kOpen && kind != FrameKind::kJoin; }
bool KeepsPlace(FrameKind kind) {
  return !Overtakes(kind) || kind == FrameKind::kBye || kind == FrameKind::kReject;
}

Region* RegionAt(std::byte* memory) { return reinterpret_cast<Region*>(memory); }

std::vector<Region*> RegionsOf(const std::vector<std::byte*>& memory) {
  std::vector<Region*> regions;
  for (std::byte* m : memory) {
    regions.push_back(RegionAt(m));
  }
  return regions;
}

}  // namespace

void MakeRegion(std::byte* memory, int rank, const RegionLayout& layout) {
  auto* const region = new (memory) Region;
  region->rank = static_cast<std::uint32_t>(rank);
  region->ranks = static_cast<std::uint32_t>(layout.ranks);
  for (int peer = 0; peer < static_cast<int>(layout.ranks); ++peer) {
    new (&layout.LinkOf(memory, peer)) Link;
  }
  region->magic = RegionLayout::kMagic;
}

SharedTransport::SharedTransport(SharedParts parts)
    : Transport(static_cast<int>(parts.layout.ranks)),
      rank_(parts.rank),
      layout_(parts.layout),
      memory_(std::move(parts.memory)),
      segments_(std::move(parts.segments)),
      bell_fds_(std::move(parts.bells)),
      crowded_(parts.crowded),
      region_(*RegionAt(parts.regions[static_cast<std::size_t>(parts.rank)])),
      board_(parts.rank, RegionsOf(parts.regions), bells_, segments_.get(), crowded_),
      peers_(parts.layout.ranks) {
  std::byte* const own = parts.regions[static_cast<std::size_t>(rank_)];
  for (int p = 0; p < static_cast<int>(layout_.ranks); ++p) {
    std::byte* const other = parts.regions[static_cast<std::size_t>(p)];
    Link& mine = layout_.LinkOf(own, p);
    Link& theirs = layout_.LinkOf(other, rank_);
    Peer& to = peer(p);
    to.ring = {layout_.Ring(own, p), layout_.ring_bytes, mine.sent, theirs.taken};
    to.urgent = {layout_.Urgent(own, p), RegionLayout::kUrgentBytes, mine.urgent_sent,
                 theirs.urgent_taken};
    to.from = {layout_.Ring(other, rank_), layout_.ring_bytes, theirs.sent, mine.taken};
    to.urgent_from = {layout_.Urgent(other, rank_), RegionLayout::kUrgentBytes, theirs.urgent_sent,
                      mine.urgent_taken};
    to.mine = &mine;
    to.theirs = &theirs;
    to.region = RegionAt(other);
    bells_.Add(to.region->sleeps, bell_fds_[static_cast<std::size_t>(p)]);
  }
}

Ticket SharedTransport::Send(int to, Bytes data) {
  Lane& l = lane(to);
  ++l.sends;
  CountSent(data.size());
  Outgoing out;
  out.data = data;
  out.ticket = l.sends;
  if (!peer(to).out.empty() || !Put(to, out)) {
    peer(to).out.push_back(std::move(out));
  }
  return {to, true, l.sends};
}

Ticket SharedTransport::Receive(int from, MutableBytes data, const CombineWith& combine) {
  Lane& l = lane(from);
  ++l.receives;
  peer(from).posted.push_back({data, combine});
  return {from, false, l.receives};
}

void SharedTransport::Control(int to, FrameKind kind, Bytes body) {
  Outgoing out;
  out.kind = kind;
  out.body.assign(body.begin(), body.end());
  if (Overtakes(kind)) {
    peer(to).urgent_out.push_back(out);
  }
  if (KeepsPlace(kind)) {
    peer(to).out.push_back(std::move(out));
  }
  Flush(to);
}

// Puts what the rings to `to` have room for.
void SharedTransport::Flush(int to) {
  Peer& p = peer(to);
  while (!p.urgent_out.empty() &&
         p.urgent.Put({.kind = static_cast<std::uint8_t>(p.urgent_out.front().kind),
                       .total = p.urgent_out.front().body.size()},
                      p.urgent_out.front().body)) {
    p.urgent_out.pop_front();
    bells_.Ring(to);
  }
  while (!p.out.empty() && Put(to, p.out.front())) {
    p.out.pop_front();
    moved_ = true;
  }
}

// False: not all of it yet.
bool SharedTransport::Put(int to, Outgoing& out) {
  Peer& p = peer(to);
  const auto kind = static_cast<std::uint8_t>(out.kind);
  if (out.kind != FrameKind::kData) {
    if (!p.ring.Put({.kind = kind, .total = out.body.size()}, out.body)) {
      return false;
    }
    bells_.Ring(to);
    return true;
  }
  const std::size_t total = out.data.size();
  if (total <= kInsideBytes) {
    if (!p.ring.Put({.kind = kind, .total = total}, out.data)) {
      return false;
    }
    bells_.Ring(to);
    Sent(to, out.ticket, 0);
    return true;
  }
  if (out.put == 0) {
    const std::optional<Loan> loan =
        segments_ ? segments_->Find(out.data)
                  : Loan{0, reinterpret_cast<std::uintptr_t>(out.data.data())};
    if (loan) {
      if (!p.ring.Put({.kind = kind, .form = RingFrame::kLoan, .total = total},
                      std::as_bytes(std::span(&*loan, 1)))) {
        return false;
      }
      bells_.Ring(to);
      Sent(to, out.ticket, p.ring.position());
      return true;
    }
  }
  while (out.put < total) {
    const Bytes piece = out.data.subspan(out.put, std::min(kPieceBytes, total - out.put));
    if (!p.ring.Put({.kind = kind, .form = RingFrame::kPiece, .total = total}, piece)) {
      return false;
    }
    out.put += piece.size();
    moved_ = true;
    bells_.Ring(to);
  }
  Sent(to, out.ticket, 0);
  return true;
}

void SharedTransport::Sent(int to, std::uint64_t ticket, std::uint64_t position) {
  Peer& p = peer(to);
  if (position == 0 && p.unreturned.empty()) {
    lane(to).sends_done = ticket;
  } else {
    p.unreturned.push_back({ticket, position});
  }
}

void SharedTransport::TakeReturns(int to) {
  Peer& p = peer(to);
  if (p.unreturned.empty()) {
    return;
  }
  const std::uint64_t taken = p.ring.taken();
  while (!p.unreturned.empty() && p.unreturned.front().position <= taken) {
    lane(to).sends_done = p.unreturned.front().ticket;
    p.unreturned.pop_front();
    moved_ = true;
  }
}

void SharedTransport::TakeUrgent(int from) {
  Peer& p = peer(from);
  RingFrame frame;
  Bytes body;
  while (!stop_ && p.urgent_from.Peek(frame, body)) {
    const std::vector<std::byte> copy(body.begin(), body.end());
    p.urgent_from.Pop(frame);
    bells_.Ring(from);
    const auto kind = static_cast<FrameKind>(frame.kind);
    moved_ = true;
    if (kind == FrameKind::kAbort || kind == FrameKind::kBye) {
      p.farewell = true;
    }
    if (kind != FrameKind::kBye) {  // the goodbye that counts is the one behind the data
      stop_ |= !listener_->OnControl(from, kind, copy);
    }
  }
}

void SharedTransport::TakeFrames(int from) {
  Peer& p = peer(from);
  RingFrame frame;
  Bytes body;
  for (std::size_t turn = 0; !stop_ && turn < kTurnBytes && p.from.Peek(frame, body);) {
    const auto kind = static_cast<FrameKind>(frame.kind);
    if (kind == FrameKind::kData) {
      if (!TakeData(from, frame, body)) {
        return;
      }
      turn += frame.form == RingFrame::kLoan ? frame.total : frame.bytes;
    } else {
      const std::vector<std::byte> copy(body.begin(), body.end());
      p.from.Pop(frame);
      p.dropping -= kind == FrameKind::kReject ? 1 : 0;
      stop_ |= !listener_->OnControl(from, kind, copy);
    }
    moved_ = true;
    bells_.Ring(from);
  }
}

// False: it stays in the ring.
bool SharedTransport::TakeData(int from, const RingFrame& frame, Bytes body) {
  Peer& p = peer(from);
  if (forgotten_ || p.dropping > 0) {
    p.from.Pop(frame);
    return true;
  }
  if (p.posted.empty() || p.dropping < 0) {
    return false;
  }
  Posted& posted = p.posted.front();
  if (frame.total != posted.data.size()) {
    stop_ = true;
    listener_->OnWrongSize(from, frame.total, posted.data.size());
    return false;
  }
  if (frame.form == RingFrame::kLoan) {
    Loan loan;
    std::memcpy(&loan, body.data(), sizeof(loan));
    const std::byte* const lent = segments_ ? segments_->Resolve(from, loan, frame.total)
                                            : reinterpret_cast<const std::byte*>(loan.offset);
    if (lent == nullptr) {
      stop_ = true;
      listener_->OnLost(from, DataLoss("it lends memory that it did not announce"));
      return false;
    }
    const std::uint64_t end = p.from.EndOf(frame);
    p.mine->reading.store(1);
    const bool there = p.theirs->withdrawn.load() < end;
    if (there) {
      Deliver(posted.data.data(), {lent, frame.total}, posted.combine, posted.combine.local);
    }
    p.mine->reading.store(0);
    if (p.theirs->withdrawn.load() >= end) {  // the sender gave up, and is about to say so
      CountReceived(there ? frame.total : 0);
      return false;
    }
    posted.got = frame.total;
  } else {
    Deliver(posted.data.data() + posted.got, body, posted.combine,
            posted.combine.local == nullptr ? nullptr : posted.combine.local + posted.got);
    posted.got += body.size();
  }
  p.from.Pop(frame);
  if (posted.got == posted.data.size()) {
    CountReceived(posted.got);
    p.posted.pop_front();
    ++lane(from).receives_done;
  }
  return true;
}

void SharedTransport::Pump() {
  for (int p = 0; p < static_cast<int>(peers_.size()) && !stop_; ++p) {
    if (p == rank_) {
      continue;
    }
    peer(p).looked.store(peer(p).theirs->sent.load(std::memory_order_acquire),
                         std::memory_order_relaxed);
    peer(p).urgent_looked.store(peer(p).theirs->urgent_sent.load(std::memory_order_acquire),
                                std::memory_order_relaxed);
    TakeUrgent(p);
    TakeFrames(p);
    TakeReturns(p);
    Flush(p);
    const std::uint64_t shown = board_.Signature(p);
    if (shown != peer(p).shown) {
      peer(p).shown = shown;
      moved_ = true;
    }
  }
}

// --- waiting

void SharedTransport::Progress(Deadline until) {
  moved_ = false;
  stop_ = false;
  if (signals_.load(std::memory_order_relaxed) != 0) {
    TakeSignals(signals_.exchange(0));
  }
  Deadline spin_end;
  for (int turn = 0;; ++turn) {
    Pump();
    if (moved_ || stop_) {
      return;
    }
    if (woken_.load(std::memory_order_relaxed)) {
      woken_ = false;
      return;
    }
    if (turn % kLookEvery == 0) {
      const Deadline now = std::chrono::steady_clock::now();
      if (turn == 0) {
        spin_end = now + (crowded_ ? std::min<Duration>(spin(), kCrowdedSpin) : spin());
      }
      if (now >= until) {
        return;
      }
      if (now >= spin_end) {
        break;
      }
    }
    if (crowded_) {
      ::sched_yield();
    } else {
      _mm_pause();
    }
  }
  Sleep(until);
}

void SharedTransport::Sleep(Deadline until) {
  region_.sleeps.fetch_add((std::uint64_t{1} << 32) + 1);
  Pump();
  unsigned signals = 0;
  if (!moved_ && !stop_ && !woken_) {
    signals = WaitForSignal(until);
  }
  region_.sleeps.fetch_sub(1);
  woken_ = false;
  TakeSignals(signals);
  if (!moved_ && !stop_) {
    Pump();
  }
}

void SharedTransport::Watch(Deadline until) {
  region_.sleeps.fetch_add((std::uint64_t{1} << 32) + 1);
  bool something = woken_;  // since the driver, which the caller was until now, last looked
  for (const Peer& p : peers_) {
    something |=
        p.theirs->sent.load() != p.looked || p.theirs->urgent_sent.load() != p.urgent_looked;
  }
  const unsigned signals = something ? 0 : WaitForSignal(until);
  region_.sleeps.fetch_sub(1);
  signals_ |= signals;
}

unsigned SharedTransport::WaitForSignal(Deadline until) {
  std::vector<pollfd> events = {{bell_fds_[static_cast<std::size_t>(rank_)], POLLIN, 0}};
  if (segments_) {
    for (int p = 0; p < segments_->size(); ++p) {
      if (segments_->socket(p).open() && !peer(p).gone) {
        events.push_back({segments_->socket(p).fd(), POLLIN, 0});
      }
    }
  }
  const auto left = std::clamp<Duration>(until - std::chrono::steady_clock::now(), Duration(0),
                                         std::chrono::hours(1));
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(left);
  const timespec timeout = {seconds.count(), std::chrono::nanoseconds(left - seconds).count()};
  if (::ppoll(events.data(), events.size(), &timeout, nullptr) <= 0) {
    return 0;
  }
  unsigned signals = events[0].revents != 0 ? kBellRang : 0;
  for (std::size_t i = 1; i < events.size(); ++i) {
    signals |= events[i].revents != 0 ? kSocketSpoke : 0;
  }
  return signals;
}

void SharedTransport::TakeSignals(unsigned signals) {
  if ((signals & kBellRang) != 0) {
    std::uint64_t count = 0;
    [[maybe_unused]] const ssize_t n =
        ::read(bell_fds_[static_cast<std::size_t>(rank_)], &count, sizeof(count));
  }
  if ((signals & kSocketSpoke) != 0) {
    for (int p = 0; p < static_cast<int>(peers_.size()); ++p) {
      HearSocket(p);
    }
  }
}

void SharedTransport::HearSocket(int from) {
  Peer& p = peer(from);
  if (!segments_ || p.gone || !segments_->socket(from).open()) {
    return;
  }
  if (!stop_) {
    const Status heard = segments_->Hear(from);
    if (heard.ok()) {
      return;
    }
    TakeUrgent(from);  // its last words
    if (!stop_) {
      p.gone = true;
      moved_ = true;
      if (!p.farewell) {
        stop_ = true;
        listener_->OnLost(from, heard);
      }
      return;
    }
  }
  signals_ |= kSocketSpoke;  // the listener wants no more now: later
}

void SharedTransport::Wake() {
  woken_ = true;
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t n =
      ::write(bell_fds_[static_cast<std::size_t>(rank_)], &one, sizeof(one));
}

Result<std::unique_ptr<Memory>> SharedTransport::Allocate(std::size_t bytes) {
  return segments_ ? segments_->Allocate(bytes) : AllocateMemory(bytes);
}

// --- the end

// Threads give back memory that a reader would miss; what processes have mapped stays. A process
// may also be stopped while it reads.
void SharedTransport::Withdraw(Peer& p, std::uint64_t position) {
  if (!p.posted.empty()) {
    CountReceived(p.posted.front().got);
  }
  p.posted.clear();
  p.unreturned.clear();
  std::erase_if(p.out, [](const Outgoing& out) { return out.kind == FrameKind::kData; });
  p.mine->withdrawn.store(position);
  while (!segments_ && p.theirs->reading.load() != 0) {
    std::this_thread::yield();  // for as long as a segment takes to be read
  }
}

// The rings stay whole: what is in them is dropped by the peer, up to this rank's reject.
bool SharedTransport::Abandon() {
  board_.Withdraw();
  for (int p = 0; p < static_cast<int>(peers_.size()); ++p) {
    if (p != rank_) {
      Withdraw(peer(p), peer(p).ring.position());
      Lane& l = lane(p);
      l.receives_done = l.receives;
      l.sends_done = l.sends;
      ++peer(p).dropping;
    }
  }
  return true;
}

void SharedTransport::Forget() {
  forgotten_ = true;
  board_.Withdraw();
  for (Peer& p : peers_) {
    Withdraw(p, ~std::uint64_t{0});
  }
}

void SharedTransport::Close(Deadline deadline) {
  const auto unsent = [&] {
    return std::any_of(peers_.begin(), peers_.end(), [](const Peer& p) {
      return !p.gone && !(p.out.empty() && p.urgent_out.empty());
    });
  };
  while (unsent() && std::chrono::steady_clock::now() < deadline) {
    Progress(std::min(deadline, DeadlineAfter(std::chrono::milliseconds(10))));
  }
  if (segments_) {
    segments_->Close();
  }
}

}  // namespace cohort
