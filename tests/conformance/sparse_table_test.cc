// A model with sparse tables is the same model under every strategy that keeps them: in one
// process, over replicas, and with its rows on servers.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cohort/core/random.h>
#include <cohort/data/memory.h>
#include <cohort/io/checkpoint.h>
#include <cohort/nn/bags.h>
#include <cohort/nn/layers.h>
#include <cohort/nn/losses.h>
#include <cohort/nn/operations.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/row_source.h>
#include <cohort/optim/server_side.h>
#include <cohort/strategies/parameter_server.h>
#include <cohort/train/trainer.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <future>
#include <limits>
#include <numeric>
#include <thread>

#include "testing/far_device.h"
#include "testing/process_cluster.h"
#include "testing/temp_dir.h"

namespace cohort::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr std::int64_t kExamples = 203;
constexpr std::int64_t kBatch = 10;
constexpr std::int64_t kIdsEach = 3;
constexpr std::uint64_t kAllIds = 40;

data::Dataset Data() {
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

std::vector<float> RowsOf(const ParameterSet& parameters) {
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

Result<Outcome> TrainOn(Strategy& strategy, int epochs, const std::string& checkpoint_dir,
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

Outcome InOneProcess(int devices, int epochs, const std::string& checkpoint_dir = {},
                     int virtual_shards = 0,
                     const std::string& wide_optimizer = Ftrl({.learning_rate = 0.1})->config()) {
  const auto strategy =
      OrThrow(Strategy::FromEnv(devices == 1 ? "one_device" : "mirrored",
                                {.num_devices = devices, .virtual_shards = virtual_shards}));
  return OrThrow(TrainOn(*strategy, epochs, checkpoint_dir, wide_optimizer));
}

// A chief, workers and servers, as threads; the chief's outcome. `run` is what each does.
using RunTask = std::function<Result<Outcome>(ParameterServerStrategy&)>;
Outcome OnServers(int workers, int servers, const RunTask& run, const Consistency& consistency = {},
                  bool far = false) {
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
Outcome OnServers(int workers, int servers, int epochs, const std::string& checkpoint_dir = {},
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
Result<std::unique_ptr<Strategy>> AskedFor(StrategyOptions options) {
  return Strategy::FromEnv("multi_worker_mirrored", std::move(options));
}
struct InStepResult {
  std::vector<Outcome> workers;
  std::map<std::string, Status> statuses;
};
InStepResult InStep(int workers, int servers, const RunStrategy& run, int devices = 1,
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
Outcome InStep(int workers, int servers, int epochs, const std::string& checkpoint_dir = {},
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

void ExpectNear(const std::vector<float>& values, const std::vector<float>& expected, float most) {
  ASSERT_EQ(values.size(), expected.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    ASSERT_NEAR(values[i], expected[i], most) << i;
  }
}

TEST(SparseTables, OneWorkerAndAnyNumberOfServersHaveTheBitsOfOneProcess) {
  const Outcome alone = InOneProcess(1, 2);
  EXPECT_LT(alone.loss, 0.68);
  for (const int servers : {1, 3}) {
    std::atomic<std::int64_t> foreseen = 0;
    const Outcome remote = OnServers(1, servers, 2, {}, &foreseen);
    // Of the second batch of each split of two, but for the first: both tables' lookups.
    EXPECT_GE(foreseen, 2 * 9 * 2);
    EXPECT_EQ(remote.values, alone.values);
    EXPECT_EQ(remote.rows, alone.rows);
    EXPECT_EQ(remote.loss, alone.loss);
  }
}

// Nor are the rows late that it looks up ahead: they have its own updates.
TEST(SparseTables, OneWorkersGradientsAreNeverLate) {
  const std::string adagrad = Adagrad({.learning_rate = 0.1})->config();
  const Outcome alone = InOneProcess(1, 2, {}, 0, adagrad);
  for (const char* consistency : {"async", "ssp:2"}) {
    std::atomic<std::int64_t> foreseen = 0;
    const Outcome remote = OnServers(
        1, 2,
        [&](ParameterServerStrategy& strategy) {
          return TrainOn(strategy, 2, {},
                         ServerSide(adagrad, {.delay_compensation = 1, .staleness_scaling = true}),
                         &foreseen);
        },
        OrThrow(Consistency::Parse(consistency)));
    EXPECT_GT(foreseen, 0);
    EXPECT_EQ(remote.values, alone.values) << consistency;
    EXPECT_EQ(remote.rows, alone.rows) << consistency;
  }
}

TEST(SparseTables, ReplicasOfAProcessComeToTheSameUpToTheOrderOfSums) {
  const Outcome alone = InOneProcess(1, 2);
  const Outcome both = InOneProcess(2, 2);
  ASSERT_EQ(both.rows.size(), alone.rows.size());
  for (std::size_t i = 0; i < alone.rows.size(); ++i) {
    ASSERT_NEAR(both.rows[i], alone.rows[i], 1e-4) << i;
  }
  EXPECT_NEAR(both.loss, alone.loss, 1e-4);
}

TEST(SparseTables, VirtualShardsHaveTheSameBitsOnAnyNumberOfDevices) {
  const Outcome one = InOneProcess(1, 2, {}, /*virtual_shards=*/4);
  const Outcome two = InOneProcess(2, 2, {}, /*virtual_shards=*/4);
  EXPECT_EQ(two.rows, one.rows);
  EXPECT_EQ(two.values, one.values);
}

// Rows go to devices that are apart from the host's memory, and their gradients come from there.
TEST(SparseTables, WorkersOnDevicesHaveTheBitsOfTheCpu) {
  const std::string sgd = Sgd({.learning_rate = 0.1})->config();
  for (const char* text : {"async", "ssp:1", "sync"}) {
    SCOPED_TRACE(text);
    const Consistency consistency = OrThrow(Consistency::Parse(text));
    const auto train = [&](bool far) {
      std::atomic<std::int64_t> foreseen = 0;
      Outcome outcome = OnServers(
          1, 2,
          [&](ParameterServerStrategy& strategy) {
            return TrainOn(strategy, 2, {}, sgd, &foreseen);
          },
          consistency, far);
      EXPECT_GE(foreseen, 2 * 9 * 2);
      return outcome;
    };
    const Outcome on_cpu = train(false);
    const Outcome on_device = train(true);
    EXPECT_EQ(on_device.values, on_cpu.values);
    EXPECT_EQ(on_device.rows, on_cpu.rows);
    EXPECT_EQ(on_device.loss, on_cpu.loss);
  }
  const Outcome in_step = InStep(2, 2, 2);
  const Outcome on_devices = InStep(2, 2, 2, {}, /*devices=*/1, /*far=*/true);
  EXPECT_EQ(on_devices.values, in_step.values);
  EXPECT_EQ(on_devices.rows, in_step.rows);
}

// Of what is looked up ahead one takes each row once, the other one for each id.
TEST(SparseTables, ReplicasOfAWorkerOnTheCpuAndADeviceLearnTheSame) {
  const std::string sgd = Sgd({.learning_rate = 0.1})->config();
  const Outcome alone = InOneProcess(1, 2, {}, 0, sgd);
  const auto make = [](bool device_first) -> MakeStrategy {
    return [device_first](StrategyOptions options) {
      if (options.cluster->task.type == TaskType::kWorker) {
        options.devices = {CpuDevice(), MakeFarDevice()};
        if (device_first) {
          std::swap(options.devices[0], options.devices[1]);
        }
      }
      return AskedFor(std::move(options));
    };
  };
  for (const bool device_first : {false, true}) {
    const InStepResult mixed = InStep(
        1, 2, [&](Strategy& strategy) { return TrainOn(strategy, 2, {}, sgd); }, /*devices=*/2,
        /*far=*/false, make(device_first));
    for (const auto& [task, status] : mixed.statuses) {
      EXPECT_EQ(status, OkStatus()) << task << ": " << status.ToString();
    }
    ASSERT_EQ(mixed.workers.size(), 1U);
    ExpectNear(mixed.workers[0].values, alone.values, 1e-5F);
    ExpectNear(mixed.workers[0].rows, alone.rows, 1e-5F);
  }
}

TEST(SparseTables, SeveralWorkersLearnTheSame) {
  const Outcome alone = InOneProcess(1, 4);
  const Outcome remote = OnServers(3, 2, 4);
  EXPECT_NEAR(remote.loss, alone.loss, 0.05);
}

// Sgd for the wide table, Adagrad for the deep one and the layers.
TEST(SparseTables, WorkersInStepWithTablesOnServersEqualOneProcess) {
  const Outcome alone = InOneProcess(1, 2, {}, 0, Sgd({.learning_rate = 0.1})->config());
  const Outcome one_worker = InStep(1, 2, 2);
  EXPECT_EQ(one_worker.values, alone.values);
  EXPECT_EQ(one_worker.rows, alone.rows);
  for (const auto& [workers, servers] : {std::pair{2, 1}, std::pair{3, 2}}) {
    const Outcome together = InStep(workers, servers, 2);
    ExpectNear(together.values, alone.values, 1e-5F);
    ExpectNear(together.rows, alone.rows, 1e-5F);
    EXPECT_NEAR(together.loss, alone.loss, 1e-5);
    const Outcome again = InStep(workers, servers, 2);
    EXPECT_EQ(again.values, together.values);
    EXPECT_EQ(again.rows, together.rows);
  }
  ExpectNear(InStep(2, 2, 2, {}, /*devices=*/2).rows, alone.rows, 1e-5F);
}

// Where FromEnv is given the model and nothing else is said.
TEST(SparseTables, WorkersTrainAModelWithTablesInStepByDefault) {
  const std::string sgd = Sgd({.learning_rate = 0.1})->config();
  const InStepResult chosen = InStep(
      1, 2,
      [&](Strategy& strategy) {
        EXPECT_EQ(strategy.kind(), "multi_worker_mirrored");
        return TrainOn(strategy, 2, {}, sgd);
      },
      /*devices=*/1, /*far=*/false,
      [&](StrategyOptions options) {
        return Strategy::FromEnv(Model(sgd).parameters, {}, std::move(options));
      });
  for (const auto& [task, status] : chosen.statuses) {
    EXPECT_EQ(status, OkStatus()) << task << ": " << status.ToString();
  }
  ASSERT_EQ(chosen.workers.size(), 1U);
  const Outcome alone = InOneProcess(1, 2, {}, 0, sgd);
  EXPECT_EQ(chosen.workers[0].values, alone.values);
  EXPECT_EQ(chosen.workers[0].rows, alone.rows);
}

// One process does not give the model, so that it comes to another strategy: nobody waits for what
// that one never does.
TEST(SparseTables, ProcessesThatChooseOtherStrategiesEndWithBothNames) {
  for (const std::string odd : {"worker:0", "worker:1", "ps:1"}) {
    const auto begun = std::chrono::steady_clock::now();
    const InStepResult result = InStep(
        2, 2, [](Strategy& strategy) { return TrainOn(strategy, 1, {}); },
        /*devices=*/1, /*far=*/false,
        [&](StrategyOptions options) -> Result<std::unique_ptr<Strategy>> {
          options.join_timeout = std::chrono::seconds(60);
          return options.cluster->task.ToString() == odd
                     ? Strategy::FromEnv({}, std::move(options))
                     : Strategy::FromEnv(Model().parameters, {}, std::move(options));
        });
    EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(30)) << odd;
    EXPECT_EQ(result.statuses.size(), 4U);
    for (const auto& [task, status] : result.statuses) {
      EXPECT_FALSE(status.ok()) << odd << ": " << task;
      if (odd == "worker:0" && task == odd) {
        continue;  // it may meet servers that have left before it is told why
      }
      EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition)
          << odd << ": " << task << ": " << status.ToString();
      EXPECT_THAT(status.message(), AllOf(HasSubstr("of multi_worker_mirrored"),
                                          HasSubstr("of parameter_server"), HasSubstr("worker:0")))
          << odd << ": " << task;
    }
  }
}

// Each push adds 1 to the value, and before that to the row: a lookup finds at least what the
// values of its step have. worker:1 is slow, and the other waits for its pushes.
TEST(SparseTables, UnderBoundedStalenessRowsAreAsFreshAsValues) {
  constexpr std::int64_t kSteps = 240;  // in splits of 12
  std::atomic<std::int64_t> foreseen = 0;
  std::atomic<int> older = 0;
  Tensor zeros(DType::kInt64, {2 * kSteps, 1});
  std::ranges::fill(zeros.data<std::int64_t>(), 0);
  const data::Dataset data = OrThrow(data::FromTensors({{"id", zeros}}));
  const RunTask run = [&](ParameterServerStrategy& strategy) -> Result<Outcome> {
    ParameterSet parameters;
    parameters.Add("count", {1}, {});
    parameters.AddTable({.name = "counts", .dim = 1, .buckets = 1});
    parameters.Build();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = 1})));
    const bool slow = strategy.cluster().task == TaskId{TaskType::kWorker, 1};
    const StepFn step = [&](ReplicaContext& context,
                            const data::Batch& batch) -> Result<ReplicaResult> {
      const auto examples = static_cast<std::size_t>(batch.size);
      const std::vector<std::uint64_t> ids(examples, 0);
      std::vector<float> rows(examples);
      COHORT_RETURN_IF_ERROR(context.parameters.rows().Lookup(0, ids, /*training=*/true, rows));
      older += rows[0] < static_cast<float>(context.step - 1) ? 1 : 0;
      context.gradients.AddRows(0, ids, std::vector<float>(examples, -1));
      context.gradients.Accumulator(0)[0] = -static_cast<float>(examples);
      context.gradients.Ready(0);
      std::this_thread::sleep_for(std::chrono::milliseconds(slow ? 2 : 0));  // its work
      return ReplicaResult{
          .loss_sum = 0, .weight = static_cast<double>(examples), .metric_sums = {}};
    };
    Trainer trainer(strategy, parameters, {.epochs = 1, .log = Log()});
    COHORT_RETURN_IF_ERROR(trainer.Fit(data.Batch(2), step).status());
    Outcome outcome;
    if (strategy.is_chief()) {
      outcome.values = {std::as_const(parameters).value(0)[0]};
      outcome.rows.resize(1);
      COHORT_RETURN_IF_ERROR(parameters.rows().Lookup(0, std::vector<std::uint64_t>{0},
                                                      /*training=*/false, outcome.rows));
    }
    if (strategy.trains()) {
      COHORT_ASSIGN_OR_RETURN(const ParameterServerStats stats, strategy.stats());
      foreseen += stats.foreseen;
    }
    COHORT_RETURN_IF_ERROR(strategy.Shutdown());
    return outcome;
  };
  const Outcome outcome =
      OnServers(2, 2, run, {.mode = Consistency::Mode::kBoundedStaleness, .staleness = 0});
  EXPECT_EQ(older, 0);
  EXPECT_GE(foreseen, kSteps / 2) << "all but a split's first";
  EXPECT_EQ(outcome.values, std::vector<float>{kSteps});
  EXPECT_EQ(outcome.rows, std::vector<float>{kSteps});
}

// Every example moves its row by (sign, 0.3), and signs of 100 are as many as of -100: of a row in
// int8 beside 100 the 0.3 is always rounded to nothing. What the row comes to, which is small.
Result<Outcome> TrainOnWhatRoundingTakes(Strategy& strategy, std::uint64_t feedback) {
  constexpr std::int64_t kBatches = 240;  // of two examples of one sign
  Tensor signs(DType::kFloat32, {2 * kBatches, 1});
  for (std::size_t i = 0; i < signs.data<float>().size(); ++i) {
    signs.data<float>()[i] = i / 2 % 2 == 0 ? 100.0F : -100.0F;
  }
  const data::Dataset data = OrThrow(data::FromTensors({{"sign", signs}}));
  ParameterSet parameters;
  parameters.Add("count", {1}, {});
  parameters.AddTable({.name = "sums",
                       .dim = 2,
                       .wire = TableSpec::Wire::kInt8,
                       .wire_feedback = feedback,
                       .buckets = 1});
  parameters.Build();
  COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = 1})));
  const StepFn step = [&](ReplicaContext& context,
                          const data::Batch& batch) -> Result<ReplicaResult> {
    const auto examples = static_cast<std::size_t>(batch.size);
    const std::vector<std::uint64_t> ids(examples, 3);
    std::vector<float> rows(2 * examples);
    COHORT_RETURN_IF_ERROR(context.parameters.rows().Lookup(0, ids, /*training=*/true, rows));
    std::vector<float> gradients;
    for (const float sign : batch["sign"].data<float>()) {
      gradients.insert(gradients.end(), {sign, -0.3F});
    }
    context.gradients.AddRows(0, ids, gradients);
    context.gradients.Accumulator(0)[0] = -static_cast<float>(examples);
    context.gradients.Ready(0);
    return ReplicaResult{.loss_sum = 0, .weight = static_cast<double>(examples), .metric_sums = {}};
  };
  Trainer trainer(strategy, parameters, {.epochs = 1, .log = Log()});
  COHORT_RETURN_IF_ERROR(trainer.Fit(data.Batch(2), step).status());
  Outcome outcome;
  if (strategy.is_chief()) {
    outcome.rows.resize(2);
    COHORT_RETURN_IF_ERROR(parameters.rows().Lookup(0, std::vector<std::uint64_t>{3},
                                                    /*training=*/false, outcome.rows));
  }
  if (auto* const servers = dynamic_cast<ParameterServerStrategy*>(&strategy);
      servers != nullptr && strategy.trains()) {
    COHORT_ASSIGN_OR_RETURN(const ParameterServerStats stats, servers->stats());
    EXPECT_EQ(stats.dropped_residuals, 0U);
  }
  COHORT_RETURN_IF_ERROR(strategy.Shutdown());
  return outcome;
}

