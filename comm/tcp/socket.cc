#include "tcp/socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string_view>
#include <thread>
#include <vector>

#include "tcp/unix_socket.h"

namespace cohort {
namespace {

using AddressList = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

Result<AddressList> Resolve(const std::string& host, const std::string& port, int flags) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  addrinfo* list = nullptr;
  const int error =
      ::getaddrinfo(host.empty() ? nullptr : host.c_str(), port.c_str(), &hints, &list);
  if (error != 0) {
    return Unavailable("cannot resolve '" + host + "': " + ::gai_strerror(error));
  }
  return AddressList(list, &freeaddrinfo);
}

std::string Text(const sockaddr* address, socklen_t length, bool with_port) {
  char host[NI_MAXHOST] = {};
  char port[NI_MAXSERV] = {};
  if (::getnameinfo(address, length, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "?";
  }
  const std::string text = host;
  if (!with_port) {
    return text;
  }
  return (text.find(':') == std::string::npos ? text : "[" + text + "]") + ":" + port;
}

bool IsWildcard(const std::string& host) {
  return host.empty() || host == "0.0.0.0" || host == "::" || host == "*";
}

Result<Socket> ConnectOnce(const addrinfo& address, Deadline deadline) {
  Socket socket(::socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.open()) {
    return ErrnoStatus(errno, "socket");
  }
  if (::connect(socket.fd(), address.ai_addr, address.ai_addrlen) != 0) {
    if (errno != EINPROGRESS) {
      return ErrnoStatus(errno, Text(address.ai_addr, address.ai_addrlen, true));
    }
    pollfd event = {socket.fd(), POLLOUT, 0};
    int error = ETIMEDOUT;
    socklen_t length = sizeof(error);
    if (::poll(&event, 1, PollTimeout(deadline)) > 0) {
      ::getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &length);
    }
    if (error != 0) {
      return ErrnoStatus(error, Text(address.ai_addr, address.ai_addrlen, true));
    }
  }
  return socket;
}

}  // namespace

Socket::~Socket() { Close(); }

void Socket::Close() {
  if (fd_ >= 0) {
    ::close(std::exchange(fd_, -1));
  }
}

