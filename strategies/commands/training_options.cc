#include "training_options.h"

#include <CLI/CLI.hpp>

namespace cohort {

void DeclareTrainingOptions(CLI::App& app, TrainingOptions& options) {
  app.add_option("--model", options.model,
                 "mlp (784-512-512-10), cnn (conv32-conv64-dense128), mlp2048 (784-2048-2048-10)")
      ->check(CLI::IsMember({"mlp", "cnn", "mlp2048"}))
      ->capture_default_str();
  app.add_option("--workers", options.workers, "processes, each with one core while there are some")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--batch", options.batch,
                 "examples of a worker's step (default: mlp 256, cnn 64, mlp2048 64)")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--transport", options.transport, "how the workers' gradients travel")
      ->check(CLI::IsMember({"shm", "tcp"}))
      ->capture_default_str();
  app.add_option("--rounds", options.rounds, "turns of each contestant")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "of one turn")
      ->check(CLI::Range(0.001, 600.0))
      ->capture_default_str();
  app.add_option("--rendezvous-host", options.rendezvous_host,
                 "tcp: use the interface that routes to this host, instead of loopback");
  app.add_option("--exec-prefix", options.exec_prefix,
                 "words before the command of a worker's process, {rank} replaced: "
                 "\"ip netns exec cohort{rank}\"");
  app.add_flag("--json", options.json, "one JSON object instead of a table");
  app.add_option("--join", options.folder)->group("");  // what workers are started with
  app.add_option("--rank", options.rank)->group("");
}

void CompleteTrainingOptions(TrainingOptions& options) {
  if (options.batch == 0) {
    options.batch = options.model == "mlp" ? 256 : 64;
  }
}

}  // namespace cohort