// Without feedback nothing of it arrives; with it all, but what two workers keep at the end, each
// half a step of 100 / 127 at most, and what is rounded where the row is read.
TEST(SparseTables, WhatRoundingTakesArrivesInTheEnd) {
  constexpr float kExact = 0.3F * 240;
  const auto check = [&](const std::vector<float>& rows, std::uint64_t feedback) {
    ASSERT_EQ(rows.size(), 2U);
    EXPECT_NEAR(rows[0], 0, 0.01);
    if (feedback == 0) {
      EXPECT_EQ(rows[1], 0);
    } else {
      EXPECT_NEAR(rows[1], kExact, 2 * 101.0 / 254 + (kExact + 1) / 254);
    }
  };
  for (const char* text : {"async", "ssp:1", "sync", "sync:1"}) {
    for (const std::uint64_t feedback : {0U, 10U}) {
      SCOPED_TRACE(std::string(text) + ", of rows: " + std::to_string(feedback));
      const Outcome outcome = OnServers(
          2, 2,
          [&](ParameterServerStrategy& strategy) {
            return TrainOnWhatRoundingTakes(strategy, feedback);
          },
          OrThrow(Consistency::Parse(text)));
      check(outcome.rows, feedback);
    }
  }
  const InStepResult in_step = InStep(2, 2, [&](Strategy& strategy) {
    return TrainOnWhatRoundingTakes(strategy, /*feedback=*/10);
  });
  for (const auto& [task, status] : in_step.statuses) {
    EXPECT_EQ(status, OkStatus()) << task << ": " << status.ToString();
  }
  ASSERT_FALSE(in_step.workers.empty());
  check(in_step.workers[0].rows, 10);
}

