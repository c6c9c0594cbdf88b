#include "process/ps_calls.h"

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <numeric>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <cohort/core/clock.h>
#include <cohort/core/file_system.h>
#include <cohort/core/log.h>
#include <cohort/optim/row_source.h>
#include <cohort/strategies/coordinator.h>
#include <cohort/train/checkpoint_manager.h>

#include "testing/temp_dir.h"

namespace cohort::testing {
namespace {

using std::chrono::minutes;

void Say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

// Stands behind each save that is whole, within Save.
class StandsBehindSaves final : public Coordinator {
 public:
  StandsBehindSaves(Coordinator& coordinator, const std::function<void()>& stand)
      : coordinator_(coordinator), stand_(stand) {}

  Result<RemoteValue> Schedule(std::string function, std::string argument,
                               std::vector<PerWorkerDataset> data) override {
    return coordinator_.Schedule(std::move(function), std::move(argument), std::move(data));
  }
  PerWorkerDataset CreatePerWorkerDataset(std::string name) override {
    return coordinator_.CreatePerWorkerDataset(std::move(name));
  }
  Status Join(Deadline deadline) override { return coordinator_.Join(deadline); }
  bool Done() const override { return coordinator_.Done(); }
  Result<std::string> Fetch(const RemoteValue& value, Deadline deadline) override {
    return coordinator_.Fetch(value, deadline);
  }
  Status Save(const SaveFn& save, Deadline deadline) override {
    const auto then_stand = [&](std::int64_t calls) -> Status {
      COHORT_RETURN_IF_ERROR(save(calls));
      Say("wrote a save");
      stand_();
      return {};
    };
    return coordinator_.Save(then_stand, deadline);
  }
  void Close() override { coordinator_.Close(); }

 private:
  Coordinator& coordinator_;
  const std::function<void()>& stand_;
};

// What the servers have, to the servers.
Status PullAndPush(Strategy& strategy) {
  COHORT_RETURN_IF_ERROR(strategy.PullState());
  return strategy.PushState();
}

// All calls so far are over, as `one` of them is; stands while servers are lost, and gives them
// what they had before.
Status GiveBack(Strategy& strategy, Coordinator& coordinator, const RemoteValue& one,
                const CallOptions& options) {
  COHORT_RETURN_IF_ERROR(coordinator.Join(DeadlineAfter(minutes(1))));
  COHORT_RETURN_IF_ERROR(strategy.PullState());
  const TempDir folder;
  const std::string rows = folder / "rows";
  COHORT_RETURN_IF_ERROR(strategy.SaveTable(0, FileSystem::Local(), rows));
  options.stand();
  COHORT_RETURN_IF_ERROR(coordinator.Fetch(one, DeadlineAfter(minutes(1))).status());
  Say("refused: " + strategy.PushState().ToString());
  COHORT_RETURN_IF_ERROR(strategy.LoadTable(0, FileSystem::Local(), {rows}));
  return PullAndPush(strategy);
}

// Gives the servers values between two calls. They are in a save which this program has no way back
// to; stands behind it.
Status GiveAndKeep(Strategy& strategy, Coordinator& coordinator, const CallOptions& options) {
  COHORT_RETURN_IF_ERROR(coordinator.Join(DeadlineAfter(minutes(1))));
  COHORT_RETURN_IF_ERROR(PullAndPush(strategy));
  COHORT_ASSIGN_OR_RETURN(const RemoteValue call, coordinator.Schedule("train", "0", {}));
  COHORT_RETURN_IF_ERROR(coordinator.Fetch(call, DeadlineAfter(minutes(1))).status());
  COHORT_RETURN_IF_ERROR(
      coordinator.Save([](std::int64_t) { return OkStatus(); }, DeadlineAfter(minutes(1))));
  options.stand();
  return {};
}

// What gives the servers nothing; stands behind it.
Status LoadWhatIsNotThere(Strategy& strategy, const CallOptions& options) {
  Say("refused: " + strategy.LoadTable(0, FileSystem::Local(), {"/nowhere"}).ToString());
  Say("refused: " + strategy.LoadTable(9, FileSystem::Local(), {"/nowhere"}).ToString());
  options.stand();
  return {};
}

Status Evaluate(Strategy& strategy, const CallOptions& options) {
  COHORT_ASSIGN_OR_RETURN(const auto data, strategy.Distribute(options.data, {.evaluation = true}));
  COHORT_RETURN_IF_ERROR(data->BeginEpoch(0));
  COHORT_ASSIGN_OR_RETURN(const auto batch, data->Next());
  const auto look = [&](ReplicaContext& context, const data::Batch&) -> Result<ReplicaResult> {
    options.stand();
    std::vector<std::uint64_t> ids(static_cast<std::size_t>(options.examples));
    std::iota(ids.begin(), ids.end(), 0);
    std::vector<float> rows(ids.size());
    COHORT_RETURN_IF_ERROR(context.parameters.rows().Lookup(0, ids, /*training=*/false, rows));
    Say(fmt::format("evaluated {:g} beside rows of {:g}", context.parameters.value(0)[0],
                    std::accumulate(rows.begin(), rows.end(), 0.0)));
    return ReplicaResult{.loss_sum = 0, .weight = 1, .metric_sums = {}};
  };
  return strategy.Evaluate(*batch, look).status();
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
  const std::int64_t calls = options.examples / kExamplesOfACall;
  bool gives = options.place == "saved";
  for (std::int64_t call = first; call < calls; ++call) {
    if (options.place == "given" && call == calls / 2) {
      COHORT_RETURN_IF_ERROR(GiveBack(strategy, *coordinator, values.front().second, options));
    } else if (options.place == "kept" && call == calls / 2) {
      COHORT_RETURN_IF_ERROR(GiveAndKeep(strategy, *coordinator, options));
    } else if (options.place == "refused" && call == calls / 2) {
      COHORT_RETURN_IF_ERROR(LoadWhatIsNotThere(strategy, options));
    }
    std::string begin = std::to_string(call * kExamplesOfACall);
    COHORT_ASSIGN_OR_RETURN(const RemoteValue value, coordinator->Schedule("train", begin));
    values.emplace_back(std::move(begin), value);
    if (saves.has_value() && options.save_calls > 0 &&
        (call - first + 1) % options.save_calls == 0) {
      const RemoteValue& one =
          values[values.size() - static_cast<std::size_t>(options.save_calls)].second;
      COHORT_RETURN_IF_ERROR(coordinator->Fetch(one, DeadlineAfter(minutes(1))).status());
      if (std::exchange(gives, false)) {
        COHORT_RETURN_IF_ERROR(coordinator->Join(DeadlineAfter(minutes(1))));
        COHORT_RETURN_IF_ERROR(PullAndPush(strategy));
      } else if (options.place == "saved") {
        StandsBehindSaves standing(*coordinator, options.stand);
        COHORT_RETURN_IF_ERROR(Save(*saves, standing, first));
      } else {
        COHORT_RETURN_IF_ERROR(Save(*saves, *coordinator, first));
      }
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
  return options.place == "evaluation" ? Evaluate(strategy, options) : OkStatus();
}

}  // namespace cohort::testing
