#include "tcp/unix_socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <thread>
#include <utility>

namespace cohort {
namespace {

constexpr std::string_view kPrefix = "unix:";
constexpr auto kPause = std::chrono::milliseconds(10);

constexpr std::size_t kMostDescriptors = 4;
union ControlSpace {
  cmsghdr header;
  char bytes[CMSG_SPACE(kMostDescriptors * sizeof(int))];
};

Socket NewSocket() {
  return Socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

}  // namespace

bool IsUnixAddress(const std::string& address) { return address.starts_with(kPrefix); }

Result<Listener> ListenUnix() {
  Socket socket = NewSocket();
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  // An address without a name asks for one: five hexadecimal digits after a zero byte.
  if (!socket.open() ||
      ::bind(socket.fd(), reinterpret_cast<const sockaddr*>(&address), sizeof(sa_family_t)) != 0 ||
      ::listen(socket.fd(), SOMAXCONN) != 0) {
    return ErrnoStatus(errno, "unix socket");
  }
  socklen_t length = sizeof(address);
  if (::getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return ErrnoStatus(errno, "getsockname");
  }
  const std::size_t head = offsetof(sockaddr_un, sun_path) + 1;
  const std::string name(address.sun_path + 1, length > head ? length - head : 0);
  return Listener{std::move(socket), std::string(kPrefix) + name};
}

Result<Socket> ConnectUnix(const std::string& address, Deadline deadline) {
  const std::string name = address.substr(kPrefix.size());
  sockaddr_un to = {};
  to.sun_family = AF_UNIX;
  if (name.empty() || name.size() >= sizeof(to.sun_path)) {
    return InvalidArgument("'" + address + "' is no unix address");
  }
  std::memcpy(to.sun_path + 1, name.data(), name.size());
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  for (;;) {
    Socket socket = NewSocket();
    if (!socket.open()) {
      return ErrnoStatus(errno, "unix socket");
    }
    if (::connect(socket.fd(), reinterpret_cast<const sockaddr*>(&to), length) == 0) {
      return socket;
    }
    const int error = errno;
    if (std::chrono::steady_clock::now() + kPause >= deadline) {
      return DeadlineExceeded("cannot connect to " + address + ": " + std::strerror(error));
    }
    std::this_thread::sleep_for(kPause);
  }
}

Status SendWithDescriptors(int socket, std::span<const std::byte> message,
                           std::span<const int> descriptors, Deadline deadline) {
  Require(descriptors.size() <= kMostDescriptors, "at most four descriptors in a message");
  iovec piece = {const_cast<std::byte*>(message.data()), message.size()};
  ControlSpace control = {};
  msghdr header = {};
  header.msg_iov = &piece;
  header.msg_iovlen = 1;
  if (!descriptors.empty()) {
    header.msg_control = control.bytes;
    header.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    cmsghdr* const rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(rights), descriptors.data(), descriptors.size_bytes());
  }
  for (;;) {
    const ssize_t sent = ::sendmsg(socket, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent == static_cast<ssize_t>(message.size())) {
      return {};
    }
    if (sent >= 0) {
      return Internal("a descriptor's message was sent in part");
    }
    if (errno != EAGAIN && errno != EINTR) {
      return ErrnoStatus(errno, "sending a descriptor");
    }
    if (std::chrono::steady_clock::now() >= deadline) {
      return DeadlineExceeded("sending a descriptor: the peer does not read");
    }
    pollfd event = {socket, POLLOUT, 0};
    ::poll(&event, 1, PollTimeout(deadline));
  }
}

Result<std::size_t> ReceiveWithDescriptors(int socket, std::span<std::byte> to,
                                           std::vector<Socket>* descriptors) {
  iovec piece = {to.data(), to.size()};
  ControlSpace control = {};
  msghdr header = {};
  header.msg_iov = &piece;
  header.msg_iovlen = 1;
  header.msg_control = control.bytes;
  header.msg_controllen = sizeof(control.bytes);
  const ssize_t got = ::recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
    return std::size_t{0};
  }
  if (got < 0) {
    return ErrnoStatus(errno, "connection");
  }
  if (got == 0) {
    return Unavailable("connection closed");
  }
  for (cmsghdr* rights = CMSG_FIRSTHDR(&header); rights != nullptr;
       rights = CMSG_NXTHDR(&header, rights)) {
    if (rights->cmsg_level != SOL_SOCKET || rights->cmsg_type != SCM_RIGHTS) {
      continue;
    }
    for (std::size_t i = 0; i < (rights->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(rights) + i * sizeof(int), sizeof(int));
      descriptors->emplace_back(fd);
    }
  }
  return static_cast<std::size_t>(got);
}

}  // namespace cohort
