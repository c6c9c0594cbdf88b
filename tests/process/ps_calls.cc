#include "process/ps_calls.h"

#include <chrono>
#include <cstdio>
#include <optional>
#include <utility>
#include <vector>

#include <cohort/core/clock.h>
#include <cohort/core/log.h>
#include <cohort/strategies/coordinator.h>
#include <cohort/train/checkpoint_manager.h>

namespace cohort::testing {
namespace {

using std::chrono::minutes;

void Say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

// `first`: calls that were done before.
Status Save(CheckpointManager& saves, Coordinator& coordinator, std::int64_t first) {
  std::int64_t over = 0;
  const auto program = [&](std::int64_t calls) {
    over = first + calls;
    return std::to_string(over);
  };
  COHORT_RETURN_IF_ERROR(saves.Save(coordinator, program, DeadlineAfter(minutes(1))).status());
  Say("saved after " + std::to_string(over) + " calls");
  return {};
}

}  // namespace

Status CallAll(Strategy& strategy, ParameterSet& parameters, const CallOptions& options) {
  std::optional<CheckpointManager> saves;
  std::int64_t first = 0;
  if (!options.folder.empty()) {
    saves.emplace(strategy, parameters,
                  CheckpointManagerOptions{.folder = options.folder,
                                           .full_save_every = options.full_save_every,
                                           .log = StderrLog("saves")});
    COHORT_ASSIGN_OR_RETURN(const std::optional<std::string> program, saves->Restore());
    first = program.has_value() ? std::stoll(*program) : 0;
    Say("goes on after " + std::to_string(first) + " calls");
  }
  COHORT_ASSIGN_OR_RETURN(const auto coordinator, Coordinator::Create(strategy));
  std::vector<std::pair<std::string, RemoteValue>> values;
  for (std::int64_t call = first; call < options.examples / kExamplesOfACall; ++call) {
    std::string begin = std::to_string(call * kExamplesOfACall);
    COHORT_ASSIGN_OR_RETURN(const RemoteValue value, coordinator->Schedule("train", begin));
    values.emplace_back(std::move(begin), value);
    if (saves.has_value() && options.save_calls > 0 &&
        (call - first + 1) % options.save_calls == 0) {
      const RemoteValue& one =
          values[values.size() - static_cast<std::size_t>(options.save_calls)].second;
      COHORT_RETURN_IF_ERROR(coordinator->Fetch(one, DeadlineAfter(minutes(1))).status());
      COHORT_RETURN_IF_ERROR(Save(*saves, *coordinator, first));
    }
  }
  const Deadline deadline = DeadlineAfter(minutes(1));
  COHORT_RETURN_IF_ERROR(coordinator->Join(deadline));
  for (const auto& [begin, value] : values) {
    COHORT_ASSIGN_OR_RETURN(const std::string result, coordinator->Fetch(value, deadline));
    if (result != begin) {
      return DataLoss("the call at " + begin + " has the result of that at " + result);
    }
  }
  Say("fetched " + std::to_string(values.size()) + " results");
  return {};
}

}  // namespace cohort::testing
