// Where the build has no gRPC.
#include <cohort/rpc/coordination.h>
#include <cohort/rpc/versions.h>

namespace cohort {
namespace {

Status NoRpc() {
  return FailedPrecondition(
      "the coordination service: built without gRPC [build with COHORT_RPC=ON]");
}

}  // namespace

RpcVersions LinkedRpcVersions() { return {}; }

Result<std::unique_ptr<CoordinationServer>> CoordinationServer::Start(
    const std::string& /*address*/, const ClusterSpec& /*cluster*/,
    const CoordinationOptions& /*options*/) {
  return NoRpc();
}

Result<std::unique_ptr<CoordinationClient>> CoordinationClient::Join(
    const std::string& /*server_address*/, const ClusterSpec& /*cluster*/, const TaskId& /*task*/,
    bool /*wait_for_all*/, const CoordinationOptions& /*options*/) {
  return NoRpc();
}

}  // namespace cohort
