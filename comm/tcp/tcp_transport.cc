#include "tcp/tcp_transport.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <deque>
#include <utility>

#include "tcp/rendezvous.h"
#include "tcp/striped_socket.h"

namespace cohort {
namespace {

struct Header {
  std::uint32_t magic;
  FrameKind kind;
  std::uint8_t reserved[3];
  std::uint64_t bytes;
};
static_assert(sizeof(Header) == 16);

constexpr std::uint32_t kMagic = 0x52464f43;  // "COFR"
constexpr std::int64_t kSegmentBytes = 512 << 10;
constexpr std::size_t kKeptBytes = 64 << 10;    // an unexpected frame up to here does not stall
constexpr std::size_t kAllKeptBytes = 1 << 20;  // nor, of one peer, all of them up to here
constexpr std::size_t kStagingBytes = 64 << 10;
constexpr std::size_t kScratchBytes = 256 << 10;  // stays in cache between socket and reduction
constexpr std::size_t kTurnBytes = 1 << 20;       // moved before the next peer's turn
constexpr std::size_t kMaxPieces = 16;            // of one sendmsg
constexpr std::size_t kMaxFrameBytes = std::size_t{1} << 40;

struct OutFrame {
  Header header;
  std::vector<std::byte> owned;  // the body of control frames
  Bytes body;                    // of owned, or the caller's
  std::size_t sent = 0;          // of header and body
  std::uint64_t ticket = 0;      // 0: a control frame
  std::uint64_t mark = 0;        // of its last send in place

  std::size_t bytes() const { return sizeof(Header) + body.size(); }
};

// A peer's stream may end a little before its last word on the other stream comes.
constexpr auto kLastWord = std::chrono::seconds(1);

struct Posted {
  MutableBytes data;
  CombineWith combine;
};

// What came before it was asked for.
struct Kept {
  bool reject = false;  // no data: what comes after belongs to later operations
  std::vector<std::byte> body;

  std::size_t bytes() const { return sizeof(Kept) + body.size(); }  // empty frames take room, too
};

// Where the body of the frame that is arriving goes.
enum class Target { kHeader, kPosted, kKept, kControl, kDiscard, kStalled };

// A send whose bytes are still to be fetched.
struct Lingering {
  std::uint64_t ticket;
  std::uint64_t mark;
};

// The frames of one peer, data or control.
struct Stream {
  StripedSocket socket;
  bool read_closed = false;   // end of stream seen
  bool write_closed = false;  // the peer does not read any more
  bool ended = false;         // a connection of it has: all of it, or a rail of several
  Deadline ended_at;
  std::string ended_how;  // of the first: "rail 2 of 4 closed"
  std::deque<OutFrame> out;
  std::deque<Lingering> lingering;  // behind each other: sends of one peer are done in order

  std::deque<Posted> posted;
  std::deque<Kept> kept;
  std::size_t kept_bytes = 0;
  int dropping = 0;  // rejects still to come; the data before them are dropped

  std::vector<std::byte> staging = std::vector<std::byte>(kStagingBytes);
  std::size_t staged_from = 0;
  std::size_t staged_to = 0;
  Target target = Target::kHeader;
  Header header = {};
  std::size_t body_got = 0;
  std::size_t body_delivered = 0;       // by Combine, behind body_got by a split element
  std::vector<std::byte> body;          // kKept, kControl
  std::array<std::byte, 8> split = {};  // the begin of an element whose end is still to come
  std::size_t split_bytes = 0;

