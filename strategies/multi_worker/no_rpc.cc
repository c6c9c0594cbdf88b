// Where the build has no gRPC: a job is one process.
#include <utility>

#include "multi_worker/job.h"
#include "multi_worker/row_server.h"

namespace cohort {
namespace {

Status NoRpc(std::string_view kind, const ClusterConfig& config) {
  return FailedPrecondition(std::string(kind) + " with " +
                            std::to_string(config.cluster.Tasks().size()) +
                            " tasks: built without gRPC [build with COHORT_RPC=ON]");
}

}  // namespace

Result<std::unique_ptr<Membership>> JoinJob(const ClusterConfig& config,
                                            const StrategyOptions& /*options*/) {
  if (config.cluster.Tasks().size() > 1) {
    return NoRpc("multi_worker_mirrored", config);
  }
  return MakeMembership(nullptr);
}

Result<std::unique_ptr<Strategy>> MakeRowServer(std::string kind, const ClusterConfig& config,
                                                const StrategyOptions& /*options*/) {
  return NoRpc(kind, config);
}

}  // namespace cohort
