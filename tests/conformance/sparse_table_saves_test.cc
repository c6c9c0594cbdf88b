// Checkpoints of a model with sparse tables: of one step, and restored under other strategies.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cohort/io/checkpoint.h>
#include <cohort/optim/optimizers.h>
#include <cohort/train/trainer.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "sparse_table_job.h"
#include "testing/temp_dir.h"

namespace cohort::testing::sparse_tables {
namespace {

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

}  // namespace
}  // namespace cohort::testing::sparse_tables