  std::size_t staged() const { return staged_to - staged_from; }
  bool wants_input() const { return socket.open() && !read_closed && target != Target::kStalled; }
  // Is there room for a frame that is not expected? The one that arrives counts when it is whole.
  bool MayKeep(std::size_t bytes) const {
    return bytes <= kKeptBytes && (kept.empty() || kept_bytes + bytes <= kAllKeptBytes);
  }
  void Keep(Kept frame) {
    kept_bytes += frame.bytes();
    kept.push_back(std::move(frame));
  }
  Kept TakeKept() {
    Kept frame = std::move(kept.front());
    kept.pop_front();
    kept_bytes -= frame.bytes();
    return frame;
  }
  void ForgetKept() {
    kept.clear();
    kept_bytes = 0;
  }
};

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

class TcpTransport final : public Transport {
 public:
  TcpTransport(TcpGroup group, Socket wake, Socket watch)
      : Transport(static_cast<int>(group.sockets.size()) / group.channels),
        group_(std::move(group)),
        wake_(std::move(wake)),
        watch_(std::move(watch)),
        streams_(group_.sockets.size() / static_cast<std::size_t>(group_.channels) * kChannels),
        farewell_(streams_.size() / kChannels),
        parted_(streams_.size() / kChannels),
        scratch_(kScratchBytes) {
    for (int s = 0; s < count(); ++s) {
      std::vector<Socket> rails;
      for (int channel = 0; channel < group_.channels; ++channel) {
        if (IsControl(s) == (channel == kControlChannel)) {
          rails.push_back(std::move(
              group_.sockets[static_cast<std::size_t>(PeerOf(s) * group_.channels + channel)]));
          AddToWatch(rails.back());
        }
      }
      stream(s).socket =
          StripedSocket(std::move(rails), group_.stripe_bytes, group_.zero_copy && !IsControl(s));
    }
    AddToWatch(wake_);
  }

  std::string_view backend() const override { return "tcp"; }
  std::int64_t default_segment_bytes() const override { return kSegmentBytes; }
  void Attach(TransportListener* listener) override { listener_ = listener; }

  void Wake() override {
    if (!woken_.exchange(true)) {
      const std::uint64_t one = 1;
      [[maybe_unused]] const ssize_t n = ::write(wake_.fd(), &one, sizeof(one));
    }
  }

  // Edges only: bytes that are left in a socket on purpose do not end the next watch.
  void Watch(Deadline until) override {
    std::array<epoll_event, 8> events;
    ::epoll_wait(watch_.fd(), events.data(), static_cast<int>(events.size()), PollTimeout(until));
  }

  Ticket Send(int to, Bytes data) override {
    Lane& l = lane(to);
    ++l.sends;
    CountSent(data.size());
    OutFrame& frame = data_stream(to).out.emplace_back();
    frame.header = {kMagic, FrameKind::kData, {}, data.size()};
    frame.body = data;
    frame.ticket = l.sends;
    return {to, true, l.sends};
  }

