#include "parameter_server/job_check.h"

#include <charconv>
#include <limits>
#include <string>

#include "parameter_server/frames/frame_address.h"

namespace cohort::ps {
namespace {

Status CheckTasks(const ClusterConfig& config) {
  const ClusterSpec& cluster = config.cluster;
  if (cluster.Count(TaskType::kPs) == 0 || cluster.Count(TaskType::kWorker) == 0) {
    return InvalidArgument(
        "parameter_server needs a cluster with ps and worker tasks; this one (" + config.source +
        ") has " + std::to_string(cluster.Count(TaskType::kPs)) + " ps and " +
        std::to_string(cluster.Count(TaskType::kWorker)) +
        " workers [cohort launch -n 2 --ps 2 --chief -- PROGRAM, or a TF_CONFIG with \"ps\"]");
  }
  for (int s = 0; s < cluster.Count(TaskType::kPs); ++s) {
    if (!cluster.Contains({TaskType::kPs, s})) {
      return InvalidArgument("ps tasks are numbered without gaps; there is no ps:" +
                             std::to_string(s) + " [name every ps in the cluster]");
    }
  }
  if (!cluster.Contains(config.task)) {
    return InvalidArgument(config.task.ToString() + " is no task of the cluster");
  }
  return {};
}

Status CheckConsistency(const Consistency& consistency, int workers) {
  if (consistency.mode == Consistency::Mode::kHybrid) {
    return InvalidArgument(
        "consistency hybrid is multi_worker_mirrored with servers for the sparse tables "
        "[Strategy::FromEnv makes it]");
  }
  if (consistency.staleness < 0 || consistency.backup_workers < 0 ||
      consistency.backup_workers >= workers) {
    return InvalidArgument("consistency " + consistency.ToString() + " with " +
                           std::to_string(workers) +
                           " workers [fewer backup workers than workers, and no negative number]");
  }
  return {};
}

Status CheckWire(const StrategyOptions& options) {
  for (const DType wire : {options.server_wire.push, options.server_wire.pull}) {
    if (wire != DType::kFloat32 && wire != DType::kFloat16 && wire != DType::kBFloat16 &&
        wire != DType::kUInt8) {
      return InvalidArgument("server_wire " + std::string(DTypeName(wire)) +
                             " [float32, float16, bfloat16, or uint8: 8 bits and a scale for every "
                             "256 values]");
    }
  }
  return {};
}

Status CheckStart(const StrategyOptions& options, int workers) {
  if (options.start.mode == StartPolicy::Mode::kQuorum &&
      (options.start.workers < 1 || options.start.workers > workers)) {
    return InvalidArgument("start " + options.start.ToString() + " of a cluster with " +
                           std::to_string(workers) + " workers [a quorum of 1 to " +
                           std::to_string(workers) + ", or elastic]");
  }
  return {};
}

Status CheckServerLoss(const StrategyOptions& options, int servers) {
  const Consistency& consistency = options.consistency;
  if (options.server_loss == ServerLoss::kPartial &&
      consistency.mode != Consistency::Mode::kAsynchronous) {
    return InvalidArgument(
        "server_loss " + std::string(ServerLossName(options.server_loss)) + " with consistency " +
        consistency.ToString() +
        ", under which no server goes back alone [consistency async, or server_loss kRollBack or "
        "kReplica]");
  }
  if (options.server_loss == ServerLoss::kReplica && servers < 2) {
    return InvalidArgument(
        "server_loss kReplica with one ps task: another server would hold the copy of its part "
        "[two ps tasks or more, or server_loss kRollBack]");
  }
  return {};
}

Status CheckBalance(const StrategyOptions& options) {
  const Consistency& consistency = options.consistency;
  if (options.balance_interval.count() < 0 ||
      (options.balance_interval.count() > 0 &&
       (consistency.synchronous() || options.server_loss != ServerLoss::kRollBack))) {
    return InvalidArgument(
        "balance_interval of " + std::to_string(options.balance_interval.count()) +
        " ms with consistency " + consistency.ToString() +
        (options.server_loss == ServerLoss::kPartial   ? " and server_loss kPartial"
         : options.server_loss == ServerLoss::kReplica ? " and server_loss kReplica"
                                                       : "") +
        ": buckets move where updates are no rounds, and servers that are lost all go back "
        "[consistency async or ssp, server_loss kRollBack, or no balance_interval]");
  }
  return {};
}

Status CheckDevices(const StrategyOptions& options) {
  if (options.num_devices != 1) {
    return InvalidArgument("parameter_server trains one replica per worker, num_devices is " +
                           std::to_string(options.num_devices) + " [start more workers instead]");
  }
  if (options.devices.size() > 1) {
    return InvalidArgument("parameter_server trains one replica per worker, there are " +
                           std::to_string(options.devices.size()) +
                           " devices [start more workers instead]");
  }
  if (!options.devices.empty() && options.devices.front() == nullptr) {
    return InvalidArgument("a device of StrategyOptions::devices is nullptr");
  }
  return {};
}

}  // namespace

Status CheckJob(const ClusterConfig& config, const StrategyOptions& options) {
  COHORT_RETURN_IF_ERROR(CheckTasks(config));
  const int workers = config.cluster.Count(TaskType::kWorker);
  COHORT_RETURN_IF_ERROR(CheckConsistency(options.consistency, workers));
  COHORT_RETURN_IF_ERROR(CheckWire(options));
  COHORT_RETURN_IF_ERROR(CheckStart(options, workers));
  COHORT_RETURN_IF_ERROR(CheckServerLoss(options, config.cluster.Count(TaskType::kPs)));
  COHORT_RETURN_IF_ERROR(TransportOf(options.communication).status());
  COHORT_RETURN_IF_ERROR(CheckBalance(options));
  return CheckDevices(options);
}

Result<std::uint64_t> ParseEpoch(const std::string& key, const std::string& value) {
  std::uint64_t epoch = 0;
  const char* const end = value.data() + value.size();
  const auto [at, error] = std::from_chars(value.data(), end, epoch);
  if (error != std::errc() || at != end || epoch == 0 ||
      epoch == std::numeric_limits<std::uint64_t>::max()) {
    return DataLoss("the key " + key + " of the coordination service says '" + value.substr(0, 80) +
                    "', which is no epoch of servers [start every process of the job from the "
                    "same version of cohort, and the servers again]");
  }
  return epoch;
}

}  // namespace cohort::ps
