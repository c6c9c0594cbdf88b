// Contestants that train in turns, on the same worker processes, round by round, so that other load
// on the machine hits all of them.

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <cohort/core/status.h>

#include "training_options.h"

namespace cohort {

struct Contestant {
  std::string name;
  int batch = 1;                        // of each worker
  bool communicates = true;             // false: every worker trains a model of its own
  bool in_step = false;                 // all begin each step together
  bool alone = false;                   // worker 0 trains, the others sleep
  std::string algorithm = "auto";       // CommunicationOptions::implementation
  std::int64_t first_bucket_bytes = 0;  // 0: the strategy's default
  std::int64_t bucket_bytes = 0;
  // LibTorch in our place, and DistributedDataParallel's reducer over Gloo where it communicates.
  // Left out where it cannot be had: TrainingTimes::no_torch.
  bool torch = false;
};

struct TrainingTimes {
  std::int64_t gradient_bytes = 0;
  // By contestant: milliseconds of a step in each round, of the slowest worker.
  std::map<std::string, std::vector<double>> rounds;
  std::string no_torch;  // why it is not among them

  double Milliseconds(const std::string& name) const;
  // The median over rounds of a's time / b's.
  double Ratio(const std::string& a, const std::string& b) const;
};

// In a worker's process: trains until all rounds are over. The times are complete on rank 0. In a
// server's: holds tables until then, and there are no times.
Result<TrainingTimes> RunTrainingRounds(const TrainingOptions& options,
                                        const std::vector<Contestant>& contestants);

// In the process that the user starts: starts the workers, and the servers of the model's tables,
// with `arguments`, passes on what they print, and waits for them; ends them all when one fails.
Status RunTrainingWorkers(const TrainingOptions& options, const std::string& command,
                          const std::vector<std::string>& arguments);

}  // namespace cohort