  Ticket Receive(int from, MutableBytes data, const CombineWith& combine) override {
    Lane& l = lane(from);
    Stream& p = data_stream(from);
    ++l.receives;
    if (p.posted.empty() && !p.kept.empty() && !p.kept.front().reject) {
      Give(from, p.TakeKept().body, {data, combine});
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

  // Opens, joins, rejects and goodbyes keep their place among the data; all but the first two
  // overtake it.
  void Control(int to, FrameKind kind, Bytes body) override {
    const bool only_in_place = kind == FrameKind::kOpen || kind == FrameKind::kJoin;
    if (only_in_place || kind == FrameKind::kBye || kind == FrameKind::kReject) {
      PutControl(Data(to), kind, body);
    }
    if (!only_in_place) {
      PutControl(Data(to) + kControlChannel, kind, body);
    }
  }

  std::optional<Doubt> DoubtOf(int peer, Duration long_enough) const override;
  void Progress(Deadline until) override;
  bool Abandon() override;
  void Forget() override;
  void Close(Deadline deadline) override;
  Result<std::string> Offer() override;
  Result<std::unique_ptr<Transport>> Join(const std::string& id, const std::vector<int>& members,
                                          int my_index, const std::vector<std::string>& offers,
                                          Deadline deadline) override;

 private:
  // Of each peer, one for data, over all its rails, and one for control frames.
  int Data(int rank) const { return rank * kChannels + kDataChannel; }
  int PeerOf(int s) const { return s / kChannels; }
  bool IsControl(int s) const { return s % kChannels == kControlChannel; }
  Stream& stream(int s) { return streams_[static_cast<std::size_t>(s)]; }
  Stream& data_stream(int rank) { return stream(Data(rank)); }
  int count() const { return static_cast<int>(streams_.size()); }
  bool farewell(int s) const { return farewell_[static_cast<std::size_t>(PeerOf(s))]; }
  bool InUse(int s) const {  // after a failure only control frames count
    return streams_[static_cast<std::size_t>(s)].socket.open() && !(forgotten_ && !IsControl(s));
  }

  void PutControl(int s, FrameKind kind, Bytes body);
  void Flush(int s);
  void FinishReleased(int s);
  void Sent(int s, std::size_t bytes);
  void Fetch(int s);
  ssize_t FetchOnce(int s);
  void Parse(int s);
  void StartBody(int s);
  void TakeBody(int s, Bytes bytes);
  void Give(int from, Bytes body, const Posted& posted);
  static void CombineArriving(Stream& p, const Posted& posted, Bytes bytes);
  void FinishBody(int s);
  void EndOfStream(int s, int error);
  void EndOfRail(int s, int rail, int error);
  void Lose(int s, const Status& why);
  void LoseIfSilent(int rank);
  void PartIfCut(int rank);
  Deadline CheckLastWords(Deadline until);
  void AddToWatch(const Socket& socket) {
    if (socket.open()) {
      epoll_event event = {};
      event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
      ::epoll_ctl(watch_.fd(), EPOLL_CTL_ADD, socket.fd(), &event);
    }
  }
  void Poll(int timeout_ms);

  TcpGroup group_;
  const Socket wake_;
  const Socket watch_;  // epoll: edges of wake_ and all connections
  std::atomic<bool> woken_ = false;
  TransportListener* listener_ = nullptr;
  std::vector<Stream> streams_;
  // By rank: it said bye or abort, or is lost; that its streams end is no loss.
  std::vector<bool> farewell_;
  std::vector<bool> parted_;  // and the listener knows that nothing more comes of it
  std::vector<std::byte> scratch_;
  Listener offered_;        // between Offer and Join
  bool forgotten_ = false;  // the communicator failed
  bool moved_ = false;      // something happened in this Progress
  bool stop_ = false;       // the listener wants no more in this Progress
};

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

// --- sending

void TcpTransport::Flush(int s) {
  Stream& p = stream(s);
  for (std::size_t turn = 0; turn < kTurnBytes && !p.out.empty() && !p.write_closed;) {
    std::array<iovec, 2 * kMaxPieces> pieces;
    std::size_t count = 0;
    std::size_t wanted = 0;
    bool in_place = false;
    bool more = false;
    for (const OutFrame& frame : p.out) {
      if (count + 2 > pieces.size() || wanted >= kTurnBytes) {
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
      add(frame.body.data() + body_sent, frame.body.size() - body_sent);
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
        PartIfCut(PeerOf(s));
      }
      return;
    }
    turn += static_cast<std::size_t>(n);
    Sent(s, static_cast<std::size_t>(n));
    if (p.socket.full()) {
      return;
    }
  }
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

// --- receiving

void TcpTransport::Fetch(int s) {
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
    Parse(s);
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
  const ssize_t n =
      p.socket.Receive(p.staging.data() + p.staged_to, p.staging.size() - p.staged_to);
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
    p.target = Target::kControl;
    p.body.resize(bytes);
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
  } else if (p.MayKeep(bytes)) {
    p.target = Target::kKept;
    p.body.resize(bytes);
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
      p.Keep({false, std::move(body)});
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
        p.Keep({.reject = true, .body = {}});
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

// --- waiting

void TcpTransport::Progress(Deadline until) {
  moved_ = false;
  stop_ = false;
  until = CheckLastWords(until);
  for (int s = 0; s < count() && !stop_; ++s) {
    if (InUse(s)) {
      Flush(s);
      Parse(s);  // left over when the listener wanted no more, or after a stall
    }
  }
  const Deadline spin_end = std::chrono::steady_clock::now() + spin();
  while (!stop_) {
    if (woken_.load()) {
      std::uint64_t count = 0;
      [[maybe_unused]] const ssize_t n = ::read(wake_.fd(), &count, sizeof(count));
      woken_ = false;
      Poll(0);
      return;
    }
    const Deadline now = std::chrono::steady_clock::now();
    const bool wait = !moved_ && now >= spin_end && now < until;
    Poll(wait ? PollTimeout(until) : 0);
    if (moved_ || std::chrono::steady_clock::now() >= until) {
      return;
    }
  }
}

// One poll, and what it shows. Of a stream the rail that is read, the one that is written, those
// from which a release is to come, and of every rail that it ends.
void TcpTransport::Poll(int timeout_ms) {
  struct Place {
    int stream;
    int rail;
    bool in;
  };
  std::vector<pollfd> events = {{wake_.fd(), POLLIN, 0}};
  std::vector<Place> places = {{-1, -1, false}};
  for (int s = 0; s < count(); ++s) {
    const Stream& p = stream(s);
    if (!InUse(s)) {
      continue;
    }
    const bool write = !p.out.empty() && !p.write_closed;
    for (int rail = 0; rail < p.socket.rails(); ++rail) {
      const bool in = p.wants_input() && rail == p.socket.reading();
      const bool out = write && rail == p.socket.writing();
      const bool live = !p.socket.hung_up(rail);  // else poll would return at once, for nothing new
      if (in || out || live) {
        events.push_back({p.socket.fd(rail),
                          static_cast<short>((in ? POLLIN : 0) | (out ? POLLOUT : 0) |
                                             (live && !in ? POLLRDHUP : 0)),
                          0});
        places.push_back({s, rail, in});
      }
    }
  }
  if (::poll(events.data(), events.size(), timeout_ms) <= 0) {
    return;
  }
  for (std::size_t i = 1; i < events.size(); ++i) {
    const short got = events[i].revents;
    const auto [s, rail, in] = places[i];
    if ((got & POLLERR) != 0 && stream(s).socket.HearReleases()) {
      FinishReleased(s);
    }
    if ((got & (POLLOUT | POLLHUP | POLLERR)) != 0) {
      Flush(s);
    }
    if (in && (got & (POLLIN | POLLHUP | POLLERR)) != 0 && !stop_) {
      Fetch(s);
    }
    if (!in && (got & (POLLRDHUP | POLLHUP)) != 0 && !stream(s).socket.hung_up(rail)) {
      EndOfRail(s, rail, -1);
    }
  }
}

// --- what the error of a wait says

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

// --- the end

// A frame that has begun goes on, from a copy and into nothing: the streams stay whole.
bool TcpTransport::Abandon() {
  for (int s = 0; s < count(); ++s) {
    if (IsControl(s)) {
      continue;
    }
    Stream& p = stream(s);
    Lane& l = lane(PeerOf(s));
    l.receives_done = l.receives;
    l.sends_done = l.sends;
    p.posted.clear();
    p.lingering.clear();  // what the network still fetches, the peer drops
    if (p.target == Target::kPosted) {
      p.target = Target::kDiscard;
      CountReceived(p.body_got);
    }
    const bool rejected =
        std::any_of(p.kept.begin(), p.kept.end(), [](const Kept& frame) { return frame.reject; });
    if (rejected) {
      while (!p.TakeKept().reject) {
      }
      if (p.target == Target::kStalled) {
        StartBody(s);
      }
    } else {
      p.ForgetKept();
      ++p.dropping;
      if (p.target == Target::kKept || p.target == Target::kStalled) {
        p.target = Target::kDiscard;
      }
    }
    std::erase_if(p.out,
                  [](const OutFrame& frame) { return frame.ticket != 0 && frame.sent == 0; });
    for (OutFrame& frame : p.out) {
      if (frame.ticket != 0) {
        frame.owned.assign(frame.body.begin(), frame.body.end());
        frame.body = frame.owned;
        frame.ticket = 0;
      }
    }
  }
  return true;
}

void TcpTransport::Forget() {
  forgotten_ = true;
  for (int s = 0; s < count(); ++s) {
    if (!IsControl(s)) {
      stream(s).posted.clear();
      stream(s).ForgetKept();
      stream(s).out.clear();  // the stream ends in the middle of a frame: nobody reads it further
      stream(s).lingering.clear();
    }
  }
}

void TcpTransport::Close(Deadline deadline) {
  const auto unsent = [&] {
    for (int s = 0; s < count(); ++s) {
      if (InUse(s) && !stream(s).out.empty() && !stream(s).write_closed) {
        return true;
      }
    }
    return false;
  };
  while (unsent() && std::chrono::steady_clock::now() < deadline) {
    Progress(deadline);
  }
  // Closing a socket with unread input would destroy what is still on its way to the peer.
  for (Stream& p : streams_) {
    if (p.socket.open()) {
      p.socket.ShutDown();
      for (int rail = 0; rail < p.socket.rails(); ++rail) {
        while (::recv(p.socket.fd(rail), scratch_.data(), scratch_.size(), MSG_DONTWAIT) > 0 &&
               std::chrono::steady_clock::now() < deadline) {
        }
      }
      p.socket.Close();
    }
  }
}

// --- groups within the group

Result<std::string> TcpTransport::Offer() {
  COHORT_ASSIGN_OR_RETURN(offered_, cohort::Listen(group_.bind_address, group_.rendezvous_host));
  return offered_.address;
}

Result<std::unique_ptr<Transport>> TcpTransport::Join(const std::string& id,
                                                      const std::vector<int>& members, int my_index,
                                                      const std::vector<std::string>& offers,
                                                      Deadline deadline) {
  const Listener listener = std::exchange(offered_, Listener());
  if (members.empty()) {
    return std::unique_ptr<Transport>();
  }
  TcpGroup group;
  group.rank = my_index;
  group.name = group_.name + "/" + id;
  group.generation = group_.generation;
  group.bind_address = group_.bind_address;
  group.rendezvous_host = group_.rendezvous_host;
  group.log = group_.log;
  group.channels = group_.channels;
  group.stripe_bytes = group_.stripe_bytes;
  group.zero_copy = group_.zero_copy;
  group.peer_name = [members, name = group_.peer_name](int r) {
    return name(members[static_cast<std::size_t>(r)]);
  };
  const Directory directory = {[&](int rank, Deadline) -> Result<std::string> {
                                 return offers[static_cast<std::size_t>(rank)];
                               },
                               [&](int rank) { return offers[static_cast<std::size_t>(rank)]; },
                               group.peer_name};
  const GroupIdentity identity = {
      group.name,       my_index,       static_cast<int>(members.size()),
      group.generation, group.channels, group.stripe_bytes};
  COHORT_ASSIGN_OR_RETURN(group.sockets,
                          ConnectGroup(identity, listener, directory, group.log, deadline));
  return MakeTcpTransport(std::move(group));
}

}  // namespace

Result<std::unique_ptr<Transport>> MakeTcpTransport(TcpGroup group) {
  Socket wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake.open()) {
    return ErrnoStatus(errno, "eventfd");
  }
  Socket watch(::epoll_create1(EPOLL_CLOEXEC));
  if (!watch.open()) {
    return ErrnoStatus(errno, "epoll_create1");
  }
  return std::make_unique<TcpTransport>(std::move(group), std::move(wake), std::move(watch));
}

}  // namespace cohort
