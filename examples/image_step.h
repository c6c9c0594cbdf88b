// One step of an image classifier: what image_classifier and resnet train and evaluate with.

#pragma once

#include <cohort/nn/models.h>
#include <cohort/nn/recorded_step.h>
#include <cohort/strategies/strategy.h>

#include <vector>

// Forward, loss, backward, on whatever part of a batch ("image", "label") the replica is given. On
// a GPU a training step is a graph that is replayed.
class ImageStep {
 public:
  // Metrics: how many labels were among the `top` largest scores, for each of these. The model
  // outlives this.
  ImageStep(const cohort::nn::ImageModel& model, cohort::nn::Precision precision,
            std::vector<int> top = {1})
      : model_(model), precision_(precision), top_(std::move(top)) {}

  // Trains or evaluates; the same for both but for the gradients. Lives no longer than this.
  cohort::StepFn Of(bool training);

 private:
  // The loss and the logits.
  cohort::Result<std::vector<cohort::Tensor>> Run(cohort::ReplicaContext& context,
                                                  const cohort::data::Batch& batch, bool training);

  const cohort::nn::ImageModel& model_;
  const cohort::nn::Precision precision_;
  const std::vector<int> top_;
  cohort::nn::Workspaces workspaces_;
  cohort::nn::RecordedSteps steps_{workspaces_};
};
