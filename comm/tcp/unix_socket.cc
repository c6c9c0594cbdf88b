#include "tcp/unix_socket.h"

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

}  // namespace cohort
