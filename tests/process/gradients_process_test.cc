// How gradients travel, in real processes: the same bits in every world, compression that still
// learns, several batches to a step. Trained on digits that the program draws.
#include <cohort/comm/mpi.h>
#include <gtest/gtest.h>

#include "training.h"

namespace cohort::testing {
namespace {

TrainingRun Workers(int processes, std::vector<std::string> more) {
  TrainingRun run{.strategy = "one_device", .model = "mlp", .more = std::move(more)};
  if (processes > 1) {
    run.strategy = "multi_worker_mirrored";
    run.launcher = Launch({"-n", std::to_string(processes)});
  }
  return run;
}

TEST(VirtualShards, GiveTheSameBitsInOneToEightProcesses) {
  for (const char* model : {"mlp", "cnn"}) {
    SCOPED_TRACE(model);
    nlohmann::json expected;
    for (const int processes : {1, 2, 4, 8}) {
      TrainingRun run = Workers(processes, {"--virtual-shards", "8"});
      run.model = model;
      const nlohmann::json metrics = Train(run);
      if (processes == 1) {
        expected = metrics;
        EXPECT_GT(expected["accuracy"].get<double>(), 0.5);
        continue;
      }
      EXPECT_EQ(metrics["parameters_crc32c"], expected["parameters_crc32c"]) << processes;
      EXPECT_EQ(metrics["epoch_losses"], expected["epoch_losses"]) << processes;
      EXPECT_EQ(metrics["loss"], expected["loss"]) << processes;
      EXPECT_EQ(metrics["accuracy"], expected["accuracy"]) << processes;
    }
    TrainingRun mirrored = Workers(1, {"--virtual-shards", "8", "--devices", "2"});
    mirrored.model = model;
    mirrored.strategy = "mirrored";
    EXPECT_EQ(Train(mirrored)["parameters_crc32c"], expected["parameters_crc32c"]);
  }
}

TEST(VirtualShards, GiveTheSameBitsWhereMpisOwnCollectivesAreAskedFor) {
  if (!MpiBuilt()) {
    GTEST_SKIP() << "built without MPI";
  }
  const nlohmann::json expected = Train(Workers(1, {"--virtual-shards", "4"}));
  TrainingRun run = Workers(1, {"--virtual-shards", "4", "--mpi-implementation", "mpi"});
  run.strategy = "multi_worker_mirrored";
  run.launcher = Mpirun(4);
  EXPECT_EQ(Train(run)["parameters_crc32c"], expected["parameters_crc32c"]);
}

TEST(Compression, StillLearns) {
  TrainingRun plain = Workers(2, {});
  plain.epochs = 3;
  const double accuracy = Train(plain)["accuracy"];
  EXPECT_GT(accuracy, 0.9);
  for (const char* compression : {"bf16", "fp16", "powersgd"}) {
    SCOPED_TRACE(compression);
    TrainingRun run = Workers(2, {"--compression", compression});
    run.epochs = 3;
    const nlohmann::json metrics = Train(run);
    EXPECT_GE(metrics["accuracy"].get<double>(), accuracy - 0.03);
    EXPECT_GT(metrics["exposed_communication_seconds"].get<double>(), 0);
    EXPECT_GT(metrics["input_seconds"].get<double>(), 0);
  }
  TrainingRun linear = Workers(2, {});
  linear.model = "linear";
  linear.epochs = 3;
  const double uncompressed = Train(linear)["accuracy"];
  linear.more = {"--compression", "powersgd", "--powersgd-rank", "4"};
  EXPECT_GE(Train(linear)["accuracy"].get<double>(), uncompressed - 0.05);
}

TEST(BatchesPerStep, AreOneLargerBatch) {
  // Batches of 64, two to a step, and batches of 128 are the same examples.
  TrainingRun two = Workers(2, {"--batches-per-step", "2"});
  const nlohmann::json accumulated = Train(two);
  TrainingRun one = Workers(2, {});
  one.global_batch = 128;
  const nlohmann::json large = Train(one);
  EXPECT_EQ(accumulated["steps"], large["steps"]);
  EXPECT_EQ(accumulated["examples"], large["examples"]);
  EXPECT_NEAR(accumulated["epoch_losses"].at(0).get<double>(),
              large["epoch_losses"].at(0).get<double>(), 1e-3);
}

}  // namespace
}  // namespace cohort::testing
