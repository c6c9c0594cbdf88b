#include <cohort/workloads/binary_step.h>

#include <vector>

#include <cohort/nn/losses.h>
#include <cohort/nn/metrics.h>
#include <cohort/nn/operations.h>

namespace cohort::workloads {

StepFn BinaryStep::Of(bool training) {
  return
      [this, training](ReplicaContext& context, const data::Batch& batch) -> Result<ReplicaResult> {
        nn::Tape tape(context.parameters, context.stream,
                      workspaces_.For(context.local_replica, context.device),
                      {.training = training,
                       .step = context.step,
                       .intra_op_threads = context.intra_op_threads,
                       .precision = precision_});
        const Tensor& labels = batch[label_];
        const nn::Variable logit = logit_(tape, batch);
        const nn::Variable loss = nn::SigmoidCrossEntropy(logit, labels);
        if (training) {
          tape.Backward(loss, context.gradients);
        }
        const Tensor logits = tape.Fetch(logit);
        COHORT_RETURN_IF_ERROR(tape.Finish());
        double right = 0;
        for (std::size_t i = 0; i < static_cast<std::size_t>(batch.size); ++i) {
          right += (logits.data<float>()[i] > 0) == (labels.data<float>()[i] > 0.5F);
        }
        const auto examples = static_cast<double>(batch.size);
        return ReplicaResult{
            .loss_sum = loss.value() * examples, .weight = examples, .metric_sums = {right}};
      };
}

PredictFn BinaryStep::Predictions() {
  return [this](ReplicaContext& context, const data::Batch& batch) -> Result<Tensor> {
    nn::Tape tape(
        context.parameters, context.stream, workspaces_.For(context.local_replica, context.device),
        {.training = false, .intra_op_threads = context.intra_op_threads, .precision = precision_});
    const nn::Variable chance = nn::Sigmoid(logit_(tape, batch));
    const Tensor chances = tape.Fetch(chance);
    COHORT_RETURN_IF_ERROR(tape.Finish());
    Tensor rows(DType::kFloat32, {batch.size, 2});
    for (std::size_t i = 0; i < static_cast<std::size_t>(batch.size); ++i) {
      rows.data<float>()[2 * i] = chances.data<float>()[i];
      rows.data<float>()[2 * i + 1] = batch[label_].data<float>()[i];
    }
    return rows;
  };
}

Result<double> AucOf(const Tensor& predictions) {
  const std::int64_t count = predictions.shape()[0];
  std::vector<float> chances;
  Tensor labels(DType::kInt64, {count});
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    chances.push_back(predictions.data<float>()[2 * i]);
    labels.data<std::int64_t>()[i] = predictions.data<float>()[2 * i + 1] > 0.5F ? 1 : 0;
  }
  nn::Auc auc(10'000);
  COHORT_RETURN_IF_ERROR(auc.Add(chances, labels));
  return auc.value();
}

}  // namespace cohort::workloads
