// Unix sockets with abstract names, which need no file and go with their owner. Their addresses
// read "unix:NAME"; Listen and Connect of socket.h take them too.

#pragma once

#include <string>

#include "tcp/socket.h"

namespace cohort {

bool IsUnixAddress(const std::string& address);
// At a name that the kernel chooses.
Result<Listener> ListenUnix();
// Tries again until `deadline` while nobody listens there.
Result<Socket> ConnectUnix(const std::string& address, Deadline deadline);

}  // namespace cohort
