// A model with sparse tables, and jobs that train it in one process, over replicas, and with its
// rows on servers. A namespace of its own: other suites here have a Model, too.

#pragma once

#include <gtest/gtest.h>

#include <cohort/core/random.h>
#include <cohort/data/memory.h>
#include <cohort/nn/layers.h>
#include <cohort/nn/losses.h>
#include <cohort/nn/operations.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/row_source.h>
#include <cohort/strategies/parameter_server.h>
#include <cohort/train/trainer.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "testing/far_device.h"
#include "testing/process_cluster.h"

namespace cohort::testing::sparse_tables {

inline constexpr std::int64_t kExamples = 203;
inline constexpr std::int64_t kBatch = 10;
inline constexpr std::int64_t kIdsEach = 3;
inline constexpr std::uint64_t kAllIds = 40;

inline data::Dataset Data() {
  const Philox random(1, "data");
  Tensor ids(DType::kInt64, {kExamples, kIdsEach});
  Tensor target(DType::kFloat32, {kExamples, 1});
  for (std::size_t i = 0; i < ids.data<std::int64_t>().size(); ++i) {
    ids.data<std::int64_t>()[i] = static_cast<std::int64_t>(random.Below(kAllIds, i));
  }
  for (std::size_t i = 0; i < target.data<float>().size(); ++i) {
    target.data<float>()[i] = random.Uniform(i, 1) < 0.5F ? 0.0F : 1.0F;
  }
  return OrThrow(data::FromTensors({{"ids", ids}, {"target", target}}));
}

// A wide and a deep table, and a dense layer.
struct Model {
  explicit Model(std::string wide_optimizer = Ftrl({.learning_rate = 0.1})->config())
      : wide(parameters, "wide", 0, 1,
             {.table = TableSpec{.optimizer = std::move(wide_optimizer), .buckets = 16}}),
        deep(parameters, "deep", kAllIds, 4,
             {.seed = 5,
              .table =
                  TableSpec{.initializer = {RowInitializer::Kind::kUniform, 0.1}, .buckets = 16}}),
        out(parameters, "out", 4 * kIdsEach, 1, {.seed = 5}) {
    parameters.Build();
  }

  Result<ReplicaResult> Step(ReplicaContext& context, const data::Batch& batch, bool training) {
    nn::Tape tape(context.parameters, context.stream,
                  workspaces.For(context.replica, context.device),
                  {.training = training, .intra_op_threads = 1});
    const auto logit =
        nn::Add(nn::Sum(wide(tape, batch["ids"]), 1), out(nn::Flatten(deep(tape, batch["ids"]))));
    const auto loss = nn::SigmoidCrossEntropy(logit, batch["target"]);
    if (training) {
      tape.Backward(loss, context.gradients);
    }
    COHORT_RETURN_IF_ERROR(tape.Finish());
    const auto weight = static_cast<double>(batch.size);
    return ReplicaResult{.loss_sum = loss.value() * weight, .weight = weight, .metric_sums = {}};
  }
  StepFn Fn(bool training) {
    return [this, training](ReplicaContext& context, const data::Batch& batch) {
      return Step(context, batch, training);
    };
  }

  ParameterSet parameters;
  nn::Embedding wide;
  nn::Embedding deep;
  nn::Dense out;
  nn::Workspaces workspaces;
};

// What a job came to: the dense values, the loss on all data, and all rows.
struct Outcome {
  std::vector<float> values;
  double loss = 0;
  std::vector<float> rows;
  std::string checkpoint;
};

inline std::vector<float> RowsOf(const ParameterSet& parameters) {
  std::vector<std::uint64_t> ids(kAllIds + 5);  // some of which no example has
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] = i;
  }
  std::vector<float> all;
  for (std::size_t t = 0; t < parameters.tables().size(); ++t) {
    std::vector<float> rows(ids.size() * static_cast<std::size_t>(parameters.tables()[t].dim));
    EXPECT_EQ(parameters.rows().Lookup(static_cast<int>(t), ids, /*training=*/false, rows),
              OkStatus());
    all.insert(all.end(), rows.begin(), rows.end());
  }
  return all;
}

inline Result<Outcome> TrainOn(
    Strategy& strategy, int epochs, const std::string& checkpoint_dir,
    const std::string& wide_optimizer = Ftrl({.learning_rate = 0.1})->config(),
    std::atomic<std::int64_t>* foreseen = nullptr) {
  Model model(wide_optimizer);
  COHORT_RETURN_IF_ERROR(strategy.Bind(model.parameters, Adagrad({.learning_rate = 0.1})));
  Trainer trainer(strategy, model.parameters,
                  {.epochs = epochs, .checkpoint_dir = checkpoint_dir, .log = Log()});
  const data::Dataset data = Data();
  COHORT_ASSIGN_OR_RETURN(const History history,
                          trainer.Fit(data.Shuffle(3).Batch(kBatch), model.Fn(true)));
  Outcome outcome;
  outcome.checkpoint = history.checkpoint;
  COHORT_ASSIGN_OR_RETURN(const EpochResult result,
                          trainer.Evaluate(data.Batch(50), model.Fn(false)));
  if (strategy.is_chief()) {
    outcome.loss = result.loss;
    outcome.rows = RowsOf(model.parameters);
    const auto values = std::as_const(model.parameters).all();
    outcome.values.assign(values.begin(), values.end());
  }
  if (foreseen != nullptr && strategy.trains()) {
    COHORT_ASSIGN_OR_RETURN(const ParameterServerStats stats,
                            dynamic_cast<ParameterServerStrategy&>(strategy).stats());
    *foreseen += stats.foreseen;
  }
  COHORT_RETURN_IF_ERROR(strategy.Shutdown());
  return outcome;
}

