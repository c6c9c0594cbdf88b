// The models that `cohort bench scaling` and `cohort bench overlap` train: those of the examples,
// with their input, their step and their update rule (cohort/workloads).

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/data/dataset.h>
#include <cohort/optim/optimizer.h>
#include <cohort/optim/parameter_set.h>
#include <cohort/strategies/step.h>

namespace cohort {

using ModelSizes = std::map<std::string, std::int64_t>;  // by flag, without its dashes

struct TrainingModelInfo {
  std::string what;  // for help
  int batch = 1;     // examples of a worker's step
  int batches = 4;   // different ones, in turns
  ModelSizes sizes;  // those that it has, and what they are by default
  // Its sparse tables are on "servers" where workers train together.
  bool tables = false;
  std::string torch;  // its name for cohort-bench-torch; empty: that has none such
};

// By name.
const std::map<std::string, TrainingModelInfo>& TrainingModels();

// Thread rules: one thread; Step's function as a step function.
class TrainingModel {
 public:
  virtual ~TrainingModel() = default;
  // Of one worker, as the example reads them.
  const data::Dataset& examples() const { return examples_; }
  // Lives no longer than this.
  virtual StepFn Step() = 0;
  virtual std::unique_ptr<Optimizer> MakeOptimizer() const = 0;

 protected:
  explicit TrainingModel(data::Dataset examples) : examples_(std::move(examples)) {}

 private:
  const data::Dataset examples_;
};

struct TrainingModelOptions {
  std::string name;
  ModelSizes sizes;               // all that the model has
  std::int64_t examples = 1;      // of each worker, at least
  std::int64_t global_batch = 1;  // of a step of all workers
  int rank = 0;
};

// Declares the parameters; Build is the caller's.
Result<std::unique_ptr<TrainingModel>> MakeTrainingModel(const TrainingModelOptions& options,
                                                         ParameterSet& parameters);

}  // namespace cohort
