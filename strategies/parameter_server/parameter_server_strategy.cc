// How a program comes to a parameter-server strategy: options that mean nothing here are refused,
// and the process joins its job.
#include <cohort/strategies/parameter_server.h>

#include <memory>
#include <string>
#include <utility>

#include "parameter_server/job.h"
#include "parameter_server/remote_strategy.h"
#include "parameter_server/rows/row_lookahead.h"
#include "synchronous/options.h"

namespace cohort {
namespace {

// Those of synchronous strategies.
Status CheckOptions(const StrategyOptions& options) {
  if (options.make_bucket_hook || options.virtual_shards != 0) {
    return InvalidArgument(
        std::string(options.make_bucket_hook ? "make_bucket_hook" : "virtual_shards") +
        " under a parameter server, which has no buckets and no replicas in step [" +
        (options.make_bucket_hook ? "server_wire compresses what travels; or " : "") +
        "use a synchronous strategy]");
  }
  if (options.cross_device_ops != "auto") {
    return InvalidArgument(
        "cross_device_ops '" + options.cross_device_ops +
        "' under a parameter server, which adds what workers send [leave it out, "
        "or use a synchronous strategy]");
  }
  const std::string collective =
      options.communication.implementation != "auto"
          ? "communication.implementation '" + options.communication.implementation + "'"
      : !options.communication.bind_host.empty()
          ? "communication.bind_host '" + options.communication.bind_host + "'"
      : options.rails != 1 ? "rails " + std::to_string(options.rails)
      : options.mpi_implementation != "cohort"
          ? "mpi_implementation '" + options.mpi_implementation + "'"
      : options.flight_folder.empty() ? ""
                                      : "flight_folder '" + options.flight_folder + "'";
  if (!collective.empty()) {
    return InvalidArgument(collective +
                           " under a parameter server, whose processes have no collectives [leave "
                           "it out, or use a synchronous strategy" +
                           HintAt(options.communication.implementation) + "]");
  }
  COHORT_RETURN_IF_ERROR(CheckTimeout(options.communication));
  if (options.deterministic &&
      (!options.consistency.synchronous() || options.consistency.backup_workers > 0)) {
    return InvalidArgument(
        "deterministic with consistency " + options.consistency.ToString() +
        ", under which updates count as they come [choose consistency sync, or a synchronous "
        "strategy]");
  }
  if (options.grad_scaler.has_value()) {
    return InvalidArgument(
        "grad_scaler under a parameter server, whose workers agree on no step to skip [train with "
        "bfloat16 or float32, or use a synchronous strategy]");
  }
  return ps::CheckLookahead(options.lookahead);
}

}  // namespace

Result<std::unique_ptr<ParameterServerStrategy>> ParameterServerStrategy::Make(
    const ClusterConfig& config, const StrategyOptions& given) {
  StrategyOptions options = given;
  if (options.consistency.mode == Consistency::Mode::kAuto) {
    options.consistency = {};
  }
  COHORT_RETURN_IF_ERROR(CheckOptions(options));
  COHORT_RETURN_IF_ERROR(options.partitioner.Check());
  COHORT_ASSIGN_OR_RETURN(auto job, ps::Job::Join(config, options, "parameter_server"));
  try {
    return std::unique_ptr<ParameterServerStrategy>(
        std::make_unique<RemoteStrategy>(std::move(job), std::move(options)));
  } catch (const StatusError& error) {
    return error.status();  // a device has no stream for it
  }
}

}  // namespace cohort
