// Two ranks of this process over TCP, put together by hand: the ends of their connections, their
// groups, and their communicators.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tcp/socket.h"
#include "tcp/tcp_transport.h"
#include "transport_communicator.h"

namespace cohort::testing {

// `receive_bytes`: of the second end's buffer, about; 0: as the kernel likes.
inline std::array<Socket, 2> ConnectedPair(int receive_bytes = 0) {
  auto listener = Listen("127.0.0.1:0", "");
  EXPECT_TRUE(listener.ok()) << listener.status().ToString();
  if (receive_bytes > 0) {  // whoever is accepted has it from the listener
    EXPECT_EQ(::setsockopt(listener->socket.fd(), SOL_SOCKET, SO_RCVBUF, &receive_bytes,
                           sizeof(receive_bytes)),
              0);
  }
  auto connected = Connect(listener->address, DeadlineAfter(std::chrono::seconds(5)));
  EXPECT_TRUE(connected.ok()) << connected.status().ToString();
  pollfd event = {listener->socket.fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&event, 1, 5000), 1);
  Socket accepted(::accept4(listener->socket.fd(), nullptr, nullptr, SOCK_NONBLOCK));
  EXPECT_TRUE(Prepare(connected.value()).ok() && Prepare(accepted).ok());
  return {std::move(connected).value(), std::move(accepted)};
}

// Without connections yet, of so many channels: those of control and data, and a rail each for
// more.
inline std::array<TcpGroup, 2> PairOfGroups(int channels, std::size_t stripe_bytes) {
  std::array<TcpGroup, 2> groups;
  for (std::size_t rank = 0; rank < 2; ++rank) {
    TcpGroup& group = groups[rank];
    group.rank = static_cast<int>(rank);
    group.sockets.resize(static_cast<std::size_t>(2 * channels));
    group.channels = channels;
    group.stripe_bytes = stripe_bytes;
    group.zero_copy = true;
    group.name = "pair";
  }
  return groups;
}

inline void JoinBy(std::array<TcpGroup, 2>& groups, int channel, std::array<Socket, 2> ends) {
  for (std::size_t rank = 0; rank < 2; ++rank) {
    const auto channels = static_cast<std::size_t>(groups[rank].channels);
    groups[rank].sockets[(1 - rank) * channels + static_cast<std::size_t>(channel)] =
        std::move(ends[rank]);
  }
}

inline std::vector<std::unique_ptr<Communicator>> RanksOf(std::array<TcpGroup, 2> groups,
                                                          std::chrono::milliseconds timeout) {
  CommunicatorOptions options;
  options.timeout = timeout;
  options.peer_name = [](int rank) { return "worker:" + std::to_string(rank); };
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (TcpGroup& group : groups) {
    TransportCommunicatorParts parts;
    parts.rank = group.rank;
    parts.size = 2;
    auto transport = MakeTcpTransport(std::move(group));
    EXPECT_TRUE(transport.ok()) << transport.status().ToString();
    parts.transport = std::move(transport).value();
    ranks.push_back(std::make_unique<TransportCommunicator>(std::move(parts), options));
  }
  return ranks;
}

}  // namespace cohort::testing
