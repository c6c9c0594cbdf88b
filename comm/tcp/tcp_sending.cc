// TcpTransport: what goes out.

#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>

#include "tcp/tcp_transport.h"

namespace cohort::tcp {
namespace {

constexpr std::size_t kMaxPieces = 16;  // of one sendmsg

}  // namespace

Ticket TcpTransport::Send(int to, Bytes data) {
  Lane& l = lane(to);
  ++l.sends;
  CountSent(data.size());
  OutFrame& frame = data_stream(to).out.emplace_back();
  frame.header = {kMagic, FrameKind::kData, {}, data.size()};
  frame.body = data;
  frame.ticket = l.sends;
  return {to, true, l.sends};
}

// Opens, joins, rejects and goodbyes keep their place among the data; all but the first two
// overtake it.
void TcpTransport::Control(int to, FrameKind kind, Bytes body) {
  const bool only_in_place = kind == FrameKind::kOpen || kind == FrameKind::kJoin;
  if (only_in_place || kind == FrameKind::kBye || kind == FrameKind::kReject) {
    PutControl(Data(to), kind, body);
  }
  if (!only_in_place) {
    PutControl(Data(to) + kControlChannel, kind, body);
  }
}

void TcpTransport::PutControl(int s, FrameKind kind, Bytes body) {
  Stream& p = stream(s);
  if (p.write_closed || !InUse(s)) {
    return;
  }
  OutFrame& frame = p.out.emplace_back();
  frame.header = {kMagic, kind, {}, body.size()};
  frame.owned.assign(body.begin(), body.end());
  frame.body = frame.owned;
}

void TcpTransport::Flush(int s) {
  Stream& p = stream(s);
  for (std::size_t turn = 0;
       turn < kTurnBytes && !p.out.empty() && !p.write_closed && !IsHeld(s);) {
    std::array<iovec, 2 * kMaxPieces> pieces;
    std::size_t count = 0;
    std::size_t wanted = 0;
    bool in_place = false;
    bool more = false;
    for (const OutFrame& frame : p.out) {
      if (count + 2 > pieces.size() || wanted >= p.stride) {
        break;
      }
      const auto add = [&](const void* data, std::size_t bytes) {
        if (bytes > 0) {
          pieces[count++] = {const_cast<void*>(data), bytes};
          wanted += bytes;
        }
      };
      const std::size_t header_sent = std::min(frame.sent, sizeof(Header));
      const std::size_t body_sent = frame.sent - header_sent;
      add(reinterpret_cast<const std::byte*>(&frame.header) + header_sent,
          sizeof(Header) - header_sent);
      // In place go callers' bytes, and nothing with them: headers do not stay where they are.
      const bool alone = p.socket.zero_copy() && frame.ticket != 0 &&
                         frame.body.size() - body_sent >= StripedSocket::kZeroCopyBytes;
      more = alone && count > 0;
      if (more) {
        break;
      }
      add(frame.body.data() + body_sent, std::min(frame.body.size() - body_sent, p.stride));
      if (alone) {
        in_place = true;
        break;
      }
    }
    const ssize_t n = p.socket.Send(std::span(pieces).first(count), in_place, more);
    if (n < 0) {
      if (errno != EAGAIN && errno != EINTR && errno != ENOBUFS) {
        EndOfRail(s, p.socket.writing(), errno);
        p.write_closed = true;  // its last word will show whether it left or was lost
        p.out.clear();
      }
      return;
    }
    turn += static_cast<std::size_t>(n);
    if (p.out.front().ticket != 0) {
      pace_.Sent(static_cast<std::size_t>(n), std::chrono::steady_clock::now());
    }
    Sent(s, static_cast<std::size_t>(n));
    if (p.socket.full()) {
      return;
    }
  }
}

// Whether what stream `s` is to send waits for what comes: see Pace.
bool TcpTransport::IsHeld(int s) {
  Stream& p = stream(s);
  if (IsControl(s) || p.out.empty() || p.out.front().ticket == 0) {
    return false;
  }
  bool expects = false;
  std::size_t strides = 0;
  for (int rank = 0; rank < count() / kChannels; ++rank) {
    const Stream& data = data_stream(rank);
    expects |= !data.posted.empty();
    strides += data.out.empty() ? 0 : data.stride;
  }
  if (!expects) {
    pace_.Reset();
    return false;
  }
  return pace_.Holds(strides, std::chrono::steady_clock::now()) &&
         IsNear(p.socket.fd(p.socket.writing()));
}

void TcpTransport::Sent(int s, std::size_t bytes) {
  Stream& p = stream(s);
  while (bytes > 0) {
    OutFrame& frame = p.out.front();
    const std::size_t n = std::min(bytes, frame.bytes() - frame.sent);
    frame.sent += n;
    frame.mark = std::max(frame.mark, p.socket.mark());
    bytes -= n;
    if (frame.sent < frame.bytes()) {
      return;
    }
    if (frame.ticket != 0) {
      p.lingering.push_back({frame.ticket, frame.mark});
      FinishReleased(s);
    }
    p.out.pop_front();
    moved_ |= p.out.empty();
  }
}

void TcpTransport::FinishReleased(int s) {
  Stream& p = stream(s);
  for (; !p.lingering.empty() && p.socket.released(p.lingering.front().mark);
       p.lingering.pop_front()) {
    lane(PeerOf(s)).sends_done = p.lingering.front().ticket;
    moved_ = true;
  }
}

}  // namespace cohort::tcp
