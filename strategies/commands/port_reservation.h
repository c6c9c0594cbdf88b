// PortReservation: TCP ports of the loopback address that nobody else gets until they are released.

#pragma once

#include <vector>

#include <cohort/core/status.h>

namespace cohort {

// Holds each port by a bound socket, so that no other process can take it; release one right before
// the process that is to listen on it starts. The ports lie outside of the range from which the
// kernel chooses for outgoing connections: there, a client that retries could take the port, or
// even connect to itself. One thread at a time.
class PortReservation {
 public:
  static Result<PortReservation> Make(int count);
  PortReservation() = default;
  PortReservation(PortReservation&& other) noexcept;
  PortReservation& operator=(PortReservation&& other) noexcept;
  ~PortReservation();

  const std::vector<int>& ports() const { return ports_; }
  void Release(std::size_t position);

 private:
  std::vector<int> ports_;
  std::vector<int> sockets_;  // -1: released
};

}  // namespace cohort
