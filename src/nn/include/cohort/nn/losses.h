// Losses: the weighted mean over the examples (the rows of the first operand), as a scalar.
//
// `weights` has one element per example; without it each weighs 1. A batch of 0, or weights that
// sum to 0, give loss 0 and zero gradients. The gradient is loss_seed / (sum of weights), computed
// in one, times each example's: with loss_seed equal to the number of examples it is exactly the
// sum over examples.

#pragma once

#include <cohort/nn/tape.h>

namespace cohort::nn {

// Logits [batch, classes]. Labels are class numbers (int64 or int32, one per example), or
// distributions (float32, [batch, classes]). A class number out of range is InvalidArgument from
// Finish, naming example, label and number of classes: of those below `classes_end`, where the last
// columns are none.
Variable SoftmaxCrossEntropy(const Variable& logits, const Tensor& labels,
                             const Tensor& weights = {}, std::int64_t classes_end = 0);
// Targets float32 like the logits, in [0, 1]; the mean over an example's elements.
Variable SigmoidCrossEntropy(const Variable& logits, const Tensor& targets,
                             const Tensor& weights = {});
// The mean over an example's elements of (prediction - target)^2.
Variable MeanSquaredError(const Variable& predictions, const Tensor& targets,
                          const Tensor& weights = {});

}  // namespace cohort::nn
