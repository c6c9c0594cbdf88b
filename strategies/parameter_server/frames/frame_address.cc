#include "parameter_server/frames/frame_address.h"

#include <map>
#include <string_view>

#include <cohort/comm/shm.h>

#include "grpc_util.h"
#include "parameter_server/frames/wire.h"

namespace cohort::ps {

Result<FrameTransport> TransportOf(const CommunicationOptions& options) {
  const std::map<std::string_view, FrameTransport> transports = {{"auto", FrameTransport::kAuto},
                                                                 {"tcp", FrameTransport::kTcp},
                                                                 {"shm", FrameTransport::kShared}};
  const auto found = transports.find(options.transport);
  if (found == transports.end()) {
    return InvalidArgument("communication.transport '" + options.transport +
                           "' of parameter servers [choose auto, shm or tcp]");
  }
  return found->second;
}

Result<std::string> LocateFrames(Servers::StubInterface& server, const std::string& address,
                                 FrameTransport transport, bool may_share,
                                 std::chrono::milliseconds timeout) {
  grpc::ClientContext context;
  context.set_deadline(GrpcTimeout(timeout));
  EndpointReply reply;
  COHORT_RETURN_IF_ERROR(FromGrpc(server.Endpoint(&context, EndpointRequest(), &reply)));
  const bool here =
      transport != FrameTransport::kTcp && !reply.local().empty() && reply.host() == HostIdentity();
  if (transport == FrameTransport::kShared && !here) {
    return FailedPrecondition(
        "it is on another host, and communication.transport is shm "
        "[auto, or tcp]");
  }
  return here && may_share ? reply.local() : WithPort(address, static_cast<int>(reply.port()));
}

}  // namespace cohort::ps
