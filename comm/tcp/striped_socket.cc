#include "tcp/striped_socket.h"

#include <linux/errqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

namespace cohort {

std::optional<SendRelease> ReadSendRelease(int fd) {
  for (;;) {
    std::array<char, 128> control;
    msghdr message = {};
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    if (::recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) {
      return std::nullopt;
    }
    for (const cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr;
         c = CMSG_NXTHDR(&message, const_cast<cmsghdr*>(c))) {
      const bool errors = (c->cmsg_level == SOL_IP && c->cmsg_type == IP_RECVERR) ||
                          (c->cmsg_level == SOL_IPV6 && c->cmsg_type == IPV6_RECVERR);
      sock_extended_err error;
      if (!errors || c->cmsg_len < CMSG_LEN(sizeof(error))) {
        continue;
      }
      std::memcpy(&error, CMSG_DATA(c), sizeof(error));
      if (error.ee_errno == 0 && error.ee_origin == SO_EE_ORIGIN_ZEROCOPY) {
        return SendRelease{.first = error.ee_info,
                           .last = error.ee_data,
                           .copied = (error.ee_code & SO_EE_CODE_ZEROCOPY_COPIED) != 0};
      }
    }
  }
}

StripedSocket::StripedSocket(std::vector<Socket> rails, std::size_t stripe_bytes, bool zero_copy,
                             SendReleases releases)
    : stripe_bytes_(stripe_bytes), releases_(std::move(releases)) {
  for (Socket& socket : rails) {
    Rail& rail = rails_.emplace_back();
    rail.socket = std::move(socket);
    const int on = 1;
    rail.zero_copy = zero_copy && rail.socket.open() &&
                     ::setsockopt(rail.socket.fd(), SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on)) == 0;
  }
}

ssize_t StripedSocket::Send(std::span<iovec> pieces, bool in_place, bool more) {
  Rail& rail = rails_[static_cast<std::size_t>(writing_)];
  std::size_t room = rails_.size() > 1 ? stripe_bytes_ - written_ : SIZE_MAX;
  std::size_t count = 0;
  std::size_t bytes = 0;
  for (; count < pieces.size() && room > 0; ++count) {
    pieces[count].iov_len = std::min(pieces[count].iov_len, room);
    room -= pieces[count].iov_len;
    bytes += pieces[count].iov_len;
  }
  msghdr message = {};
  message.msg_iov = pieces.data();
  message.msg_iovlen = count;
  const int flags = MSG_NOSIGNAL | MSG_DONTWAIT | (more && room > 0 ? MSG_MORE : 0);
  mark_ = 0;
  ssize_t n = -1;
  if (in_place && rail.zero_copy && bytes >= kZeroCopyBytes) {
    n = ::sendmsg(rail.socket.fd(), &message, flags | MSG_ZEROCOPY);
    if (n > 0) {
      pending_.push_back({writing_, rail.sends++});
      mark_ = next_mark_++;
    } else if (errno == ENOBUFS) {  // so many are on their way that the kernel keeps no more
      n = ::sendmsg(rail.socket.fd(), &message, flags);
    }
  } else {
    n = ::sendmsg(rail.socket.fd(), &message, flags);
  }
  full_ = n < static_cast<ssize_t>(bytes);
  if (n > 0) {
    written_ += static_cast<std::size_t>(n);
    if (rails_.size() > 1 && written_ == stripe_bytes_) {
      written_ = 0;
      writing_ = (writing_ + 1) % rails();
    }
  }
  return n;
}

ssize_t StripedSocket::Receive(void* to, std::size_t bytes) {
  const std::size_t most = rails_.size() > 1 ? std::min(bytes, stripe_bytes_ - read_) : bytes;
  const ssize_t n = ::recv(fd(reading_), to, most, MSG_DONTWAIT);
  if (n > 0 && rails_.size() > 1) {
    read_ += static_cast<std::size_t>(n);
    if (read_ == stripe_bytes_) {
      read_ = 0;
      reading_ = (reading_ + 1) % rails();
    }
  }
  return n;
}

bool StripedSocket::HearReleases() {
  const std::uint64_t before = released_;
  for (int r = 0; r < rails() && !pending_.empty(); ++r) {
    while (const std::optional<SendRelease> release = releases_(fd(r))) {
      if (release->copied) {
        rails_[static_cast<std::size_t>(r)].zero_copy = false;
      }
      Release(r, release->first, release->last);
    }
  }
  while (!pending_.empty() && pending_.front().released) {
    pending_.pop_front();
    ++released_;
  }
  return released_ != before;
}

// The kernel's numbers wrap.
void StripedSocket::Release(int rail, std::uint32_t first, std::uint32_t last) {
  for (Pending& send : pending_) {
    if (send.rail == rail && send.number - first <= last - first) {
      send.released = true;
    }
  }
}

void StripedSocket::ShutDown() {
  for (const Rail& rail : rails_) {
    ::shutdown(rail.socket.fd(), SHUT_WR);
  }
}

void StripedSocket::Close() {
  for (Rail& rail : rails_) {
    rail.socket.Close();
  }
  pending_.clear();
}

// A connection that is dissolved, not closed, still tells what is released.
void StripedSocket::Reset(Deadline until) {
  sockaddr none = {};
  none.sa_family = AF_UNSPEC;
  for (const Rail& rail : rails_) {
    ::connect(rail.socket.fd(), &none, sizeof(none));
  }
  HearReleases();
  while (awaits_release() && std::chrono::steady_clock::now() < until) {
    ::poll(nullptr, 0, 1);
    HearReleases();
  }
  Close();
}

}  // namespace cohort
