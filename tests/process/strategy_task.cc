// One process of a training job, for strategy_process_test: the integer model under FromEnv.
//
//   strategy_task KIND STEPS [join_timeout_ms=..] [heartbeat_timeout_ms=..] [devices=..]
//   [fail_at=..] [overflow_at=..]
//
// Prints "step N" now and then, and at the end "done CRC" of the parameters. fail_at: the step in
// which this process's step function returns an error. overflow_at: gradients are scaled, and in
// that step one of the last replica's is infinite; prints "skipped N, scale S" of each step that
// was. Ends with ExitCode of what ended it.
#include <cstdio>
#include <iostream>
#include <limits>
#include <map>
#include <string>

#include <cohort/core/random.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/strategy.h>

#include "testing/integer_model.h"

namespace {

using namespace cohort;  // NOLINT

Status Run(const std::string& kind, std::int64_t steps, std::map<std::string, int> settings) {
  StrategyOptions options;
  options.environment = Environment::OfProcess();
  options.log = StderrLog(kind);
  options.num_devices = settings.contains("devices") ? settings["devices"] : 1;
  if (settings.contains("join_timeout_ms")) {
    options.join_timeout = std::chrono::milliseconds(settings["join_timeout_ms"]);
  }
  if (settings.contains("heartbeat_timeout_ms")) {
    options.heartbeat_timeout = std::chrono::milliseconds(settings["heartbeat_timeout_ms"]);
  }
  if (settings.contains("overflow_at")) {
    options.grad_scaler.emplace();
  }
  COHORT_ASSIGN_OR_RETURN(const auto strategy, Strategy::FromEnv(kind, options));
  std::cout << "joined as " << strategy->cluster().task.ToString() << " of "
            << strategy->num_replicas_in_sync() << std::endl;
  ParameterSet parameters = testing::IntegerParameters();
  COHORT_RETURN_IF_ERROR(
      strategy->Bind(parameters, Sgd({.learning_rate = 0.0625, .momentum = 0.5})));
  COHORT_ASSIGN_OR_RETURN(const auto dataset, strategy->Distribute(testing::IntegerData(61, 12)));
  const StepFn model = testing::IntegerStep();
  for (std::int64_t epoch = 0; strategy->step() < steps; ++epoch) {
    COHORT_RETURN_IF_ERROR(dataset->BeginEpoch(epoch));
    while (strategy->step() < steps) {
      COHORT_ASSIGN_OR_RETURN(const auto batch, dataset->Next());
      if (!batch.has_value()) {
        break;
      }
      COHORT_ASSIGN_OR_RETURN(
          const StepResult result,
          strategy->Step(
              *batch,
              [&](ReplicaContext& context, const data::Batch& part) -> Result<ReplicaResult> {
                if (settings.contains("fail_at") && context.step == settings["fail_at"]) {
                  return Internal("the accelerator is on fire");
                }
                if (settings.contains("overflow_at") && context.step == settings["overflow_at"] &&
                    context.replica + 1 == context.num_replicas) {
                  context.stream.Enqueue([gradient = context.gradients.Accumulator(0)] {
                    gradient[3] = std::numeric_limits<float>::infinity();
                    return OkStatus();
                  });
                }
                return model(context, part);
              }));
      if (result.skipped) {
        std::cout << "skipped " << result.step << ", scale " << strategy->grad_scaler()->scale()
                  << std::endl;
      }
      if (result.step == 100 || result.step % 1000 == 0) {
        std::cout << "step " << result.step << std::endl;
      }
    }
  }
  const auto values = parameters.all();
  std::cout << "done "
            << Hash64({reinterpret_cast<const char*>(values.data()), values.size_bytes()})
            << std::endl;
  return strategy->Shutdown();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: strategy_task KIND STEPS [name=number ...]\n";
    return 2;
  }
  std::map<std::string, int> settings;
  for (int i = 3; i < argc; ++i) {
    const std::string setting = argv[i];
    const std::size_t equals = setting.find('=');
    settings[setting.substr(0, equals)] = std::stoi(setting.substr(equals + 1));
  }
  const std::string kind = std::string(argv[1]) == "-" ? "" : argv[1];
  const Status status = Run(kind, std::stoll(argv[2]), settings);
  if (!status.ok()) {
    std::cerr << status.ToString() << std::endl;
  }
  return ExitCode(status);
}