int PollTimeout(Deadline deadline) {
  const auto left =
      std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
  return static_cast<int>(std::clamp<std::int64_t>(left.count(), 0, 60'000));
}

Result<std::pair<std::string, std::string>> ParseAddress(const std::string& address) {
  const std::size_t colon = address.rfind(':');
  const bool bracketed = !address.empty() && address.front() == '[';
  if (colon == std::string::npos || (bracketed && (colon == 0 || address[colon - 1] != ']')) ||
      (!bracketed && address.find(':') != colon)) {
    return InvalidArgument("address '" + address + "' is not host:port [write an IPv6 host as " +
                           "[::1]:port]");
  }
  const std::string host = bracketed ? address.substr(1, colon - 2) : address.substr(0, colon);
  const std::string port = address.substr(colon + 1);
  const bool digits = !port.empty() && port.size() <= 5 &&
                      port.find_first_not_of("0123456789") == std::string::npos;
  if (!digits || std::stoi(port) > 65535) {
    return InvalidArgument("address '" + address + "': '" + port + "' is no port");
  }
  return std::pair(host, port);
}

Result<std::string> InterfaceTowards(const std::string& towards) {
  COHORT_ASSIGN_OR_RETURN(const AddressList list,
                          Resolve(towards.empty() ? "127.0.0.1" : towards, "9", 0));
  for (const addrinfo* a = list.get(); a != nullptr; a = a->ai_next) {
    const Socket probe(::socket(a->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_storage local = {};
    socklen_t length = sizeof(local);
    if (probe.open() && ::connect(probe.fd(), a->ai_addr, a->ai_addrlen) == 0 &&
        ::getsockname(probe.fd(), reinterpret_cast<sockaddr*>(&local), &length) == 0) {
      return Text(reinterpret_cast<const sockaddr*>(&local), length, false);
    }
  }
  return ErrnoStatus(errno, "no route to " + towards);
}

Result<Listener> Listen(const std::string& address, const std::string& towards) {
  if (IsUnixAddress(address)) {
    return ListenUnix();
  }
  COHORT_ASSIGN_OR_RETURN(const auto parsed, ParseAddress(address));
  auto [host, port] = parsed;
  std::string reachable;  // given out instead of a wildcard
  if (IsWildcard(host)) {
    COHORT_ASSIGN_OR_RETURN(reachable, InterfaceTowards(towards));
    if (host.empty()) {
      host = reachable;
    } else if (host == "*") {
      host = "0.0.0.0";
    }
  }
  COHORT_ASSIGN_OR_RETURN(const AddressList list, Resolve(host, port, AI_PASSIVE));
  Status last = Unavailable("'" + host + "' has no address");
  for (const addrinfo* a = list.get(); a != nullptr; a = a->ai_next) {
    Socket socket(::socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const int on = 1;
    if (!socket.open() ||
        ::setsockopt(socket.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
        ::bind(socket.fd(), a->ai_addr, a->ai_addrlen) != 0 ||
        ::listen(socket.fd(), SOMAXCONN) != 0) {
      last = ErrnoStatus(errno, "cannot listen at " + Text(a->ai_addr, a->ai_addrlen, true));
      continue;
    }
    sockaddr_storage local = {};
    socklen_t length = sizeof(local);
    if (::getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&local), &length) != 0) {
      return ErrnoStatus(errno, "getsockname");
    }
    std::string text = Text(reinterpret_cast<const sockaddr*>(&local), length, true);
    if (!reachable.empty() && host != reachable) {
      const std::string bound_port = text.substr(text.rfind(':'));
      const bool v6 = reachable.find(':') != std::string::npos;
      text = (v6 ? "[" + reachable + "]" : reachable) + bound_port;
    }
    return Listener{std::move(socket), std::move(text)};
  }
  return last.Annotate("bind_address '" + address + "'");
}

Result<Socket> Connect(const std::string& address, Deadline deadline) {
  constexpr auto kPause = std::chrono::milliseconds(50);
  if (IsUnixAddress(address)) {
    return ConnectUnix(address, deadline);
  }
  COHORT_ASSIGN_OR_RETURN(const auto parsed, ParseAddress(address));
  for (;;) {
    std::string tried;
    Result<AddressList> list = Resolve(parsed.first, parsed.second, 0);
    if (!list.ok()) {
      tried = list.status().message();
    } else {
      for (const addrinfo* a = list.value().get(); a != nullptr; a = a->ai_next) {
        Result<Socket> socket = ConnectOnce(*a, deadline);
        if (socket.ok()) {
          return socket;
        }
        tried += (tried.empty() ? "" : "; ") + socket.status().message();
      }
    }
    if (std::chrono::steady_clock::now() + kPause >= deadline) {
      return DeadlineExceeded("cannot connect to " + address + ": " + tried);
    }
    std::this_thread::sleep_for(kPause);
  }
}

Status Prepare(const Socket& socket) {
  const int on = 1;
  const int flags = ::fcntl(socket.fd(), F_GETFL);
  if (flags < 0 || ::fcntl(socket.fd(), F_SETFL, flags | O_NONBLOCK) != 0 ||
      (::setsockopt(socket.fd(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) != 0 &&
       errno != EOPNOTSUPP)) {  // a unix socket never delays
    return ErrnoStatus(errno, "socket options");
  }
  SendUnpaced(socket);
  return {};
}

void SendUnpaced(const Socket& socket) {
  if (IsWithinHost(socket)) {
    constexpr std::string_view kReno = "reno";  // where it cannot be chosen all stays as it is
    ::setsockopt(socket.fd(), IPPROTO_TCP, TCP_CONGESTION, kReno.data(), kReno.size());
  }
}

bool IsWithinHost(const Socket& socket) {
  const auto host = [](const sockaddr_storage& address) -> std::string_view {
    if (address.ss_family == AF_INET) {
      const auto& in = reinterpret_cast<const sockaddr_in&>(address).sin_addr;
      return {reinterpret_cast<const char*>(&in), sizeof(in)};
    }
    if (address.ss_family == AF_INET6) {
      const auto& in = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
      return {reinterpret_cast<const char*>(&in), sizeof(in)};
    }
    return {};
  };
  sockaddr_storage here = {};
  sockaddr_storage there = {};
  socklen_t here_bytes = sizeof(here);
  socklen_t there_bytes = sizeof(there);
  if (::getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&here), &here_bytes) != 0 ||
      ::getpeername(socket.fd(), reinterpret_cast<sockaddr*>(&there), &there_bytes) != 0) {
    return false;
  }
  constexpr std::size_t kV4 = sizeof(in_addr);
  constexpr char kLoopbackNetwork = 127;  // 127.0.0.0/8
  const bool loopback = host(here).size() == kV4 && host(there).size() == kV4 &&
                        host(here)[0] == kLoopbackNetwork && host(there)[0] == kLoopbackNetwork;
  return loopback || (!host(here).empty() && host(here) == host(there));
}

namespace {

// Moves all bytes by `move(at)`, which returns as read(2) does.
template <typename F>
Status MoveAll(const Socket& socket, std::size_t bytes, short events, Deadline deadline, F move) {
  for (std::size_t at = 0; at < bytes;) {
    const ssize_t n = move(at);
    if (n > 0) {
      at += static_cast<std::size_t>(n);
    } else if (n == 0) {
      return Unavailable("connection closed");
    } else if (errno == EAGAIN || errno == EINTR) {
      if (std::chrono::steady_clock::now() >= deadline) {
        return DeadlineExceeded("no answer");
      }
      pollfd event = {socket.fd(), events, 0};
      ::poll(&event, 1, PollTimeout(deadline));
    } else {
      return ErrnoStatus(errno, "connection");
    }
  }
  return {};
}

}  // namespace

Status WriteAll(const Socket& socket, const void* data, std::size_t bytes, Deadline deadline) {
  return MoveAll(socket, bytes, POLLOUT, deadline, [&](std::size_t at) {
    return ::send(socket.fd(), static_cast<const char*>(data) + at, bytes - at, MSG_NOSIGNAL);
  });
}

Status ReadAll(const Socket& socket, void* data, std::size_t bytes, Deadline deadline) {
  return MoveAll(socket, bytes, POLLIN, deadline, [&](std::size_t at) {
    return ::recv(socket.fd(), static_cast<char*>(data) + at, bytes - at, 0);
  });
}

}  // namespace cohort
