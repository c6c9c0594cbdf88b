// Scaled gradients: what an overflow does to the scale, and that all replicas skip a step together.
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <cohort/comm/local.h>
#include <cohort/io/checkpoint.h>
#include <cohort/nn/workspace.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/row_source.h>
#include <cohort/strategies/grad_scaler.h>
#include <cohort/strategies/regroup.h>
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

// Of three parameters and one that is not trainable, all 1.
ParameterSet Ones() {
  ParameterSet parameters;
  for (const char* const name : {"a", "b", "c"}) {
    parameters.Add(name, {5}, [](std::uint64_t) { return 1.0F; });
  }
  parameters.Add(
      "average", {3}, [](std::uint64_t) { return 1.0F; }, /*trainable=*/false);
  parameters.Build();
  return parameters;
}

std::unique_ptr<Optimizer> Momentum() { return Sgd({.learning_rate = 0.25, .momentum = 0.5}); }

// A gradient of replica + 1 everywhere, and the average doubles. In the steps `bad`, one element of
// the last replica's is infinite (in every other one of them NaN), as are its loss and the average.
StepFn Gradient(nn::Workspaces& workspaces, std::set<std::int64_t> bad) {
  return [&workspaces, bad = std::move(bad)](ReplicaContext& context,
                                             const data::Batch& batch) -> Result<ReplicaResult> {
    Kernels& kernels = workspaces.For(context.local_replica, context.device).KernelsFor(1);
    const float infinity = std::numeric_limits<float>::infinity();
    const bool overflows = bad.contains(context.step) || bad.contains(-1);
    const bool last = context.replica + 1 == context.num_replicas;
    for (int p = 0; p < context.parameters.size(); ++p) {
      if (!context.parameters[p].trainable) {
        const FloatSpan value = context.parameters.value(p);
        if (context.local_replica == 0 && overflows) {
          kernels.Fill(context.stream, value, infinity);
        } else if (context.local_replica == 0) {
          kernels.Add(context.stream, value, value, value);
        }
        continue;
      }
      const FloatSpan gradient = context.gradients.Accumulator(p);
      kernels.Fill(context.stream, gradient,
                   context.gradients.loss_seed() * static_cast<float>(context.replica + 1));
      if (p == 1 && overflows && last) {
        kernels.Fill(context.stream, gradient.subspan(3, 1),
                     context.step % 2 == 0 ? infinity : std::numeric_limits<float>::quiet_NaN());
      }
      context.gradients.Ready(p);
    }
    COHORT_RETURN_IF_ERROR(context.stream.Synchronize(DeadlineAfter(std::chrono::minutes(1))));
    const auto weight = static_cast<double>(batch.size);
    return ReplicaResult{
        .loss_sum = overflows && last ? infinity : 3 * weight, .weight = weight, .metric_sums = {}};
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
                           const std::function<std::unique_ptr<Optimizer>()>& optimizer,
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
    COHORT_RETURN_IF_ERROR(strategy->Bind(parameters, optimizer()));
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
      std::vector<float>& slots = trained.slots.emplace_back();
      for (const std::span<float> slot : strategy->slots()) {
        slots.insert(slots.end(), slot.begin(), slot.end());
      }
      trained.scales.push_back(
          strategy->grad_scaler() == nullptr ? 1 : strategy->grad_scaler()->scale());
    }
    trained.step = strategy->step();
    return {};
  }));
  return results;
}

