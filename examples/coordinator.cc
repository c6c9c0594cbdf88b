// A parameter-server job whose chief calls functions: Schedule, Join, Fetch. Workers that are lost
// are missed by nobody: what they were doing is done by another.
//
//   cohort launch -n 2 --ps 1 --chief -- coordinator

#include <cohort/cohort.h>
#include <cohort/data/digits.h>
#include <cohort/nn/layers.h>
#include <cohort/nn/losses.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/coordinator.h>

#include <cstdio>

namespace {

using namespace cohort;

constexpr std::int64_t kPieces = 20;
constexpr std::int64_t kExamples = 640;  // of each piece, in ten steps

// The chief's part: what is to be done, in which order; not by whom.
void Schedule(Strategy& strategy) {
  const auto coordinator = OrThrow(Coordinator::Create(strategy));
  std::vector<RemoteValue> losses(kPieces);
  for (std::size_t piece = 0; piece < losses.size(); ++piece) {
    losses[piece] = OrThrow(coordinator->Schedule("train", std::to_string(piece)));
  }
  const Deadline deadline = DeadlineAfter(std::chrono::minutes(5));
  OrThrow(coordinator->Join(deadline));
  for (std::size_t piece = 0; piece < losses.size(); ++piece) {
    std::printf("piece %zu: loss %s\n", piece,
                OrThrow(coordinator->Fetch(losses[piece], deadline)).c_str());
  }
}

void Run() {
  const auto strategy = OrThrow(Strategy::FromEnv("parameter_server", {.log = StderrLog("")}));
  ParameterSet parameters;
  const nn::Dense hidden(parameters, "hidden", 784, 128, {.activation = Activation::kRelu});
  const nn::Dense classes(parameters, "classes", 128, 10);
  parameters.Build();
  OrThrow(strategy->Bind(parameters, Sgd({.learning_rate = 0.1})));

  nn::Workspaces workspaces;
  const StepFn step = [&](ReplicaContext& replica,
                          const data::Batch& batch) -> Result<ReplicaResult> {
    nn::Tape tape(replica.parameters, replica.stream,
                  workspaces.For(replica.local_replica, replica.device));
    const auto logits = classes(hidden(nn::Flatten(tape.Input(batch["image"]))));
    const auto loss = nn::SoftmaxCrossEntropy(logits, batch["label"]);
    tape.Backward(loss, replica.gradients);
    COHORT_RETURN_IF_ERROR(tape.Finish());
    const auto examples = static_cast<double>(batch.size);
    return ReplicaResult{.loss_sum = loss.value() * examples, .weight = examples};
  };

  // The workers' part. Its argument says which piece; the data a worker finds itself.
  const auto digits = data::GeneratedDigits({.count = kPieces * kExamples}).Shuffle(1).Batch(64);
  Functions functions;
  functions.Add("train", [&](const std::string& piece) -> Result<std::string> {
    std::fprintf(stderr, "piece %s\n", piece.c_str());
    const std::int64_t begin = std::stoll(piece) * kExamples;
    const auto batches = OrThrow(digits.Iterate({.begin = begin, .end = begin + kExamples}));
    double loss = 0;
    while (auto batch = OrThrow(batches->Next())) {
      loss = OrThrow(strategy->Step({.replicas = {std::move(*batch)}}, step)).loss;
    }
    return std::to_string(loss);  // of the last step
  });

  if (strategy->is_chief()) {
    Schedule(*strategy);
  } else if (strategy->trains()) {
    OrThrow(ServeFunctions(*strategy, functions));
  }
  OrThrow(
      strategy->Serve());  // servers: until the job ends; the chief: until the workers have left
  OrThrow(strategy->Shutdown());
}

}  // namespace

int main() {
  try {
    Run();
    return 0;
  } catch (const StatusError& error) {
    std::fprintf(stderr, "coordinator: %s\n", error.what());
    return ExitCode(error.status());
  }
}
