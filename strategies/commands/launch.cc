// cohort launch: a cluster of processes on this machine.

#include <cmath>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "command.h"
#include "core/commands/run_command.h"
#include "local_job.h"

namespace cohort {
namespace {

constexpr char kDescription[] =
    R"(cohort launch -n WORKERS [OPTIONS] [--] PROGRAM [ARGUMENTS...]

Starts PROGRAM once for each task of a cluster on this machine. Each process gets a TF_CONFIG with the
addresses of all (free ports of 127.0.0.1) and its own task; its output comes out with the task's name
before each line. Everything after PROGRAM, or after --, belongs to the program.

When a task fails, the others get SIGTERM, and after the grace SIGKILL; the exit code is that of the task that
failed first (128 + signal if a signal ended it). Ctrl-C and SIGTERM are passed on; the exit codes are then
130 and 143. Nothing of the job outlives this command.

A job is complete when chief and workers have ended with 0. Parameter servers that still run then have the grace
to end by themselves, and are ended with SIGTERM after it, which counts as success.

With --keep-going the loss of a worker is reported, but ends the job only if no worker is left. The job's
result is then the chief's: when it ends with 0, what is left has the grace to end. It is the default where a
chief coordinates workers and parameter servers (--chief with --ps), because such a job can do without a
worker. It can be asked for where workers train in step and parameter servers hold their sparse tables (--ps,
without --chief): such a job can do without any worker but the first. Others need every worker.

With --metrics-port BASE each program of cohort's examples shows its metrics to Prometheus, at BASE and the ports
behind it: chief, workers, parameter servers, each by index.

With --restart N a parameter server that fails is started again, N times in all, while the others run on; not
one that ends with 2 (wrong use). So is a chief that is killed. A job of cohort then goes on from its last save
(where the chief was lost: if it has a checkpoint folder). With --restart-workers so is a worker that is killed, but
for the first where there is no chief, which leads the job; the end of one that was started again, as it came too
late, say, is reported like that of a worker under --keep-going. It is not for other tasks.

With --restart-job N a job that fails, whatever task it was that failed first, is ended and started again as a
whole, N times, unless that task ended with 2 (wrong use). A program of cohort with a checkpoint folder goes on from
its last save. It is for jobs whose processes train in step, most of which cannot do without any of them. Together with
--restart a parameter server of these alone is started again, as long as there are restarts.)";

// NAME=value texts to variables; the first that is none, if any.
std::optional<std::string> ParseVariables(const std::vector<std::string>& texts,
                                          LocalJobOptions& options) {
  for (const std::string& text : texts) {
    const std::size_t equals = text.find('=');
    if (equals == text.npos || equals == 0) {
      return "--env " + text + " is not NAME=value";
    }
    const std::string name = text.substr(0, equals);
    if (name == "TF_CONFIG") {
      return "--env TF_CONFIG: that is what this command sets itself";
    }
    options.extra[name] = text.substr(equals + 1);
  }
  return std::nullopt;
}

std::optional<std::string> Mistake(const LocalJobOptions& options, int metrics_port) {
  if (options.program.empty()) {
    return "no program is given";
  }
  if (options.workers + (options.chief ? 1 : 0) == 0) {
    return "a job needs a worker or a chief (-n, --chief)";
  }
  if (options.servers > 0 && options.workers == 0) {
    return "parameter servers need at least one worker (-n)";
  }
  if (options.restarts > 0 && options.servers == 0) {
    return "--restart is about parameter servers, and there are none (--ps)";
  }
  if (options.restart_workers && options.restarts == 0) {
    return "--restart-workers is about who is started again how often (--restart)";
  }
  if (metrics_port + options.workers + options.servers + (options.chief ? 1 : 0) > 65536) {
    return "--metrics-port " + std::to_string(metrics_port) +
           ": the ports behind it are not enough, they end at 65535";
  }
  if (options.keep_going && options.workers == 0) {
    return "--keep-going is about workers, and there are none (-n)";
  }
  return std::nullopt;
}

}  // namespace

int LaunchCommand(int argc, char** argv) {
  CLI::App app(kDescription, argv[0]);
  app.prefix_command();
  LocalJobOptions options;
  std::vector<std::string> variables;
  int metrics_port = 0;
  double grace = 10;
  bool keep_going = false;
  constexpr int kMost = 1024;
  app.add_option("-n,--workers", options.workers, "Number of workers")
      ->required()
      ->check(CLI::Range(0, kMost));
  app.add_option("--ps", options.servers, "Number of parameter servers")
      ->check(CLI::Range(0, kMost));
  app.add_flag("--chief", options.chief, "Start a chief too");
  app.add_option("--env", variables, "A variable for every process, NAME=value; may be repeated")
      ->expected(1)
      ->take_all();
  app.add_option("--restart", options.restarts,
                 "How often parameter servers that fail, and a chief that is killed, are started "
                 "again, in all")
      ->check(CLI::Range(0, 1'000'000));
  app.add_flag("--restart-workers", options.restart_workers,
               "So are workers that are killed, but for the first where there is no chief");
  app.add_option("--restart-job", options.job_restarts,
                 "How often a job that fails is started again as a whole")
      ->check(CLI::Range(0, 1'000'000));
  app.add_option("--metrics-port", metrics_port,
                 "Where Prometheus scrapes the first task; the others follow (COHORT_METRICS_PORT)")
      ->check(CLI::Range(1, 65535));
  app.add_option("--grace", grace, "Seconds from SIGTERM to SIGKILL")
      ->check(CLI::Range(0.0, 86'400.0));
  const CLI::Option* keep_going_option =
      app.add_flag("--keep-going,!--no-keep-going", keep_going,
                   "The loss of a worker does not end the job (default with --chief and --ps)");
  if (const std::optional<int> code = ParseCommandLine(app, argc, argv)) {
    return *code;
  }
  options.program = app.remaining();
  if (!options.program.empty() && options.program.front() == "--") {
    options.program.erase(options.program.begin());
  }
  if (metrics_port > 0) {
    options.extra["COHORT_METRICS_PORT"] = std::to_string(metrics_port);
  }
  options.grace = std::chrono::milliseconds(std::llround(grace * 1000));
  options.keep_going =
      keep_going_option->count() > 0 ? keep_going : options.chief && options.servers > 0;
  std::optional<std::string> mistake = ParseVariables(variables, options);
  if (!mistake) {
    mistake = Mistake(options, metrics_port);
  }
  if (mistake) {
    std::fprintf(stderr, "%s: %s [see --help]\n", argv[0], mistake->c_str());
    return 2;
  }
  return RunLocalJob(options);
}

}  // namespace cohort
