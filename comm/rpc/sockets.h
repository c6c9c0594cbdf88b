// Plain sockets, for their error numbers: gRPC tells that an address fails, these tell why.

#pragma once

#include <string>

#include <cohort/core/status.h>

namespace cohort {

// OK if a listening socket can be bound to `address` now; see StartServer for the errors.
Status CheckCanBind(const std::string& address);

// "pid 4711 (python3)" of the process that listens on the TCP port of this machine; empty if /proc
// does not tell.
std::string PortHolder(int port);

}  // namespace cohort
