// What `cohort bench scaling` and `cohort bench overlap` have in common: worker processes that
// train an example model, one core each.

#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace cohort {

struct TrainingOptions {
  std::string model = "mlp";
  int workers = 2;
  int batch = 0;  // of a worker; 0: the model's
  std::string transport = "shm";
  int rounds = 7;
  double seconds = 0.5;  // of one turn
  std::chrono::milliseconds timeout{60'000};
  std::string rendezvous_host;
  std::string exec_prefix;
  bool json = false;

  // Of a worker's own process; empty in the one that the user starts.
  std::string folder;
  int rank = 0;
};

void DeclareTrainingOptions(CLI::App& app, TrainingOptions& options);
// Sets what the model decides.
void CompleteTrainingOptions(TrainingOptions& options);

}  // namespace cohort
