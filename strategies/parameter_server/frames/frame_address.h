// Where a server takes frames, and how they travel there.

#pragma once

#include <chrono>
#include <string>

#include <grpcpp/grpcpp.h>

#include <cohort/core/status.h>
#include <cohort/strategies/strategy_options.h>

#include <cohort/parameter_server.grpc.pb.h>

namespace cohort::ps {

// How frames travel: kAuto, memory that is shared with servers of this host, TCP to others;
// kShared: that, or no connection. Frames of more than 4 MiB always travel over TCP.
enum class FrameTransport { kAuto, kTcp, kShared };
// InvalidArgument: no implementation that frames have.
Result<FrameTransport> TransportOf(const CommunicationOptions& options);

// Asks the server, whose gRPC service is at `address`. Its unix socket, where the transport and
// `may_share` allow it and it is on this host, else its TCP address. FailedPrecondition: the
// transport is shared memory, and it is on another host.
Result<std::string> LocateFrames(Servers::StubInterface& server, const std::string& address,
                                 FrameTransport transport, bool may_share,
                                 std::chrono::milliseconds timeout);

}  // namespace cohort::ps
