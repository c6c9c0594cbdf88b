// Runs of the image classifier, as real processes.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "testing/process_cluster.h"

namespace cohort::testing {

std::string Bin(const std::string& program);  // path of a built program

// Flags of a run on `data` (a folder in MNIST's format; empty: digits that the program draws).
struct TrainingRun {
  std::string data;
  std::string strategy;
  std::string model = "cnn";
  int global_batch = 64;
  int epochs = 1;
  int seed = 1;
  std::vector<std::string> launcher;  // in front of the program: mpirun -n 2, cohort launch -n 2 --
  std::vector<std::string> more;      // further flags
};

// Runs it to its end, which must be exit code 0 within 5 minutes, and returns the metrics that the
// chief wrote.
nlohmann::json Train(const TrainingRun& run);

std::vector<std::string> Mpirun(int processes);
std::vector<std::string> Launch(const std::vector<std::string>& flags);  // cohort launch FLAGS --

// A folder of image data: the real one where it is there, else digits that cohort draws (of `train`
// and `test` examples), made once for a test process.
std::string ImageData(const std::string& name, int train, int test);

}  // namespace cohort::testing
