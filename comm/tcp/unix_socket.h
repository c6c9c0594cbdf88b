// Unix sockets with abstract names, which need no file and go with their owner. Their addresses
// read "unix:NAME"; Listen and Connect of socket.h take them too.

#pragma once

#include <cohort/core/clock.h>
#include <cohort/core/status.h>

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "tcp/socket.h"

namespace cohort {

bool IsUnixAddress(const std::string& address);
// At a name that the kernel chooses.
Result<Listener> ListenUnix();
// Tries again until `deadline` while nobody listens there.
Result<Socket> ConnectUnix(const std::string& address, Deadline deadline);

// A message with descriptors, whole: a unix socket takes what is small whole, or not at all.
// DeadlineExceeded: the peer does not read.
Status SendWithDescriptors(int socket, std::span<const std::byte> message,
                           std::span<const int> descriptors, Deadline deadline);
// Some bytes that are there, up to `to`, and the descriptors that came with them, of which a
// message has at most four; 0: there are none now. Unavailable: the connection has ended.
Result<std::size_t> ReceiveWithDescriptors(int socket, std::span<std::byte> to,
                                           std::vector<Socket>* descriptors);

}  // namespace cohort