// A step looks up the ids of a feature, which are known a batch ahead, and others, which nobody
// foresees and which make rows. What is known ahead keeps its row until its gradient has come.
Result<Outcome> TrainWithEviction(Strategy& strategy, const TableSpec& table) {
  constexpr std::int64_t kEach = 60;
  constexpr std::int64_t kSteps = 24;
  constexpr std::uint64_t kForeseen = 160;
  constexpr std::uint64_t kNew = 10;  // ids, in each step
  const Philox random(7, "ids");
  Tensor ids(DType::kInt64, {kSteps, kEach});
  for (std::size_t i = 0; i < ids.data<std::int64_t>().size(); ++i) {
    ids.data<std::int64_t>()[i] = static_cast<std::int64_t>(random.Below(kForeseen, i));
  }
  Tensor numbers(DType::kInt64, {kSteps, 1});
  std::iota(numbers.data<std::int64_t>().begin(), numbers.data<std::int64_t>().end(), 0);
  const data::Dataset data = OrThrow(data::FromTensors({{"ids", ids}, {"number", numbers}}));
  ParameterSet parameters;
  parameters.Add("bias", {1}, {});
  parameters.AddTable(table);
  parameters.Build();
  COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = 1})));
  const auto dim = static_cast<std::size_t>(table.dim);
  const StepFn step = [&](ReplicaContext& context,
                          const data::Batch& batch) -> Result<ReplicaResult> {
    const auto known = batch["ids"].data<std::int64_t>();
    const std::vector<std::uint64_t> foreseen(known.begin(), known.end());
    std::vector<std::uint64_t> made(kNew);
    const auto number = static_cast<std::uint64_t>(batch["number"].data<std::int64_t>()[0]);
    std::iota(made.begin(), made.end(), kForeseen + kNew * number);
    for (const auto& some : {foreseen, made}) {
      std::vector<float> rows(some.size() * dim);
      COHORT_RETURN_IF_ERROR(context.parameters.rows().Lookup(0, some, /*training=*/true, rows));
      context.gradients.AddRows(0, some, std::vector<float>(rows.size(), -1));
    }
    context.gradients.Accumulator(0)[0] = 1;
    context.gradients.Ready(0);
    return ReplicaResult{.loss_sum = 0, .weight = 1, .metric_sums = {}};
  };
  Trainer trainer(strategy, parameters, {.epochs = 1, .log = Log()});
  COHORT_RETURN_IF_ERROR(trainer.Fit(data.Batch(1), step).status());
  Outcome outcome;
  if (strategy.is_chief()) {
    std::vector<std::uint64_t> all(kForeseen + kNew * kSteps);
    std::iota(all.begin(), all.end(), 0);
    outcome.rows.resize(all.size() * dim);
    COHORT_RETURN_IF_ERROR(parameters.rows().Lookup(0, all, /*training=*/false, outcome.rows));
  }
  COHORT_RETURN_IF_ERROR(strategy.Shutdown());
  return outcome;
}

