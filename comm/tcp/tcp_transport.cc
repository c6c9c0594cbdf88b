#include "tcp/tcp_transport.h"

#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

namespace cohort {
namespace tcp {
namespace {

constexpr int kLooksToAPoll = 4;  // at what is awaited alone, for a poll of everything
constexpr auto kCrowdedSpin = std::chrono::microseconds(5);
constexpr std::size_t kScratchBytes = 256 << 10;  // stays in cache between socket and reduction

}  // namespace

TcpTransport::TcpTransport(TcpGroup group, Socket wake, Socket watch)
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
        if (IsWithinHost(rails.back())) {
          stream(s).stride = Pace::kStrideWithinHost;
        }
      }
    }
    stream(s).socket = StripedSocket(std::move(rails), group_.stripe_bytes,
                                     group_.zero_copy && !IsControl(s), group_.releases);
  }
  AddToWatch(wake_);
}

void TcpTransport::Wake() {
  if (!woken_.exchange(true)) {
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = ::write(wake_.fd(), &one, sizeof(one));
  }
}

// Edges only: bytes that are left in a socket on purpose do not end the next watch.
void TcpTransport::Watch(Deadline until) {
  std::array<epoll_event, 8> events;
  ::epoll_wait(watch_.fd(), events.data(), static_cast<int>(events.size()), PollTimeout(until));
}

void TcpTransport::AddToWatch(const Socket& socket) {
  if (socket.open()) {
    epoll_event event = {};
    event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
    ::epoll_ctl(watch_.fd(), EPOLL_CTL_ADD, socket.fd(), &event);
  }
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
  const Deadline spin_end = std::chrono::steady_clock::now() +
                            (group_.crowded ? std::min<Duration>(spin(), kCrowdedSpin) : spin());
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
    if (wait || ++looks_ % kLooksToAPoll == 0 || !FetchAwaited()) {
      Poll(wait ? PollTimeout(until) : 0);
    }
    if (moved_ || std::chrono::steady_clock::now() >= until) {
      return;
    }
    if (group_.crowded && !wait) {
      ::sched_yield();
    }
  }
}

// Looks at the streams that are to bring something; false: at none, or something has to go out.
bool TcpTransport::FetchAwaited() {
  bool any = false;
  for (int s = 0; s < count() && !stop_; ++s) {
    const Stream& p = stream(s);
    if (!InUse(s)) {
      continue;
    }
    if (!p.out.empty() || p.socket.awaits_release()) {
      return false;
    }
    if (!p.posted.empty() && p.wants_input()) {
      Fetch(s, /*all=*/false);
      any = true;
    }
  }
  return any;
}

// One poll, and what it shows. Of a stream the rail that is read, the one that is written, those
// from which a release is to come, and of every rail that it ends.
void TcpTransport::Poll(int timeout_ms) {
  struct Place {
    int stream;
    int rail;
    bool in;
  };
  holds_ = false;
  std::vector<pollfd> events = {{wake_.fd(), POLLIN, 0}};
  std::vector<Place> places = {{-1, -1, false}};
  for (int s = 0; s < count(); ++s) {
    const Stream& p = stream(s);
    if (!InUse(s)) {
      continue;
    }
    const bool held = IsHeld(s);
    const bool write = !p.out.empty() && !p.write_closed && !held;
    holds_ |= held;
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
  if (::poll(events.data(), events.size(), holds_ ? 0 : timeout_ms) <= 0) {
    if (holds_) {
      ::sched_yield();  // to the peer, where it has to share this core
    }
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
    if (p.kept.GiveUp()) {
      if (p.target == Target::kStalled) {
        StartBody(s);
      }
    } else {
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

// What the network still fetches from buffers that are the callers' again must not arrive: a peer
// that has not heard of the failure yet would take what these write there for data. The reset says
// nothing to it that the abort on the control stream does not.
void TcpTransport::Forget() {
  constexpr auto kStillSent = std::chrono::milliseconds(100);
  const Deadline patience = DeadlineAfter(kStillSent);
  forgotten_ = true;
  for (int s = 0; s < count(); ++s) {
    if (IsControl(s)) {
      continue;
    }
    Stream& p = stream(s);
    p.posted.clear();
    p.kept.Clear();
    p.out.clear();  // the stream ends in the middle of a frame: nobody reads it further
    p.lingering.clear();
    if (p.socket.open() && p.socket.awaits_release()) {
      p.socket.HearReleases();
      if (p.socket.awaits_release()) {
        p.socket.Reset(patience);
      }
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
  group.releases = group_.releases;
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
  COHORT_ASSIGN_OR_RETURN(Connections connections,
                          ConnectGroup(identity, listener, directory, group.log, deadline));
  Take(group, std::move(connections));
  return MakeTcpTransport(std::move(group));
}

}  // namespace tcp

void Take(TcpGroup& group, Connections connections) {
  std::vector<cpu_set_t> here;
  for (std::size_t r = 0; r < connections.cores.size(); ++r) {
    const bool own = r == static_cast<std::size_t>(group.rank);
    const Socket& socket = connections.sockets[r * static_cast<std::size_t>(group.channels)];
    if (own || IsWithinHost(socket)) {
      here.push_back(connections.cores[r]);
    }
  }
  group.crowded = AreCrowded(here);
  group.sockets = std::move(connections.sockets);
}

Result<std::unique_ptr<Transport>> MakeTcpTransport(TcpGroup group) {
  Socket wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake.open()) {
    return ErrnoStatus(errno, "eventfd");
  }
  Socket watch(::epoll_create1(EPOLL_CLOEXEC));
  if (!watch.open()) {
    return ErrnoStatus(errno, "epoll_create1");
  }
  return std::make_unique<tcp::TcpTransport>(std::move(group), std::move(wake), std::move(watch));
}

}  // namespace cohort
