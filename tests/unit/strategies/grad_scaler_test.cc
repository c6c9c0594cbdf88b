// Scaled gradients: what an overflow does to the scale, and that all replicas skip a step together.
#include <algorithm>
#include <chrono>
#include <functional>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <cohort/comm/local.h>
#include <cohort/nn/workspace.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/grad_scaler.h>
#include <cohort/strategies/synchronous.h>
#include <cohort/train/trainer.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/far_device.h"
#include "testing/integer_model.h"
#include "testing/run_ranks.h"
#include "testing/temp_dir.h"

namespace cohort {
namespace {

using ::testing::ElementsAre;
using testing::ExpectAllOk;
using ::testing::HasSubstr;
using testing::MakeFarDevices;
using testing::RunRanks;

TEST(GradScaler, HalvesAtAnOverflowAndDoublesAfterGoodSteps) {
  GradScaler scaler({.init_scale = 8, .growth_interval = 3});
  EXPECT_EQ(scaler.scale(), 8);
  scaler.Update(true);
  scaler.Update(true);
  EXPECT_EQ(scaler.scale(), 8);
  scaler.Update(false);  // counts anew
  EXPECT_EQ(scaler.state(), (GradScaler::State{.scale = 4, .good_steps = 0, .skipped = 1}));
  scaler.Update(true);
  scaler.Update(true);
  EXPECT_EQ(scaler.scale(), 4);
  scaler.Update(true);
  EXPECT_EQ(scaler.state(), (GradScaler::State{.scale = 8, .good_steps = 0, .skipped = 1}));
  for (int i = 0; i < 300; ++i) {
    scaler.Update(false);
  }
  EXPECT_EQ(scaler.scale(), 0x1p-64) << "never 0";
}

TEST(GradScaler, DefaultsAreThoseOfOthers) {
  const GradScalerOptions options;
  EXPECT_EQ(options.init_scale, 32768);
  EXPECT_EQ(options.growth_factor, 2);
  EXPECT_EQ(options.backoff_factor, 0.5);
  EXPECT_EQ(options.growth_interval, 2000);
}

TEST(GradScaler, RefusesWhatIsNoScale) {
  for (const auto& [options, text] : std::vector<std::pair<GradScalerOptions, std::string>>{
           {{.init_scale = 3}, "init_scale is 3.0"},
           {{.init_scale = 0}, "init_scale is 0.0"},
           {{.init_scale = 0x1p70}, "init_scale"},
           {{.growth_factor = 0.5}, "growth_factor is 0.5"},
           {{.backoff_factor = 1}, "backoff_factor is 1.0"},
           {{.growth_interval = 0}, "growth_interval is 0"}}) {
    const Status status = GradScaler::Check(options);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), HasSubstr(text));
    EXPECT_EQ(MakeSynchronousStrategy({}, {.grad_scaler = options}).status(), status);
  }
  GradScaler scaler({});
  EXPECT_EQ(scaler.SetState({.scale = 5}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(scaler.SetState({.scale = 4, .good_steps = -1}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(scaler.scale(), 32768);
}

// Of three parameters, all 1.
ParameterSet Ones() {
  ParameterSet parameters;
  for (const char* const name : {"a", "b", "c"}) {
    parameters.Add(name, {5}, [](std::uint64_t) { return 1.0F; });
  }
  parameters.Build();
  return parameters;
}

std::unique_ptr<Optimizer> Momentum() { return Sgd({.learning_rate = 0.25, .momentum = 0.5}); }

// A gradient of replica + 1 everywhere. In the steps `bad`, one element of the last replica's is
// infinite (in every other one of them NaN).
StepFn Gradient(nn::Workspaces& workspaces, std::set<std::int64_t> bad) {
  return [&workspaces, bad = std::move(bad)](ReplicaContext& context,
                                             const data::Batch& batch) -> Result<ReplicaResult> {
    Kernels& kernels = workspaces.For(context.local_replica, context.device).KernelsFor(1);
    for (int p = 0; p < context.parameters.size(); ++p) {
      const FloatSpan gradient = context.gradients.Accumulator(p);
      kernels.Fill(context.stream, gradient,
                   context.gradients.loss_seed() * static_cast<float>(context.replica + 1));
      if (p == 1 && bad.contains(context.step) && context.replica + 1 == context.num_replicas) {
        kernels.Fill(context.stream, gradient.subspan(3, 1),
                     context.step % 2 == 0 ? std::numeric_limits<float>::infinity()
                                           : std::numeric_limits<float>::quiet_NaN());
      }
      context.gradients.Ready(p);
    }
    COHORT_RETURN_IF_ERROR(context.stream.Synchronize(DeadlineAfter(std::chrono::minutes(1))));
    return ReplicaResult{
        .loss_sum = 0, .weight = static_cast<double>(batch.size), .metric_sums = {}};
  };
}

// Where a process stands after each step.
struct Trained {
  std::vector<std::vector<float>> values;
  std::vector<std::vector<float>> slots;
  std::vector<bool> skipped;
  std::vector<double> scales;
  std::int64_t step = 0;
  friend bool operator==(const Trained&, const Trained&) = default;
};

std::vector<Trained> Train(int processes, int steps, const std::set<std::int64_t>& bad,
                           const std::function<StrategyOptions(int process)>& options) {
  std::vector<std::unique_ptr<Communicator>> communicators = MakeLocalCommunicators(processes);
  std::vector<Trained> results(static_cast<std::size_t>(processes));
  ExpectAllOk(RunRanks(processes, [&](int process) -> Status {
    const auto p = static_cast<std::size_t>(process);
    SynchronousParts parts;
    if (processes > 1) {
      parts.communicator = std::move(communicators[p]);
    }
    ParameterSet parameters = Ones();
    nn::Workspaces workspaces;
    COHORT_ASSIGN_OR_RETURN(const auto strategy,
                            MakeSynchronousStrategy(std::move(parts), options(process)));
    COHORT_RETURN_IF_ERROR(strategy->Bind(parameters, Momentum()));
    DistributedBatch batch;
    for (int r = 0; r < strategy->num_local_replicas(); ++r) {
      batch.replicas.push_back({.size = 2, .features = {}});
    }
    Trained& trained = results[p];
    for (int s = 0; s < steps; ++s) {
      COHORT_ASSIGN_OR_RETURN(const StepResult result,
                              strategy->Step(batch, Gradient(workspaces, bad)));
      COHORT_RETURN_IF_ERROR(strategy->PullState());
      trained.skipped.push_back(result.skipped);
      trained.values.emplace_back(parameters.all().begin(), parameters.all().end());
      trained.slots.emplace_back(strategy->slots()[0].begin(), strategy->slots()[0].end());
      trained.scales.push_back(
          strategy->grad_scaler() == nullptr ? 1 : strategy->grad_scaler()->scale());
    }
    trained.step = strategy->step();
    return {};
  }));
  return results;
}

// In every world the same steps are skipped by all, and the others are those of a run that does not
// scale, bit by bit.
TEST(GradScaler, AllReplicasSkipAStepTogether) {
  struct World {
    int processes, replicas;
    bool far, whole;
  };
  for (const World& world :
       {World{1, 1, false, false}, World{1, 3, false, false}, World{2, 1, false, false},
        World{3, 2, false, true}, World{1, 2, true, false}, World{2, 2, true, true}}) {
    SCOPED_TRACE(std::to_string(world.processes) + " processes of " +
                 std::to_string(world.replicas) + (world.far ? ", on devices" : ""));
    const auto options = [&](bool scaled) {
      return [&world, scaled](int /*process*/) {
        StrategyOptions mine{.intra_op_threads = 1};
        if (world.far) {
          mine.devices = MakeFarDevices(world.replicas);
        } else {
          mine.num_devices = world.replicas;
        }
        if (scaled) {
          mine.grad_scaler = GradScalerOptions{.init_scale = 0x1p15, .growth_interval = 2};
        }
        mine.whole_updates = world.whole;
        return mine;
      };
    };
    const std::vector<Trained> scaled = Train(world.processes, 6, {2, 5}, options(true));
    const std::vector<Trained> plain = Train(world.processes, 4, {}, options(false));
    const Trained& first = scaled.front();
    for (const Trained& other : scaled) {
      EXPECT_EQ(other, first);
    }
    EXPECT_THAT(first.skipped, ElementsAre(false, true, false, false, true, false));
    EXPECT_THAT(first.scales, ElementsAre(0x1p15, 0x1p14, 0x1p14, 0x1p15, 0x1p14, 0x1p14));
    EXPECT_EQ(first.step, 6);
    const std::size_t same_as[] = {0, 0, 1, 2, 2, 3};
    for (std::size_t s = 0; s < 6; ++s) {
      EXPECT_EQ(first.values[s], plain.front().values[same_as[s]]) << "step " << s + 1;
      EXPECT_EQ(first.slots[s], plain.front().slots[same_as[s]]) << "step " << s + 1;
    }
  }
}

TEST(GradScaler, OfProcessesThatDisagreeIsRefused) {
  std::vector<std::unique_ptr<Communicator>> communicators = MakeLocalCommunicators(2);
  const auto statuses = RunRanks(2, [&](int process) -> Status {
    ParameterSet parameters = Ones();
    StrategyOptions options;
    if (process == 1) {
      options.grad_scaler.emplace();
    }
    SynchronousParts parts;
    parts.communicator = std::move(communicators[static_cast<std::size_t>(process)]);
    COHORT_ASSIGN_OR_RETURN(const auto strategy,
                            MakeSynchronousStrategy(std::move(parts), std::move(options)));
    return strategy->Bind(parameters, Momentum());
  });
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(status.message(), HasSubstr("gradient scaler: none"));
  }
}

TEST(GradScaler, IsRefusedWhereAStepCannotBeHeldBack) {
  StrategyOptions hooked{.make_bucket_hook = [] { return MakeCompressionHook(); }};
  hooked.grad_scaler.emplace();
  EXPECT_THAT(MakeSynchronousStrategy({}, hooked).status().message(),
              HasSubstr("grad_scaler with make_bucket_hook"));
  ParameterSet parameters;
  parameters.AddTable({.name = "rows", .dim = 2});
  parameters.Build();
  StrategyOptions options;
  options.grad_scaler.emplace();
  const auto strategy = OrThrow(MakeSynchronousStrategy({}, options));
  const Status status = strategy->Bind(parameters, Momentum());
  EXPECT_EQ(status.code(), StatusCode::kUnimplemented);
  EXPECT_THAT(status.message(), HasSubstr("sparse table \"rows\" with grad_scaler"));
}

// A run that is taken up again scales as it did.
TEST(GradScaler, ItsStateIsInTheCheckpoint) {
  const testing::TempDir folder;
  StrategyOptions options;
  options.grad_scaler = GradScalerOptions{.growth_interval = 1000};
  nn::Workspaces workspaces;
  const auto make = [&](ParameterSet& parameters) {
    auto strategy = OrThrow(MakeSynchronousStrategy({}, options));
    OrThrow(strategy->Bind(parameters, Momentum()));
    return strategy;
  };
  const TrainerOptions training{.checkpoint_dir = folder.path() + "/checkpoints"};
  ParameterSet parameters = Ones();
  const auto before = make(parameters);
  Trainer trainer(*before, parameters, training);
  OrThrow(trainer.Fit(testing::IntegerData(24, 4), Gradient(workspaces, {2, 3})));
  const GradScaler::State state{.scale = 0x1p13, .good_steps = 3, .skipped = 2};
  EXPECT_EQ(before->grad_scaler()->state(), state);

  ParameterSet again = Ones();
  const auto after = make(again);
  Trainer resumed(*after, again, training);
  EXPECT_TRUE(OrThrow(resumed.Restore()));
  EXPECT_EQ(after->grad_scaler()->state(), state);
  EXPECT_EQ(after->step(), 6);
  EXPECT_TRUE(std::ranges::equal(again.all(), parameters.all()));
}

}  // namespace
}  // namespace cohort