TEST(SparseTables, RowsThatAreLookedUpAheadAreNotEvictedBeforeTheirGradientComes) {
  TableSpec capacity{.name = "capacity", .dim = 2, .buckets = 2};
  capacity.capacity = 140;
  TableSpec rare = capacity;
  rare.name = "rare";
  rare.eviction = TableSpec::Eviction::kLeastFrequent;
  // A push of several frames, between which rows expire.
  TableSpec time{.name = "time", .dim = 16384, .buckets = 2};
  time.time_to_live = 4;
  for (const TableSpec& table : {capacity, rare, time}) {
    SCOPED_TRACE(table.name);
    const Outcome alone =
        OrThrow(TrainWithEviction(*OrThrow(Strategy::FromEnv("one_device", {})), table));
    EXPECT_GT(std::ranges::count(alone.rows, 0.0F), 0) << "rows have been evicted";
    for (const char* text : {"async", "ssp:1", "sync"}) {
      const Outcome remote = OnServers(
          1, 2,
          [&](ParameterServerStrategy& strategy) { return TrainWithEviction(strategy, table); },
          OrThrow(Consistency::Parse(text)));
      EXPECT_TRUE(remote.rows == alone.rows) << text;
    }
    const InStepResult in_step =
        InStep(1, 2, [&](Strategy& strategy) { return TrainWithEviction(strategy, table); });
    ASSERT_EQ(in_step.workers.size(), 1);
    EXPECT_TRUE(in_step.workers[0].rows == alone.rows) << "in step";
  }
}

