#include <cohort/nn/losses.h>
#include <cohort/nn/operations.h>

#include <string>

#include "checks.h"

namespace cohort::nn {
namespace {

using Forward = void (Kernels::*)(Stream&, const LossArguments&, FloatSpan);
template <typename Gradient>
using Backward = void (Kernels::*)(Stream&, const LossArguments&, ConstFloatSpan, ConstFloatSpan,
                                   Gradient);

template <typename Gradient>
Variable Loss(const char* name, const Variable& x, const Tensor& given_labels,
              const Tensor& given_weights, Forward forward, Backward<Gradient> backward,
              std::int64_t classes_end = 0) {
  Tape& tape = x.tape();
  const Tensor labels = tape.Place(given_labels);
  const Tensor weights = given_weights.raw() == nullptr ? Tensor() : tape.Place(given_weights);
  RequireShape(x.shape().rank() >= 1, name, x.shape(), "[batch, ...]");
  LossArguments arguments{
      .rows = x.shape()[0], .columns = ElementsPerRow(x.shape()), .x = ElementsOf(x.tensor())};
  arguments.classes_end = classes_end;
  if (labels.dtype() == DType::kFloat32) {
    Require(labels.elements() == x.tensor().elements(),
            std::string(name) + ": targets " + labels.shape().ToString() +
                " have as many elements as " + x.shape().ToString());
    arguments.targets = labels.data<float>();
  } else {
    Require(labels.dtype() == DType::kInt64 || labels.dtype() == DType::kInt32,
            std::string(name) + ": class numbers are int64 or int32, not " +
                std::string(DTypeName(labels.dtype())));
    Require(labels.elements() == arguments.rows,
            std::string(name) + ": class numbers " + labels.shape().ToString() +
                ", one for each row of " + x.shape().ToString());
    arguments.classes = labels.raw();
    arguments.wide_classes = labels.dtype() == DType::kInt64;
  }
  if (weights.raw() != nullptr) {
    Require(
        weights.dtype() == DType::kFloat32 && weights.elements() == arguments.rows,
        std::string(name) + ": weights of float32, one for each row of " + x.shape().ToString());
    arguments.weights = weights.data<float>();
  }
  const Tensor loss = tape.Buffer({2});  // the mean, and the sum of weights
  (tape.kernels().*forward)(tape.stream(), arguments, Floats(loss));
  return tape.Record(loss.Rows(0, 1).Reshaped({}), {x}, {},
                     [&tape, arguments, backward, loss, x = x.tensor()](BackwardPass& pass) {
                       pass.Input(0, [&](Gradient dx) {
                         (tape.kernels().*backward)(tape.stream(), arguments, Floats(loss),
                                                    pass.output_gradient(), dx);
                       });
                     });
}

}  // namespace

Variable SoftmaxCrossEntropy(const Variable& logits, const Tensor& labels, const Tensor& weights,
                             std::int64_t classes_end) {
  RequireShape(logits.shape().rank() == 2 && logits.shape()[1] > 0, "SoftmaxCrossEntropy",
               logits.shape(), "[batch, classes]");
  return Loss("SoftmaxCrossEntropy", logits, labels, weights, &Kernels::SoftmaxCrossEntropy,
              &Kernels::SoftmaxCrossEntropyBackward, classes_end);
}

Variable SigmoidCrossEntropy(const Variable& logits, const Tensor& targets, const Tensor& weights) {
  Require(targets.dtype() == DType::kFloat32, "SigmoidCrossEntropy: targets of float32");
  return Loss("SigmoidCrossEntropy", Cast(logits, DType::kFloat32), targets, weights,
              &Kernels::SigmoidCrossEntropy, &Kernels::SigmoidCrossEntropyBackward);
}

Variable MeanSquaredError(const Variable& predictions, const Tensor& targets,
                          const Tensor& weights) {
  Require(targets.dtype() == DType::kFloat32, "MeanSquaredError: targets of float32");
  return Loss("MeanSquaredError", Cast(predictions, DType::kFloat32), targets, weights,
              &Kernels::MeanSquaredError, &Kernels::MeanSquaredErrorBackward);
}

}  // namespace cohort::nn
