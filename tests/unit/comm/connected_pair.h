// Two ends of a TCP connection over loopback, as those between ranks.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <chrono>
#include <utility>

#include "tcp/socket.h"

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

}  // namespace cohort::testing
