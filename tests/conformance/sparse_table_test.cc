// A model with sparse tables is the same model under every strategy that keeps them: in one
// process, over replicas, and with its rows on servers.

#include <gtest/gtest.h>

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
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "sparse_table_job.h"
#include "testing/far_device.h"

namespace cohort::testing::sparse_tables {
namespace {

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

}  // namespace
}  // namespace cohort::testing::sparse_tables
