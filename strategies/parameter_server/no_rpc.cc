// Where the build has no gRPC.
#include <cohort/strategies/parameter_server.h>

namespace cohort {

Result<std::unique_ptr<ParameterServerStrategy>> ParameterServerStrategy::Make(
    const ClusterConfig& /*config*/, const StrategyOptions& /*options*/) {
  return FailedPrecondition("parameter_server: built without gRPC [build with COHORT_RPC=ON]");
}

}  // namespace cohort
