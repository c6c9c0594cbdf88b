// Where the build has no gRPC.
#include <cohort/data_service/data_service.h>

namespace cohort::data {
namespace {

Status NoRpc() {
  return FailedPrecondition("the data service: built without gRPC [build with COHORT_RPC=ON]");
}

}  // namespace

Result<std::unique_ptr<DataServer>> Serve(const std::vector<ServedPipeline>& /*pipelines*/,
                                          const ServeOptions& /*options*/) {
  return NoRpc();
}

Result<Dataset> FromService(const std::string& /*dispatcher*/, const std::string& /*pipeline*/,
                            const FromServiceOptions& /*options*/) {
  return NoRpc();
}

}  // namespace cohort::data
