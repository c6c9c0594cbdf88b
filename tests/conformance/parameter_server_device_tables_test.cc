// Workers of a parameter server on devices, and tables on the servers: the rows have the bits that
// a worker on the CPU leaves, and cross to the device and back once for each id.

#include <cohort/core/random.h>
#include <cohort/data/memory.h>
#include <cohort/nn/layers.h>
#include <cohort/nn/losses.h>
#include <cohort/nn/operations.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/row_source.h>
#include <cohort/optim/server_side.h>
#include <cohort/strategies/parameter_server.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "conformance/device_workers.h"

namespace cohort::testing {
namespace {

constexpr std::int64_t kWidth = 4;
constexpr std::int64_t kUsersEach = 4;
constexpr std::int64_t kExamples = 397;
constexpr std::int64_t kBatch = 3;
constexpr std::int64_t kFirstRare = 50;  // ids, of which each is in the data once
constexpr std::int64_t kAllIds = kFirstRare + kExamples * (kUsersEach + 1);

// In turn batches of a few ids, of one, of different ones, and of some.
std::int64_t IdOf(std::int64_t example, std::int64_t place) {
  const std::int64_t at = example * (kUsersEach + 1) + place;
  const auto draw = [&](std::uint64_t below) {
    return static_cast<std::int64_t>(Philox(3, "ids").Below(below, static_cast<std::uint64_t>(at)));
  };
  switch (example / kBatch % 4) {
    case 0:
      return draw(6);
    case 1:
      return 3;
    case 2:
      return kFirstRare + at;
    default:
      return draw(kFirstRare);
  }
}

data::Dataset Data() {
  Tensor users(DType::kInt64, {kExamples, kUsersEach});
  Tensor items(DType::kInt64, {kExamples});
  Tensor target(DType::kFloat32, {kExamples, kWidth});
  for (std::int64_t i = 0; i < kExamples; ++i) {
    const auto at = static_cast<std::size_t>(i);
    for (std::int64_t k = 0; k < kUsersEach; ++k) {
      users.data<std::int64_t>()[at * kUsersEach + static_cast<std::size_t>(k)] = IdOf(i, k);
    }
    items.data<std::int64_t>()[at] = IdOf(i, kUsersEach);
  }
  const Philox random(4, "targets");
  for (std::size_t i = 0; i < target.data<float>().size(); ++i) {
    target.data<float>()[i] = random.Uniform(i) - 0.5F;
  }
  return OrThrow(data::FromTensors({{"users", users}, {"items", items}, {"target", target}}));
}

// Two tables, of which a step looks one up twice, and the other once more for nothing. What servers
// do with their rows goes by the number of an id's gradients.
struct Model {
  Model(const std::string& optimizer, TableSpec::Wire wire)
      : user(parameters, "user", 0, kWidth,
             {.seed = 5,
              .table = TableSpec{.optimizer = optimizer,
                                 .initializer = {RowInitializer::Kind::kUniform, 0.1},
                                 .mean_of_occurrences = true,
                                 .admit_after = 2,
                                 .buckets = 16}}),
        item(parameters, "item", 0, kWidth,
             {.seed = 6,
              .table = TableSpec{.initializer = {RowInitializer::Kind::kUniform, 0.1},
                                 .wire = wire,
                                 .wire_feedback = 100,
                                 .buckets = 16}}) {
    parameters.Add("unused", {3}, [](std::uint64_t) { return 1.0F; });
    parameters.Build();
  }

  // Nothing but kernels that work element by element: their bits do not depend on where operands
  // lie.
  StepFn Step() {
    return [this](ReplicaContext& context, const data::Batch& batch) -> Result<ReplicaResult> {
      nn::Tape tape(context.parameters, context.stream,
                    workspaces.For(context.local_replica, context.device), {.intra_op_threads = 1});
      const nn::Variable users = nn::Sum(user(tape, batch["users"]), 1);
      const nn::Variable items = item(tape, batch["items"]);
      const nn::Variable more = user(tape, batch["items"]);
      const nn::Variable nothing = item(tape, Tensor(DType::kInt64, {0}));
      const nn::Variable loss =
          nn::Add(nn::MeanSquaredError(nn::Add(nn::Multiply(users, items), more), batch["target"]),
                  nn::Sum(nn::Sum(nothing, 1), 0));
      tape.Backward(loss, context.gradients);
      COHORT_RETURN_IF_ERROR(tape.Finish());
      const auto weight = static_cast<double>(batch.size);
      return ReplicaResult{.loss_sum = loss.value() * weight, .weight = weight, .metric_sums = {}};
    };
  }