TEST(SparseTables, RoundsOnServersEqualOneProcess) {
  const std::string sgd = Sgd({.learning_rate = 0.1})->config();
  const Outcome alone = InOneProcess(1, 2, {}, 0, sgd);
  std::atomic<std::int64_t> foreseen = 0;
  const auto run = [&](int workers, int servers) {
    return OnServers(
        workers, servers,
        [&](ParameterServerStrategy& strategy) { return TrainOn(strategy, 2, {}, sgd, &foreseen); },
        {.mode = Consistency::Mode::kSynchronous});
  };
  for (const auto& [workers, servers] : {std::pair{1, 2}, std::pair{3, 2}}) {
    foreseen = 0;
    const Outcome together = run(workers, servers);
    EXPECT_GE(foreseen, workers * 2 * 18 * 2) << "all but the first of each epoch, of both tables";
    ExpectNear(together.values, alone.values, 1e-5F);
    ExpectNear(together.rows, alone.rows, 1e-5F);
  }
}

// Bags of words: a ragged feature, some of whose lists are empty.
TEST(SparseTables, BagsOfARaggedFeatureOnServersHaveTheBitsOfOneProcess) {
  std::atomic<std::int64_t> foreseen = 0;
  const auto run = [&](Strategy& strategy) -> Result<Outcome> {
    ParameterSet parameters;
    const nn::Embedding words(
        parameters, "words", kAllIds, 4,
        {.seed = 5,
         .table = TableSpec{.initializer = {RowInitializer::Kind::kUniform, 0.1}, .buckets = 16}});
    const nn::Dense out(parameters, "out", 12, 1, {.seed = 5});
    parameters.Build();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Adagrad({.learning_rate = 0.1})));
    nn::Workspaces workspaces;
    const StepFn step = [&](ReplicaContext& context,
                            const data::Batch& batch) -> Result<ReplicaResult> {
      nn::Tape tape(context.parameters, context.stream,
                    workspaces.For(context.replica, context.device), {.intra_op_threads = 1});
      const data::Ragged& lists = batch.lists("words");
      const nn::Variable rows = words(tape, lists.values);
      std::vector<nn::Variable> bags;
      for (const auto combiner : {nn::Combiner::kSum, nn::Combiner::kMean, nn::Combiner::kSqrtN}) {
        bags.push_back(nn::Combine(rows, lists.splits, combiner));
      }
      const auto loss = nn::SigmoidCrossEntropy(out(nn::Concat(bags, 1)), batch["target"]);
      tape.Backward(loss, context.gradients);
      COHORT_RETURN_IF_ERROR(tape.Finish());
      const auto weight = static_cast<double>(batch.size);
      return ReplicaResult{.loss_sum = loss.value() * weight, .weight = weight, .metric_sums = {}};
    };
    const data::Dataset data = Data()
                                   .Map([](data::Example& example) {
                                     const auto ids = example.at("ids").data<std::int64_t>();
                                     const auto count = static_cast<std::size_t>(ids[0] % 4);
                                     example["words"] = Tensor::Of<std::int64_t>(
                                         {static_cast<std::int64_t>(count)}, ids.first(count));
                                     return OkStatus();
                                   })
                                   .Lists({"words"});
    Trainer trainer(strategy, parameters, {.epochs = 2, .log = Log()});
    COHORT_RETURN_IF_ERROR(trainer.Fit(data.Batch(kBatch), step).status());
    Outcome outcome;
    if (strategy.is_chief()) {
      outcome.rows = RowsOf(parameters);
      const auto values = std::as_const(parameters).all();
      outcome.values.assign(values.begin(), values.end());
    }
    if (auto* const servers = dynamic_cast<ParameterServerStrategy*>(&strategy);
        servers != nullptr && strategy.trains()) {
      COHORT_ASSIGN_OR_RETURN(const ParameterServerStats stats, servers->stats());
      foreseen += stats.foreseen;
    }
    COHORT_RETURN_IF_ERROR(strategy.Shutdown());
    return outcome;
  };
  const auto strategy = OrThrow(Strategy::FromEnv("one_device", {}));
  const Outcome alone = OrThrow(run(*strategy));
  const Outcome remote = OnServers(1, 2, run);
  EXPECT_EQ(remote.values, alone.values);
  EXPECT_EQ(remote.rows, alone.rows);
  EXPECT_GT(foreseen, 0) << "lists are looked up ahead, too";
}

