#include <cohort/workloads/language.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/data/dataset.h>

namespace cohort::workloads {

Result<nn::GptOptions> GptSize(std::string_view name) {
  if (name == "tiny") {
    return nn::GptOptions{.length = 128, .layers = 4, .heads = 4, .width = 128};
  }
  if (name == "small") {
    return nn::GptOptions{.length = 256, .layers = 6, .heads = 6, .width = 384};
  }
  if (name == "gpt2") {
    return nn::GptOptions{.length = 1024, .layers = 12, .heads = 12, .width = 768};
  }
  return InvalidArgument("no size of GPT is called '" + std::string(name) +
                         "' [tiny, small or gpt2]");
}

StepFn GptStep::Of(bool training) {
  return [this, training](ReplicaContext& context, const data::Batch& batch) {
    return Run(context, batch, training);
  };
}

Result<ReplicaResult> GptStep::Run(ReplicaContext& context, const data::Batch& batch,
                                   bool training) {
  const nn::TapeOptions options{.training = training,
                                .seed = options_.seed,
                                .step = context.step,
                                .first_example = data::PartBegin(
                                    options_.global_batch, context.num_replicas, context.replica),
                                .intra_op_threads = context.intra_op_threads,
                                .precision = options_.precision};
  const std::vector<Tensor> inputs = {batch["tokens"], batch["next"]};
  const auto forward = [this](nn::Tape& tape, std::span<const Tensor> in) {
    return std::vector{model_.Loss(tape, in[0], in[1])};
  };
  Tensor loss;
  if (training) {
    COHORT_ASSIGN_OR_RETURN(const std::vector<Tensor> out,
                            recorded_.For(context.local_replica, context.device, context.parameters)
                                .Run(context.stream, context.gradients, options, inputs, forward));
    loss = out.front();
  } else {
    nn::Tape tape(context.parameters, context.stream,
                  workspaces_.For(context.local_replica, context.device), options);
    loss = tape.Fetch(forward(tape, inputs).front());
    COHORT_RETURN_IF_ERROR(tape.Finish());
  }
  const auto examples = static_cast<double>(batch.size);
  return ReplicaResult{
      .loss_sum = loss.data<float>()[0] * examples, .weight = examples, .metric_sums = {}};
}

AdamWOptions GptAdamW(Schedule rate, double weight_decay, double clip_norm) {
  return {.learning_rate = std::move(rate),
          .beta2 = 0.95,
          .weight_decay = weight_decay,
          .global_clip_norm = clip_norm};
}

Tensor DrawTokens(std::int64_t count, std::int64_t vocabulary, std::uint64_t seed) {
  const Philox random(seed, "tokens");
  Tensor tokens(DType::kInt32, {count});
  std::uint64_t i = 0;
  for (std::int32_t& token : tokens.data<std::int32_t>()) {
    const double rank = std::pow(static_cast<double>(vocabulary), random.Uniform(i++));
    token = static_cast<std::int32_t>(
        std::min<std::int64_t>(static_cast<std::int64_t>(rank) - 1, vocabulary - 1));
  }
  return tokens;
}

}  // namespace cohort::workloads
