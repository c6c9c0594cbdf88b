// Trainer::Fit in one screen: a network on digits, alone or as one of many processes.
//
//   fit        or  cohort launch -n 2 -- fit        or  mpirun -n 2 fit

#include <cohort/cohort.h>
#include <cohort/data/digits.h>
#include <cohort/nn/losses.h>
#include <cohort/nn/models.h>
#include <cohort/optim/optimizers.h>

#include <cstdio>

int main() try {
  using namespace cohort;
  const auto strategy = OrThrow(Strategy::FromEnv({}, {.log = StderrLog("")}));

  ParameterSet parameters;
  const auto model = OrThrow(nn::MakeImageModel("mlp", parameters));
  parameters.Build();
  OrThrow(strategy->Bind(parameters, Adam({.learning_rate = 0.001})));

  nn::Workspaces workspaces;
  const StepFn step = [&](ReplicaContext& replica,
                          const data::Batch& batch) -> Result<ReplicaResult> {
    nn::Tape tape(replica.parameters, replica.stream,
                  workspaces.For(replica.local_replica, replica.device));
    const auto loss =
        nn::SoftmaxCrossEntropy(model->Logits(tape.Input(batch["image"])), batch["label"]);
    tape.Backward(loss, replica.gradients);
    COHORT_RETURN_IF_ERROR(tape.Finish());
    const auto examples = static_cast<double>(batch.size);
    return ReplicaResult{
        .loss_sum = loss.value() * examples, .weight = examples, .metric_sums = {}};
  };

  Trainer trainer(*strategy, parameters, {.epochs = 3, .progress = ConsoleProgress()});
  const auto digits = data::GeneratedDigits({.count = 4000}).Shuffle(1).Batch(64).Prefetch(2);
  const History history = OrThrow(trainer.Fit(digits, step));
  if (strategy->is_chief()) {
    std::printf("loss %.4f after %lld steps\n", history.epochs.back().loss,
                static_cast<long long>(history.steps));
  }
  OrThrow(strategy->Shutdown());
  return 0;
} catch (const cohort::StatusError& error) {
  std::fprintf(stderr, "fit: %s\n", error.what());
  return cohort::ExitCode(error.status());
}