TEST(SparseTables, ACheckpointOfWorkersInStepIsWhole) {
  const TempDir dir;
  const Outcome uninterrupted = InStep(2, 2, 2);
  EXPECT_NE(InStep(2, 2, 1, dir / "saved").checkpoint, "");
  std::filesystem::copy(dir / "saved", dir / "alone", std::filesystem::copy_options::recursive);
  const Outcome resumed = InStep(2, 3, 2, dir / "saved");
  EXPECT_EQ(resumed.rows, uninterrupted.rows);
  EXPECT_EQ(resumed.values, uninterrupted.values);
  const Outcome alone = InOneProcess(1, 2, dir / "alone", 0, Sgd({.learning_rate = 0.1})->config());
  ExpectNear(alone.rows, uninterrupted.rows, 1e-5F);
}

// Of two workers in step, after so many steps; the chief's rows. `at`: what the chief does there.
std::vector<float> RowsOfWorkersInStep(
    int steps, const std::map<int, std::function<Status(Strategy&)>>& at = {}) {
  const InStepResult result = InStep(2, 2, [&](Strategy& strategy) -> Result<Outcome> {
    Model model(Sgd({.learning_rate = 0.1})->config());
    COHORT_RETURN_IF_ERROR(strategy.Bind(model.parameters, Adagrad({.learning_rate = 0.1})));
    if (!strategy.trains()) {
      COHORT_RETURN_IF_ERROR(strategy.Serve());
      COHORT_RETURN_IF_ERROR(strategy.Shutdown());
      return Outcome();
    }
    COHORT_ASSIGN_OR_RETURN(const auto data, strategy.Distribute(Data().Repeat(4).Batch(kBatch)));
    COHORT_RETURN_IF_ERROR(data->BeginEpoch(0));
    for (int step = 1; step <= steps; ++step) {
      COHORT_ASSIGN_OR_RETURN(const auto batch, data->Next());
      COHORT_RETURN_IF_ERROR(strategy.Step(batch.value(), model.Fn(true)).status());
      if (const auto found = at.find(step); strategy.is_chief() && found != at.end()) {
        COHORT_RETURN_IF_ERROR(found->second(strategy));
      }
    }
    Outcome outcome;
    if (strategy.is_chief()) {
      outcome.rows = RowsOf(model.parameters);
    }
    COHORT_RETURN_IF_ERROR(strategy.Shutdown());
    return outcome;
  });
  for (const auto& [task, status] : result.statuses) {
    EXPECT_EQ(status, OkStatus()) << task << ": " << status.ToString();
  }
  return result.workers.empty() ? std::vector<float>() : result.workers[0].rows;
}
// What is in the files of both tables.
std::vector<float> RowsIn(const std::vector<std::vector<std::string>>& chains) {
  const auto strategy = OrThrow(Strategy::FromEnv("one_device", {}));
  Model model(Sgd({.learning_rate = 0.1})->config());
  OrThrow(strategy->Bind(model.parameters, Adagrad({.learning_rate = 0.1})));
  for (std::size_t t = 0; t < chains.size(); ++t) {
    OrThrow(strategy->LoadTable(static_cast<int>(t), FileSystem::Local(), chains[t]));
  }
  return RowsOf(model.parameters);
}

TEST(SparseTables, WhatIsSavedOfWorkersInStepIsOfOneStepWhileTheyGoOn) {
  const TempDir dir;
  const auto freeze = [](Strategy& strategy) -> Status {
    COHORT_ASSIGN_OR_RETURN(const bool frozen, strategy.FreezeTables());
    return frozen ? OkStatus() : Internal("rows are not kept");
  };
  const auto file = [&](const char* name, int table) { return dir / name + std::to_string(table); };
  std::vector<std::optional<std::int64_t>> bases;
  const std::vector<float> trained =
      RowsOfWorkersInStep(20, {{5, freeze},
                               {9,
                                [&](Strategy& strategy) -> Status {
                                  bases.push_back(strategy.rows_saved_at());
                                  for (const int table : {0, 1}) {
                                    COHORT_RETURN_IF_ERROR(strategy.SaveTable(
                                        table, FileSystem::Local(), file("all", table)));
                                  }
                                  return strategy.ThawTables(/*saved=*/true);
                                }},
                               {12, freeze},
                               {15, [&](Strategy& strategy) -> Status {
                                  bases.push_back(strategy.rows_saved_at());
                                  for (const int table : {0, 1}) {
                                    COHORT_RETURN_IF_ERROR(strategy.SaveTableChanges(
                                        table, FileSystem::Local(), file("since", table)));
                                  }
                                  return strategy.ThawTables(/*saved=*/true);
                                }}});
  EXPECT_THAT(bases, ::testing::ElementsAre(std::nullopt, std::optional<std::int64_t>(5)));
  EXPECT_EQ(trained, RowsOfWorkersInStep(20)) << "saves are in nobody's way";
  EXPECT_EQ(RowsIn({{file("all", 0)}, {file("all", 1)}}), RowsOfWorkersInStep(5));
  EXPECT_EQ(RowsIn({{file("all", 0), file("since", 0)}, {file("all", 1), file("since", 1)}}),
            RowsOfWorkersInStep(12));
}

