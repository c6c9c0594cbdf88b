// Sockets as values: what of the operating system the TCP transport uses.

#pragma once

#include <cohort/core/clock.h>
#include <cohort/core/status.h>

#include <string>
#include <utility>

namespace cohort {

// Owns one file descriptor.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket();

  int fd() const { return fd_; }
  bool open() const { return fd_ >= 0; }
  void Close();

 private:
  int fd_ = -1;
};

struct Listener {
  Socket socket;
  std::string address;  // where peers reach it: "10.0.0.3:4711", "[::1]:4711"
};

// "host:port" and "[v6]:port"; the host may be empty.
Result<std::pair<std::string, std::string>> ParseAddress(const std::string& address);

// The address of this machine's interface that routes to `towards` (a host), or loopback where that
// is empty. No packet is sent.
Result<std::string> InterfaceTowards(const std::string& towards);

// Listens at `address`, port 0 for any. An empty or wildcard host is given out as the address of
// InterfaceTowards.
Result<Listener> Listen(const std::string& address, const std::string& towards);

// Connects to one of the addresses that `address` resolves to; tries again until `deadline` while
// nobody listens there. The error names each address tried.
Result<Socket> Connect(const std::string& address, Deadline deadline);

// For every connection between peers: not blocking, no delay, and SendUnpaced.
Status Prepare(const Socket& socket);

// Where both ends are in one host, nothing holds bytes back. What the system has chosen to control
// congestion may pace what is sent (BBR does, the default of some), by timers and by what it
// believes a link to take; inside a host there is no link, and the connection gets Reno, which
// every kernel has and lets anybody use.
void SendUnpaced(const Socket& socket);

// Whether both ends of a connection have one address, or loopback ones: no network is in between.
bool IsWithinHost(const Socket& socket);

// What poll(2) waits at most, in milliseconds, to be back at `deadline`; at least 0.
int PollTimeout(Deadline deadline);

// Whole messages on a socket that does not block, for handshakes.
Status WriteAll(const Socket& socket, const void* data, std::size_t bytes, Deadline deadline);
Status ReadAll(const Socket& socket, void* data, std::size_t bytes, Deadline deadline);

}  // namespace cohort
