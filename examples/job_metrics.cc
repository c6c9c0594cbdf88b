#include "job_metrics.h"

#include <cohort/obs/process_metrics.h>
#include <unistd.h>

#include <array>
#include <map>
#include <string>

using cohort::Result;
using cohort::Status;

namespace {

bool IsWildcard(const std::string& host) { return host == "0.0.0.0" || host == "::"; }

// Of this process, to others.
std::string HostName(const JobFlags& f) {
  std::array<char, 256> name = {};
  const bool known = IsWildcard(f.metrics_host) && ::gethostname(name.data(), name.size() - 1) == 0;
  return known ? name.data() : f.metrics_host;
}

// As Prometheus' file_sd_configs read it. NotFound where nobody has told the hosts of all.
Result<nlohmann::json> TargetsOf(const JobFlags& f, const cohort::ClusterConfig& config) {
  nlohmann::json targets = nlohmann::json::array();
  const auto add = [&](const std::string& host, int port, const cohort::TaskId& task) {
    targets.push_back({{"targets", {host + ":" + std::to_string(port)}},
                       {"labels", {{"task", task.ToString()}}}});
  };
  const std::vector<cohort::TaskId> tasks = config.cluster.Tasks();
  if (tasks.empty()) {
    add(HostName(f), f.metrics_port + config.local_rank, config.task);
    return targets;
  }
  std::map<std::string, int> local_ranks;
  for (const cohort::TaskId& task : tasks) {
    const std::string& address = config.cluster.Address(task);
    std::string host = address.substr(0, address.rfind(':'));
    if (address == "host:0") {
      if (config.local_size < std::ssize(tasks)) {
        return cohort::NotFound("the launcher does not tell the hosts of all processes");
      }
      host = HostName(f);
    }
    add(host, f.metrics_port + local_ranks[host]++, task);
  }
  return targets;
}

Status WriteTargets(const JobFlags& f, const cohort::ClusterConfig& config,
                    const cohort::Log& log) {
  const Result<nlohmann::json> targets = TargetsOf(f, config);
  if (!targets.ok()) {
    log.Warning("metrics_targets.json is not written: " + targets.status().message());
    return {};
  }
  cohort::FileSystem& files = cohort::FileSystem::Local();
  COHORT_RETURN_IF_ERROR(files.CreateDirectories(f.log_dir));
  return cohort::WriteFileAtomically(files, f.log_dir + "/metrics_targets.json",
                                     targets->dump(2) + "\n");
}

}  // namespace

cohort::Metrics& ProcessMetrics() {
  static cohort::Metrics metrics;
  return metrics;
}

Result<std::unique_ptr<cohort::MetricsServer>> ServeMetrics(const JobFlags& f,
                                                            const cohort::ClusterConfig& config,
                                                            const cohort::Log& log) {
  if (f.metrics_port == 0) {
    return std::unique_ptr<cohort::MetricsServer>();
  }
  cohort::AddProcessMetrics(ProcessMetrics());
  COHORT_ASSIGN_OR_RETURN(
      auto server,
      cohort::MetricsServer::Start(
          ProcessMetrics(), {.host = f.metrics_host, .port = f.metrics_port + config.local_rank}));
  log.Info("metrics: " + server->url());
  if (config.is_chief() && !f.log_dir.empty()) {
    COHORT_RETURN_IF_ERROR(WriteTargets(f, config, log));
  }
  return server;
}
