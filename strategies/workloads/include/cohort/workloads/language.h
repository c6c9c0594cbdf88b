// What a GPT is trained with: sizes, a step, an update rule.

#pragma once

#include <cstdint>
#include <string_view>

#include <cohort/core/tensor.h>
#include <cohort/nn/gpt.h>
#include <cohort/nn/recorded_step.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/strategy.h>

namespace cohort::workloads {

// "tiny"   4 layers of 128, 4 heads, 128 tokens
// "small"  6 layers of 384, 6 heads, 256 tokens
// "gpt2"   12 layers of 768, 12 heads, 1024 tokens
// InvalidArgument for another name. The vocabulary is the text's.
Result<nn::GptOptions> GptSize(std::string_view name);

// Forward, loss, backward, on whatever part of a batch ("tokens", "next") the replica is given. On
// a GPU a training step is a graph that is replayed (without dropout, which is other numbers in
// every step).
class GptStep {
 public:
  struct Options {
    std::uint64_t seed = 0;         // of dropout
    std::int64_t global_batch = 1;  // windows
    nn::Precision precision = nn::Precision::kFloat32;
  };
  // The model outlives this.
  GptStep(const nn::Gpt& model, Options options) : model_(model), options_(options) {}

  // Trains or evaluates; the same for both but for the gradients. Lives no longer than this.
  StepFn Of(bool training);
  nn::Workspaces& workspaces() { return workspaces_; }

 private:
  Result<ReplicaResult> Run(ReplicaContext& context, const data::Batch& batch, bool training);

  const nn::Gpt& model_;
  const Options options_;
  nn::Workspaces workspaces_;
  nn::RecordedSteps recorded_{workspaces_};
};

// AdamW with beta2 0.95.
AdamWOptions GptAdamW(Schedule rate, double weight_decay, double clip_norm);

// Tokens by Zipf's law, so that there is something to learn: int32 [count].
Tensor DrawTokens(std::int64_t count, std::int64_t vocabulary, std::uint64_t seed);

}  // namespace cohort::workloads
