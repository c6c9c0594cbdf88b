// TcpTransport: two connections for each pair of ranks, or more rails for data, all served by the
// communicator's own thread.
//
// A frame is a header of 16 bytes and its body. Payload goes from the sender's buffer to the socket
// and from the socket to the receiver's buffer, or through a small scratch into the reduction.
// A data frame that comes before its receive is kept if it is small, up to 1 MiB of a peer's; a
// large one, or one more, waits in the socket, and with it the frames behind, until the receive is
// posted, or those before it are: the sender's socket fills, and it waits. Aborts and signs of life
// therefore go over the second connection, which is always read.
//
// A peer's goodbye comes over both. The one behind its data counts; where a reset has taken that
// one, the other does, as soon as nothing more can come.

#pragma once

#include <cohort/core/log.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tcp/socket.h"
#include "transport.h"

namespace cohort {

struct TcpGroup {
  int rank = 0;
  std::vector<Socket> sockets;  // as ConnectGroup gives them
  int channels = 2;             // of a pair
  std::size_t stripe_bytes = 0;
  bool zero_copy = false;
  std::string name;  // of the group; groups within it take names below
  std::uint64_t generation = 1;
  std::string bind_address;  // where a Split listens, port 0
  std::string rendezvous_host;
  std::function<std::string(int rank)> peer_name;
  Log log;
};

Result<std::unique_ptr<Transport>> MakeTcpTransport(TcpGroup group);

}  // namespace cohort
