// TcpTransport: what comes in, and where it belongs.

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "tcp/tcp_transport.h"

namespace cohort::tcp {
namespace {

constexpr std::size_t kMaxFrameBytes = std::size_t{1} << 40;

}  // namespace

Ticket TcpTransport::Receive(int from, MutableBytes data, const CombineWith& combine) {
  Lane& l = lane(from);
  Stream& p = data_stream(from);
  ++l.receives;
  if (p.posted.empty() && p.kept.HasData()) {
    Give(from, p.kept.Take(), {data, combine});
    if (p.target == Target::kStalled) {  // there may be room for it now
      StartBody(Data(from));
    }
  } else {
    p.posted.push_back({data, combine});
    if (p.target == Target::kStalled) {
      StartBody(Data(from));
    }
  }
  return {from, false, l.receives};
}

// Of what has come; not `all`: what is awaited, where the end of the stream may be left for later.
void TcpTransport::Fetch(int s, bool all) {
  Stream& p = stream(s);
  for (std::size_t turn = 0; turn < kTurnBytes && p.wants_input() && !stop_;) {
    const ssize_t n = FetchOnce(s);
    if (n == 0) {
      return EndOfStream(s, 0);
    }
    if (n < 0) {
      if (errno != EAGAIN && errno != EINTR) {
        EndOfStream(s, errno);
      }
      return;
    }
    turn += static_cast<std::size_t>(n);
    if (!IsControl(s)) {
      pace_.Received(static_cast<std::size_t>(n), std::chrono::steady_clock::now());
    }
    Parse(s);
    if (!all && drained_ && p.target == Target::kHeader && p.posted.empty()) {
      return;  // nothing more is expected
    }
  }
}

// One recv, straight to where the bytes belong when that is known.
ssize_t TcpTransport::FetchOnce(int s) {
  Stream& p = stream(s);
  const std::size_t left = p.header.bytes - p.body_got;
  if (p.target == Target::kPosted && left > kStagingBytes) {
    const Posted& posted = p.posted.front();
    const bool direct = posted.combine.reduction == nullptr;
    std::byte* to = direct ? posted.data.data() + p.body_got : scratch_.data();
    const std::size_t most = direct ? left : std::min(left, scratch_.size());
    const ssize_t n = p.socket.Receive(to, most);
    drained_ = false;
    if (n > 0 && direct) {
      p.body_got += static_cast<std::size_t>(n);
      if (p.body_got == p.header.bytes) {
        FinishBody(s);
      }
    } else if (n > 0) {
      TakeBody(s, {to, static_cast<std::size_t>(n)});
    }
    return n;
  }
  if (p.staged_from > 0) {
    std::copy(p.staging.begin() + static_cast<std::ptrdiff_t>(p.staged_from),
              p.staging.begin() + static_cast<std::ptrdiff_t>(p.staged_to), p.staging.begin());
    p.staged_to -= std::exchange(p.staged_from, 0);
  }
  const std::size_t most = p.staging.size() - p.staged_to;
  const ssize_t n = p.socket.Receive(p.staging.data() + p.staged_to, most);
  drained_ = p.socket.rails() == 1 && n < static_cast<ssize_t>(most);
  if (n > 0) {
    p.staged_to += static_cast<std::size_t>(n);
  }
  return n;
}

// Uses up what is staged.
void TcpTransport::Parse(int s) {
  Stream& p = stream(s);
  while (!stop_ && p.target != Target::kStalled && p.socket.open()) {
    const Bytes staged(p.staging.data() + p.staged_from, p.staged());
    if (p.target != Target::kHeader) {
      if (staged.empty()) {
        return;
      }
      const std::size_t n = std::min(staged.size(), p.header.bytes - p.body_got);
      p.staged_from += n;
      TakeBody(s, staged.first(n));
    } else if (staged.size() < sizeof(Header)) {
      return;
    } else {
      std::memcpy(&p.header, staged.data(), sizeof(Header));
      p.staged_from += sizeof(Header);
      StartBody(s);
    }
  }
}

void TcpTransport::StartBody(int s) {
  Stream& p = stream(s);
  const std::size_t bytes = p.header.bytes;
  const bool control = p.header.kind != FrameKind::kData;
  p.body_got = 0;
  p.body_delivered = 0;
  p.split_bytes = 0;
  if (p.header.magic != kMagic || bytes > (control ? kMaxControlBytes : kMaxFrameBytes)) {
    p.read_closed = true;
    Lose(s, DataLoss("its bytes are no frame"));
    return;
  }
  if (control) {
    p.body.resize(bytes);  // which may throw: first
    p.target = Target::kControl;
  } else if (p.dropping > 0) {
    p.target = Target::kDiscard;
  } else if (!p.posted.empty() && p.kept.empty()) {
    if (p.posted.front().data.size() != bytes) {
      stop_ = true;
      p.target = Target::kDiscard;
      listener_->OnWrongSize(PeerOf(s), bytes, p.posted.front().data.size());
      return;
    }
    p.target = Target::kPosted;
  } else if (p.kept.MayKeep(bytes)) {  // it counts when it is whole
    p.body.resize(bytes);
    p.target = Target::kKept;
  } else {
    p.target = Target::kStalled;
    return;
  }
  if (bytes == 0) {
    FinishBody(s);
  }
}

void TcpTransport::TakeBody(int s, Bytes bytes) {
  Stream& p = stream(s);
  if (p.target == Target::kPosted) {
    const Posted& posted = p.posted.front();
    if (posted.combine.reduction == nullptr) {
      std::memcpy(posted.data.data() + p.body_got, bytes.data(), bytes.size());
    } else {
      CombineArriving(p, posted, bytes);
    }
  } else if (p.target != Target::kDiscard) {
    std::memcpy(p.body.data() + p.body_got, bytes.data(), bytes.size());
  }
  p.body_got += bytes.size();
  if (p.body_got == p.header.bytes) {
    FinishBody(s);
  }
}

// The stream cuts where it likes: the pieces of an element are put together first.
void TcpTransport::CombineArriving(Stream& p, const Posted& posted, Bytes bytes) {
  const std::size_t element = posted.combine.reduction->element_bytes();
  const auto combine = [&](Bytes whole) {
    Deliver(posted.data.data() + p.body_delivered, whole, posted.combine,
            posted.combine.local + p.body_delivered);
    p.body_delivered += whole.size();
  };
  if (p.split_bytes > 0) {
    const std::size_t n = std::min(element - p.split_bytes, bytes.size());
    std::copy_n(bytes.begin(), n, p.split.begin() + static_cast<std::ptrdiff_t>(p.split_bytes));
    p.split_bytes += n;
    bytes = bytes.subspan(n);
    if (p.split_bytes < element) {
      return;
    }
    combine(Bytes(p.split.data(), element));
    p.split_bytes = 0;
  }
  const std::size_t whole = bytes.size() / element * element;
  combine(bytes.first(whole));
  p.split_bytes = bytes.size() - whole;
  std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(whole), p.split_bytes, p.split.begin());
}

