// What `cohort bench scaling` and `cohort bench overlap` have in common: worker processes that
// train an example's model, one core each.

#pragma once

#include <chrono>
#include <string>

#include <cohort/core/status.h>

#include "training_models.h"

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
  // Of a worker that waits for another; when completed, with a turn's time.
  std::chrono::milliseconds timeout{60'000};
  std::string rendezvous_host;
  std::string exec_prefix;
  ModelSizes sizes;  // those given; all of the model's when completed
  bool json = false;

  // Of a worker's own process; empty in the one that the user starts.
  std::string folder;
  int rank = 0;
  int server = -1;  // of those that hold tables; -1: a worker

  const TrainingModelInfo& info() const { return TrainingModels().at(model); }
  // Processes that hold the model's tables while workers train together.
  int servers() const {
    return info().tables && workers > 1 ? static_cast<int>(sizes.at("servers")) : 0;
  }
};

void DeclareTrainingOptions(CLI::App& app, TrainingOptions& options);
// Sets what the model decides. InvalidArgument names what it does not have.
Status CompleteTrainingOptions(TrainingOptions& options);

}  // namespace cohort
