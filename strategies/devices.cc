#include <cohort/strategies/devices.h>

#include <algorithm>
#include <charconv>
#include <string>
#include <utility>

#include <cohort/cluster/resolve.h>

namespace cohort {
namespace {

std::string NamesOf(const std::vector<std::shared_ptr<Device>>& devices) {
  std::string names;
  for (const std::shared_ptr<Device>& device : devices) {
    names += (names.empty() ? "" : ", ") + device->name();
  }
  return names;
}

// Is this process a parameter server, which has no replica? What is wrong with the cluster is for
// the strategy to say.
bool Serves(const StrategyOptions& options) {
  if (options.cluster.has_value()) {
    return options.cluster->task.type == TaskType::kPs;
  }
  const Result<ClusterConfig> config = ResolveCluster({}, EnvironmentOf(options));
  return config.ok() && config->task.type == TaskType::kPs;
}

}  // namespace

Status ChooseDevices(std::string_view text, std::string_view kind, StrategyOptions& options) {
  if (text.empty()) {
    if (kind != "mirrored") {
      return {};
    }
    if (auto gpus = OpenDevices("cuda"); gpus.ok()) {
      options.devices = std::move(gpus).value();
      options.log.Info("mirrored on every GPU: " + NamesOf(options.devices));
    } else {
      options.log.Info("mirrored on the CPU: " + gpus.status().message());
    }
    return {};
  }
  if (std::ranges::all_of(text, [](char c) { return c >= '0' && c <= '9'; })) {
    const auto [end, error] =
        std::from_chars(text.data(), text.data() + text.size(), options.num_devices);
    if (error != std::errc() || options.num_devices < 1) {
      return InvalidArgument("devices '" + std::string(text) +
                             "' [a number of replicas of at least 1, or devices: cuda:0, cuda:0/2, "
                             "cpu:2]");
    }
    return {};
  }
  if (Serves(options)) {
    return {};
  }
  COHORT_ASSIGN_OR_RETURN(options.devices, OpenDevices(text));
  options.log.Info("replicas on " + NamesOf(options.devices));
  return {};
}

}  // namespace cohort