// A body that was kept, to the receive that is next.
void TcpTransport::Give(int from, Bytes body, const Posted& posted) {
  if (body.size() != posted.data.size()) {
    stop_ = true;
    listener_->OnWrongSize(from, body.size(), posted.data.size());
    return;
  }
  Deliver(posted.data.data(), body, posted.combine, posted.combine.local);
  CountReceived(body.size());
  ++lane(from).receives_done;
}

void TcpTransport::FinishBody(int s) {
  Stream& p = stream(s);
  const Target target = std::exchange(p.target, Target::kHeader);
  moved_ = true;
  if (target == Target::kPosted) {
    CountReceived(p.header.bytes);
    p.posted.pop_front();
    ++lane(PeerOf(s)).receives_done;
  } else if (target == Target::kKept) {
    std::vector<std::byte> body = std::exchange(p.body, {});
    if (p.posted.empty() || !p.kept.empty()) {
      p.kept.Keep(std::move(body));
    } else {  // asked for while it arrived
      const Posted posted = p.posted.front();
      p.posted.pop_front();
      Give(PeerOf(s), body, posted);
    }
  } else if (target == Target::kControl) {
    const FrameKind kind = p.header.kind;
    const std::vector<std::byte> body = std::exchange(p.body, {});
    const auto from = static_cast<std::size_t>(PeerOf(s));
    const bool last_word = kind == FrameKind::kAbort || kind == FrameKind::kBye;
    if (last_word) {
      farewell_[from] = true;
    }
    if (kind == FrameKind::kReject && !IsControl(s)) {
      if (p.dropping > 0) {
        --p.dropping;
      } else {
        p.kept.KeepReject();
      }
    }
    // The goodbye that counts is the one behind the data, where that is still to come.
    if (kind == FrameKind::kBye && IsControl(s)) {
      return PartIfCut(PeerOf(s));
    }
    const bool told = parted_[from];
    parted_[from] = told || last_word;
    if (kind != FrameKind::kBye || !told) {
      stop_ |= !listener_->OnControl(PeerOf(s), kind, body);
    }
  }
}

}  // namespace cohort::tcp
