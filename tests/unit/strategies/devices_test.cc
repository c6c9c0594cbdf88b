// Synchronous strategies on devices whose memory is apart from the host's: a model of the model
// layer gets the bits that it gets on the CPU, and what a program may expect of state and errors.
// Sums of many worlds are compared in tests/conformance/strategy_conformance.cc.

#include <cohort/comm/local.h>
#include <cohort/nn/layers.h>
#include <cohort/nn/losses.h>
#include <cohort/nn/operations.h>
#include <cohort/nn/recorded_step.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/devices.h>
#include <cohort/strategies/synchronous.h>
#include <cohort/train/trainer.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/far_device.h"
#include "testing/integer_model.h"
#include "testing/late_stream.h"
#include "testing/run_ranks.h"
#include "testing/temp_dir.h"

namespace cohort {
namespace {

using ::testing::HasSubstr;
using testing::IntegerData;
using testing::IntegerParameters;
using testing::IntegerStep;
using testing::LateStreams;
using testing::MakeFarDevices;
using Devices = std::vector<std::shared_ptr<Device>>;

std::unique_ptr<Optimizer> Clipped() {
  return Adam({.learning_rate = 0.01, .global_clip_norm = 0.5});
}

// Dense, batch norm, dropout, dense. The averages are state that only replica 0 of the job moves.
struct SmallModel {
  ParameterSet parameters;
  nn::Dense first{parameters, "first", 4, 24};
  nn::BatchNorm norm{parameters, "norm", 24, {.momentum = 0.5F}};
  nn::Dense second{parameters, "second", 24, 3};
  nn::Workspaces workspaces;

  SmallModel() { parameters.Build(); }

