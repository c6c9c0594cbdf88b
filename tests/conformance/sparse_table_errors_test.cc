// A model with sparse tables: what is refused, and how all tasks of the job learn of it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cohort/optim/optimizers.h>
#include <cohort/optim/server_side.h>
#include <cohort/strategies/parameter_server.h>

#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "sparse_table_job.h"

namespace cohort::testing::sparse_tables {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

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
}  // namespace cohort::testing::sparse_tables
