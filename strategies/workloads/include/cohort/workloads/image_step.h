// One step of an image classifier, and how a ResNet is updated.

#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include <cohort/nn/models.h>
#include <cohort/nn/recorded_step.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/strategy.h>

namespace cohort::workloads {

// Forward, loss, backward, on whatever part of a batch ("image", "label") the replica is given. On
// a GPU a training step is a graph that is replayed.
class ImageStep {
 public:
  // Metrics: how many labels were among the `top` largest scores, for each of these. The model
  // outlives this.
  ImageStep(const nn::ImageModel& model, nn::Precision precision, std::vector<int> top = {1})
      : model_(model), precision_(precision), top_(std::move(top)) {}

  // Trains or evaluates; the same for both but for the gradients. Lives no longer than this.
  StepFn Of(bool training);

 private:
  // The loss and the logits.
  Result<std::vector<Tensor>> Run(ReplicaContext& context, const data::Batch& batch, bool training);

  const nn::ImageModel& model_;
  const nn::Precision precision_;
  const std::vector<int> top_;
  nn::Workspaces workspaces_;
  nn::RecordedSteps steps_{workspaces_};
};

// SGD with momentum 0.9. `rate`: for 256 examples; it grows with those of a step (Goyal et al.,
// "Accurate, large minibatch SGD", 2017).
double ResNetRate(double rate, std::int64_t examples_of_step);
SgdOptions ResNetSgd(Schedule rate, double weight_decay);

}  // namespace cohort::workloads
