// Course: what a scheduler has handed out and what came of it, at a point that a job can go back
// to.

#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>

#include "parameter_server/chief/round_table.h"
#include "parameter_server/chief/split_queue.h"

namespace cohort::ps {

struct DatasetInfo {
  std::uint64_t fingerprint = 0;
  std::int64_t examples = 0;  // that an epoch delivers
  std::int64_t batch_size = 0;
  friend bool operator==(const DatasetInfo&, const DatasetInfo&) = default;
};

// Of one epoch of the data.
struct EpochCourse {
  std::optional<SplitQueue> splits;  // asynchronous
  std::int64_t first_batch = 0;
  std::int64_t batches = 0;
  std::int64_t steps = 0;  // asynchronous, of finished splits; and what they came to
  RoundSums sums;
  std::chrono::steady_clock::time_point begun = std::chrono::steady_clock::now();
  std::optional<double> seconds;  // until it was over
  bool reported = false;
};

struct Course {
  std::int64_t step = 0;
  // Of the first one, the values that training began with; 0: those of a save.
  std::uint64_t digest = 0;
  std::map<EpochKey, EpochCourse> epochs;
  std::optional<RoundTable> rounds;
  std::map<EpochKey, std::int64_t> again;  // due since a roll-back, with their first batches
  std::int64_t calls = 0;                  // of functions: all up to this one are over
};

}  // namespace cohort::ps
