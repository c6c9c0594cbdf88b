// One process of a training job, for strategy_process_test: the integer model under FromEnv.
//
//   strategy_task KIND STEPS [join_timeout_ms=..] [heartbeat_timeout_ms=..] [devices=..]
//   [fail_at=..] [overflow_at=..] [csv=PATH] [mpi=PATH]
//
// Prints "step N" now and then, and at the end "done CRC" of the parameters. fail_at: the step in
// which this process's step function returns an error. overflow_at: gradients are scaled, and in
// that step one of the last replica's is infinite; prints "skipped N, scale S" of each step that
// was. csv: each process reads its own part of the bytes of that file, columns x0 to x3, id and
// tokens, instead of all of the integer data; prints "ids SUM of COUNT" of an epoch's examples that
// it had. mpi: by MPI's own collectives; flight records go to that folder. Ends with ExitCode of
// what ended it.
#include <cstdio>
#include <iostream>
#include <limits>
#include <map>
#include <string>

#include <cohort/core/random.h>
#include <cohort/data/csv.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/strategy.h>

#include "testing/integer_model.h"

namespace {

using namespace cohort;  // NOLINT

// This process's share of the rows.
Result<data::Dataset> RowsOf(const std::string& path, const InputContext& share) {
  data::CsvOptions options;
  for (const char* const name : {"x0", "x1", "x2", "x3"}) {
    options.columns.push_back({.name = name, .feature = "x"});
  }
  for (const char* const name : {"id", "tokens"}) {
    options.columns.push_back({.name = name, .type = data::CsvType::kInt64});
  }
  options.part = {.index = share.input_pipeline_id, .count = share.num_input_pipelines};
  COHORT_ASSIGN_OR_RETURN(const data::CsvData rows, data::Csv({path}, options));
  return rows.dataset.Shuffle(5).Batch(12);
}

Status Run(const std::string& kind, std::int64_t steps, std::map<std::string, int> settings,
           const std::string& csv, const std::string& mpi) {
  StrategyOptions options;
  if (!mpi.empty()) {
    options.mpi_implementation = "mpi";
    options.flight_folder = mpi;
  }
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
  data::Dataset input = testing::IntegerData(61, 12);
  InputOptions division;
  if (!csv.empty()) {
    COHORT_ASSIGN_OR_RETURN(input, RowsOf(csv, strategy->input_context()));
    division.policy = data::ShardPolicy::kOwn;
  }
  COHORT_ASSIGN_OR_RETURN(const auto dataset, strategy->Distribute(input, division));
  std::int64_t ids = 0;
  std::int64_t examples = 0;
  const StepFn model = testing::IntegerStep();
  for (std::int64_t epoch = 0; strategy->step() < steps; ++epoch) {
    COHORT_RETURN_IF_ERROR(dataset->BeginEpoch(epoch));
    while (strategy->step() < steps) {
      COHORT_ASSIGN_OR_RETURN(const auto batch, dataset->Next());
      if (!batch.has_value()) {
        break;
      }
      for (const data::Batch& part : batch->replicas) {
        for (const std::int64_t id : part["id"].data<std::int64_t>()) {
          ids += epoch == 0 ? id : 0;
          examples += epoch == 0 ? 1 : 0;
        }
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
  if (!csv.empty()) {
    std::cout << "ids " << ids << " of " << examples << std::endl;
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
  std::string csv;
  std::string mpi;
  for (int i = 3; i < argc; ++i) {
    const std::string setting = argv[i];
    const std::size_t equals = setting.find('=');
    if (setting.starts_with("csv=") || setting.starts_with("mpi=")) {
      (setting.starts_with("csv=") ? csv : mpi) = setting.substr(equals + 1);
      continue;
    }
    settings[setting.substr(0, equals)] = std::stoi(setting.substr(equals + 1));
  }
  const std::string kind = std::string(argv[1]) == "-" ? "" : argv[1];
  const Status status = Run(kind, std::stoll(argv[2]), settings, csv, mpi);
  if (!status.ok()) {
    std::cerr << status.ToString() << std::endl;
  }
  return ExitCode(status);
}
