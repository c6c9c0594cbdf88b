// A job's state to a checkpoint and back: parameters, optimizer slots, and where training stands.

#pragma once

#include <cstdint>
#include <string>

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

// Every process calls; the chief reads the newest whole checkpoint and the others get its values.
// NotFound if there is none. `expected_seed`: a checkpoint of another is FailedPrecondition.
Result<io::CheckpointState> LoadSnapshot(Strategy& strategy, ParameterSet& parameters,
                                         const io::CheckpointStore& store,
                                         std::uint64_t expected_seed);

// Every process calls: FailedPrecondition on all if the chief's folder holds a checkpoint.
Status RefuseSnapshots(Strategy& strategy, const io::CheckpointStore& store);

}  // namespace cohort
