// Workers of a parameter server on devices whose memory is apart from the host's: a model of the
// model layer gets the bits that it gets where the device makes the updates, and what a program may
// expect of state and errors. Sums of several workers are compared in strategy_conformance.cc, rows
// of tables in parameter_server_device_tables_test.cc and sparse_table_test.cc, the loss of servers
// in tests/process/parameter_server_recovery_test.cc.

#include <cohort/nn/layers.h>
#include <cohort/nn/losses.h>
#include <cohort/nn/operations.h>
#include <cohort/nn/recorded_step.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/server_side.h>
#include <cohort/strategies/parameter_server.h>
#include <cohort/train/trainer.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "conformance/device_workers.h"
#include "testing/integer_model.h"
#include "testing/temp_dir.h"

namespace cohort::testing {
namespace {

using ::testing::HasSubstr;
using MakeOptimizer = std::function<std::unique_ptr<Optimizer>()>;

// Dense, batch norm, dropout, dense. The averages are state that steps move, and that travels as
// parameters do. Gradients are large enough to come to the host in several pieces.
struct Model {
  ParameterSet parameters;
  nn::Dense wide{parameters, "wide", 4, 70'000};
  nn::Dense last{parameters, "last", 70'000, 3};
  nn::Dense first{parameters, "first", 4, 24};
  nn::BatchNorm norm{parameters, "norm", 24, {.momentum = 0.5F}};
  nn::Dense second{parameters, "second", 24, 3};
  nn::Workspaces workspaces;

  Model() { parameters.Build(); }

  StepFn Step(bool training = true) {
    return [this, training](ReplicaContext& context,
                            const data::Batch& batch) -> Result<ReplicaResult> {
      nn::Tape tape(context.parameters, context.stream,
                    workspaces.For(context.local_replica, context.device),
                    {.training = training,
                     .step = context.step,
                     .updates_averages = context.local_replica == 0,
                     .intra_op_threads = 1});
      std::vector<std::int64_t> labels;
      for (const std::int64_t id : batch["id"].data<std::int64_t>()) {
        labels.push_back(id % 3);
      }
      const auto x = tape.Input(batch["x"]);
      const auto hidden = nn::Dropout(nn::Relu(norm(first(x))), 0.25F, "drop");
      const auto scores = nn::Add(second(hidden), last(nn::Relu(wide(x))));
      const auto loss =
          nn::SoftmaxCrossEntropy(scores, Tensor::Of<std::int64_t>({batch.size}, labels));
      if (training) {
        tape.Backward(loss, context.gradients);
      }
      COHORT_RETURN_IF_ERROR(tape.Finish());
      const auto weight = static_cast<double>(batch.size);
      return ReplicaResult{.loss_sum = loss.value() * weight, .weight = weight, .metric_sums = {}};
    };
  }
};

struct Outcome {
  std::vector<float> values;
  std::vector<std::vector<float>> slots;
  std::vector<double> losses;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

// Batches of 14, 14, 14 and 3; where there is an `outcome` to tell, evaluated on each.
Status TrainWith(Strategy& strategy, std::unique_ptr<Optimizer> optimizer, Outcome* outcome) {
  Model model;
  COHORT_RETURN_IF_ERROR(strategy.Bind(model.parameters, std::move(optimizer)));
  COHORT_ASSIGN_OR_RETURN(const auto data, strategy.Distribute(IntegerData(45, 14)));
  COHORT_RETURN_IF_ERROR(data->BeginEpoch(0));
  for (;;) {
    COHORT_ASSIGN_OR_RETURN(const auto batch, data->Next());
    if (!batch.has_value()) {
      break;
    }
    COHORT_ASSIGN_OR_RETURN(const StepResult result, strategy.Step(*batch, model.Step()));
    if (outcome != nullptr) {
      outcome->losses.push_back(result.loss);
      COHORT_ASSIGN_OR_RETURN(const StepResult evaluated,
                              strategy.Evaluate(*batch, model.Step(/*training=*/false)));
      outcome->losses.push_back(evaluated.loss);
    }
  }
  if (outcome != nullptr) {
    COHORT_RETURN_IF_ERROR(strategy.PullState());
    outcome->values.assign(model.parameters.all().begin(), model.parameters.all().end());
    for (const std::span<float> slot : strategy.slots()) {
      outcome->slots.emplace_back(slot.begin(), slot.end());
    }
  }
  return {};
}

// What worker:0 comes to.
Outcome Train(int workers, const std::string& consistency, const MakeDevice& device,
              const MakeOptimizer& optimizer) {
  Outcome outcome;
  RunWorkers(workers, consistency, device,
             [&](int worker, ParameterServerStrategy& strategy) -> Status {
               return TrainWith(strategy, optimizer(), worker == 0 ? &outcome : nullptr);
             });
  return outcome;
}

// No servers: updates are made on the device.
Outcome TrainOneDevice(const MakeDevice& device, const MakeOptimizer& optimizer) {
  StrategyOptions options;
  options.devices = {device()};
  options.intra_op_threads = 1;
  const auto strategy = OrThrow(Strategy::FromEnv("one_device", options));
  Outcome outcome;
  OrThrow(TrainWith(*strategy, optimizer(), &outcome));
  return outcome;
}

void ExpectNear(const std::vector<float>& values, const std::vector<float>& expected) {
  ASSERT_EQ(values.size(), expected.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    ASSERT_NEAR(values[i], expected[i], 1e-5) << i;
  }
}

// Between a device and the CPU bits are not compared: products of the CPU's kernels depend on where
// their operands lie.
TEST(DevicesOfParameterServers, AModelHasTheBitsOfOneDevice) {
  const MakeOptimizer adam = [] { return Adam({.learning_rate = 0.01}); };
  const Outcome expected = TrainOneDevice(Far, adam);
  for (const MakeDevice& device : {MakeDevice(Far), MakeDevice(FarAndLate)}) {
    EXPECT_TRUE(Train(1, "sync", device, adam) == expected);
    for (const char* consistency : {"async", "ssp:1"}) {
      SCOPED_TRACE(consistency);
      const Outcome trained = Train(1, consistency, device, adam);
      EXPECT_EQ(trained.losses, expected.losses);
      EXPECT_TRUE(trained.slots == expected.slots);
      ExpectNear(trained.values, expected.values);  // averages move by differences: rounded
    }
  }
}

TEST(DevicesOfParameterServers, AModelComesToWhatItDoesOnTheCpu) {
  const MakeOptimizer momentum = [] { return Sgd({.learning_rate = 0.001, .momentum = 0.5}); };
  const MakeOptimizer each_clipped = [&] { return ServerSide(momentum(), {.clip_norm = 0.1F}); };
  for (const char* consistency : {"async", "ssp:1"}) {
    ExpectNear(Train(1, consistency, FarAndLate, each_clipped).values,
               Train(1, consistency, OnTheCpu, each_clipped).values);
  }
  const Outcome together = Train(2, "sync", FarAndLate, momentum);
  ExpectNear(together.values, Train(2, "sync", OnTheCpu, momentum).values);
  EXPECT_TRUE(Train(2, "sync", Far, momentum) == together);
}

// What the parameters of worker:0 hold when Fit returns. A checkpoint in `folder` is gone on from,
// and written behind every epoch.
std::vector<float> Fit(const MakeDevice& device, int epochs, const std::string& folder) {
  std::vector<float> values;
  RunWorkers(2, "sync", device, [&](int worker, ParameterServerStrategy& strategy) -> Status {
    Model model;
    COHORT_RETURN_IF_ERROR(
        strategy.Bind(model.parameters, Sgd({.learning_rate = 0.001, .momentum = 0.5})));
    Trainer trainer(strategy, model.parameters, {.epochs = epochs, .checkpoint_dir = folder});
    COHORT_RETURN_IF_ERROR(trainer.Fit(IntegerData(45, 14), model.Step()).status());
    if (worker == 0) {
      values.assign(model.parameters.all().begin(), model.parameters.all().end());
    }
    return {};
  });
  return values;
}

TEST(DevicesOfParameterServers, ACheckpointIsGoneOnFromOnOtherDevices) {
  const TempDir dir;
  const auto expected = Fit(FarAndLate, 2, dir / "far");
  Fit(FarAndLate, 1, dir / "begun_far");
  EXPECT_TRUE(Fit(FarAndLate, 2, dir / "begun_far") == expected);
  Fit(OnTheCpu, 1, dir / "begun_on_the_cpu");
  ExpectNear(Fit(FarAndLate, 2, dir / "begun_on_the_cpu"), expected);
}

// The program's own parameters are those of the last PullState, whatever the device has.
TEST(DevicesOfParameterServers, StateIsPulledAndPushed) {
  RunWorkers(1, "async", FarAndLate, [](int, ParameterServerStrategy& strategy) -> Status {
    ParameterSet parameters = IntegerParameters();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = 0.0625})));
    const std::vector<float> initial(parameters.all().begin(), parameters.all().end());
    DistributedBatch batch;
    batch.replicas = {OrThrow(OrThrow(IntegerData(10, 10).Iterate({}))->Next()).value()};
    COHORT_RETURN_IF_ERROR(strategy.Step(batch, IntegerStep()).status());
    EXPECT_TRUE(std::ranges::equal(parameters.all(), initial)) << "trained elsewhere";
    COHORT_RETURN_IF_ERROR(strategy.PullState());
    const std::vector<float> after(parameters.all().begin(), parameters.all().end());
    EXPECT_NE(after, initial);
    std::ranges::copy(initial, parameters.all().begin());
    COHORT_RETURN_IF_ERROR(strategy.PushState());
    COHORT_RETURN_IF_ERROR(strategy.Step(batch, IntegerStep()).status());
    COHORT_RETURN_IF_ERROR(strategy.PullState());
    EXPECT_TRUE(std::ranges::equal(parameters.all(), after)) << "the first step again";
    return {};
  });
}

// Also the averages, which the step has moved by then.
TEST(DevicesOfParameterServers, AFailedStepLeavesValuesAsTheyWere) {
  const auto train = [](bool fails) {
    std::vector<float> values;
    RunWorkers(1, "async", FarAndLate, [&](int, ParameterServerStrategy& strategy) -> Status {
      Model model;
      COHORT_RETURN_IF_ERROR(strategy.Bind(model.parameters, Adam()));
      DistributedBatch batch;
      batch.replicas = {OrThrow(OrThrow(IntegerData(10, 10).Iterate({}))->Next()).value()};
      COHORT_RETURN_IF_ERROR(strategy.Step(batch, model.Step()).status());
      if (fails) {
        const StepFn failing = [&](ReplicaContext& context, const data::Batch& part) {
          auto result = model.Step()(context, part);
          context.stream.Enqueue([] { return OutOfRange("a label"); });
          return result;
        };
        EXPECT_EQ(strategy.Step(batch, failing).status().code(), StatusCode::kOutOfRange);
        const StepFn throwing = [&](ReplicaContext& context,
                                    const data::Batch& part) -> Result<ReplicaResult> {
          OrThrow(model.Step()(context, part));
          throw std::runtime_error("a bug");
        };
        EXPECT_THROW((void)strategy.Step(batch, throwing), std::runtime_error);
        const StepFn weightless = [&](ReplicaContext& context,
                                      const data::Batch& part) -> Result<ReplicaResult> {
          context.gradients.SetWeight(0);
          OrThrow(model.Step()(context, part));
          return ReplicaResult{};
        };
        EXPECT_EQ(OrThrow(strategy.Step(batch, weightless)).weight, 0);
      }
      COHORT_RETURN_IF_ERROR(strategy.Step(batch, model.Step()).status());
      COHORT_RETURN_IF_ERROR(strategy.PullState());
      values.assign(model.parameters.all().begin(), model.parameters.all().end());
      return {};
    });
    return values;
  };
  EXPECT_TRUE(train(true) == train(false));
}

// A step that is replayed as a graph, which writes gradients where they were when it was captured.
TEST(DevicesOfParameterServers, AReplayedStepHasTheBitsOfOneThatIsFed) {
  const auto train = [](const MakeDevice& device, bool replay) {
    std::vector<float> values;
    std::int64_t replays = 0;
    RunWorkers(1, "async", device, [&](int, ParameterServerStrategy& strategy) -> Status {
      ParameterSet parameters;
      const nn::Dense first(parameters, "first", 4, 70'000, {.activation = Activation::kRelu});
      const nn::Dense second(parameters, "second", 70'000, 4);
      parameters.Build();
      COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Adam()));
      nn::Workspaces workspaces;
      std::unique_ptr<nn::RecordedStep> recorded;
      const StepFn step = [&](ReplicaContext& context,
                              const data::Batch& batch) -> Result<ReplicaResult> {
        nn::Workspace& workspace = workspaces.For(context.local_replica, context.device);
        const nn::TapeOptions options{.training = true, .intra_op_threads = 1};
        const auto body = [&](nn::Tape& tape, std::span<const Tensor> in) {
          return std::vector{nn::MeanSquaredError(second(first(tape.Input(in[0]))), in[0])};
        };
        float loss = 0;
        if (replay) {
          if (recorded == nullptr) {
            recorded = std::make_unique<nn::RecordedStep>(context.parameters, workspace);
          }
          COHORT_ASSIGN_OR_RETURN(const std::vector<Tensor> out,
                                  recorded->Run(context.stream, context.gradients, options,
                                                std::vector{batch["x"]}, body));
          loss = out[0].data<float>()[0];
        } else {
          nn::Tape tape(context.parameters, context.stream, workspace, options);
          const nn::Variable mean = body(tape, std::vector{batch["x"]})[0];
          tape.Backward(mean, context.gradients);
          COHORT_RETURN_IF_ERROR(tape.Finish());
          loss = mean.value();
        }
        const auto weight = static_cast<double>(batch.size);
        return ReplicaResult{.loss_sum = loss * weight, .weight = weight, .metric_sums = {}};
      };
      COHORT_ASSIGN_OR_RETURN(const auto data, strategy.Distribute(IntegerData(60, 10)));
      COHORT_RETURN_IF_ERROR(data->BeginEpoch(0));
      for (int i = 0; i < 6; ++i) {
        COHORT_ASSIGN_OR_RETURN(const auto batch, data->Next());
        COHORT_RETURN_IF_ERROR(strategy.Step(*batch, step).status());
      }
      COHORT_RETURN_IF_ERROR(strategy.PullState());
      values.assign(parameters.all().begin(), parameters.all().end());
      replays = replay ? recorded->replays() : 0;
      return {};
    });
    return std::pair(values, replays);
  };
  const std::vector<float> fed = train(Far, /*replay=*/false).first;
  for (const auto& device : {Far, FarAndLate}) {
    const auto [replayed, replays] = train(device, /*replay=*/true);
    EXPECT_EQ(replays, 4);
    EXPECT_TRUE(replayed == fed);
  }
}

TEST(DevicesOfParameterServers, BatchesLieInPageLockedMemory) {
  const std::shared_ptr<Device> far = FarAndLate();
  for (const char* consistency : {"async", "sync"}) {
    RunWorkers(
        1, consistency, [&] { return far; },
        [&](int, ParameterServerStrategy& strategy) -> Status {
          ParameterSet parameters = IntegerParameters();
          COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = 0.0625})));
          for (const bool evaluation : {false, true}) {
            COHORT_ASSIGN_OR_RETURN(const auto data,
                                    strategy.Distribute(IntegerData(40, 10).Prefetch(3, 2),
                                                        {.evaluation = evaluation}));
            COHORT_RETURN_IF_ERROR(data->BeginEpoch(0));
            int batches = 0;
            for (;;) {
              COHORT_ASSIGN_OR_RETURN(const auto batch, data->Next());
              if (!batch.has_value()) {
                break;
              }
              ++batches;
              for (const auto& [name, tensor] : batch->replicas[0].features) {
                EXPECT_TRUE(far->PageLocked(tensor.raw())) << name;
              }
              if (!evaluation) {
                COHORT_RETURN_IF_ERROR(strategy.Step(*batch, IntegerStep()).status());
              }
            }
            EXPECT_EQ(batches, 4);
          }
          return {};
        });
  }
}

TEST(DevicesOfParameterServers, RowsFromTheHostAreRefused) {
  RunWorkers(1, "async", Far, [](int, ParameterServerStrategy& strategy) -> Status {
    ParameterSet parameters = IntegerParameters();
    COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, Sgd({.learning_rate = 0.0625})));
    DistributedBatch batch;
    batch.replicas = {data::Batch{.size = 1}};
    const Status status =
        strategy
            .Step(batch,
                  [](ReplicaContext& context, const data::Batch&) -> Result<ReplicaResult> {
                    context.gradients.AddSlices(context.parameters.Find("table"), {});
                    return ReplicaResult{};
                  })
            .status();
    EXPECT_EQ(status.code(), StatusCode::kUnimplemented);
    EXPECT_THAT(status.message(), HasSubstr("'table'"));
    return {};
  });
}

}  // namespace
}  // namespace cohort::testing
