// A job's state to a checkpoint and back: parameters, optimizer slots, and where training stands.

#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/io/checkpoint.h>
#include <cohort/optim/parameter_set.h>
#include <cohort/strategies/strategy.h>

namespace cohort {

// Every process calls; the chief writes, and all return its outcome. `path` becomes what was
// written (its first 959 bytes, on the others).
//
// Rows that are saved as changes since an earlier save: at most `full_save_every` - 1 times in
// turn, and while these are together not larger than all rows were.
Status SaveSnapshot(Strategy& strategy, ParameterSet& parameters, const io::CheckpointStore& store,
                    const io::CheckpointState& state, int full_save_every, std::string* path);

// The same, behind training that goes on: where rows are held by others than the chief, which are
// many. Of what it holds itself the chief makes a copy.
//
// Thread rules: one thread, that of the strategy.
class SnapshotBehind {
 public:
  SnapshotBehind() = default;
  ~SnapshotBehind();  // waits for the end of what was begun
  SnapshotBehind(const SnapshotBehind&) = delete;
  SnapshotBehind& operator=(const SnapshotBehind&) = delete;

  // Every process calls, with nothing begun: begins a save of what there is now, for which all that
  // is given outlives this. False: there is nothing to gain, and nothing has happened. After an
  // error that the others could not be told, the chief writes all the same: where begun() holds
  // then, Abandon is what follows.
  Result<bool> Begin(Strategy& strategy, ParameterSet& parameters, const io::CheckpointStore& store,
                     const io::CheckpointState& state, int full_save_every);
  bool begun() const { return strategy_ != nullptr; }
  // Every process calls, after Begin: waits for the end of it; as SaveSnapshot.
  Status Finish(std::string* path);
  // The same without the others, after what it is written from has failed: waits until nothing is
  // read any more. What the chief has written, or why it has not.
  Result<std::string> Abandon();
  const io::CheckpointState& state() const { return state_; }  // of the last one
  // When the chief had written it.
  std::chrono::steady_clock::time_point ended() const { return ended_; }

 private:
  void AwaitWriter();
  void Start(Strategy& strategy, const ParameterSet& parameters, const io::CheckpointStore& store,
             int full_save_every);

  Strategy* strategy_ = nullptr;  // while one is under way
  io::CheckpointState state_;
  std::vector<float> values_;  // the copies, of the chief
  std::vector<std::vector<float>> slots_;
  Result<std::string> written_ = std::string();  // of writer_
  std::chrono::steady_clock::time_point ended_;
  std::thread writer_;
};

// Every process calls; the chief reads the newest whole checkpoint and the others get its values.
// NotFound if there is none. `expected_seed`: a checkpoint of another is FailedPrecondition.
Result<io::CheckpointState> LoadSnapshot(Strategy& strategy, ParameterSet& parameters,
                                         const io::CheckpointStore& store,
                                         std::uint64_t expected_seed);

// ---- By the chief alone
// --------------------------------------------------------------------------

// A file beside the tensors, which is not the strategy's.
struct ExtraFile {
  std::string name;
  std::string content;
};
// Writes the state as it was pulled last; where that is.
Result<std::string> WriteSnapshot(Strategy& strategy, ParameterSet& parameters,
                                  const io::CheckpointStore& store,
                                  const io::CheckpointState& state, int full_save_every,
                                  const ExtraFile& extra);
// As LoadSnapshot. The content of `extra` becomes what was saved under its name, `path` where.
// FailedPrecondition, and nothing is given to the strategy: there is no such file.
Result<io::CheckpointState> ReadSnapshot(Strategy& strategy, ParameterSet& parameters,
                                         const io::CheckpointStore& store,
                                         std::uint64_t expected_seed, ExtraFile* extra,
                                         std::string* path);
// Makes the folder; an error where it cannot be written to.
Status PrepareFolder(const io::CheckpointStore& store);

// ---- By all processes
// ----------------------------------------------------------------------------

// Every process calls, before what would be saved is done: an error on all where the chief cannot
// write to the folder, which it makes.
Status PrepareSnapshots(Strategy& strategy, const io::CheckpointStore& store);

// Every process calls: FailedPrecondition on all if the chief's folder holds a checkpoint. `own`,
// on the chief: what it holds is this run's.
Status RefuseSnapshots(Strategy& strategy, const io::CheckpointStore& store, bool own);

}  // namespace cohort
