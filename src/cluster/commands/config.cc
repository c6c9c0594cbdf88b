// cohort config check: the resolved cluster of this process, and every mistake in it.

#include <cstdio>
#include <string>

#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <cohort/cluster/resolve.h>

#include "command.h"

namespace cohort {
namespace {

using Json = nlohmann::ordered_json;

std::string Dump(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

Json ToJson(const ClusterReport& report) {
  Json json = {{"ok", report.config.has_value()}};
  if (!report.config) {
    json["errors"] = report.errors;
    json["warnings"] = report.warnings;
    return json;
  }
  const ClusterConfig& config = *report.config;
  json["source"] = config.source;
  json["task"] = {{"type", TaskTypeName(config.task.type)}, {"index", config.task.index}};
  json["chief"] = config.cluster.Chief().ToString();
  json["is_chief"] = config.is_chief();
  json["local_rank"] = config.local_rank;
  json["local_size"] = config.local_size;
  json["mpi"] = config.mpi;
  json["rendezvous"] = config.rendezvous;
  json["fingerprint"] = fmt::format("{:016x}", config.cluster.Fingerprint());
  json["cluster"] = Json::parse(config.cluster.ToJson());
  json["tasks"] = Json::array();
  for (const TaskId& task : config.cluster.Tasks()) {
    json["tasks"].push_back({{"task", task.ToString()},
                             {"role", TaskTypeName(task.type)},
                             {"index", task.index},
                             {"address", config.cluster.Address(task)},
                             {"self", task == config.task},
                             {"chief", task == config.cluster.Chief()}});
  }
  json["warnings"] = report.warnings;
  json["notes"] = report.notes;
  return json;
}

std::string ToTable(const ClusterConfig& config) {
  std::string text = fmt::format("source      {}\n", config.source);
  if (config.cluster.empty()) {
    return text + "task        worker:0, alone: a local job of one process\n";
  }
  text += fmt::format("task        {}, process {} of {} on this host\n", config.task.ToString(),
                      config.local_rank, config.local_size);
  text += fmt::format("rendezvous  {}\n\n", !config.rendezvous.empty() ? config.rendezvous
                                            : config.mpi
                                                ? "through MPI"
                                                : config.cluster.Address(config.cluster.Chief()));
  text += fmt::format("  {:<14}{:<11}{}\n", "TASK", "ROLE", "ADDRESS");
  for (const TaskId& task : config.cluster.Tasks()) {
    const std::string& address = config.cluster.Address(task);
    const bool is_self = task == config.task;
    const bool is_chief = task == config.cluster.Chief();
    text +=
        fmt::format("{} {:<14}{:<11}{}{}\n", is_self ? '*' : ' ', task.ToString(),
                    TaskTypeName(task.type), address == "host:0" ? "(exchanged at start)" : address,
                    is_self && is_chief ? "  (this process, chief)"
                    : is_self           ? "  (this process)"
                    : is_chief          ? "  (chief)"
                                        : "");
  }
  if (!config.cluster.Contains(config.task)) {
    text += fmt::format("* {:<14}{:<11}(outside of the cluster)  (this process)\n",
                        config.task.ToString(), TaskTypeName(config.task.type));
  }
  return text;
}

}  // namespace

int ConfigCheckCommand(int argc, char** argv) {
  CLI::App app(
      "Resolves the cluster from flags and environment, without opening a socket, and "
      "prints it with every mistake. Exits with 0, or with 2 if there is a mistake.",
      argv[0]);
  ClusterFlags flags;
  bool json = false;
  int index = 0;
  app.add_flag("--json", json, "Print one JSON object, also for mistakes");
  app.add_option("--cluster-spec", flags.cluster_spec,
                 "The cluster: JSON like {\"worker\": [\"a:1\", \"b:1\"]}, or a file of it");
  app.add_option("--role", flags.role, "This process's role: chief, worker, ps or evaluator");
  CLI::Option* index_option = app.add_option("--index", index, "This process's index in its role");
  app.add_option("--topology", flags.topology,
                 "Roles of a launcher's ranks, in rank order: chief=1,ps=2,worker=rest");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = error.get_exit_code();
    if (json && code != 0) {
      std::fputs(Dump({{"ok", false}, {"errors", {error.what()}}}).c_str(), stdout);
      return 2;
    }
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (index_option->count() > 0) {
    flags.index = index;
  }

  const ClusterReport report = InspectCluster(flags, Environment::OfProcess());
  if (json) {
    std::fputs(Dump(ToJson(report)).c_str(), stdout);
    return report.config ? 0 : 2;
  }
  for (const std::string& warning : report.warnings) {
    std::fprintf(stderr, "warning: %s\n", warning.c_str());
  }
  for (const std::string& error : report.errors) {
    std::fprintf(stderr, "error: %s\n", error.c_str());
  }
  if (!report.config) {
    std::fprintf(stderr, "%zu mistake%s\n", report.errors.size(),
                 report.errors.size() == 1 ? "" : "s");
    return 2;
  }
  for (const std::string& note : report.notes) {
    std::fprintf(stderr, "note: %s\n", note.c_str());
  }
  std::fputs(ToTable(*report.config).c_str(), stdout);
  return 0;
}

}  // namespace cohort