  StepFn Step(bool training = true) {
    return [this, training](ReplicaContext& context,
                            const data::Batch& batch) -> Result<ReplicaResult> {
      nn::Tape tape(context.parameters, context.stream,
                    workspaces.For(context.local_replica, context.device),
                    {.training = training,
                     .step = context.step,
                     .first_example = context.replica * 100,
                     .updates_averages = context.local_replica == 0,
                     .intra_op_threads = context.intra_op_threads});
      std::vector<std::int64_t> labels;
      for (const std::int64_t id : batch["id"].data<std::int64_t>()) {
        labels.push_back(id % 3);
      }
      const auto hidden = nn::Dropout(nn::Relu(norm(first(tape.Input(batch["x"])))), 0.25F, "drop");
      const auto loss =
          nn::SoftmaxCrossEntropy(second(hidden), Tensor::Of<std::int64_t>({batch.size}, labels));
      if (training) {
        tape.Backward(loss, context.gradients);
      }
      COHORT_RETURN_IF_ERROR(tape.Finish());
      const auto weight = static_cast<double>(batch.size);
      return ReplicaResult{.loss_sum = loss.value() * weight, .weight = weight, .metric_sums = {}};
    };
  }
};

struct Trained {
  std::vector<float> values;
  std::vector<std::vector<float>> slots;
  std::vector<double> losses;
  friend bool operator==(const Trained&, const Trained&) = default;
};

Trained StateOf(Strategy& strategy, const ParameterSet& parameters) {
  Trained state;
  OrThrow(strategy.PullState());
  state.values.assign(parameters.all().begin(), parameters.all().end());
  for (const std::span<float> slot : strategy.slots()) {
    state.slots.emplace_back(slot.begin(), slot.end());
  }
  return state;
}

// What every process comes to after batches of 14, 14, 14 and 3.
std::vector<Trained> Train(int processes, const std::vector<Devices>& devices,
                           StrategyOptions options = {}) {
  std::vector<std::unique_ptr<Communicator>> communicators = MakeLocalCommunicators(processes);
  std::vector<Trained> results(static_cast<std::size_t>(processes));
  testing::ExpectAllOk(testing::RunRanks(processes, [&](int process) -> Status {
    const auto p = static_cast<std::size_t>(process);
    StrategyOptions mine = options;
    mine.devices = devices[p];
    mine.intra_op_threads = 1;
    SynchronousParts parts;
    if (processes > 1) {
      parts.communicator = std::move(communicators[p]);
    }
    SmallModel model;
    COHORT_ASSIGN_OR_RETURN(const auto strategy,
                            MakeSynchronousStrategy(std::move(parts), std::move(mine)));
    COHORT_RETURN_IF_ERROR(strategy->Bind(model.parameters, Clipped()));
    COHORT_ASSIGN_OR_RETURN(const auto data,
                            strategy->Distribute(IntegerData(45, 14), {.copy_ahead = true}));
    std::vector<double> losses;
    COHORT_RETURN_IF_ERROR(data->BeginEpoch(0));
    while (true) {
      COHORT_ASSIGN_OR_RETURN(const auto batch, data->Next());
      if (!batch.has_value()) {
        break;
      }
      COHORT_ASSIGN_OR_RETURN(const StepResult result, strategy->Step(*batch, model.Step()));
      losses.push_back(result.loss);
      COHORT_ASSIGN_OR_RETURN(const StepResult evaluated,
                              strategy->Evaluate(*batch, model.Step(/*training=*/false)));
      losses.push_back(evaluated.loss);
    }
    results[p] = StateOf(*strategy, model.parameters);
    results[p].losses = std::move(losses);
    return strategy->Shutdown();
  }));
  return results;
}

const Devices kTwoCpus{CpuDevice(), CpuDevice()};

TEST(DevicesTest, AModelHasTheBitsOfTheCpu) {
  const Trained one = Train(1, {{CpuDevice()}})[0];
  const Trained two = Train(1, {kTwoCpus})[0];
  EXPECT_NE(one, two) << "batch norm is by replica: the worlds can be told apart";
  for (const bool late : {false, true}) {
    SCOPED_TRACE(late);
    const Devices far = MakeFarDevices(
        2,
        late ? LateStreams(4, std::chrono::microseconds(40)) : [] { return MakeInlineStream(); });
    EXPECT_EQ(Train(1, {{far[0]}})[0], one);
    EXPECT_EQ(Train(1, {{far[0], far[0]}})[0], two);
    EXPECT_EQ(Train(1, {{far[0], far[1]}})[0], two);
    EXPECT_EQ(Train(1, {{far[0], CpuDevice()}})[0], two);
    EXPECT_EQ(Train(1, {{CpuDevice(), far[1]}})[0], two);
  }
}

TEST(DevicesTest, ProcessesHaveTheBitsOfTheCpu) {
  StrategyOptions options;
  options.first_bucket_bytes = 256;
  options.communication.bytes_per_pack = 256;
  const std::vector<Trained> expected = Train(2, {kTwoCpus, kTwoCpus}, options);
  EXPECT_EQ(expected[0], expected[1]);
  const Devices far = MakeFarDevices(4, LateStreams(5, std::chrono::microseconds(40)));
  EXPECT_EQ(Train(2, {{far[0], far[0]}, {far[1], far[1]}}, options), expected);
  EXPECT_EQ(Train(2, {{far[0], far[1]}, {far[2], CpuDevice()}}, options), expected);
  options.whole_updates = true;
  EXPECT_EQ(Train(2, {{far[0], far[1]}, {far[2], far[3]}}, options), expected);
}

// Replayed steps, in parts, whose buckets travel meanwhile: two processes, with gradients through
// the host's memory. More parts than one, since buckets are small.
TEST(DevicesTest, ReplayedStepsHaveTheBitsOfFedOnes) {
  const auto train = [](const Devices& of_processes, bool replay) {
    auto communicators = MakeLocalCommunicators(2);
    std::vector<std::vector<float>> values(2);
    testing::ExpectAllOk(testing::RunRanks(2, [&](int process) -> Status {
      const auto p = static_cast<std::size_t>(process);
      StrategyOptions options;
      options.devices = {of_processes[p]};
      options.intra_op_threads = 1;
      options.first_bucket_bytes = 256;
      options.communication.bytes_per_pack = 256;
      SynchronousParts parts;
      parts.communicator = std::move(communicators[p]);
      ParameterSet parameters;
      const nn::Dense first(parameters, "first", 4, 24, {.activation = Activation::kRelu});
      const nn::Dense second(parameters, "second", 24, 24, {.activation = Activation::kRelu});
      const nn::Dense third(parameters, "third", 24, 4);
      parameters.Build();
      nn::Workspaces workspaces;
      nn::RecordedSteps recorded(workspaces);
      std::int64_t replays = 0;
      const StepFn step = [&](ReplicaContext& context,
                              const data::Batch& batch) -> Result<ReplicaResult> {
        const auto body = [&](nn::Tape& tape, std::span<const Tensor> in) {
          return std::vector{nn::MeanSquaredError(third(second(first(tape.Input(in[0])))), in[0])};
        };
        const nn::TapeOptions tape_options{.step = context.step, .intra_op_threads = 1};
        float loss = 0;
        if (replay) {
          nn::RecordedStep& mine =
              recorded.For(context.local_replica, context.device, context.parameters);
          COHORT_ASSIGN_OR_RETURN(const std::vector<Tensor> out,
                                  mine.Run(context.stream, context.gradients, tape_options,
                                           std::vector{batch["x"]}, body));
          replays = mine.replays();
          loss = out[0].data<float>()[0];
        } else {
          nn::Tape tape(context.parameters, context.stream,
                        workspaces.For(context.local_replica, context.device), tape_options);
          const nn::Variable mean = body(tape, std::vector{batch["x"]})[0];
          tape.Backward(mean, context.gradients);
          COHORT_RETURN_IF_ERROR(tape.Finish());
          loss = mean.value();
        }
        const auto weight = static_cast<double>(batch.size);
        return ReplicaResult{.loss_sum = loss * weight, .weight = weight, .metric_sums = {}};
      };
      COHORT_ASSIGN_OR_RETURN(const auto strategy,
                              MakeSynchronousStrategy(std::move(parts), std::move(options)));
      COHORT_RETURN_IF_ERROR(strategy->Bind(parameters, Clipped()));
      COHORT_ASSIGN_OR_RETURN(const auto data,
                              strategy->Distribute(IntegerData(80, 10), {.copy_ahead = true}));
      COHORT_RETURN_IF_ERROR(data->BeginEpoch(0));
      for (int i = 0; i < 8; ++i) {
        COHORT_ASSIGN_OR_RETURN(const auto batch, data->Next());
        COHORT_RETURN_IF_ERROR(strategy->Step(*batch, step).status());
      }
      EXPECT_EQ(replays, replay ? 8 - 2 : 0);
      COHORT_RETURN_IF_ERROR(strategy->PullState());
      values[p].assign(parameters.all().begin(), parameters.all().end());
      return strategy->Shutdown();
    }));
    return values;
  };
  const std::vector<std::vector<float>> expected = train(kTwoCpus, false);
  for (const bool late : {false, true}) {
    SCOPED_TRACE(late);
    const Devices far = MakeFarDevices(
        2,
        late ? LateStreams(9, std::chrono::microseconds(40)) : [] { return MakeInlineStream(); });
    EXPECT_EQ(train(far, false), expected);
    EXPECT_EQ(train(far, true), expected);
  }
}

TEST(DevicesTest, HooksSeeTheHostsMemory) {
  StrategyOptions options;
  options.make_bucket_hook = [] { return MakePowerSgdHook({.rank = 2, .start_step = 2}); };
  const std::vector<Trained> expected = Train(2, {{CpuDevice()}, {CpuDevice()}}, options);
  const Devices far = MakeFarDevices(2, LateStreams(6, std::chrono::microseconds(40)));
  EXPECT_EQ(Train(2, {{far[0]}, {far[1]}}, options), expected);
}

// What the parameters of each process hold when Fit returns. A checkpoint in `folder` is gone on
// from, and written behind every epoch.
std::vector<std::vector<float>> Fit(const Devices& of_processes, int epochs,
                                    const std::string& folder) {
  const int processes = static_cast<int>(of_processes.size());
  auto communicators = MakeLocalCommunicators(processes);
  std::vector<std::vector<float>> values(of_processes.size());
  testing::ExpectAllOk(testing::RunRanks(processes, [&](int process) -> Status {
    const auto p = static_cast<std::size_t>(process);
    SmallModel model;
    StrategyOptions options;
    options.devices = {of_processes[p]};
    options.intra_op_threads = 1;
    SynchronousParts parts;
    parts.communicator = std::move(communicators[p]);
    COHORT_ASSIGN_OR_RETURN(const auto strategy,
                            MakeSynchronousStrategy(std::move(parts), std::move(options)));
    COHORT_RETURN_IF_ERROR(strategy->Bind(model.parameters, Clipped()));
    Trainer trainer(*strategy, model.parameters, {.epochs = epochs, .checkpoint_dir = folder});
    COHORT_RETURN_IF_ERROR(trainer.Fit(IntegerData(45, 14), model.Step()).status());
    values[p].assign(model.parameters.all().begin(), model.parameters.all().end());
    return strategy->Shutdown();
  }));
  return values;
}

TEST(DevicesTest, ACheckpointIsGoneOnFromOnOtherDevices) {
  const Devices cpus = kTwoCpus;
  const Devices far = MakeFarDevices(2);
  const testing::TempDir dir;
  const auto expected = Fit(cpus, 2, dir / "cpu");
  Fit(far, 1, dir / "begun_far");
  EXPECT_EQ(Fit(cpus, 2, dir / "begun_far"), expected);
  Fit(cpus, 1, dir / "begun_on_cpus");
  EXPECT_EQ(Fit(far, 2, dir / "begun_on_cpus"), expected);
}

// A step that writes to its batch computes with what it wrote where nothing was copied ahead.
TEST(DevicesTest, ATrainerCopiesBatchesAheadUnlessToldNotTo) {
  std::vector<bool> ahead;  // of each step
  const auto fit = [&ahead](const std::shared_ptr<Device>& device, bool copy_ahead, bool writes) {
    SmallModel model;
    StrategyOptions options;
    options.devices = {device};
    options.intra_op_threads = 1;
    const auto strategy = OrThrow(MakeSynchronousStrategy({}, std::move(options)));
    OrThrow(strategy->Bind(model.parameters, Clipped()));
    ahead.clear();
    Trainer trainer(*strategy, model.parameters, {.epochs = 1, .copy_ahead = copy_ahead});
    OrThrow(trainer.Fit(
        IntegerData(40, 10),
        [&ahead, writes, step = model.Step()](ReplicaContext& context,
                                              const data::Batch& batch) -> Result<ReplicaResult> {
          ahead.push_back(batch["x"].twin() != nullptr);
          for (float& x : batch["x"].data<float>()) {
            x = writes ? -x : x;
          }
          return step(context, batch);
        }));
    return std::vector<float>(model.parameters.all().begin(), model.parameters.all().end());
  };
  const auto far = MakeFarDevices(1)[0];
  EXPECT_EQ(fit(far, true, false), fit(CpuDevice(), true, false));
  fit(far, true, false);
  EXPECT_EQ(ahead, (std::vector<bool>{false, true, true, true}));
  const std::vector<float> written = fit(far, false, true);
  EXPECT_EQ(ahead, std::vector<bool>(4, false));
  EXPECT_EQ(written, fit(CpuDevice(), false, true));
}

// One strategy of one process.
struct Job {
  explicit Job(Devices devices, StrategyOptions options = {}) {
    options.devices = std::move(devices);
    strategy = OrThrow(MakeSynchronousStrategy({}, std::move(options)));
    OrThrow(strategy->Bind(parameters, Sgd({.learning_rate = 0.0625, .momentum = 0.5})));
    data = OrThrow(strategy->Distribute(IntegerData(40, 10)));
    OrThrow(data->BeginEpoch(0));
  }
  Result<StepResult> Step(const StepFn& fn = IntegerStep()) {
    return strategy->Step(*OrThrow(data->Next()), fn);
  }
  ParameterSet parameters = IntegerParameters();
  std::unique_ptr<Strategy> strategy;
  std::unique_ptr<DistributedDataset> data;
};

TEST(DevicesTest, StateIsPulledAndPushed) {
  const Devices far = MakeFarDevices(2);
  Job job({far[0], far[1]});
  const std::vector<float> initial(job.parameters.all().begin(), job.parameters.all().end());
  OrThrow(job.Step());
  EXPECT_TRUE(std::ranges::equal(job.parameters.all(), initial)) << "trained elsewhere";
  const Trained after = StateOf(*job.strategy, job.parameters);
  EXPECT_NE(after.values, initial);
  OrThrow(job.Step());
  const Trained later = StateOf(*job.strategy, job.parameters);
  // As a checkpoint is restored into another job; its second step is then the first one's.
  Job other({far[0], far[1]});
  OrThrow(other.data->Next());
  std::ranges::copy(after.values, other.parameters.all().begin());
  std::ranges::copy(after.slots[0], other.strategy->slots()[0].begin());
  OrThrow(other.strategy->SetStep(1));
  OrThrow(other.strategy->PushState());
  OrThrow(other.Step());
  EXPECT_EQ(StateOf(*other.strategy, other.parameters), later);
}

// Batches are decoded to where copies to the devices start, with prefetching threads, too.
TEST(DevicesTest, BatchesLieInPageLockedMemory) {
  const Devices far = MakeFarDevices(2);
  const auto check = [](const Devices& devices, bool locked) {
    StrategyOptions options;
    options.devices = devices;
    const auto strategy = OrThrow(MakeSynchronousStrategy({}, std::move(options)));
    const auto data = OrThrow(strategy->Distribute(IntegerData(40, 10).Prefetch(3, 2)));
    OrThrow(data->BeginEpoch(0));
    int batches = 0;
    while (const auto batch = OrThrow(data->Next())) {
      ++batches;
      for (std::size_t r = 0; r < batch->replicas.size(); ++r) {
        for (const auto& [name, tensor] : batch->replicas[r].features) {
          EXPECT_EQ(tensor.space(), MemorySpace::kHost);
          EXPECT_EQ(devices[r]->PageLocked(tensor.raw()), locked) << name;
        }
      }
    }
    EXPECT_EQ(batches, 4);
  };
  check({far[0], far[1]}, true);
  check(kTwoCpus, false);
}

TEST(DevicesTest, AFailedStepLeavesParametersAsTheyWere) {
  const Devices far = MakeFarDevices(1);
  Job job({far[0], far[0]});
  OrThrow(job.Step());
  const Trained before = StateOf(*job.strategy, job.parameters);
  const auto failing = [](ReplicaContext& context, const data::Batch& batch) {
    auto result = IntegerStep()(context, batch);
    if (context.replica == 1) {
      context.stream.Enqueue([] { return OutOfRange("a label"); });
    }
    return result;
  };
  const Status status = job.Step(failing).status();
  EXPECT_EQ(status.code(), StatusCode::kOutOfRange);
  EXPECT_THAT(status.message(), HasSubstr("replica 1"));
  EXPECT_EQ(StateOf(*job.strategy, job.parameters), before);
  EXPECT_TRUE(job.Step().ok()) << "a process that trains alone may go on";
}

TEST(DevicesTest, RowsFromTheHostAreRefused) {
  const Devices far = MakeFarDevices(1);
  Job job({far[0]});
  const Status status =
      job.Step([](ReplicaContext& context, const data::Batch&) -> Result<ReplicaResult> {
           context.gradients.AddSlices(context.parameters.Find("table"), {});
           return ReplicaResult{};
         })
          .status();
  EXPECT_EQ(status.code(), StatusCode::kUnimplemented);
  EXPECT_THAT(status.message(), HasSubstr("'table'"));
}

TEST(DevicesTest, ProcessesOfOneJobAreAllOnDevicesOrNone) {
  auto communicators = MakeLocalCommunicators(2);
  const Devices far = MakeFarDevices(1);
  const auto statuses = testing::RunRanks(2, [&](int process) -> Status {
    StrategyOptions options;
    options.devices = {process == 0 ? far[0] : CpuDevice()};
    SynchronousParts parts;
    parts.communicator = std::move(communicators[static_cast<std::size_t>(process)]);
    ParameterSet parameters = IntegerParameters();
    COHORT_ASSIGN_OR_RETURN(const auto strategy,
                            MakeSynchronousStrategy(std::move(parts), std::move(options)));
    return strategy->Bind(parameters, Sgd({.learning_rate = 0.5}));
  });
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(status.message(), HasSubstr("devices' memory"));
  }
}

TEST(DevicesTest, OptionsThatDoNotFit) {
  const auto code = [](StrategyOptions options, std::string_view kind = "") {
    return Strategy::FromEnv(kind, std::move(options)).status().code();
  };
  StrategyOptions options;
  options.devices = kTwoCpus;
  options.num_devices = 3;
  EXPECT_EQ(code(options), StatusCode::kInvalidArgument);
  options.num_devices = 1;
  EXPECT_EQ(code(options, "one_device"), StatusCode::kInvalidArgument);
  EXPECT_EQ(OrThrow(Strategy::FromEnv("", options))->kind(), "mirrored");
  EXPECT_EQ(OrThrow(Strategy::FromEnv("", options))->num_local_replicas(), 2);
  options.devices = {nullptr};
  EXPECT_EQ(code(options), StatusCode::kInvalidArgument);
}

TEST(ChooseDevices, ANumberIsOfReplicasOnTheCpu) {
  StrategyOptions options;
  options.environment.emplace();
  OrThrow(ChooseDevices("3", "mirrored", options));
  EXPECT_EQ(options.num_devices, 3);
  OrThrow(ChooseDevices("cpu:2", "mirrored", options));
  EXPECT_EQ(options.devices, kTwoCpus);
  EXPECT_THAT(ChooseDevices("0", "mirrored", options).message(), HasSubstr("at least 1"));
  EXPECT_EQ(ChooseDevices("gpu", "", options).code(), StatusCode::kInvalidArgument);
}

// Every GPU there is, or the CPU, with the reason in the log; other kinds keep to what options say.
TEST(ChooseDevices, MirroredIsOnEveryGpuWhereNothingElseIsSaid) {
  StrategyOptions options;
  options.environment.emplace();
  std::vector<std::string> log;
  options.log = Log([&](LogLevel, std::string_view text) { log.emplace_back(text); });
  const auto gpus = OpenDevices("cuda");
  for (const char* const kind : {"one_device", "multi_worker_mirrored", "parameter_server", ""}) {
    OrThrow(ChooseDevices("", kind, options));
    EXPECT_TRUE(options.devices.empty()) << kind;
  }
  EXPECT_THAT(log, ::testing::IsEmpty());
  OrThrow(ChooseDevices("", "mirrored", options));
  ASSERT_EQ(log.size(), 1U);
  if (!gpus.ok()) {
    EXPECT_TRUE(options.devices.empty());
    EXPECT_EQ(log[0], "mirrored on the CPU: " + gpus.status().message());
    return;
  }
  ASSERT_EQ(options.devices.size(), gpus->size());
  for (std::size_t g = 0; g < gpus->size(); ++g) {
    EXPECT_EQ(options.devices[g]->name(), "cuda:" + std::to_string(g));
    EXPECT_THAT(log[0], HasSubstr("cuda:" + std::to_string(g)));
  }
}

// Here there is no such GPU: the error says which was looked for, and why.
TEST(ChooseDevices, LocalIsTheGpuOfThisProcessOfItsHost) {
  StrategyOptions options;
  options.cluster.emplace();
  options.cluster->local_rank = 4000;
  options.cluster->local_size = 4001;
  const Status status = ChooseDevices("cuda:local/2", "multi_worker_mirrored", options);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("process 4000 of the 4001 of this host"));
  EXPECT_THAT(status.message(), HasSubstr("cuda:4000/2"));
  options.cluster->task.type = TaskType::kPs;
  OrThrow(ChooseDevices("cuda:local", "parameter_server", options));
  EXPECT_TRUE(options.devices.empty()) << "a server has no replica";
}

}  // namespace
}  // namespace cohort
