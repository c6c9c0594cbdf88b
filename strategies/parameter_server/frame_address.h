// Where a server takes frames.

#pragma once

#include <chrono>
#include <string>

#include <grpcpp/grpcpp.h>

#include <cohort/core/status.h>

#include <cohort/parameter_server.grpc.pb.h>
#include "parameter_server/client.h"

namespace cohort::ps {

// Asks the server, whose gRPC service is at `address`. Its unix socket, where the transport and
// `may_share` allow it and it is on this host, else its TCP address. FailedPrecondition: the
// transport is shared memory, and it is on another host.
Result<std::string> LocateFrames(Servers::StubInterface& server, const std::string& address,
                                 FrameTransport transport, bool may_share,
                                 std::chrono::milliseconds timeout);

}  // namespace cohort::ps
