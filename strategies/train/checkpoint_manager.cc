#include <cohort/train/checkpoint_manager.h>

#include <fmt/format.h>

#include <utility>

#include "snapshot.h"

namespace cohort {
namespace {

// What the program stores, as a file beside the tensors.
constexpr const char* kProgram = "program.state";

}  // namespace

struct CheckpointManager::State {
  State(Strategy& s, ParameterSet& p, CheckpointManagerOptions o)
      : strategy(s),
        parameters(p),
        options(std::move(o)),
        store(FileSystem::Local(), options.folder,
              {.max_to_keep = options.max_to_keep, .log = options.log}) {}

  Strategy& strategy;
  ParameterSet& parameters;
  const CheckpointManagerOptions options;
  const io::CheckpointStore store;
  bool restored = false;
  std::int64_t saved_step = -1;
  std::string saved_path;

  Result<std::string> Read();
  Status Write(const ProgramState& program, std::int64_t calls);
};

CheckpointManager::CheckpointManager(Strategy& strategy, ParameterSet& parameters,
                                     CheckpointManagerOptions options)
    : state_(std::make_shared<State>(strategy, parameters, std::move(options))) {
  Require(!state_->options.folder.empty(), "a checkpoint folder");
  Require(strategy.optimizer() != nullptr, "Bind before the CheckpointManager");
}

// To the servers; what the program had stored.
Result<std::string> CheckpointManager::State::Read() {
  ExtraFile program = {.name = kProgram, .content = {}};
  COHORT_ASSIGN_OR_RETURN(
      const io::CheckpointState state,
      ReadSnapshot(strategy, parameters, store, options.seed, &program, &saved_path));
  saved_step = state.step;
  return std::move(program.content);
}

Result<std::optional<std::string>> CheckpointManager::Restore() {
  State& s = *state_;
  if (!s.strategy.is_chief()) {
    return std::optional<std::string>();
  }
  COHORT_RETURN_IF_ERROR(PrepareFolder(s.store));
  Result<std::string> program = s.Read();
  if (!program.ok() && program.status().code() != StatusCode::kNotFound) {
    return program.status();
  }
  s.restored = true;
  s.strategy.SaveBetweenUpdates({.restore = [state = state_]() -> Result<std::int64_t> {
    COHORT_RETURN_IF_ERROR(state->Read().status());
    return state->saved_step;
  }});
  if (!program.ok()) {
    return std::optional<std::string>();
  }
  s.options.log.Info(fmt::format("goes on from {}, of step {}", s.saved_path, s.saved_step));
  return std::optional(*std::move(program));
}

// Of what the strategy has: the servers' snapshot.
Status CheckpointManager::State::Write(const ProgramState& program, std::int64_t calls) {
  COHORT_RETURN_IF_ERROR(strategy.PullState());  // for the step
  if (strategy.step() == saved_step) {
    return {};
  }
  const io::CheckpointState state = {.step = strategy.step(),
                                     .epoch = 0,
                                     .batch = 0,
                                     .seed = options.seed,
                                     .dataset_fingerprint = 0,
                                     .data_position = {},
                                     .optimizer = strategy.optimizer()->config(),
                                     .strategy = std::string(strategy.kind()),
                                     .world_size = strategy.num_replicas_in_sync(),
                                     .user = {}};
  const ExtraFile extra = {.name = kProgram, .content = program(calls)};
  COHORT_ASSIGN_OR_RETURN(saved_path, WriteSnapshot(strategy, parameters, store, state,
                                                    options.full_save_every, extra));
  saved_step = state.step;
  return {};
}

Result<std::string> CheckpointManager::Save(Coordinator& coordinator, const ProgramState& program,
                                            Deadline deadline) {
  State& s = *state_;
  Require(program != nullptr, "Save with what the program stores");
  if (!s.restored) {
    return FailedPrecondition(
        "Save before Restore [Restore on the chief, after Bind and before Coordinator::Create]");
  }
  std::string path;
  const auto write = [&](std::int64_t calls) -> Status {
    const Status written = s.Write(program, calls);
    path = s.saved_path;
    return written.Annotate("checkpoint in " + s.options.folder);
  };
  COHORT_RETURN_IF_ERROR(coordinator.Save(write, deadline));
  return path;
}

}  // namespace cohort
