// Exchange: what peers say, whether it agrees with what this rank does, and what becomes of it if
// not.

#include "exchange.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace cohort {
namespace {

// A reject frame: this, then what an abort frame has.
struct RejectHead {
  std::uint64_t sequence = 0;
  std::uint64_t joins = 0;  // of its record
};

// An abort frame: the code, then the text.
std::vector<std::byte> EncodeStatus(const Status& status) {
  const auto code = static_cast<std::int32_t>(status.code());
  const std::size_t length =
      std::min(status.message().size(), Transport::kMaxControlBytes - sizeof(code));
  std::vector<std::byte> body(sizeof(code) + length);
  std::memcpy(body.data(), &code, sizeof(code));
  std::memcpy(body.data() + sizeof(code), status.message().data(), length);
  return body;
}

Status DecodeStatus(Bytes body) {
  std::int32_t code = 0;
  if (body.size() < sizeof(code)) {
    return Internal("abort frame of " + std::to_string(body.size()) + " bytes");
  }
  std::memcpy(&code, body.data(), sizeof(code));
  if (code <= 0 || code > static_cast<std::int32_t>(StatusCode::kDataLoss)) {
    return Internal("abort frame with code " + std::to_string(code));
  }
  return {static_cast<StatusCode>(code),
          std::string(reinterpret_cast<const char*>(body.data()) + sizeof(code),
                      body.size() - sizeof(code))};
}

}  // namespace

// --- what peers say

bool Exchange::OnControl(int from, FrameKind kind, Bytes body) {
  Peer& other = peer(from);
  peers_silent_ = false;
  switch (kind) {
    case FrameKind::kOpen: {
      std::optional<OperationRecord> record = OperationRecord::Decode(body);
      if (!record) {
        Note(Internal(Name(from) + " sent a malformed operation record " + Where()));
        return false;
      }
      if (!record->point_to_point()) {
        other.last_heard = record->sequence;
      }
      other.opens.push_back(std::move(*record));
      return !active_ || !rejected_.ok() || JudgeFirstOpen(from);
    }
    case FrameKind::kStalled: {
      std::optional<OperationRecord> record;
      if (!body.empty() && (record = OperationRecord::Decode(body.subspan(1)))) {
        other.heard_stalled = true;
        other.last_heard = std::max(other.last_heard, record->sequence);
        other.stalled_in = std::move(*record);
        if (body[0] != std::byte(0)) {
          GiveSignOfLife(from, false);
        }
      }
      return true;
    }
    case FrameKind::kAbort:
      Note(DecodeStatus(body));
      return false;
    case FrameKind::kReject:
      return OnReject(from, body);
    case FrameKind::kJoin:
      return OnJoin(from, body);
    case FrameKind::kBye:
      other.presence = Presence::kLeft;
      other.left_at = std::chrono::steady_clock::now();
      return true;
    case FrameKind::kData:
      break;
  }
  Note(Internal(Name(from) + " sent a frame of unknown kind " +
                std::to_string(static_cast<int>(kind))));
  return false;
}

void Exchange::OnLost(int from, const Status& why) {
  if (peer(from).presence != Presence::kHere) {
    return;
  }
  peer(from).presence = Presence::kLost;
  Note(Unavailable(Name(from) + " is gone " + Where() + ": " + why.message() +
                   " [see that process's own log for why it ended]"));
}

void Exchange::OnWrongSize(int from, std::size_t sent, std::size_t expected) {
  Note(Internal(Name(from) + " sent " + std::to_string(sent) + " bytes where " + Name(rank_) +
                " expects " + std::to_string(expected) + " " + Where()));
}

// Compares the first operation that `p` has begun and we have not with the one under way.
bool Exchange::JudgeFirstOpen(int p) {
  Peer& other = peer(p);
  // The opening of a collective towards the next rank may come after its end: all have agreed.
  std::erase_if(other.opens, [this](const OperationRecord& theirs) {
    const std::uint64_t first = record_.point_to_point() ? collectives_ + 1 : collectives_;
    return !theirs.point_to_point() && theirs.sequence < first && theirs.generation == generation_;
  });
  if (other.opens.empty()) {
    return true;
  }
  const OperationRecord& theirs = other.opens.front();
  switch (Judge(p, theirs)) {
    case Verdict::kSame:
      other.opens.pop_front();
      other.heard_open = true;
      return true;
    case Verdict::kLater:
      return true;
    case Verdict::kMismatch:
      break;
  }
  const bool brief = record_.Brief() != theirs.Brief();
  const std::string mine = Name(rank_) + " is in " + (brief ? record_.Brief() : record_.Full());
  const std::string yours = Name(p) + " is in " + (brief ? theirs.Brief() : theirs.Full());
  Status status =
      InvalidArgument((rank_ < p ? mine + ", " + yours : yours + ", " + mine) + ", operation #" +
                      std::to_string(std::max(record_.sequence, theirs.sequence)) +
                      " (generation " + std::to_string(generation_) +
                      ") [every rank must call the same operations in the same order]");
  const bool numbered =
      !record_.point_to_point() && !theirs.point_to_point() && theirs.sequence == record_.sequence;
  if (numbered) {
    NoteMismatch(std::move(status));
  } else {
    Note(std::move(status));
  }
  return false;
}