// In every world the same steps are skipped by all, and the others are those of a run that does not
// scale, bit by bit: also of what is not trainable, and of Adam, whose bias correction counts.
void ExpectStepsAreSkipped(const std::function<std::unique_ptr<Optimizer>()>& optimizer) {
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
    const std::vector<Trained> scaled = Train(world.processes, 6, {2, 5}, optimizer, options(true));
    const std::vector<Trained> plain = Train(world.processes, 4, {}, optimizer, options(false));
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

TEST(GradScaler, AllReplicasSkipAStepTogether) { ExpectStepsAreSkipped(Momentum); }

TEST(GradScaler, BiasCorrectionCountsNoSkippedStep) {
  ExpectStepsAreSkipped([] { return Adam({.learning_rate = 0.25}); });
}

// At the least scale there is, or after so many steps in a row: values are those of before.
TEST(GradScaler, GivesUpWhereNoScaleHelps) {
  struct Case {
    GradScalerOptions options;
    int skipped;
    const char* text;
  };
  for (const Case& c : {Case{{.backoff_factor = 0x1p-40}, 2, "scaled by 2^-64, after 3 skipped"},
                        Case{{.init_scale = 0x1p64}, 99, "scaled by 2^-35, after 100 skipped"}}) {
    nn::Workspaces workspaces;
    ParameterSet parameters = Ones();
    const auto strategy = OrThrow(MakeSynchronousStrategy({}, {.grad_scaler = c.options}));
    OrThrow(strategy->Bind(parameters, Momentum()));
    DistributedBatch batch;
    batch.replicas.push_back({.size = 2, .features = {}});
    const StepFn step = Gradient(workspaces, {-1});
    for (int s = 0; s < c.skipped; ++s) {
      EXPECT_TRUE(OrThrow(strategy->Step(batch, step)).skipped) << s;
    }
    const Status status = strategy->Step(batch, step).status();
    EXPECT_EQ(status.code(), StatusCode::kDataLoss);
    EXPECT_THAT(status.message(), HasSubstr(c.text));
    EXPECT_THAT(status.message(), HasSubstr("[lower the learning rate"));
    EXPECT_THAT(status.message(), HasSubstr("mixed_bfloat16"));
    for (int p = 0; p < parameters.size(); ++p) {
      EXPECT_THAT(parameters.value(p), ::testing::Each(1.0F)) << parameters[p].name;
    }
    EXPECT_EQ(strategy->intact(), OkStatus());
  }
}

// What a pass starts from is about the scale, however large the batch.
TEST(GradScaler, SeedsWithTheScaleOfAMean) {
  for (const int replicas : {1, 2}) {
    StrategyOptions options{.num_devices = replicas};
    options.grad_scaler.emplace();
    nn::Workspaces workspaces;
    ParameterSet parameters = Ones();
    const auto strategy = OrThrow(MakeSynchronousStrategy({}, options));
    OrThrow(strategy->Bind(parameters, Momentum()));
    std::vector<float> seeds(static_cast<std::size_t>(replicas));
    const StepFn gradient = Gradient(workspaces, {});
    const StepFn step = [&](ReplicaContext& context, const data::Batch& batch) {
      seeds[static_cast<std::size_t>(context.replica)] = context.gradients.loss_seed();
      return gradient(context, batch);
    };
    Trainer trainer(*strategy, parameters, {});
    OrThrow(trainer.Fit(testing::IntegerData(24, 12 * replicas), step));
    EXPECT_THAT(seeds, ::testing::Each(12 * 0x1p15F / 8));
  }
}

// Its loss is in no mean, and ends no training.
TEST(GradScaler, TrainerLeavesSkippedStepsOutOfTheLoss) {
  std::vector<double> losses;
  StrategyOptions options;
  options.grad_scaler.emplace();
  nn::Workspaces workspaces;
  ParameterSet parameters = Ones();
  const auto strategy = OrThrow(MakeSynchronousStrategy({}, options));
  OrThrow(strategy->Bind(parameters, Momentum()));
  Trainer trainer(*strategy, parameters,
                  {.progress = [&](const Progress& p) { losses.push_back(p.loss); }});
  const History history =
      OrThrow(trainer.Fit(testing::IntegerData(16, 4), Gradient(workspaces, {1, 3})));
  EXPECT_EQ(history.steps, 4);
  EXPECT_EQ(history.examples, 16);
  EXPECT_EQ(history.epochs[0].loss, 3);
  ASSERT_EQ(losses.size(), 4U);
  EXPECT_TRUE(std::isnan(losses[0])) << "of no step";
  EXPECT_EQ(losses[2], 3);
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
}

// What of replica 0's gradients is not finite: one of a row, one of the parameter, or the sum of
// two of a row, each of which is.
enum class Bad { kNone, kRow, kParameter, kSumOfRow };

// A gradient of replica + 1 everywhere: of the parameter, and of rows 1, twice, and 7.
StepFn GradientOfRows(nn::Workspaces& workspaces, std::map<std::int64_t, Bad> bad) {
  return [&workspaces, bad = std::move(bad)](ReplicaContext& context,
                                             const data::Batch& batch) -> Result<ReplicaResult> {
    const auto at = bad.find(context.step);
    const Bad what = at == bad.end() || context.replica != 0 ? Bad::kNone : at->second;
    const float gradient = context.gradients.loss_seed() * static_cast<float>(context.replica + 1);
    Kernels& kernels = workspaces.For(context.local_replica, context.device).KernelsFor(1);
    kernels.Fill(context.stream, context.gradients.Accumulator(0),
                 what == Bad::kParameter ? std::numeric_limits<float>::infinity() : gradient);
    context.gradients.Ready(0);
    std::array<float, 6> rows;
    rows.fill(gradient);
    if (what == Bad::kRow) {
      rows[3] = std::numeric_limits<float>::quiet_NaN();
    } else if (what == Bad::kSumOfRow) {
      rows[0] = rows[4] = 3e38F;
    }
    context.gradients.AddRows(0, std::array<std::uint64_t, 3>{1, 7, 1}, rows);
    COHORT_RETURN_IF_ERROR(context.stream.Synchronize(DeadlineAfter(std::chrono::minutes(1))));
    const auto weight = static_cast<double>(batch.size);
    return ReplicaResult{.loss_sum = weight, .weight = weight, .metric_sums = {}};
  };
}

struct TrainedRows {
  std::vector<bool> skipped;
  std::vector<std::vector<float>> values;  // of the parameter and the rows, after each step
};

TrainedRows TrainRows(const StrategyOptions& options, TableSpec::BiasScope bias_scope, int steps,
                      const std::map<std::int64_t, Bad>& bad) {
  TrainedRows trained;
  ParameterSet parameters;
  parameters.Add("a", {5}, [](std::uint64_t) { return 1.0F; });
  parameters.AddTable({.name = "rows",
                       .dim = 2,
                       .optimizer = Adam({.learning_rate = 0.1})->config(),
                       .bias_scope = bias_scope});
  parameters.Build();
  nn::Workspaces workspaces;
  const auto strategy = OrThrow(MakeSynchronousStrategy({}, options));
  OrThrow(strategy->Bind(parameters, Adam({.learning_rate = 0.1})));
  DistributedBatch batch;
  for (int r = 0; r < strategy->num_local_replicas(); ++r) {
    batch.replicas.push_back({.size = 2, .features = {}});
  }
  for (int s = 0; s < steps; ++s) {
    const StepResult result = OrThrow(strategy->Step(batch, GradientOfRows(workspaces, bad)));
    OrThrow(strategy->PullState());
    trained.skipped.push_back(result.skipped);
    std::vector<float>& values = trained.values.emplace_back(4);
    OrThrow(parameters.rows().Lookup(0, std::array<std::uint64_t, 2>{1, 7}, /*training=*/false,
                                     values));
    values.insert(values.end(), parameters.all().begin(), parameters.all().end());
  }
  return trained;
}

// Rows and parameters are updated together or not at all, and the steps that are not skipped have
// the bits of a run that does not scale.
TEST(GradScaler, RowsAreHeldBackWithTheStep) {
  for (const bool far : {false, true}) {
    for (const int replicas : {1, 3}) {
      for (const auto bias_scope : {TableSpec::BiasScope::kRow, TableSpec::BiasScope::kTable}) {
        SCOPED_TRACE(std::to_string(replicas) + (far ? " replicas on devices" : " replicas"));
        StrategyOptions options{.num_devices = far ? 1 : replicas, .intra_op_threads = 1};
        if (far) {
          options.devices = MakeFarDevices(replicas);
        }
        const TrainedRows plain = TrainRows(options, bias_scope, 3, {});
        options.grad_scaler.emplace();
        const TrainedRows scaled = TrainRows(
            options, bias_scope, 6, {{2, Bad::kRow}, {4, Bad::kParameter}, {5, Bad::kSumOfRow}});
        EXPECT_THAT(scaled.skipped, ElementsAre(false, true, false, true, true, false));
        EXPECT_NE(plain.values[1], plain.values[0]);
        const std::size_t same_as[] = {0, 0, 1, 1, 1, 2};
        for (std::size_t s = 0; s < 6; ++s) {
          EXPECT_EQ(scaled.values[s], plain.values[same_as[s]]) << "step " << s + 1;
        }
      }
    }
  }
}

// A row that is refused for another reason than its size ends the step, of which nothing was done.
TEST(GradScaler, AnErrorOfARowChangesNothing) {
  StrategyOptions options{.grad_scaler = GradScalerOptions()};
  ParameterSet parameters;
  parameters.Add("a", {5}, [](std::uint64_t) { return 1.0F; });
  parameters.AddTable({.name = "rows",
                       .dim = 2,
                       .optimizer = Sgd({.learning_rate = 0.1})->config(),
                       .missing = TableSpec::Missing::kError});
  parameters.Build();
  nn::Workspaces workspaces;
  const auto strategy = OrThrow(MakeSynchronousStrategy({}, options));
  OrThrow(strategy->Bind(parameters, Momentum()));
  DistributedBatch batch;
  batch.replicas.push_back({.size = 2, .features = {}});
  for (int s = 0; s < 2; ++s) {
    const Status status = strategy->Step(batch, GradientOfRows(workspaces, {})).status();
    EXPECT_EQ(status.code(), StatusCode::kNotFound);
    EXPECT_THAT(status.message(), HasSubstr("no row for id"));
    EXPECT_EQ(strategy->intact(), OkStatus());
    EXPECT_EQ(strategy->step(), 0);
    EXPECT_EQ(strategy->grad_scaler()->state(), GradScaler({}).state());
    EXPECT_THAT(parameters.value(0), ::testing::Each(1.0F));
  }
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

// Rank 0 reads the checkpoint, all scale as it says. One that says nothing leaves the options'.
TEST(GradScaler, AllRanksTakeItsStateFromTheCheckpoint) {
  const testing::TempDir folder;
  const std::string checkpoints = folder.path() + "/checkpoints";
  // Fit (or restore) on each of two ranks.
  const auto run = [&](bool scaled, bool fit) {
    auto communicators = MakeLocalCommunicators(2);
    std::vector<GradScaler::State> states(2);
    const auto statuses = RunRanks(2, [&](int rank) -> Status {
      StrategyOptions options;
      if (scaled) {
        options.grad_scaler.emplace();
      }
      SynchronousParts parts;
      parts.communicator = std::move(communicators[static_cast<std::size_t>(rank)]);
      ParameterSet parameters = Ones();
      nn::Workspaces workspaces;
      COHORT_ASSIGN_OR_RETURN(const auto strategy,
                              MakeSynchronousStrategy(std::move(parts), std::move(options)));
      COHORT_RETURN_IF_ERROR(strategy->Bind(parameters, Momentum()));
      Trainer trainer(*strategy, parameters,
                      {.checkpoint_dir = rank == 0 ? checkpoints : checkpoints + "-none"});
      if (fit) {
        const std::set<std::int64_t> bad =
            scaled ? std::set<std::int64_t>{2, 3} : std::set<std::int64_t>{};
        COHORT_RETURN_IF_ERROR(
            trainer.Fit(testing::IntegerData(24, 4), Gradient(workspaces, bad)).status());
      } else {
        COHORT_RETURN_IF_ERROR(trainer.Restore().status());
      }
      if (scaled) {
        states[static_cast<std::size_t>(rank)] = strategy->grad_scaler()->state();
      }
      return {};
    });
    return std::pair(statuses, states);
  };
  ExpectAllOk(run(false, true).first);
  auto [statuses, states] = run(true, false);
  ExpectAllOk(statuses);
  EXPECT_THAT(states, ::testing::Each(GradScaler::State{.scale = 0x1p15}));
  std::filesystem::remove_all(checkpoints);
  ExpectAllOk(run(true, true).first);
  std::tie(statuses, states) = run(true, false);
  ExpectAllOk(statuses);
  EXPECT_THAT(states,
              ::testing::Each(GradScaler::State{.scale = 0x1p13, .good_steps = 3, .skipped = 2}));

  // The same with a state that is none.
  for (const char* const text : {"16 2", "16 2 1 more", "3 0 0", ""}) {
    SCOPED_TRACE(text);
    io::CheckpointStore store(FileSystem::Local(), checkpoints);
    const auto newest = OrThrow(store.OpenLatest());
    io::CheckpointState state = newest->state();
    ++state.step;
    state.user["grad_scaler"] = text;
    const ParameterSet parameters = Ones();
    std::vector<io::CheckpointSource> model;
    std::vector<io::CheckpointSource> slots;
    for (int p = 0; p < parameters.size(); ++p) {
      model.push_back({parameters[p].name, parameters[p].shape, parameters.value(p)});
      if (parameters[p].trainable) {
        slots.push_back(
            {parameters[p].name + "/momentum", parameters[p].shape, parameters.value(p)});
      }
    }
    OrThrow(store.Save(state, model, slots));
    for (const Status& status : run(true, false).first) {
      EXPECT_FALSE(status.ok());
      EXPECT_THAT(status.message(), HasSubstr(checkpoints));
      EXPECT_THAT(status.message(), HasSubstr("grad_scaler"));
    }
  }
}

// A newcomer scales as the survivor did; a survivor that did not begins with the options' scale.
TEST(GradScaler, ItsStateIsTheSurvivorsAfterRecover) {
  for (const bool scaled : {true, false}) {
    auto communicators = MakeLocalCommunicators(2);
    std::vector<GradScaler::State> states(2);
    ExpectAllOk(RunRanks(2, [&](int rank) -> Status {
      const auto r = static_cast<std::size_t>(rank);
      ParameterSet parameters = Ones();
      nn::Workspaces workspaces;
      std::unique_ptr<Strategy> before;
      if (rank == 1) {
        StrategyOptions old;
        if (scaled) {
          old.grad_scaler.emplace();
        }
        COHORT_ASSIGN_OR_RETURN(before, MakeSynchronousStrategy({}, std::move(old)));
        COHORT_RETURN_IF_ERROR(before->Bind(parameters, Momentum()));
        DistributedBatch batch;
        batch.replicas.push_back({.size = 2, .features = {}});
        const std::set<std::int64_t> bad =
            scaled ? std::set<std::int64_t>{2} : std::set<std::int64_t>{};
        for (int s = 0; s < 3; ++s) {
          COHORT_RETURN_IF_ERROR(before->Step(batch, Gradient(workspaces, bad)).status());
        }
      }
      Regrouped group;
      group.communicator = std::move(communicators[r]);
      StrategyOptions options;
      options.grad_scaler.emplace();
      COHORT_ASSIGN_OR_RETURN(const auto after, Recover(group, parameters, Momentum(), before.get(),
                                                        std::move(options)));
      states[r] = after->grad_scaler()->state();
      return after->step() == 3 ? OkStatus() : Internal("step " + std::to_string(after->step()));
    }));
    EXPECT_THAT(
        states,
        ::testing::Each(scaled ? GradScaler::State{.scale = 0x1p14, .good_steps = 1, .skipped = 1}
                               : GradScaler::State{.scale = 0x1p15}));
  }
}

}  // namespace
}  // namespace cohort
