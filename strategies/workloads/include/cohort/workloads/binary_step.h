// One step of a model of a yes or no, its predictions, and how good these are.

#pragma once

#include <functional>
#include <string>
#include <utility>

#include <cohort/data/batch.h>
#include <cohort/nn/tape.h>
#include <cohort/strategies/strategy.h>
#include <cohort/train/trainer.h>

namespace cohort::workloads {

// Forward, loss, backward, on whatever part of a batch the replica is given.
class BinaryStep {
 public:
  // [batch, 1]: log-odds of yes.
  using LogitFn = std::function<nn::Variable(nn::Tape& tape, const data::Batch& batch)>;

  // `label`: the feature [1] that is 1 for yes and 0 for no.
  BinaryStep(LogitFn logit, std::string label, nn::Precision precision)
      : logit_(std::move(logit)), label_(std::move(label)), precision_(precision) {}

  // Trains or evaluates; the same for both but for the gradients. Its metric is how often the
  // likelier answer was right. Lives no longer than this.
  StepFn Of(bool training);
  // Chances of yes, and labels: [batch, 2]. Lives no longer than this.
  PredictFn Predictions();

 private:
  const LogitFn logit_;
  const std::string label_;
  const nn::Precision precision_;
  nn::Workspaces workspaces_;
};

// The area under the curve of what Predictions gave.
Result<double> AucOf(const Tensor& predictions);

}  // namespace cohort::workloads
