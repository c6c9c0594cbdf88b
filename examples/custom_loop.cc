// The loop that Trainer::Fit is made of, for programs that want their own: Bind, Distribute, Step.
//
//   custom_loop        or  cohort launch -n 2 -- custom_loop        or  mpirun -n 2 custom_loop

#include <cohort/cohort.h>
#include <cohort/data/digits.h>
#include <cohort/nn/layers.h>
#include <cohort/nn/losses.h>
#include <cohort/nn/metrics.h>
#include <cohort/optim/optimizers.h>

#include <cstdio>

namespace {

using namespace cohort;

// A model is whatever declares parameters and turns images into logits.
struct Model {
  explicit Model(ParameterSet& parameters)
      : convolution(parameters, "convolution", 1, 16, {.activation = Activation::kRelu}),
        classes(parameters, "classes", 14 * 14 * 16, 10) {}
  nn::Variable operator()(const nn::Variable& images) const {
    return classes(nn::Flatten(nn::MaxPool2D(convolution(images))));
  }
  nn::Conv2D convolution;
  nn::Dense classes;
};

void Train() {
  const auto strategy = OrThrow(Strategy::FromEnv({}, {.log = StderrLog("")}));
  ParameterSet parameters;
  const Model model(parameters);
  parameters.Build();
  OrThrow(strategy->Bind(parameters, Sgd({.learning_rate = 0.05, .momentum = 0.9})));

  nn::Workspaces workspaces;
  // Runs on each replica, at the same time, with that replica's part of the global batch.
  const StepFn step = [&](ReplicaContext& replica,
                          const data::Batch& batch) -> Result<ReplicaResult> {
    nn::Tape tape(replica.parameters, replica.stream,
                  workspaces.For(replica.local_replica, replica.device));
    const auto logits = model(tape.Input(batch["image"]));
    const auto loss = nn::SoftmaxCrossEntropy(logits, batch["label"]);
    tape.Backward(loss, replica.gradients);  // communication starts in here
    const Tensor scores = tape.Fetch(logits);
    COHORT_RETURN_IF_ERROR(tape.Finish());
    COHORT_ASSIGN_OR_RETURN(const nn::WeightedSum right, nn::Accuracy(scores, batch["label"]));
    const auto examples = static_cast<double>(batch.size);
    return ReplicaResult{
        .loss_sum = loss.value() * examples, .weight = examples, .metric_sums = {right.sum}};
  };

  const auto digits = data::GeneratedDigits({.count = 4000}).Shuffle(1).Batch(64).Prefetch(2);
  const auto dataset = OrThrow(strategy->Distribute(digits));
  for (int epoch = 0; epoch < 3; ++epoch) {
    double right = 0;
    double examples = 0;
    OrThrow(dataset->BeginEpoch(epoch));
    while (const auto batch = OrThrow(dataset->Next())) {
      const StepResult result = OrThrow(strategy->Step(*batch, step));  // of the whole global batch
      right += result.metrics[0] * result.weight;
      examples += result.weight;
    }
    if (strategy->is_chief()) {
      std::printf("epoch %d: %.4f of %.0f examples right\n", epoch + 1, right / examples, examples);
    }
  }
  OrThrow(strategy->Shutdown());
}

}  // namespace

int main() {
  try {
    Train();
    return 0;
  } catch (const StatusError& error) {
    std::fprintf(stderr, "custom_loop: %s\n", error.what());
    return ExitCode(error.status());
  }
}
