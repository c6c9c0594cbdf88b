// CheckpointManager: saves of a job whose chief calls functions (Coordinator), and the way back to
// them; as TensorFlow's CheckpointManager beside a ClusterCoordinator.
//
//   CheckpointManager saves(*strategy, parameters, {.folder = "DIR"});        // after Bind
//   const auto restored = OrThrow(saves.Restore());                           // on every process
//   if (strategy->is_chief()) {
//     const auto coordinator = OrThrow(Coordinator::Create(*strategy));
//     std::int64_t piece = restored.has_value() ? std::stoll(*restored) : 0;
//     const std::int64_t first = piece;
//     ... Schedule some pieces ...
//     OrThrow(saves.Save(*coordinator,
//                        [&](std::int64_t calls) { return std::to_string(first + calls); },
//                        DeadlineAfter(10min)));
//
// A checkpoint has the values, slots, rows and the step of a point between two calls, and what the
// program stores beside them, at most of all how far its own work is. A job that is started again,
// on any number of servers, goes on from the newest whole one; where a server is lost, the running
// job goes back to it (coordinator.h).
//
// Thread rules: Restore before Coordinator::Create; Save from any thread, as Coordinator::Save.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include <cohort/core/clock.h>
#include <cohort/core/log.h>
#include <cohort/core/status.h>
#include <cohort/optim/parameter_set.h>
#include <cohort/strategies/coordinator.h>
#include <cohort/strategies/strategy.h>

namespace cohort {

struct CheckpointManagerOptions {
  std::string folder;   // of this job's checkpoints only; made where it is missing
  int max_to_keep = 5;  // older checkpoints are deleted; 0: none are
  // One save in so many has all rows of the sparse tables, the others those that changed since the
  // save before, where that is less. What a checkpoint builds on is kept with it. 1: all are whole.
  int full_save_every = 8;
  std::uint64_t seed = 0;  // recorded; a checkpoint of another seed is refused
  Log log;
};

class CheckpointManager {
 public:
  // `strategy` is bound to `parameters` already. Both outlive the job, which is this and Serve.
  CheckpointManager(Strategy& strategy, ParameterSet& parameters, CheckpointManagerOptions options);

  // On the chief: gives the servers what the newest whole checkpoint has, and returns what the
  // program had stored with it; nothing, where the folder has none. From then on that, or what Save
  // adds, is what the servers go back to. On other processes it does nothing.
  //
  // FailedPrecondition: the checkpoint is of another seed, optimizer or model, or of a Trainer;
  // DataLoss: all that there are, are damaged; or the folder cannot be written to.
  Result<std::optional<std::string>> Restore();

  // On the chief, after Restore: saves at a point between two calls, which go on while it is
  // written, and returns the path of the checkpoint. There it is whole, or after an error not at
  // all, and the one before counts; errors and waits are those of Coordinator::Save, and of the
  // disk. `program`: what to store for the program, any bytes; it is told how many of the calls
  // that this coordinator was given are over, which are the first ones and all in the checkpoint.
  // It runs on this thread, and uses neither coordinator nor strategy.
  //
  // Where no step was made since the last one, that one stays, with what is stored there: calls
  // that changed nothing may as well be made again.
  using ProgramState = std::function<std::string(std::int64_t calls)>;
  Result<std::string> Save(Coordinator& coordinator, const ProgramState& program,
                           Deadline deadline);

 private:
  struct State;
  std::shared_ptr<State> state_;  // owners: this, and the strategy's way back
};

}  // namespace cohort
