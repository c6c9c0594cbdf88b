#include <cohort/workloads/image_step.h>

#include <span>

#include <cohort/nn/losses.h>
#include <cohort/nn/metrics.h>

namespace cohort::workloads {

StepFn ImageStep::Of(bool training) {
  return
      [this, training](ReplicaContext& context, const data::Batch& batch) -> Result<ReplicaResult> {
        COHORT_ASSIGN_OR_RETURN(const auto out, Run(context, batch, training));
        const auto examples = static_cast<double>(batch.size);
        ReplicaResult result{
            .loss_sum = out[0].data<float>()[0] * examples, .weight = examples, .metric_sums = {}};
        for (const int k : top_) {
          COHORT_ASSIGN_OR_RETURN(const auto right, nn::TopKAccuracy(out[1], batch["label"], k));
          result.metric_sums.push_back(right.sum);
        }
        return result;
      };
}

Result<std::vector<Tensor>> ImageStep::Run(ReplicaContext& context, const data::Batch& batch,
                                           bool training) {
  const nn::TapeOptions options{.training = training,
                                .step = context.step,
                                .updates_averages = context.local_replica == 0,
                                .intra_op_threads = context.intra_op_threads,
                                .precision = precision_};
  const std::vector<Tensor> inputs = {batch["image"], batch["label"]};
  const auto forward = [this](nn::Tape& tape, std::span<const Tensor> in) {
    const auto logits = model_.Logits(tape.Input(in[0]));
    return std::vector{nn::SoftmaxCrossEntropy(logits, in[1]), logits};
  };
  if (training) {
    return steps_.For(context.local_replica, context.device, context.parameters)
        .Run(context.stream, context.gradients, options, inputs, forward);
  }
  nn::Tape tape(context.parameters, context.stream,
                workspaces_.For(context.local_replica, context.device), options);
  std::vector<Tensor> out;
  for (const nn::Variable& variable : forward(tape, inputs)) {
    out.push_back(tape.Fetch(variable));
  }
  COHORT_RETURN_IF_ERROR(tape.Finish());
  return out;
}

double ResNetRate(double rate, std::int64_t examples_of_step) {
  return rate * static_cast<double>(examples_of_step) / 256;
}

SgdOptions ResNetSgd(Schedule rate, double weight_decay) {
  return {.learning_rate = std::move(rate), .momentum = 0.9, .l2 = weight_decay};
}

}  // namespace cohort::workloads
