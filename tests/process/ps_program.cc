// A program as users write one: every process of a parameter-server job runs it. It trains the
// IntegerModel, and says on standard output what a test wants to know.
//
//   ps_program [--epochs N] [--examples N] [--batch N] [--consistency C] [--join-ms N] [--fail-at
//   STEP]
//              [--hold-at STEP --hold TASK] [--rejoin-ms N] [--folder DIR [--save-steps N]]
//              [--gate FILE --gate-at STEP]
//
// --folder: the loop is Trainer::Fit, which saves there.
// --gate FILE: worker:0 does not go beyond its step --gate-at before there is such a file.
// --hold-at: TASK says "holding" in that step function of its own, and never comes back from it.

#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>

#include <CLI/CLI.hpp>

#include <cohort/cluster/resolve.h>
#include <cohort/core/random.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/parameter_server.h>
#include <cohort/train/trainer.h>

#include "testing/integer_model.h"

namespace {

using namespace cohort;

struct Options {
  int epochs = 1;
  int examples = 2000;
  int batch = 10;
  std::string consistency = "async";
  int join_ms = 60'000;
  int heartbeat_ms = 10'000;
  int rejoin_ms = 60'000;
  std::string folder;
  int save_steps = 0;
  std::string gate;
  int gate_at = 0;
  int hold_at = 0;
  int fail_at = 0;
  std::string hold;
};

void Say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

// What a step is to the program: the model's, with what its options ask for.
StepFn StepOf(const Options& options, const std::string& self, int& steps) {
  return [&options, self, &steps, model = testing::IntegerStep()](ReplicaContext& context,
                                                                  const data::Batch& batch) {
    ++steps;
    if (steps % 10 == 1) {
      Say("step " + std::to_string(steps) + " begins");
    }
    if (steps == options.hold_at && self == options.hold) {
      Say("holding");
      for (;;) {
        ::pause();
      }
    }
    if (steps == options.gate_at && self == "worker:0") {
      while (!std::filesystem::exists(options.gate)) {  // the test ends this process at its deadline
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
    }
    if (steps == options.fail_at) {
      return Result<ReplicaResult>(DataLoss("example 7 is broken"));
    }
    return model(context, batch);
  };
}

Status Train(const Options& options, ParameterServerStrategy& strategy, DistributedDataset& data) {
  int steps = 0;
  const StepFn step = StepOf(options, strategy.cluster().task.ToString(), steps);
  for (int epoch = 0; epoch < options.epochs; ++epoch) {
    COHORT_RETURN_IF_ERROR(data.BeginEpoch(epoch));
    for (;;) {
      COHORT_ASSIGN_OR_RETURN(const auto batch, data.Next());
      if (!batch.has_value()) {
        break;
      }
      COHORT_ASSIGN_OR_RETURN(const StepResult result, strategy.Step(*batch, step));
      if (steps % 10 == 1) {
        Say("step " + std::to_string(steps) + " loss " + std::to_string(result.loss));
      }
    }
  }
  Say("trained " + std::to_string(steps) + " steps");
  return {};
}

Status Report(ParameterServerStrategy& strategy, ParameterSet& parameters) {
  for (const EpochCoverage& epoch : strategy.coverage()) {
    Say("epoch " + std::to_string(epoch.epoch) + ": " + std::to_string(epoch.seen) + " of " +
        std::to_string(epoch.examples) + " seen, reissued " + std::to_string(epoch.reissued) +
        (epoch.dropped > 0 ? ", dropped " + std::to_string(epoch.dropped) : ""));
  }
  COHORT_ASSIGN_OR_RETURN(const ParameterServerStats stats, strategy.stats());
  Say("staleness at most " + std::to_string(stats.max_staleness) + ", lead at most " +
      std::to_string(stats.max_lead) + (stats.late > 0 ? ", some late" : ", none late") +
      (stats.parked > 0 ? ", some parked" : ", none parked"));
  COHORT_RETURN_IF_ERROR(strategy.PullState());
  std::uint64_t digest = 0;
  for (int p = 0; p < parameters.size(); ++p) {
    const std::span<const float> value = parameters.value(p);
    digest = Hash64({reinterpret_cast<const char*>(value.data()), value.size_bytes()}, digest);
  }
  Say("step " + std::to_string(strategy.step()) + " digest " + std::to_string(digest));
  return {};
}

Status RunWith(const Options& options, ParameterServerStrategy& strategy) {
  ParameterSet parameters = testing::IntegerParameters();
  COHORT_RETURN_IF_ERROR(
      strategy.Bind(parameters, Sgd({.learning_rate = 0.0625, .momentum = 0.5})));
  if (!options.folder.empty()) {
    int steps = 0;
    Trainer trainer(strategy, parameters,
                    {.epochs = options.epochs,
                     .checkpoint_dir = options.folder,
                     .save_every_steps = options.save_steps});
    COHORT_RETURN_IF_ERROR(
        trainer
            .Fit(testing::IntegerData(options.examples, options.batch),
                 StepOf(options, strategy.cluster().task.ToString(), steps))
            .status());
    if (strategy.is_chief()) {
      COHORT_RETURN_IF_ERROR(Report(strategy, parameters));
    }
    return strategy.Shutdown();
  }
  COHORT_ASSIGN_OR_RETURN(
      const auto data, strategy.Distribute(testing::IntegerData(options.examples, options.batch)));
  if (strategy.trains()) {
    COHORT_RETURN_IF_ERROR(Train(options, strategy, *data));
  } else {
    COHORT_RETURN_IF_ERROR(strategy.Serve());
  }
  if (strategy.is_chief()) {
    COHORT_RETURN_IF_ERROR(Report(strategy, parameters));
  }
  return strategy.Shutdown();
}

Status Run(const Options& options) {
  COHORT_ASSIGN_OR_RETURN(const ClusterConfig config, ResolveCluster({}, Environment::OfProcess()));
  StrategyOptions strategy_options;
  COHORT_ASSIGN_OR_RETURN(strategy_options.consistency, Consistency::Parse(options.consistency));
  strategy_options.join_timeout = std::chrono::milliseconds(options.join_ms);
  strategy_options.heartbeat_timeout = std::chrono::milliseconds(options.heartbeat_ms);
  strategy_options.rejoin_grace = std::chrono::milliseconds(options.rejoin_ms);
  strategy_options.log = StderrLog(config.task.ToString());
  COHORT_ASSIGN_OR_RETURN(const auto strategy,
                          ParameterServerStrategy::Make(config, strategy_options));
  Say("joined");
  const Status status = RunWith(options, *strategy);
  if (!status.ok()) {
    strategy->ReportError(status);
  }
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("a job of the parameter-server strategy");
  app.add_option("--epochs", options.epochs);
  app.add_option("--examples", options.examples);
  app.add_option("--batch", options.batch);
  app.add_option("--consistency", options.consistency);
  app.add_option("--join-ms", options.join_ms);
  app.add_option("--heartbeat-ms", options.heartbeat_ms);
  app.add_option("--rejoin-ms", options.rejoin_ms);
  app.add_option("--folder", options.folder);
  app.add_option("--save-steps", options.save_steps);
  app.add_option("--gate", options.gate);
  app.add_option("--gate-at", options.gate_at);
  app.add_option("--hold-at", options.hold_at);
  app.add_option("--hold", options.hold);
  app.add_option("--fail-at", options.fail_at);
  CLI11_PARSE(app, argc, argv);
  const cohort::Status status = Run(options);
  if (!status.ok()) {
    std::fprintf(stderr, "error: %s\n", status.ToString().c_str());
  }
  return cohort::ExitCode(status);
}