// Two workers and servers for two epochs, saving each so many steps; the chief's outcome. `before`:
// what the chief does before it computes that step.
Outcome TrainAndSave(const std::string& checkpoint_dir, std::int64_t every,
                     const std::map<std::int64_t, std::function<void()>>& before = {}) {
  const InStepResult result = InStep(2, 2, [&](Strategy& strategy) -> Result<Outcome> {
    Model model(Sgd({.learning_rate = 0.1})->config());
    COHORT_RETURN_IF_ERROR(strategy.Bind(model.parameters, Adagrad({.learning_rate = 0.1})));
    const StepFn step = [&](ReplicaContext& context, const data::Batch& batch) {
      if (const auto found = before.find(context.step);
          strategy.is_chief() && found != before.end()) {
        found->second();
      }
      return model.Step(context, batch, /*training=*/true);
    };
    Trainer trainer(strategy, model.parameters,
                    {.epochs = 2,
                     .checkpoint_dir = checkpoint_dir,
                     .save_every_steps = every,
                     .max_to_keep = 0,
                     .log = Log()});
    COHORT_RETURN_IF_ERROR(trainer.Fit(Data().Shuffle(3).Batch(kBatch), step).status());
    Outcome outcome;
    if (strategy.is_chief()) {
      outcome.rows = RowsOf(model.parameters);
      const auto values = std::as_const(model.parameters).all();
      outcome.values.assign(values.begin(), values.end());
    }
    COHORT_RETURN_IF_ERROR(strategy.Shutdown());
    return outcome;
  });
  for (const auto& [task, status] : result.statuses) {
    EXPECT_EQ(status, OkStatus()) << task << ": " << status.ToString();
  }
  return result.workers.empty() ? Outcome() : result.workers[0];
}

// Saves in the middle of an epoch, most of them changes, are written behind training.
TEST(SparseTables, EachCheckpointOfWorkersInStepLeadsToTheSameBits) {
  const TempDir dir;
  const Outcome saving = TrainAndSave(dir / "saved", 3);
  const Outcome uninterrupted = TrainAndSave({}, 0);
  EXPECT_EQ(saving.rows, uninterrupted.rows);
  EXPECT_EQ(saving.values, uninterrupted.values);
  io::CheckpointStore store(FileSystem::Local(), dir / "saved");
  std::vector<std::int64_t> steps = OrThrow(store.Steps());
  ASSERT_GE(steps.size(), 6U);
  int changes = 0;
  for (const std::int64_t step : steps) {
    changes += OrThrow(store.SizeOfChain(step)).checkpoints > 1 ? 1 : 0;
  }
  EXPECT_GT(changes, 0);
  for (const std::size_t newest : {steps.size() - 2, std::size_t{2}}) {
    while (steps.size() > newest + 1) {  // what builds on others goes before these
      std::filesystem::remove_all(OrThrow(store.Open(steps.back()))->path());
      steps.pop_back();
    }
    const std::string copy = dir / ("from" + std::to_string(steps.back()));
    std::filesystem::copy(dir / "saved", copy, std::filesystem::copy_options::recursive);
    const Outcome resumed = TrainAndSave(copy, 0);
    EXPECT_EQ(resumed.rows, uninterrupted.rows) << "from step " << steps.back();
    EXPECT_EQ(resumed.values, uninterrupted.values) << "from step " << steps.back();
  }
}

// The disk is gone for a while.
TEST(SparseTables, ASaveBehindTrainingThatFailsIsPassedOver) {
  const TempDir dir;
  const std::string saved = dir / "saved";
  const Outcome trained = TrainAndSave(saved, 3,
                                       {{8,
                                         [&] {
                                           std::filesystem::rename(saved, dir / "away");
                                           std::ofstream(saved) << "no folder";
                                         }},
                                        {14, [&] {
                                           std::filesystem::remove(saved);
                                           std::filesystem::rename(dir / "away", saved);
                                         }}});
  const Outcome uninterrupted = TrainAndSave({}, 0);
  EXPECT_EQ(trained.rows, uninterrupted.rows);
  EXPECT_EQ(trained.values, uninterrupted.values);
  io::CheckpointStore store(FileSystem::Local(), saved);
  const std::vector<std::int64_t> steps = OrThrow(store.Steps());
  EXPECT_THAT(steps, ::testing::Contains(3));
  EXPECT_THAT(steps, ::testing::Not(::testing::Contains(9)));
  EXPECT_THAT(steps, ::testing::Contains(18));
  const std::string copy = dir / "copy";
  std::filesystem::copy(saved, copy, std::filesystem::copy_options::recursive);
  std::filesystem::remove_all(OrThrow(store.OpenLatest())->path());
  EXPECT_EQ(TrainAndSave(saved, 0).rows, uninterrupted.rows) << "from the last but one";
  EXPECT_EQ(TrainAndSave(copy, 0).rows, uninterrupted.rows) << "from the last one";
}

TEST(SparseTables, ACheckpointIsRestoredUnderAnyStrategyAndNumberOfServers) {
  const TempDir dir;
  auto copy = [&, n = 0]() mutable {
    const std::string to = dir / std::to_string(n++);
    std::filesystem::copy(dir / "saved", to, std::filesystem::copy_options::recursive);
    return to;
  };
  const Outcome saved = OnServers(1, 4, 1, dir / "saved");
  EXPECT_NE(saved.checkpoint, "");
  const Outcome alone = InOneProcess(1, 2);
  for (const int servers : {1, 3, 7}) {
    const Outcome resumed = OnServers(1, servers, 2, copy());
    EXPECT_EQ(resumed.rows, alone.rows) << servers << " servers";
    EXPECT_EQ(resumed.values, alone.values) << servers << " servers";
  }
  EXPECT_EQ(InOneProcess(1, 2, copy()).rows, alone.rows);
  const std::string from_one = dir / "from_one";
  InOneProcess(1, 1, from_one);
  EXPECT_EQ(OnServers(1, 1, 2, from_one).rows, alone.rows);
}

// Trains one step on `batch`, and expects an error of it.
Status OneStep(Strategy& strategy, Model& model, const data::Batch& batch) {
  DistributedBatch distributed;
  distributed.replicas = {batch};
  return strategy.Step(distributed, model.Fn(true)).status();
}
data::Batch BatchOf(std::int64_t id, float target) {
  const std::vector<std::int64_t> ids = {1, id, 1};
  data::Batch batch;
  batch.size = 1;
  batch.features["ids"] = Tensor::Of<std::int64_t>({1, 3}, ids);
  batch.features["target"] = Tensor::Of<float>({1, 1}, std::span(&target, 1));
  return batch;
}

