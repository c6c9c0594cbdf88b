// `cohort trace`: merges the flight records and step traces of a job's ranks, says who is behind,
// and what the steps were spent on.

#include "command.h"

#include <cohort/core/file_system.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "flight_records.h"
#include "step_traces.h"
#include "summary.h"
#include "timeline.h"

namespace cohort {
namespace {

struct Files {
  trace::Groups groups;
  trace::StepTraces steps;
};

Result<Files> ReadAll(const std::vector<std::string>& paths) {
  Files files;
  for (const std::string& path : paths) {
    COHORT_ASSIGN_OR_RETURN(const std::string text, ReadFile(FileSystem::Local(), path));
    if (!trace::IsStepTrace(text)) {
      COHORT_ASSIGN_OR_RETURN(trace::FlightRecord record, trace::ParseFlightRecord(path, text));
      COHORT_RETURN_IF_ERROR(trace::AddTo(files.groups, std::move(record)));
      continue;
    }
    COHORT_ASSIGN_OR_RETURN(trace::StepTraceFile steps, trace::ParseStepTrace(path, text));
    const int rank = steps.rank;
    const auto [it, added] = files.steps.try_emplace(rank, std::move(steps));
    if (!added) {
      return InvalidArgument(it->second.path + " and " + path + " are both of rank " +
                             std::to_string(rank));
    }
  }
  return files;
}

Status Run(const std::vector<std::string>& paths, const std::string& chrome, std::size_t most) {
  COHORT_ASSIGN_OR_RETURN(Files files, ReadAll(paths));
  for (const auto& [key, ranks] : files.groups) {
    trace::Print(ranks);
  }
  for (const auto& [rank, steps] : files.steps) {
    const trace::Summary summary = trace::Summarize(steps, files.groups);
    std::printf("%s", trace::SummaryText(steps, summary, most).c_str());
  }
  if (!chrome.empty()) {
    const nlohmann::json timeline = trace::Timeline(files.groups, std::move(files.steps));
    COHORT_RETURN_IF_ERROR(WriteFileAtomically(
        FileSystem::Local(), chrome,
        timeline.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)));
    std::printf("wrote %s [open it at chrome://tracing or ui.perfetto.dev]\n", chrome.c_str());
  }
  return {};
}

}  // namespace

int TraceCommand(int argc, char** argv) {
  std::vector<std::string> paths;
  std::string chrome;
  std::size_t most = 20;
  CLI::App app(
      "Merges the flight records of a job's ranks (flight_folder/*.jsonl), and says which rank is "
      "behind in which operation. Sums up step traces (steps.*.json): time by kernel, and how much "
      "of the copies and collectives was hidden.",
      argv[0]);
  app.add_option("files", paths, "one file a rank, or one of each kind")->required();
  app.add_option("--chrome", chrome, "also write all of it as a trace for ui.perfetto.dev");
  app.add_option("--kernels", most, "that a summary names, the longest first")
      ->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const Status status = Run(paths, chrome, most);
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", argv[0], status.ToString().c_str());
  }
  return ExitCode(status);
}

}  // namespace cohort
