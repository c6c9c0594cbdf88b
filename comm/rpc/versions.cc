#include <cohort/rpc/versions.h>

#include <google/protobuf/stubs/common.h>
#include <grpcpp/grpcpp.h>

namespace cohort {

RpcVersions LinkedRpcVersions() {
  const int protobuf = GOOGLE_PROTOBUF_VERSION;
  return {grpc::Version(), google::protobuf::internal::VersionString(protobuf)};
}

}  // namespace cohort