TEST(SparseTables, AnErrorNamesTheTableAndChangesNothing) {
  const auto check = [](Strategy& strategy) {
    Model model;
    OrThrow(strategy.Bind(model.parameters, Adagrad({.learning_rate = 0.1})));
    const Status range = OneStep(strategy, model, BatchOf(kAllIds, 1));
    EXPECT_EQ(range.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(range.message(), AllOf(HasSubstr("deep"), HasSubstr("id 40 at place 1")));
    const Status nan =
        OneStep(strategy, model, BatchOf(7, std::numeric_limits<float>::quiet_NaN()));
    EXPECT_EQ(nan.code(), StatusCode::kInvalidArgument);
    // Whichever table's frame was answered first.
    EXPECT_THAT(nan.message(), AllOf(HasSubstr("/table\""), HasSubstr("NaN")));
    EXPECT_EQ(strategy.step(), 0);
    EXPECT_EQ(OneStep(strategy, model, BatchOf(7, 1)), OkStatus());
    EXPECT_EQ(strategy.step(), 1);
  };
  check(*OrThrow(Strategy::FromEnv("one_device", {})));
  OnServers(1, 2, [&](ParameterServerStrategy& strategy) -> Result<Outcome> {
    if (strategy.trains()) {
      check(strategy);
    } else {
      Model model;
      COHORT_RETURN_IF_ERROR(strategy.Bind(model.parameters, Adagrad({.learning_rate = 0.1})));
      COHORT_RETURN_IF_ERROR(strategy.Serve());
    }
    COHORT_RETURN_IF_ERROR(strategy.Shutdown());
    return Outcome();
  });
}

TEST(SparseTables, WhatAStrategyCannotKeepIsRefused) {
  Model clipped(Sgd({.learning_rate = 1, .global_clip_norm = 1})->config());
  const auto strategy = OrThrow(Strategy::FromEnv("one_device", {}));
  const Status status = strategy->Bind(clipped.parameters, Sgd());
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("table \"wide/table\""));
  Model late(ServerSide(Sgd()->config(), {.delay_compensation = 1}));
  EXPECT_THAT(OrThrow(Strategy::FromEnv("one_device", {}))->Bind(late.parameters, Sgd()).message(),
              AllOf(HasSubstr("table \"wide/table\""), HasSubstr("delay_compensation"),
                    HasSubstr("under one_device")));
  OnServers(1, 1,
            [&](ParameterServerStrategy& in_rounds) -> Result<Outcome> {
              Model model(ServerSide(Sgd()->config(), {.staleness_scaling = true}));
              EXPECT_THAT(in_rounds.Bind(model.parameters, Sgd()).message(),
                          AllOf(HasSubstr("table \"wide/table\""), HasSubstr("staleness_scaling"),
                                HasSubstr("under consistency sync")));
              return TrainOn(in_rounds, 1, {}, Sgd({.learning_rate = 0.1})->config());
            },
            {.mode = Consistency::Mode::kSynchronous});
  const InStepResult dense_only = InStep(2, 1, [&](Strategy& in_step) -> Result<Outcome> {
    ParameterSet dense;
    dense.Add("bias", {3}, {});
    dense.Build();
    COHORT_RETURN_IF_ERROR(in_step.Bind(dense, Sgd()));
    return Outcome();
  });
  for (const auto& [task, refused] : dense_only.statuses) {
    EXPECT_EQ(refused.code(), StatusCode::kFailedPrecondition) << task;
    EXPECT_THAT(refused.message(), HasSubstr("sparse tables")) << task;
  }
}

TEST(SparseTables, RowsOnServersAreNotHeldBackByAScaler) {
  const InStepResult scaled = InStep(
      2, 1,
      [](Strategy& strategy) -> Result<Outcome> {
        Model model;
        COHORT_RETURN_IF_ERROR(strategy.Bind(model.parameters, Sgd()));
        COHORT_RETURN_IF_ERROR(strategy.Serve());
        return Outcome();
      },
      /*devices=*/1, /*far=*/false,
      [](StrategyOptions options) {
        options.grad_scaler.emplace();
        return AskedFor(std::move(options));
      });
  EXPECT_EQ(scaled.statuses.size(), 3U);
  for (const auto& [task, refused] : scaled.statuses) {
    EXPECT_EQ(refused.code(), StatusCode::kUnimplemented) << task << ": " << refused.ToString();
    EXPECT_THAT(refused.message(),
                HasSubstr("sparse table \"wide/table\" with grad_scaler: servers"))
        << task;
  }
}

// One worker's gradients are refused: all end with the table's name, and nothing has changed.
TEST(SparseTables, WorkersInStepEndTogether) {
  const InStepResult result = InStep(2, 2, [&](Strategy& strategy) -> Result<Outcome> {
    Model model;
    COHORT_RETURN_IF_ERROR(strategy.Bind(model.parameters, Adagrad({.learning_rate = 0.1})));
    if (!strategy.trains()) {
      COHORT_RETURN_IF_ERROR(strategy.Serve());
      return Outcome();
    }
    COHORT_RETURN_IF_ERROR(OneStep(strategy, model, BatchOf(7, 1)));
    COHORT_RETURN_IF_ERROR(
        OneStep(strategy, model,
                BatchOf(7, strategy.is_chief() ? 1 : std::numeric_limits<float>::quiet_NaN())));
    return Outcome();
  });
  EXPECT_EQ(result.statuses.size(), 4);
  for (const auto& [task, status] : result.statuses) {
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << task << ": " << status.ToString();
    EXPECT_THAT(status.message(), AllOf(HasSubstr("/table\""), HasSubstr("NaN"))) << task;
  }
}

}  // namespace
}  // namespace cohort::testing