  ParameterSet parameters;
  nn::Embedding user;
  nn::Embedding item;
  nn::Workspaces workspaces;
};

struct Outcome {
  std::vector<float> rows;  // of both tables
  std::int64_t foreseen = 0;
  std::int64_t refreshed = 0;
};

Status TrainOn(Strategy& strategy, const std::string& optimizer, TableSpec::Wire wire,
               Outcome* outcome) {
  Model model(optimizer, wire);
  COHORT_RETURN_IF_ERROR(strategy.Bind(model.parameters, Adagrad({.learning_rate = 0.1})));
  COHORT_ASSIGN_OR_RETURN(const auto data, strategy.Distribute(Data().Batch(kBatch)));
  for (int epoch = 0; epoch < 2; ++epoch) {
    COHORT_RETURN_IF_ERROR(data->BeginEpoch(epoch));
    for (;;) {
      COHORT_ASSIGN_OR_RETURN(const auto batch, data->Next());
      if (!batch.has_value()) {
        break;
      }
      COHORT_RETURN_IF_ERROR(strategy.Step(*batch, model.Step()).status());
    }
  }
  std::vector<std::uint64_t> ids(kAllIds);
  std::iota(ids.begin(), ids.end(), 0);
  for (int table = 0; table < 2; ++table) {
    std::vector<float> rows(ids.size() * kWidth);
    COHORT_RETURN_IF_ERROR(model.parameters.rows().Lookup(table, ids, /*training=*/false, rows));
    outcome->rows.insert(outcome->rows.end(), rows.begin(), rows.end());
  }
  if (auto* const remote = dynamic_cast<ParameterServerStrategy*>(&strategy); remote != nullptr) {
    COHORT_ASSIGN_OR_RETURN(const ParameterServerStats stats, remote->stats());
    outcome->foreseen = stats.foreseen;
    outcome->refreshed = stats.refreshed_rows;
  }
  return {};
}

Outcome Train(const std::string& consistency, int lookahead, const MakeDevice& device,
              const std::string& optimizer, TableSpec::Wire wire = TableSpec::Wire::kBFloat16) {
  StrategyOptions options;
  options.consistency = OrThrow(Consistency::Parse(consistency));
  options.lookahead = lookahead;
  Outcome outcome;
  RunWorkers(1, options, device, [&](int /*worker*/, ParameterServerStrategy& strategy) {
    return TrainOn(strategy, optimizer, wire, &outcome);
  });
  return outcome;
}

TEST(DevicesOfParameterServers, RowsOfTablesHaveTheBitsOfTheCpu) {
  const std::string adagrad = Adagrad({.learning_rate = 0.1})->config();
  const std::string late =
      ServerSide(adagrad, {.delay_compensation = 1, .staleness_scaling = true});
  for (const auto& [consistency, lookahead, optimizer] :
       {std::tuple("async", 0, adagrad), std::tuple("async", 3, late), std::tuple("ssp:1", 1, late),
        std::tuple("sync", 1, adagrad)}) {
    SCOPED_TRACE(std::string(consistency) + ", " + std::to_string(lookahead) + " ahead");
    const Outcome expected = Train(consistency, lookahead, OnTheCpu, optimizer);
    const Outcome trained = Train(consistency, lookahead, FarAndLate, optimizer);
    ASSERT_EQ(expected.rows.size(), 2U * kAllIds * kWidth);
    EXPECT_TRUE(trained.rows == expected.rows);
    // Three lookups of features in each of 266 steps, of which all but a split's first know theirs.
    EXPECT_GE(trained.foreseen, lookahead > 0 ? 266 : 0);
    EXPECT_EQ(trained.foreseen > 0, lookahead > 0);
    EXPECT_EQ(trained.refreshed > 0, lookahead > 1);
  }
}

// The same where the process holds the tables, for its replica on a device.
TEST(DevicesOfParameterServers, RowsOfAProcessHaveTheBitsOfTheCpu) {
  const auto train = [](const MakeDevice& device) {
    StrategyOptions options;
    options.devices = {device()};
    options.intra_op_threads = 1;
    const auto strategy = OrThrow(Strategy::FromEnv("one_device", options));
    Outcome outcome;
    OrThrow(TrainOn(*strategy, Adagrad({.learning_rate = 0.1})->config(), TableSpec::Wire::kFloat32,
                    &outcome));
    return outcome.rows;
  };
  const std::vector<float> expected = train(OnTheCpu);
  ASSERT_EQ(expected.size(), 2U * kAllIds * kWidth);
  EXPECT_TRUE(train(FarAndLate) == expected);
}

// Rows, their places and the sums of their gradients, as they are there.
TEST(DevicesOfParameterServers, TheGpuRepeatsRowsAndAddsUpTheirGradients) {
  const auto gpu = OpenDevices("cuda:0");
  if (!gpu.ok()) {
    GTEST_SKIP() << gpu.status().message();
  }
  const std::string sgd = Sgd({.learning_rate = 0.1})->config();
  const auto train = [&](const MakeDevice& device) {
    return Train("async", 1, device, sgd, TableSpec::Wire::kFloat32).rows;
  };
  const std::vector<float> expected = train(OnTheCpu);
  const std::vector<float> trained = train([&] { return gpu->front(); });
  ASSERT_EQ(trained.size(), expected.size());
  for (std::size_t i = 0; i < trained.size(); ++i) {
    ASSERT_NEAR(trained[i], expected[i], 1e-3) << i;
  }
}

// As many ids in each step, all of them equal or different.
TEST(DevicesOfParameterServers, RowsTravelOnceForEachId) {
  constexpr int kSteps = 3;
  constexpr std::int64_t kUsers = kBatch * kUsersEach;
  const auto traffic = [&](bool equal) {
    const std::shared_ptr<Device> far = FarAndLate();
    FarTraffic of_steps;
    RunWorkers(
        1, "async", [&] { return far; },
        [&](int /*worker*/, ParameterServerStrategy& strategy) -> Status {
          Model model(Sgd({.learning_rate = 0.1})->config(), TableSpec::Wire::kFloat32);
          COHORT_RETURN_IF_ERROR(strategy.Bind(model.parameters, Sgd({.learning_rate = 0.1})));
          Tensor users(DType::kInt64, {kBatch, kUsersEach});
          Tensor items(DType::kInt64, {kBatch});
          for (const Tensor& ids : {users, items}) {
            const auto all = ids.data<std::int64_t>();
            std::iota(all.begin(), all.end(), ids.shape().rank() == 1 ? kUsers : 0);
            if (equal) {
              std::ranges::fill(all, 7);
            }
          }
          DistributedBatch batch;
          batch.replicas = {{.size = kBatch,
                             .features = {{"users", users},
                                          {"items", items},
                                          {"target", Tensor(DType::kFloat32, {kBatch, kWidth})}}}};
          FarTraffic before;
          for (int step = 0; step <= kSteps; ++step) {
            COHORT_RETURN_IF_ERROR(strategy.Step(batch, model.Step()).status());
            if (step == 0) {
              before = TrafficOf(*far);
            }
          }
          const FarTraffic now = TrafficOf(*far);
          of_steps = {.to_device = now.to_device - before.to_device,
                      .to_host = now.to_host - before.to_host};
          return {};
        });
    return of_steps;
  };
  const FarTraffic different = traffic(false);
  const FarTraffic equal = traffic(true);
  constexpr std::int64_t kRow = kWidth * sizeof(float);
  // Three lookups; the gradients of two are those of one table.
  EXPECT_EQ(different.to_device - equal.to_device,
            kSteps * kRow * ((kUsers - 1) + (kBatch - 1) + (kBatch - 1)));
  EXPECT_EQ(different.to_host - equal.to_host,
            kSteps * kRow * ((kUsers + kBatch - 1) + (kBatch - 1)));
}

}  // namespace
}  // namespace cohort::testing
