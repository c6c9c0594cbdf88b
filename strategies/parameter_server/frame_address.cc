#include "parameter_server/frame_address.h"

#include <cohort/comm/shm.h>

#include "grpc_util.h"
#include "parameter_server/wire.h"

namespace cohort::ps {

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
        "it is on another host, and communication.implementation is shm "
        "[auto, or tcp]");
  }
  return here && may_share ? reply.local() : WithPort(address, static_cast<int>(reply.port()));
}

}  // namespace cohort::ps
