#include "port_reservation.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <random>
#include <utility>

namespace cohort {
namespace {

constexpr int kLowest = 15'000;

// The end (exclusive) of the ports above kLowest that the kernel does not hand out itself.
int EndOfQuietPorts() {
  int first = 32'768;
  std::ifstream("/proc/sys/net/ipv4/ip_local_port_range") >> first;
  return first;
}

// A socket bound to that loopback port (0: any); -1 with errno.
int Bound(int port, int* chosen) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) {
    return -1;
  }
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    const int error = errno;
    ::close(fd);
    errno = error;
    return -1;
  }
  *chosen = ntohs(address.sin_port);
  return fd;
}

}  // namespace

Result<PortReservation> PortReservation::Make(int count) {
  PortReservation result;
  std::random_device random;
  const int end = EndOfQuietPorts();
  const bool has_quiet_ports = end > kLowest + 2 * count;
  // Jobs that start at once begin at different places, and go on at the next port that is free.
  int next = has_quiet_ports ? kLowest + static_cast<int>(random() % (end - kLowest)) : 0;
  for (int tries = 0; static_cast<int>(result.ports_.size()) < count; ++tries) {
    int port = 0;
    const int fd = Bound(next, &port);
    if (fd < 0 && (errno != EADDRINUSE || tries > 100'000)) {
      return ErrnoStatus(errno, "cannot reserve a TCP port on 127.0.0.1");
    }
    if (fd >= 0) {
      result.ports_.push_back(port);
      result.sockets_.push_back(fd);
    }
    if (has_quiet_ports) {
      next = next + 1 < end ? next + 1 : kLowest;
    }
  }
  return result;
}

PortReservation::PortReservation(PortReservation&& other) noexcept
    : ports_(std::exchange(other.ports_, {})), sockets_(std::exchange(other.sockets_, {})) {}

PortReservation& PortReservation::operator=(PortReservation&& other) noexcept {
  std::swap(ports_, other.ports_);
  std::swap(sockets_, other.sockets_);
  return *this;
}

PortReservation::~PortReservation() {
  for (std::size_t i = 0; i < sockets_.size(); ++i) {
    Release(i);
  }
}

void PortReservation::Release(std::size_t position) {
  if (const int fd = std::exchange(sockets_.at(position), -1); fd >= 0) {
    ::close(fd);
  }
}

}  // namespace cohort
