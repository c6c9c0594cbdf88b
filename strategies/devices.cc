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

// Where this process is. What is wrong with the cluster is for the strategy to say.
ClusterConfig ClusterOf(const StrategyOptions& options) {
  if (options.cluster.has_value()) {
    return *options.cluster;
  }
  auto config = ResolveCluster({}, EnvironmentOf(options));
  return config.ok() ? std::move(config).value() : ClusterConfig();
}

// "cuda:local" as the GPU of this process's number among those of its host.
std::string WithLocal(std::string_view text, int local_rank) {
  constexpr std::string_view kLocal = "cuda:local";
  std::string all(text);
  for (std::size_t at = all.find(kLocal); at != std::string::npos; at = all.find(kLocal, at)) {
    all.replace(at, kLocal.size(), "cuda:" + std::to_string(local_rank));
  }
  return all;
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
                             "cuda:local, cpu:2]");
    }
    return {};
  }
  const ClusterConfig cluster = ClusterOf(options);
  if (cluster.task.type == TaskType::kPs) {
    return {};
  }
  const std::string here = WithLocal(text, cluster.local_rank);
  auto devices = OpenDevices(here);
  if (!devices.ok() && here != text) {
    return devices.status().Annotate("process " + std::to_string(cluster.local_rank) + " of the " +
                                     std::to_string(cluster.local_size) + " of this host");
  }
  COHORT_ASSIGN_OR_RETURN(options.devices, std::move(devices));
  options.log.Info("replicas on " + NamesOf(options.devices));
  return {};
}

}  // namespace cohort
