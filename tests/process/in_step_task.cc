// One task of a job whose workers train in step, with a sparse table on ps tasks, by the Trainer.
//
// What a step does depends on all that a save has: dense values with Adam's slots, a running
// average, rows with Adagrad's slots, the step and the place in the data. The chief ends with
// "digest N", N being of all values and rows.
//
// worker:0 stops at gates, and says so, until there is such a file: FILE in step --gate-at,
// FILE.again in step --again-at, FILE.evaluation in the evaluation behind step --gate-evaluation
// (0: not there), FILE.end, with --gate-end (--gate-all: all workers), when Fit has returned. With
// --evaluate each epoch is followed by an evaluation, and each worker says what these were.
// worker:1's step function returns an Unavailable of its own in step --fail-at.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <cohort/cluster/resolve.h>
#include <cohort/core/random.h>
#include <cohort/data/memory.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/row_source.h>
#include <cohort/strategies/strategy.h>
#include <cohort/train/trainer.h>

namespace cohort {
namespace {

constexpr std::int64_t kBatch = 12;
constexpr std::int64_t kExamples = 40 * kBatch;
constexpr std::int64_t kRowsOfTable = 97;
constexpr std::size_t kDim = 4;

enum Parameter { kDense = 0, kAverage = 1 };
constexpr int kTable = 0;

struct Options {
  int epochs = 3;
  std::string folder;
  int save_steps = 0;
  int rejoin_ms = 60'000;
  int worker_patience_ms = 10'000;
  int min_workers = 1;
  std::string gate;
  int gate_at = 0;
  int again_at = 0;
  bool evaluate = false;
  std::int64_t gate_evaluation = 0;
  bool gate_end = false;
  bool gate_all = false;
  int fail_at = 0;
  int heartbeat_ms = 10'000;
  std::string all_reduce = "auto";
};

void Say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

// The test ends this process at its deadline.
void AwaitGate(const std::string& file) {
  Say("waits at " + std::filesystem::path(file).filename().string());
  while (!std::filesystem::exists(file)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

data::Dataset Data() {
  std::vector<std::int64_t> row(static_cast<std::size_t>(kExamples));
  std::iota(row.begin(), row.end(), 0);
  for (std::int64_t& of_example : row) {
    of_example %= kRowsOfTable;
  }
  return OrThrow(data::FromTensors({{"row", Tensor::Of<std::int64_t>({kExamples}, row)}}))
      .Shuffle(7)
      .Batch(kBatch);
}

ParameterSet Parameters() {
  ParameterSet parameters;
  parameters.Add("dense", {257}, [](std::uint64_t e) { return static_cast<float>(e % 7) / 9; });
  parameters.Add("average", {1}, {}, /*trainable=*/false);
  parameters.AddTable({.name = "rows",
                       .dim = static_cast<std::int64_t>(kDim),
                       .optimizer = Adagrad({.learning_rate = 0.25})->config(),
                       .buckets = 16});
  parameters.Build();
  return parameters;
}

Result<ReplicaResult> Step(ReplicaContext& context, const data::Batch& part) {
  const Tensor feature = part["row"];
  const auto rows_of = feature.data<std::int64_t>();
  const std::vector<std::uint64_t> ids(rows_of.begin(), rows_of.end());
  std::vector<float> rows(ids.size() * kDim);
  COHORT_RETURN_IF_ERROR(context.parameters.rows().Lookup(kTable, ids, /*training=*/true, rows));
  const std::span<const float> dense = std::as_const(context.parameters).value(kDense);
  const std::span<float> gradient = context.gradients.Accumulator(kDense);
  std::vector<float> of_rows(rows.size());
  const Philox random(11, "target");
  for (std::size_t i = 0; i < ids.size(); ++i) {
    for (std::size_t e = 0; e < gradient.size(); ++e) {
      gradient[e] += dense[e] + 0.1F * random.Normal(e, ids[i]) + 0.01F * rows[i * kDim + e % kDim];
    }
    for (std::size_t k = 0; k < kDim; ++k) {
      of_rows[i * kDim + k] =
          rows[i * kDim + k] - 0.1F * dense[k] - 0.01F * static_cast<float>(ids[i] % 7);
    }
  }
  context.gradients.AddRows(kTable, ids, of_rows);
  context.gradients.Ready(kDense);
  float& average = context.parameters.value(kAverage)[0];
  average = 0.9F * average + 0.1F * rows[0];
  return ReplicaResult{.loss_sum = 0, .weight = static_cast<double>(ids.size()), .metric_sums = {}};
}

// The mean of the examples' rows.
Result<ReplicaResult> Look(ReplicaContext& context, const data::Batch& part) {
  const Tensor feature = part["row"];
  const auto rows_of = feature.data<std::int64_t>();
  const std::vector<std::uint64_t> ids(rows_of.begin(), rows_of.end());
  std::vector<float> rows(ids.size() * kDim);
  COHORT_RETURN_IF_ERROR(context.parameters.rows().Lookup(kTable, ids, /*training=*/false, rows));
  return ReplicaResult{.loss_sum = std::accumulate(rows.begin(), rows.end(), 0.0),
                       .weight = static_cast<double>(ids.size()),
                       .metric_sums = {}};
}

void SayEvaluations(const History& history) {
  for (const EpochResult& evaluation : history.evaluations) {
    Say(fmt::format("evaluated epoch {}: {} of {} examples", evaluation.epoch, evaluation.loss,
                    evaluation.examples));
  }
}

Status Report(ParameterSet& parameters) {
  std::vector<std::uint64_t> ids(static_cast<std::size_t>(kRowsOfTable));
  std::iota(ids.begin(), ids.end(), 0);
  std::vector<float> rows(ids.size() * kDim);
  COHORT_RETURN_IF_ERROR(parameters.rows().Lookup(kTable, ids, /*training=*/false, rows));
  std::uint64_t digest = Hash64({reinterpret_cast<const char*>(rows.data()), rows.size() * 4});
  for (const int p : {kDense, kAverage}) {
    const std::span<const float> values = std::as_const(parameters).value(p);
    digest = Hash64({reinterpret_cast<const char*>(values.data()), values.size_bytes()}, digest);
  }
  Say(fmt::format("digest {}", digest));
  return {};
}

Status RunWith(const Options& options, Strategy& strategy, const Log& log) {
  ParameterSet parameters = Parameters();
  COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Adam({.learning_rate = 0.01})));
  const StepFn step = [&](ReplicaContext& context,
                          const data::Batch& part) -> Result<ReplicaResult> {
    if (strategy.is_chief() && context.step == options.gate_at) {
      AwaitGate(options.gate);
    }
    if (strategy.is_chief() && context.step == options.again_at) {
      AwaitGate(options.gate + ".again");
    }
    if (!strategy.is_chief() && context.step == options.fail_at) {
      return Unavailable("the feature store is down");
    }
    return Step(context, part);
  };
  Trainer trainer(strategy, parameters,
                  {.epochs = options.epochs,
                   .checkpoint_dir = options.folder,
                   .save_every_steps = options.save_steps,
                   .full_save_every = 2,
                   .log = log});
  const StepFn evaluate = [&](ReplicaContext& context, const data::Batch& part) {
    if (strategy.is_chief() && strategy.step() == options.gate_evaluation) {
      AwaitGate(options.gate + ".evaluation");
    }
    return Look(context, part);
  };
  const data::Dataset data = Data();
  COHORT_ASSIGN_OR_RETURN(const History history, options.evaluate
                                                     ? trainer.Fit(data, step, &data, evaluate)
                                                     : trainer.Fit(data, step));
  if (options.gate_end && (strategy.is_chief() || (strategy.trains() && options.gate_all))) {
    AwaitGate(options.gate + ".end");
  }
  if (strategy.is_chief()) {
    COHORT_RETURN_IF_ERROR(Report(parameters));
  }
  if (strategy.trains()) {
    SayEvaluations(history);
    Say(fmt::format("epochs {}, at step {}", history.epochs.size(), strategy.step()));
  }
  return strategy.Shutdown();
}

Status Run(const Options& options) {
  COHORT_ASSIGN_OR_RETURN(const ClusterConfig config, ResolveCluster({}, Environment::OfProcess()));
  StrategyOptions strategy_options;
  strategy_options.consistency.mode = Consistency::Mode::kHybrid;
  strategy_options.join_timeout = std::chrono::seconds(60);
  strategy_options.communication.timeout = std::chrono::seconds(60);
  strategy_options.rejoin_grace = std::chrono::milliseconds(options.rejoin_ms);
  strategy_options.worker_patience = std::chrono::milliseconds(options.worker_patience_ms);
  strategy_options.communication.implementation = options.all_reduce;
  strategy_options.min_workers = options.min_workers;
  strategy_options.heartbeat_timeout = std::chrono::milliseconds(options.heartbeat_ms);
  strategy_options.log = StderrLog(config.task.ToString());
  strategy_options.cluster = config;
  const Log log = strategy_options.log;
  COHORT_ASSIGN_OR_RETURN(const auto strategy, Strategy::FromEnv("", strategy_options));
  const Status status = RunWith(options, *strategy, log);
  if (!status.ok()) {
    strategy->ReportError(status);
  }
  return status;
}

}  // namespace
}  // namespace cohort

int main(int argc, char** argv) {
  cohort::Options options;
  CLI::App app("a job of workers in step with a table on servers");
  app.add_option("--epochs", options.epochs);
  app.add_option("--folder", options.folder);
  app.add_option("--save-steps", options.save_steps);
  app.add_option("--rejoin-ms", options.rejoin_ms);
  app.add_option("--worker-patience-ms", options.worker_patience_ms);
  app.add_option("--min-workers", options.min_workers);
  app.add_option("--gate", options.gate);
  app.add_option("--gate-at", options.gate_at);
  app.add_option("--again-at", options.again_at);
  app.add_flag("--evaluate", options.evaluate);
  app.add_option("--gate-evaluation", options.gate_evaluation);
  app.add_flag("--gate-end", options.gate_end);
  app.add_flag("--gate-all", options.gate_all);
  app.add_option("--fail-at", options.fail_at);
  app.add_option("--heartbeat-ms", options.heartbeat_ms);
  app.add_option("--all-reduce", options.all_reduce);
  CLI11_PARSE(app, argc, argv);
  const cohort::Status status = cohort::Run(options);
  if (!status.ok()) {
    std::fprintf(stderr, "error: %s\n", status.ToString().c_str());
  }
  return cohort::ExitCode(status);
}
