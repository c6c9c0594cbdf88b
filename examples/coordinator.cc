// A parameter-server job whose chief calls functions: Schedule, Save, Join, Fetch. Workers that are
// lost are missed by nobody: what they were doing is done by another. Where a server is lost and
// started again, or with a folder the whole job, it goes on from the last save.
//
//   cohort launch -n 2 --ps 1 --chief -- coordinator [FOLDER [PIECES]]

#include <cohort/cohort.h>
#include <cohort/data/digits.h>
#include <cohort/nn/layers.h>
#include <cohort/nn/losses.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/coordinator.h>
#include <cohort/train/checkpoint_manager.h>

#include <charconv>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>

namespace {

using namespace cohort;

constexpr std::int64_t kExamples = 640;  // of each piece, in ten steps

// The chief's part: what is to be done, in which order; not by whom. Where it saves, it stores how
// many pieces were done.
void Schedule(Strategy& strategy, std::int64_t pieces, CheckpointManager* saves) {
  const auto restored = saves != nullptr ? OrThrow(saves->Restore()) : std::nullopt;
  const std::int64_t first = restored.has_value() ? std::stoll(*restored) : 0;
  std::printf("%lld of %lld pieces were done before\n", static_cast<long long>(first),
              static_cast<long long>(pieces));
  const auto coordinator = OrThrow(Coordinator::Create(strategy));
  const Deadline deadline = DeadlineAfter(std::chrono::minutes(5));
  std::vector<RemoteValue> losses;
  for (std::int64_t piece = first; piece < pieces; ++piece) {
    losses.push_back(OrThrow(coordinator->Schedule("train", std::to_string(piece))));
  }
  const auto done = [&](std::int64_t calls) { return std::to_string(first + calls); };
  std::int64_t piece = first;
  for (const RemoteValue& loss : losses) {
    const std::string of_piece = OrThrow(coordinator->Fetch(loss, deadline));
    std::printf("piece %lld: loss %s\n", static_cast<long long>(piece), of_piece.c_str());
    if (++piece % 5 == 0 && saves != nullptr) {
      OrThrow(saves->Save(*coordinator, done, deadline));  // the others go on
    }
  }
  OrThrow(coordinator->Join(deadline));
}

void Run(const std::string& folder, std::int64_t pieces) {
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
  const auto digits = data::GeneratedDigits({.count = pieces * kExamples}).Shuffle(1).Batch(64);
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

  try {
    std::optional<CheckpointManager> saves;
    if (!folder.empty()) {
      saves.emplace(*strategy, parameters,
                    CheckpointManagerOptions{.folder = folder, .log = StderrLog("")});
    }
    if (strategy->is_chief()) {
      Schedule(*strategy, pieces, saves.has_value() ? &*saves : nullptr);
    } else if (strategy->trains()) {
      OrThrow(ServeFunctions(*strategy, functions));
    }
    OrThrow(
        strategy->Serve());  // servers: until the job ends; the chief: until the workers have left
    OrThrow(strategy->Shutdown());
  } catch (const StatusError& error) {
    strategy->ReportError(error.status());  // with which the other tasks end, too
    throw;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view text = argc > 2 ? argv[2] : "20";
  int pieces = 0;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), pieces);
  if (read.ec != std::errc() || read.ptr != text.data() + text.size() || pieces < 1) {
    std::fprintf(stderr, "coordinator: PIECES is a number from 1 on, not '%s'\n", argv[2]);
    return 2;
  }
  try {
    Run(argc > 1 ? argv[1] : "", pieces);
    return 0;
  } catch (const StatusError& error) {
    std::fprintf(stderr, "coordinator: %s\n", error.what());
    return ExitCode(error.status());
  }
}
