// Which gRPC and protobuf this program has.

#pragma once

#include <string>

namespace cohort {

struct RpcVersions {
  std::string grpc;      // "1.51.1"; empty: built without
  std::string protobuf;  // "3.21.12"
};
RpcVersions LinkedRpcVersions();

}  // namespace cohort
