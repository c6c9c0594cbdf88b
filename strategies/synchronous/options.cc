#include "synchronous/options.h"

#include <algorithm>
#include <bit>
#include <string>
#include <vector>

#include "synchronous/synchronous_strategy.h"

namespace cohort {
namespace {

// Whatever the job, what adds in an order of its own is not what `deterministic` asks for.
Status CheckDeterministic(const StrategyOptions& options) {
  const std::string& implementation = options.communication.implementation;
  const std::string other = implementation == "ring" || implementation == "mpi"
                                ? "communication.implementation '" + implementation + "'"
                            : options.mpi_implementation == "mpi" ? "mpi_implementation 'mpi'"
                            : options.cross_device_ops == "nccl"  ? "cross_device_ops 'nccl'"
                                                                  : "";
  if (!options.deterministic || other.empty()) {
    return {};
  }
  return InvalidArgument("deterministic with " + other +
                         ", whose sums have an order of their own [leave one of them out]");
}

}  // namespace

std::string HintAt(std::string_view implementation) {
  if (implementation == "shm" || implementation == "tcp") {
    return "; how processes reach each other is communication.transport";
  }
  return implementation == "nccl" ? "; NCCL is cross_device_ops" : "";
}

bool Offers(const Communicator& communicator, std::string_view algorithm) {
  const auto offered = communicator.algorithms(OperationKind::kAllReduce);
  return std::ranges::find(offered, algorithm) != offered.end();
}

bool OffersOneBucket(const Communicator& communicator) {
  return communicator.size() == 2 && Offers(communicator, "shared");
}

Status CheckTimeout(const CommunicationOptions& options) {
  return options.timeout.count() > 0
             ? OkStatus()
             : InvalidArgument("communication.timeout is " +
                               std::to_string(options.timeout.count()) + " ms [more than 0]");
}

int LocalReplicas(const StrategyOptions& options) {
  return options.devices.empty() ? options.num_devices : static_cast<int>(options.devices.size());
}

Status SynchronousStrategy::CheckOptions(const StrategyOptions& options, int processes) {
  const auto devices = static_cast<int>(options.devices.size());
  if (devices > 0 && options.num_devices != 1 && options.num_devices != devices) {
    return InvalidArgument("num_devices is " + std::to_string(options.num_devices) + ", with " +
                           std::to_string(devices) +
                           " devices [leave num_devices out where devices are given]");
  }
  if (std::ranges::find(options.devices, nullptr) != options.devices.end()) {
    return InvalidArgument("a device of StrategyOptions::devices is nullptr");
  }
  if (options.num_devices < 1) {
    return InvalidArgument("num_devices is " + std::to_string(options.num_devices) +
                           " [at least 1]");
  }
  if (options.first_bucket_bytes < 1 || options.communication.bytes_per_pack < 0) {
    return InvalidArgument("gradient buckets of " + std::to_string(options.first_bucket_bytes) +
                           " and " + std::to_string(options.communication.bytes_per_pack) +
                           " bytes [the first at least 1, the others 0 (adapted) or more]");
  }
  const int threads = processes * LocalReplicas(options);
  const int shards = options.virtual_shards;
  if (shards < 0 || (shards > 0 && (!std::has_single_bit(static_cast<unsigned>(shards)) ||
                                    shards % threads != 0))) {
    return InvalidArgument(std::to_string(shards) + " virtual shards for " +
                           std::to_string(processes) + " process(es) of " +
                           std::to_string(LocalReplicas(options)) +
                           " device(s) [a power of two that the devices of all processes divide: "
                           "the tree in which shards are added has then a branch for each]");
  }
  if (options.intra_op_threads < 0) {
    return InvalidArgument("intra_op_threads is " + std::to_string(options.intra_op_threads) +
                           " [0 shares the cores among the replicas]");
  }
  COHORT_RETURN_IF_ERROR(CheckCrossDeviceOps(options));
  COHORT_RETURN_IF_ERROR(CheckDeterministic(options));
  if (options.grad_scaler.has_value()) {
    COHORT_RETURN_IF_ERROR(GradScaler::Check(*options.grad_scaler));
    if (options.make_bucket_hook) {
      return InvalidArgument(
          "grad_scaler with make_bucket_hook: what overflowed would stay in what a hook keeps from "
          "step to step [leave one of them out]");
    }
  }
  COHORT_RETURN_IF_ERROR(CheckTimeout(options.communication));
  const std::string& implementation = options.communication.implementation;
  if (const std::string hint = HintAt(implementation); !hint.empty()) {
    return InvalidArgument("communication.implementation is '" + implementation +
                           "' [choose auto, ring, or another algorithm" + hint + "]");
  }
  const std::string& transport = options.communication.transport;
  if (transport != "auto" && transport != "shm" && transport != "tcp") {
    return InvalidArgument("communication.transport is '" + transport +
                           "' [choose auto, shm or tcp; how gradients are added, by ring for "
                           "instance, is communication.implementation]");
  }
  const std::string& host = options.communication.bind_host;
  const auto colons = std::ranges::count(host, ':');
  if (colons == 1 || host.find("]:") != std::string::npos) {
    return InvalidArgument("communication.bind_host is '" + host +
                           "' [a host or an address, without a port]");
  }
  return {};
}

Status SynchronousStrategy::CheckAlgorithm(const StrategyOptions& options,
                                           const Communicator* communicator) {
  const std::string& name = options.communication.implementation;
  if (communicator == nullptr) {
    return {};
  }
  if (name != "auto" && options.virtual_shards > 0) {
    return InvalidArgument("communication.implementation is '" + name +
                           "' with virtual_shards, whose order of addition is their own [leave one "
                           "of them out]");
  }
  std::vector<std::string_view> choices{"auto"};
  if (OffersOneBucket(*communicator)) {
    choices.push_back(kOneBucket);
  }
  for (const std::string_view offered : communicator->algorithms(OperationKind::kAllReduce)) {
    choices.push_back(offered);
  }
  if (std::ranges::find(choices, name) == choices.end()) {
    std::string text;
    for (const std::string_view choice : choices) {
      text += (text.empty() ? "" : ", ") + std::string(choice);
    }
    return InvalidArgument("communication.implementation is '" + name + "'" +
                           (options.deterministic ? " with deterministic" : "") + " [over " +
                           std::string(communicator->backend()) + " choose one of " + text +
                           HintAt(name) + "]");
  }
  // "auto" adds what comes after the backward pass, whatever is named.
  const bool keeps = communicator->keeps_order("auto") &&
                     communicator->keeps_order(name == kOneBucket ? "shared" : name);
  if (options.deterministic && !keeps) {
    return InvalidArgument(
        "deterministic with communication.implementation '" + name + "' over " +
        std::string(communicator->backend()) +
        ", whose sums have an order of their own [leave one of them out, or make "
        "the communicator with CommunicatorOptions::deterministic]");
  }
  return {};
}

}  // namespace cohort