inline Outcome InOneProcess(
    int devices, int epochs, const std::string& checkpoint_dir = {}, int virtual_shards = 0,
    const std::string& wide_optimizer = Ftrl({.learning_rate = 0.1})->config()) {
  const auto strategy =
      OrThrow(Strategy::FromEnv(devices == 1 ? "one_device" : "mirrored",
                                {.num_devices = devices, .virtual_shards = virtual_shards}));
  return OrThrow(TrainOn(*strategy, epochs, checkpoint_dir, wide_optimizer));
}

// A chief, workers and servers, as threads; the chief's outcome. `run` is what each does.
using RunTask = std::function<Result<Outcome>(ParameterServerStrategy&)>;
inline Outcome OnServers(int workers, int servers, const RunTask& run,
                         const Consistency& consistency = {}, bool far = false) {
  std::map<TaskId, std::string> addresses;
  addresses[{TaskType::kChief, 0}] = "127.0.0.1:" + std::to_string(UnusedPorts(1)[0]);
  for (int w = 0; w < workers; ++w) {
    addresses[{TaskType::kWorker, w}] = "127.0.0.1:0";
  }
  for (int s = 0; s < servers; ++s) {
    addresses[{TaskType::kPs, s}] = "127.0.0.1:0";
  }
  const ClusterSpec cluster(addresses);
  std::map<TaskId, std::future<Result<Outcome>>> tasks;
  for (const TaskId& task : cluster.Tasks()) {
    tasks[task] = std::async(std::launch::async, [&, task]() -> Result<Outcome> {
      ClusterConfig config;
      config.cluster = cluster;
      config.task = task;
      StrategyOptions options{.consistency = consistency};
      if (far) {
        options.devices = {MakeFarDevice()};
      }
      COHORT_ASSIGN_OR_RETURN(const auto strategy, ParameterServerStrategy::Make(config, options));
      return run(*strategy);
    });
  }
  Outcome of_chief;
  for (auto& [task, running] : tasks) {
    Result<Outcome> outcome = running.get();
    EXPECT_EQ(outcome.status(), OkStatus()) << task.ToString();
    if (task.type == TaskType::kChief && outcome.ok()) {
      of_chief = *std::move(outcome);
    }
  }
  return of_chief;
}
inline Outcome OnServers(int workers, int servers, int epochs,
                         const std::string& checkpoint_dir = {},
                         std::atomic<std::int64_t>* foreseen = nullptr) {
  return OnServers(workers, servers, [&](ParameterServerStrategy& strategy) {
    return TrainOn(strategy, epochs, checkpoint_dir, Ftrl({.learning_rate = 0.1})->config(),
                   foreseen);
  });
}

// Workers that train in step, and servers for their tables, as threads: what each worker came to,
// and the statuses of all tasks.
using RunStrategy = std::function<Result<Outcome>(Strategy&)>;
using MakeStrategy = std::function<Result<std::unique_ptr<Strategy>>(StrategyOptions)>;
inline Result<std::unique_ptr<Strategy>> AskedFor(StrategyOptions options) {
  return Strategy::FromEnv("multi_worker_mirrored", std::move(options));
}
struct InStepResult {
  std::vector<Outcome> workers;
  std::map<std::string, Status> statuses;
};
inline InStepResult InStep(int workers, int servers, const RunStrategy& run, int devices = 1,
                           bool far = false, const MakeStrategy& make = AskedFor) {
  std::map<TaskId, std::string> addresses;
  for (int w = 0; w < workers; ++w) {
    addresses[{TaskType::kWorker, w}] =
        "127.0.0.1:" + std::to_string(w == 0 ? UnusedPorts(1)[0] : 0);
  }
  for (int s = 0; s < servers; ++s) {
    addresses[{TaskType::kPs, s}] = "127.0.0.1:0";
  }
  const ClusterSpec cluster(addresses);
  std::map<TaskId, std::future<Result<Outcome>>> tasks;
  for (const TaskId& task : cluster.Tasks()) {
    tasks[task] = std::async(std::launch::async, [&, task]() -> Result<Outcome> {
      ClusterConfig config;
      config.cluster = cluster;
      config.task = task;
      StrategyOptions options{.num_devices = devices, .cluster = config};
      if (far && task.type == TaskType::kWorker) {
        options.devices = MakeFarDevices(devices);
      }
      COHORT_ASSIGN_OR_RETURN(const auto strategy, make(options));
      Result<Outcome> outcome = run(*strategy);
      if (!outcome.ok()) {
        strategy->ReportError(outcome.status());
      }
      return outcome;
    });
  }
  InStepResult result;
  for (auto& [task, running] : tasks) {
    Result<Outcome> outcome = running.get();
    result.statuses[task.ToString()] = outcome.status();
    if (task.type == TaskType::kWorker && outcome.ok()) {
      result.workers.push_back(*std::move(outcome));
    }
  }
  return result;
}
// Of worker:0, all having ended well.
inline Outcome InStep(int workers, int servers, int epochs, const std::string& checkpoint_dir = {},
                      int devices = 1, bool far = false) {
  InStepResult result = InStep(
      workers, servers,
      [&](Strategy& strategy) {
        return TrainOn(strategy, epochs, checkpoint_dir, Sgd({.learning_rate = 0.1})->config());
      },
      devices, far);
  for (const auto& [task, status] : result.statuses) {
    EXPECT_EQ(status, OkStatus()) << task << ": " << status.ToString();
  }
  return result.workers.empty() ? Outcome() : result.workers[0];
}

inline void ExpectNear(const std::vector<float>& values, const std::vector<float>& expected,
                       float most) {
  ASSERT_EQ(values.size(), expected.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    ASSERT_NEAR(values[i], expected[i], most) << i;
  }
}

}  // namespace cohort::testing::sparse_tables