Exchange::Verdict Exchange::Judge(int p, const OperationRecord& theirs) const {
  if (peer(p).heard_open) {  // it has gone on
    return transport_->Owes(p) ? Verdict::kMismatch : Verdict::kLater;
  }
  if (record_.point_to_point()) {
    // Only the two ranks take part; the others may be ahead.
    if (record_.kind == OperationKind::kSend || p != record_.root) {
      return Verdict::kLater;
    }
    return record_.Matches(theirs) ? Verdict::kSame : Verdict::kMismatch;
  }
  if (!theirs.point_to_point() && theirs.sequence == record_.sequence) {
    return record_.Matches(theirs) ? Verdict::kSame : Verdict::kMismatch;
  }
  // A collective after this one, or a Send after this one: fine, unless that rank still owes data
  // here. A Send carries the number of the collective before it.
  const bool later = theirs.point_to_point() ? theirs.sequence >= record_.sequence
                                             : theirs.sequence > record_.sequence;
  return later && !transport_->Owes(p) ? Verdict::kLater : Verdict::kMismatch;
}

// --- what is noted becomes a rejection or a failure

void Exchange::Note(Status status) {
  if ((noted_.ok() || noted_mismatch_) && failure_.ok()) {
    noted_ = std::move(status);
    noted_mismatch_ = false;
  }
}

void Exchange::NoteMismatch(Status status) {
  if (noted_.ok() && Trouble().ok()) {
    noted_ = std::move(status);
    noted_mismatch_ = true;
  }
}

void Exchange::Reject(const Status& status) {
  if (!transport_->Abandon()) {
    Fail(Status(status.code(), status.message() +
                                   " [the communicator is of no further use: make one of a higher "
                                   "generation]"));
    return;
  }
  const bool touched = transport_->bytes_received() != received_before_;
  rejected_ = Status(status.code(),
                     status.message() + (touched ? " [the communicator goes on; buffers of this "
                                                   "operation hold anything on this rank]"
                                                 : " [the communicator goes on; nothing of others "
                                                   "was taken in on this rank]"));
  last_rejected_ = record_.sequence;
  gave_up_ = true;
  const RejectHead head = {last_rejected_, record_.joins};
  std::vector<std::byte> body(sizeof(head));
  std::memcpy(body.data(), &head, sizeof(head));
  const std::vector<std::byte> why = EncodeStatus(status);
  body.insert(body.end(), why.begin(),
              why.begin() + static_cast<std::ptrdiff_t>(
                                std::min(why.size(), Transport::kMaxControlBytes - body.size())));
  for (int p = 0; p < size_; ++p) {
    if (p != rank_ && peer(p).presence == Presence::kHere) {
      Tell(p, FrameKind::kReject, body);
    }
  }
}

// A peer has given up an operation. It comes twice from each: see Transport::Control.
bool Exchange::OnReject(int from, Bytes body) {
  RejectHead head;
  if (body.size() < sizeof(head)) {
    Note(Internal(Name(from) + " sent a malformed reject " + Where()));
    return false;
  }
  std::memcpy(&head, body.data(), sizeof(head));
  const std::uint64_t sequence = head.sequence;
  const Status why = DecodeStatus(body.subspan(sizeof(head)));
  if (sequence <= last_rejected_) {
    return true;
  }
  if (sequence > collectives_) {
    rejections_.try_emplace(sequence, Rejection{why, static_cast<std::uint16_t>(head.joins)});
    return true;
  }
  if (sequence == collectives_ && active_ && !record_.point_to_point()) {
    NoteMismatch(why);
  } else {
    Note(Internal(Name(from) + " has given up operation #" + std::to_string(sequence) +
                  ", which was done here: " + why.message()));
  }
  return false;
}

void Exchange::Fail(const Status& status) {
  if (!failure_.ok()) {
    return;
  }
  failure_ = status;
  noted_ = Status();
  noted_mismatch_ = false;
  transport_->Forget();
  const std::vector<std::byte> body = EncodeStatus(status);
  for (int p = 0; p < size_; ++p) {
    if (p != rank_ && peer(p).presence == Presence::kHere) {
      Tell(p, FrameKind::kAbort, body);
    }
  }
  on_failure_(failure_);
}

}  // namespace cohort
