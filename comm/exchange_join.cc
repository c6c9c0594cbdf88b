// Exchange: ranks that have run out of operations of their own.

#include "exchange.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace cohort {

Status Exchange::BeginJoin() {
  COHORT_RETURN_IF_ERROR(failure_);
  joined_at_ = collectives_;
  for (int p = 0; p < size_; ++p) {
    if (p != rank_ && peer(p).presence == Presence::kHere) {
      Tell(p, FrameKind::kJoin, std::as_bytes(std::span(&joined_at_, 1)));
    }
  }
  return {};
}

bool Exchange::AllJoined() const {
  for (int p = 0; p < size_; ++p) {
    // Whoever has not been heard of, or called more than we have taken part in: not yet.
    if (p != rank_ && (peer(p).joins.empty() || peer(p).joins.front() > collectives_)) {
      return false;
    }
  }
  return true;
}

// The operation after our last that a peer is in, if there is one.
std::optional<OperationRecord> Exchange::ToShadow() {
  if (const auto given_up = rejections_.find(collectives_ + 1);
      given_up != rejections_.end() && given_up->second.joins == joins_done_) {
    return OperationRecord{};  // Begin ends it
  }
  for (int p = 0; p < size_; ++p) {
    Peer& other = peer(p);
    std::erase_if(other.opens, [this](const OperationRecord& theirs) {
      return !theirs.point_to_point() && theirs.sequence <= collectives_;
    });
    if (other.opens.empty()) {
      continue;
    }
    const OperationRecord& theirs = other.opens.front();
    if (theirs.joins != joins_done_) {
      continue;  // it knows already that all have joined
    }
    if (theirs.point_to_point()) {
      Fail(InvalidArgument(theirs.Numbered() + " by " + Name(p) + " to " + Name(rank_) +
                           ", which has joined [only AllReduce of sum and mean, Broadcast and "
                           "Barrier are possible then]"));
      return std::nullopt;
    }
    if (theirs.sequence == collectives_ + 1) {
      return theirs;
    }
  }
  return std::nullopt;
}

Result<std::optional<OperationRecord>> Exchange::NextShadow(Deadline deadline) {
  Deadline warn_at = DeadlineAfter(slow_peer_warning_);
  for (;;) {
    std::optional<OperationRecord> next = ToShadow();  // first: a message among them is an error
    COHORT_RETURN_IF_ERROR(failure_);
    if (next) {
      return next;
    }
    if (AllJoined()) {
      return std::optional<OperationRecord>();
    }
    std::string missing;
    for (int p = 0; p < size_; ++p) {
      if (p == rank_ || !peer(p).joins.empty()) {
        continue;
      }
      missing += (missing.empty() ? "" : ", ") + Name(p);
      if (peer(p).presence == Presence::kLeft) {
        Fail(Unavailable(Name(p) + " left the communicator; " + Name(rank_) +
                         " has joined and waits for it to join"));
        return failure_;
      }
    }
    const Deadline now = std::chrono::steady_clock::now();
    if (now >= std::min(deadline, warn_at)) {
      const std::string what =
          Name(rank_) + " has joined, and nothing came " + Where() +
          "; not joined: " + (missing.empty() ? "nobody, but operations are missing" : missing);
      if (now >= deadline) {
        Fail(DeadlineExceeded(what));
        return failure_;
      }
      log_.Warning(what);
      warn_at = Deadline::max();
    }
    Step(std::min(deadline, warn_at));
    COHORT_RETURN_IF_ERROR(failure_);
  }
}

int Exchange::EndJoin() {
  ++joins_done_;
  int last = rank_;
  std::uint64_t most = joined_at_;
  for (int p = 0; p < size_; ++p) {
    if (p == rank_) {
      continue;
    }
    const std::uint64_t theirs = peer(p).joins.front();
    peer(p).joins.pop_front();
    --joins_;
    if (theirs > most || (theirs == most && p > last)) {
      last = p;
      most = theirs;
    }
  }
  return last;
}

bool Exchange::OnJoin(int from, Bytes body) {
  std::uint64_t called = 0;
  if (body.size() != sizeof(called)) {
    Note(Internal(Name(from) + " sent a malformed join " + Where()));
    return false;
  }
  std::memcpy(&called, body.data(), sizeof(called));
  peer(from).joins.push_back(called);
  ++joins_;
  if (active_ && !record_.point_to_point() && rejected_.ok()) {
    Open(from);  // it takes part in what it hears of
  }
  return true;
}

}  // namespace cohort
