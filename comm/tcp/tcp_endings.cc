// TcpTransport: connections that end, or pass nothing: whether the peer has left, is lost, or is
// not to blame.

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstdio>

#include "tcp/tcp_transport.h"

namespace cohort::tcp {
namespace {

// A peer's stream may end a little before its last word on the other stream comes.
constexpr auto kLastWord = std::chrono::seconds(1);

std::string NameOfRail(const StripedSocket& socket, int rail) {
  return socket.rails() == 1
             ? "data connection"
             : "rail " + std::to_string(rail + 1) + " of " + std::to_string(socket.rails());
}

// What the kernel knows of a connection.
struct Pulse {
  int unread = 0;                             // bytes that have come
  std::chrono::milliseconds nothing_came{0};  // for so long
  std::chrono::milliseconds no_answer{0};     // nothing of what was sent was acknowledged
  int repeats = 0;                            // of what is not, in a row
};

std::optional<Pulse> PulseOf(int fd) {
  Pulse pulse;
  tcp_info info = {};
  socklen_t bytes = sizeof(info);
  if (::ioctl(fd, FIONREAD, &pulse.unread) != 0 ||
      ::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) != 0) {
    return std::nullopt;
  }
  pulse.nothing_came = std::chrono::milliseconds(info.tcpi_last_data_recv);
  pulse.no_answer = std::chrono::milliseconds(info.tcpi_last_ack_recv);
  pulse.repeats = info.tcpi_unacked > 0 ? info.tcpi_retransmits : 0;
  return pulse;
}

std::string Seconds(std::chrono::milliseconds duration) {
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), "%.1f s", static_cast<double>(duration.count()) / 1000);
  return text.data();
}

}  // namespace

// Reads no further, though other rails may hold more: bytes come in one order.
void TcpTransport::EndOfStream(int s, int error) {
  Stream& p = stream(s);
  p.read_closed = true;
  EndOfRail(s, p.socket.reading(), error);
  if (farewell(s)) {  // it has taken what it ever will: no release is waited for
    for (; !p.lingering.empty(); p.lingering.pop_front()) {
      lane(PeerOf(s)).sends_done = p.lingering.front().ticket;
    }
  }
  if (IsControl(s) && error == 0) {
    Lose(s, Unavailable("connection closed"));  // a goodbye would have come before the end
  }
  PartIfCut(PeerOf(s));
  LoseIfSilent(PeerOf(s));
}

// A reset takes with it what was on its way: the goodbye on one stream may be all that is left. Of
// a peer of which nothing more can come there is none.
void TcpTransport::LoseIfSilent(int rank) {
  const Stream& control = stream(Data(rank) + kControlChannel);
  const Stream& data = data_stream(rank);
  const bool no_more = data.read_closed || (data.ended && data.target == Target::kStalled);
  if (control.read_closed && no_more) {
    Lose(Data(rank) + kControlChannel, Unavailable(control.ended_how));
  }
}

// A peer has said goodbye on the control stream, and the goodbye behind its data will not come, nor
// anything else; or it takes no more while it was to take something. That is all that the listener
// has to know: whether the peer was needed is not known here.
void TcpTransport::PartIfCut(int rank) {
  const Stream& data = data_stream(rank);
  const bool cut = data.read_closed || (data.write_closed && Unsent(rank));
  const auto index = static_cast<std::size_t>(rank);
  if (cut && farewell_[index] && !parted_[index]) {
    parted_[index] = true;
    moved_ = true;
    stop_ |= !listener_->OnControl(rank, FrameKind::kBye, {});
  }
}

// A connection has ended. In good order all do, together and behind the peer's last word; without
// one even a rail whose turn may not come for long is lost, and with it the stream. `error`: 0, or
// -1 for what the socket has.
void TcpTransport::EndOfRail(int s, int rail, int error) {
  Stream& p = stream(s);
  p.socket.HangUp(rail);
  moved_ = true;
  if (p.ended) {
    return;
  }
  socklen_t bytes = sizeof(error);
  if (error < 0 && ::getsockopt(p.socket.fd(rail), SOL_SOCKET, SO_ERROR, &error, &bytes) != 0) {
    error = 0;
  }
  p.ended = true;
  p.ended_at = std::chrono::steady_clock::now();
  p.ended_how = (IsControl(s) ? "connection" : NameOfRail(p.socket, rail)) + " closed";
  if (error != 0) {
    p.ended_how = ErrnoStatus(error, p.ended_how).message();
  }
}

void TcpTransport::Lose(int s, const Status& why) {
  if (!farewell(s)) {
    farewell_[static_cast<std::size_t>(PeerOf(s))] = true;
    parted_[static_cast<std::size_t>(PeerOf(s))] = true;
    stop_ = true;
    listener_->OnLost(PeerOf(s), why);
  }
}

// A stream that ended, or a rail of it, without a word: lost, once the word had its time.
Deadline TcpTransport::CheckLastWords(Deadline until) {
  for (int s = 0; s < count(); ++s) {
    const Stream& p = stream(s);
    if (!IsControl(s)) {
      PartIfCut(PeerOf(s));
    }
    const bool over = IsControl(s) ? p.read_closed : p.ended;
    if (over && !farewell(s) && !forgotten_) {
      const Deadline last = p.ended_at + kLastWord;
      if (std::chrono::steady_clock::now() >= last) {
        Lose(s, Unavailable(p.ended_how));
      } else {
        until = std::min(until, last);
      }
    }
  }
  return until;
}

// Two things tell a connection that passes nothing from a peer that sends nothing: bytes whose turn
// is later have come over other rails, or the kernel repeats what it sent and hears no answer.
std::optional<Transport::Doubt> TcpTransport::DoubtOf(int peer, Duration long_enough) const {
  const Stream& p = streams_[static_cast<std::size_t>(Data(peer))];
  if (!p.socket.open() || forgotten_) {
    return std::nullopt;
  }
  std::optional<Doubt> doubt;
  if (const auto reading = PulseOf(p.socket.fd(p.socket.reading()));
      Owes(peer) && p.wants_input() && reading && reading->unread == 0) {
    doubt = {NameOfRail(p.socket, p.socket.reading()) + " from it has brought nothing for " +
                 Seconds(reading->nothing_came),
             false};
    for (int rail = 0; rail < p.socket.rails() && !doubt->certain; ++rail) {
      const auto other = PulseOf(p.socket.fd(rail));
      if (other && other->unread > 0 && reading->nothing_came >= long_enough) {
        doubt->what += ", while " + NameOfRail(p.socket, rail) + " has what comes after";
        doubt->certain = true;
      }
    }
  }
  constexpr int kRepeats = 2;  // one may be chance
  for (int rail = 0; rail < p.socket.rails() && !(doubt && doubt->certain); ++rail) {
    const auto pulse = PulseOf(p.socket.fd(rail));
    if (pulse && pulse->repeats >= kRepeats && pulse->no_answer >= long_enough) {
      doubt = {NameOfRail(p.socket, rail) + " to it has had no answer for " +
                   Seconds(pulse->no_answer) + " to what was sent",
               true};
    }
  }
  return doubt;
}

}  // namespace cohort::tcp
