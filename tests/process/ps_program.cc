// A program as users write one: every process of a parameter-server job runs it. It trains the
// IntegerModel, and says on standard output what a test wants to know.
//
//   ps_program [--epochs N] [--examples N] [--batch N] [--consistency C] [--join-ms N] [--fail-at
//   STEP]
//              [--hold-at STEP --hold TASK] [--rejoin-ms N] [--folder DIR [--save-steps N]
//              [--save-epochs N]]
//              [--gate FILE --gate-at STEP] [--gate-chief
//              setup|end|saved|given|kept|refused|evaluation]
//              [--count [--floats N] [--rows-only]]
//              [--step-ms N] [--partial|--replica] [--start POLICY] [--balance-ms N]
//              [--full-save-every N] [--far] [--optimizer CONFIG] [--real] [--aging STEPS]
//              [--rows CONFIG] [--functions [--save-calls N]] [--lookahead BATCHES]
//              [--lost-saves WAY]
//
// --optimizer: Optimizer::config() of another than SGD with momentum.
// --folder: the loop is Trainer::Fit, which saves there.
// --count: the model is one that counts, for each example, how often it was trained on; of whole
// batches.
// --floats: and it has so many more values, each of which counts all examples, too.
// --rows-only: and it has no parameter: what is counted is what its rows come to together.
// --gate FILE: worker:0 does not go beyond its step --gate-at before there is such a file.
// --gate-chief: the chief says "waits", and does so for that FILE, before Bind or after its last
// save; or, with --functions, where CallOptions (ps_calls.h) says.
// --partial, --replica: ServerLoss::kPartial, kReplica.
// --balance-ms: StrategyOptions::balance_interval. There is a table besides of which one server has
// all rows in use, and the chief says whether buckets have moved.
// --far: every replica is on a device whose memory is apart (testing/far_device.h).
// --real: gradients whose sums are those of one order of adding up.
// --aging: the counting model has one more table, whose rows are evicted when they were not used
// for so many steps; the chief says what is left of it. Also under sync.
// --rows: another model, of a table under the rule CONFIG whose rows are admitted late and evicted
// early; the chief says how many there are, and a digest of all that the table has.
// --functions: the chief hands out no data, but calls a function for each 50 of the examples; with
// --folder it goes on from the save that is there.
// --save-calls: and saves there when it has scheduled so many more and one has returned, while the
// others run.
// --lost-saves: without --folder, saves that cannot be gone back to (ps_restore.h).
// SIGTERM: with --folder, stops as an example does.
// --hold-at: TASK says "holding" in that step function of its own, and never comes back from it.

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <cohort/cluster/resolve.h>
#include <cohort/core/random.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/row_source.h>
#include <cohort/strategies/coordinator.h>
#include <cohort/strategies/parameter_server.h>
#include <cohort/train/trainer.h>

#include "process/ps_calls.h"
#include "process/ps_restore.h"
#include "testing/far_device.h"
#include "testing/integer_model.h"
#include "testing/temp_dir.h"

namespace {

using namespace cohort;

struct Options {
  int epochs = 1;
  int examples = 2000;
  int batch = 10;
  std::string consistency = "async";
  std::string optimizer = Sgd({.learning_rate = 0.0625, .momentum = 0.5})->config();
  int join_ms = 60'000;
  int heartbeat_ms = 10'000;
  int collective_ms = 120'000;
  int rejoin_ms = 60'000;
  std::string folder;
  int save_steps = 0;
  int save_epochs = 1;
  bool count = false;
  std::int64_t floats = 0;
  bool rows_only = false;
  int step_ms = 0;
  std::string gate;
  int gate_at = 0;
  std::string gate_chief;
  int hold_at = 0;
  int fail_at = 0;
  std::string hold;
  bool partial = false;
  bool replica = false;
  bool far = false;
  bool real = false;
  int aging = 0;
  std::string rows;
  bool functions = false;
  int save_calls = 0;
  int balance_ms = 0;
  int lookahead = 1;
  int full_save_every = 8;
  std::string partitioner = "pieces";
  std::string start = "all";
  std::string communication = "auto";
  std::string lost_saves;
};

std::atomic<bool> stop_requested{false};

void Say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

// Rows in two buckets of 16, both of the first of two servers.
const std::vector<std::uint64_t> kHot = {3, 4};

// Rows of the table that ages, of which every hundred examples have one.
constexpr int kAging = 20;

// Every example adds 1 to a parameter, and to its own row; `hot`: every batch, to some other rows.
ParameterSet CountingParameters(const Options& options) {
  const std::int64_t more = options.floats;
  ParameterSet parameters;
  if (!options.rows_only) {
    parameters.Add("count", {1}, {});
  }
  if (more > 0) {
    parameters.Add("more", {more}, {});
  }
  parameters.AddTable({.name = "examples", .dim = 1, .buckets = 16});
  if (options.balance_ms > 0) {
    parameters.AddTable({.name = "hot", .dim = 1, .buckets = 16});
  }
  if (options.aging > 0) {
    parameters.AddTable({.name = "aging",
                         .dim = 1,
                         .time_to_live = static_cast<std::uint32_t>(options.aging),
                         .buckets = 16});
  }
  parameters.Build();
  return parameters;
}

// To a parameter's gradient, wherever that is.
void Give(ReplicaContext& context, int parameter, float value) {
  const std::span<float> to = context.gradients.Accumulator(parameter);
  const auto block = context.device->AllocateHost(to.size_bytes(), "a gradient");
  const std::span<float> from(reinterpret_cast<float*>(block.get()), to.size());
  std::ranges::fill(from, value);
  context.device->Copy(context.stream, block.get(), reinterpret_cast<std::byte*>(to.data()),
                       to.size_bytes());
  context.stream.Enqueue([block] { return OkStatus(); });  // lives until then
}

Result<ReplicaResult> Count(ReplicaContext& context, const data::Batch& batch) {
  const auto examples = static_cast<std::size_t>(batch.size);
  const std::int64_t* const id = batch["id"].data<std::int64_t>().data();
  const std::vector<std::uint64_t> ids(id, id + examples);
  std::vector<float> rows(examples);
  COHORT_RETURN_IF_ERROR(context.parameters.rows().Lookup(0, ids, /*training=*/true, rows));
  context.gradients.AddRows(0, ids, std::vector<float>(examples, -1));
  for (std::size_t table = 1; table < context.parameters.tables().size(); ++table) {
    std::vector<std::uint64_t> others = kHot;
    if (context.parameters.tables()[table].name == "aging") {
      others.assign(1, static_cast<std::uint64_t>(id[0] / 100 % kAging));
    }
    std::vector<float> read(others.size());
    const int t = static_cast<int>(table);
    COHORT_RETURN_IF_ERROR(context.parameters.rows().Lookup(t, others, /*training=*/true, read));
    context.gradients.AddRows(t, others, std::vector<float>(others.size(), -1));
  }
  for (int p = 0; p < context.parameters.size(); ++p) {
    Give(context, p, -static_cast<float>(examples));
    context.gradients.Ready(p);
  }
  const auto weight = static_cast<double>(examples);
  return ReplicaResult{.loss_sum = 0, .weight = weight, .metric_sums = {}};
}

// Of each parameter's element the mean over the examples of what no float is, and a part of itself.
Result<ReplicaResult> Real(ReplicaContext& context, const data::Batch& batch) {
  const std::span<const float> x = batch["x"].data<float>();
  const auto examples = static_cast<std::size_t>(batch.size);
  const std::size_t columns = x.size() / std::max<std::size_t>(examples, 1);
  for (int p = 0; p < context.parameters.size(); ++p) {
    if (!context.parameters[p].trainable) {
      continue;
    }
    const std::span<float> gradient = context.gradients.Accumulator(p);
    const std::span<const float> value = context.parameters.value(p);
    for (std::size_t e = 0; e < gradient.size(); ++e) {
      for (std::size_t i = 0; i < examples; ++i) {
        const float of_example = x[i * columns + e % columns] / static_cast<float>(3 + e % 7);
        gradient[e] += of_example + 0.1F * value[e];
      }
    }
    context.gradients.Ready(p);
  }
  return ReplicaResult{.loss_sum = 0, .weight = static_cast<double>(examples), .metric_sums = {0}};
}

// Of --rows: each example has two ids, of which 76 and 150 are used, several times an epoch.
constexpr std::size_t kRowDim = 3;
constexpr std::uint64_t kSquares = 151;
constexpr std::uint64_t kOthers = 1000;
constexpr std::uint64_t kManyOthers = 150;

ParameterSet RowParameters(const Options& options) {
  ParameterSet parameters;
  parameters.Add("bias", {5}, {});
  parameters.AddTable({.name = "rows",
                       .dim = static_cast<std::int64_t>(kRowDim),
                       .seed = 7,
                       .optimizer = options.rows,
                       .initializer = {RowInitializer::Kind::kNormal, 0.1},
                       .admit_after = 3,
                       .time_to_live = 15,
                       .buckets = 16});
  parameters.Build();
  return parameters;
}

// Gradients whose sums are those of one order of adding up, and which depend on what the last step
// left.
Result<ReplicaResult> TrainRows(ReplicaContext& context, const data::Batch& batch) {
  const std::span<const float> x = batch["x"].data<float>();
  const auto examples = static_cast<std::size_t>(batch.size);
  const std::size_t columns = x.size() / std::max<std::size_t>(examples, 1);
  std::vector<std::uint64_t> ids;
  for (const std::int64_t id : batch["id"].data<std::int64_t>()) {
    const auto example = static_cast<std::uint64_t>(id);
    ids.insert(ids.end(), {example * example % kSquares, kOthers + example % kManyOthers});
  }
  std::vector<float> rows(ids.size() * kRowDim);
  COHORT_RETURN_IF_ERROR(context.parameters.rows().Lookup(0, ids, /*training=*/true, rows));
  const std::span<float> bias = context.gradients.Accumulator(0);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::size_t example = i / kRowDim / 2;
    const std::size_t e = i % kRowDim;
    rows[i] = x[example * columns + e] / static_cast<float>(3 + e) + 0.1F * rows[i];
    bias[e] += rows[i];
  }
  context.gradients.Ready(0);
  context.gradients.AddRows(0, ids, rows);
  return ReplicaResult{.loss_sum = 0, .weight = static_cast<double>(examples), .metric_sums = {}};
}

// Weights, slots, counts, and what waits for its admission: as a file has them, which is a function
// of these.
Status ReportRows(Strategy& strategy, ParameterSet& parameters) {
  std::vector<std::uint64_t> ids;
  for (std::uint64_t id = 0; id < kSquares; ++id) {
    ids.push_back(id);
  }
  for (std::uint64_t id = 0; id < kManyOthers; ++id) {
    ids.push_back(kOthers + id);
  }
  std::vector<float> rows(ids.size() * kRowDim);
  COHORT_RETURN_IF_ERROR(parameters.rows().Lookup(0, ids, /*training=*/false, rows));
  std::size_t there = 0;
  for (std::size_t i = 0; i < rows.size(); i += kRowDim) {
    there += rows[i] != 0 ? 1 : 0;
  }
  const testing::TempDir dir;
  const std::string path = dir / "rows";
  COHORT_RETURN_IF_ERROR(strategy.SaveTable(0, FileSystem::Local(), path));
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), {});
  Say(fmt::format("{} rows, {} bytes, digest {}", there, bytes.size(), Hash64(bytes)));
  return {};
}

// The test ends this process at its deadline.
void AwaitGate(const Options& options) {
  while (!std::filesystem::exists(options.gate)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

void AwaitGateIn(const std::string& place, const Options& options, const Strategy& strategy) {
  if (strategy.is_chief() && options.gate_chief == place) {
    Say("waits");
    AwaitGate(options);
  }
}

// What a step is to the program: the model's, with what its options ask for.
StepFn StepOf(const Options& options, const std::string& self, int& steps) {
  return [&options, self, &steps,
          model = options.count           ? StepFn(Count)
                  : !options.rows.empty() ? StepFn(TrainRows)
                  : options.real
                      ? StepFn(Real)
                      : testing::IntegerStep()](ReplicaContext& context, const data::Batch& batch) {
    ++steps;
    if (steps % 10 == 1) {
      Say("step " + std::to_string(steps) + " begins");
    }
    if (steps == options.hold_at && self == options.hold) {
      Say("holding");
      for (;;) {
        ::pause();
      }
    }
    if (steps == options.gate_at && self == "worker:0") {
      AwaitGate(options);
    }
    if (steps == options.fail_at) {
      return Result<ReplicaResult>(DataLoss("example 7 is broken"));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(options.step_ms));  // its work
    return model(context, batch);
  };
}

Status Train(const Options& options, ParameterServerStrategy& strategy, DistributedDataset& data) {
  int steps = 0;
  const StepFn step = StepOf(options, strategy.cluster().task.ToString(), steps);
  for (int epoch = 0; epoch < options.epochs; ++epoch) {
    COHORT_RETURN_IF_ERROR(data.BeginEpoch(epoch));
    for (;;) {
      COHORT_ASSIGN_OR_RETURN(const auto batch, data.Next());
      if (!batch.has_value()) {
        break;
      }
      COHORT_ASSIGN_OR_RETURN(const StepResult result, strategy.Step(*batch, step));
      if (steps % 10 == 1) {
        Say("step " + std::to_string(steps) + " loss " + std::to_string(result.loss));
      }
    }
  }
  Say("trained " + std::to_string(steps) + " steps");
  return {};
}

Status CallFunctions(const Options& options, ParameterServerStrategy& strategy,
                     ParameterSet& parameters) {
  const data::Dataset data = testing::IntegerData(options.examples, options.batch);
  if (strategy.is_chief()) {
    return testing::CallAll(strategy, parameters,
                            {.examples = options.examples,
                             .folder = options.folder,
                             .save_calls = options.save_calls,
                             .full_save_every = options.full_save_every,
                             .place = options.gate_chief,
                             .stand =
                                 [&] {
                                   Say("waits");
                                   AwaitGate(options);
                                 },
                             .data = data});
  }
  if (!strategy.trains()) {
    return {};
  }
  int steps = 0;
  const StepFn step = StepOf(options, strategy.cluster().task.ToString(), steps);
  Functions functions;
  functions.Add("train", [&](const std::string& text) -> Result<std::string> {
    const std::int64_t begin = std::stoll(text);
    COHORT_ASSIGN_OR_RETURN(
        const auto batches,
        data.Iterate({.begin = begin, .end = begin + testing::kExamplesOfACall}));
    for (;;) {
      COHORT_ASSIGN_OR_RETURN(std::optional<data::Batch> batch, batches->Next());
      if (!batch.has_value()) {
        return text;
      }
      DistributedBatch alone;
      alone.replicas.push_back(*std::move(batch));
      COHORT_RETURN_IF_ERROR(strategy.Step(alone, step).status());
    }
  });
  return ServeFunctions(strategy, functions);
}

Status Report(const Options& options, ParameterServerStrategy& strategy, ParameterSet& parameters) {
  for (const EpochCoverage& epoch : strategy.coverage()) {
    Say("epoch " + std::to_string(epoch.epoch) + ": " + std::to_string(epoch.seen) + " of " +
        std::to_string(epoch.examples) + " seen, reissued " + std::to_string(epoch.reissued) +
        (epoch.dropped > 0 ? ", dropped " + std::to_string(epoch.dropped) : ""));
  }
  COHORT_ASSIGN_OR_RETURN(const ParameterServerStats stats, strategy.stats());
  if (options.balance_ms > 0) {
    Say(stats.moved_buckets > 0 ? "buckets have moved" : "no bucket has moved");
  }
  if (stats.lost_updates > 0) {
    Say("lost updates " + std::to_string(stats.lost_updates));
  }
  Say("staleness at most " + std::to_string(stats.max_staleness) + ", lead at most " +
      std::to_string(stats.max_lead) + (stats.late > 0 ? ", some late" : ", none late") +
      (stats.parked > 0 ? ", some parked" : ", none parked"));
  COHORT_RETURN_IF_ERROR(strategy.PullState());
  std::uint64_t digest = 0;
  for (int p = 0; p < parameters.size(); ++p) {
    const std::span<const float> value = parameters.value(p);
    digest = Hash64({reinterpret_cast<const char*>(value.data()), value.size_bytes()}, digest);
  }
  Say("step " + std::to_string(strategy.step()) + " digest " + std::to_string(digest));
  if (!options.rows.empty()) {
    COHORT_RETURN_IF_ERROR(ReportRows(strategy, parameters));
  }
  if (options.count) {
    std::vector<std::uint64_t> ids(static_cast<std::size_t>(options.examples));
    std::iota(ids.begin(), ids.end(), 0);
    std::vector<float> rows(ids.size());
    COHORT_RETURN_IF_ERROR(parameters.rows().Lookup(0, ids, /*training=*/false, rows));
    const auto [least, most] = std::minmax_element(rows.begin(), rows.end());
    const double of_rows = std::accumulate(rows.begin(), rows.end(), 0.0);
    Say(fmt::format("counted {:g}, each {:g} to {:g} times",
                    options.rows_only ? of_rows : parameters.value(0)[0], *least, *most));
    Say(fmt::format("rows counted {:g}", of_rows));
    for (int p = 1; p < parameters.size(); ++p) {
      const std::span<const float> values = parameters.value(p);
      const auto [fewest, greatest] = std::minmax_element(values.begin(), values.end());
      Say(fmt::format("{} counted {:g} to {:g}", parameters[p].name, *fewest, *greatest));
    }
    for (std::size_t table = 1; table < parameters.tables().size(); ++table) {
      std::vector<std::uint64_t> others = kHot;
      if (parameters.tables()[table].name == "aging") {
        others.resize(kAging);
        std::iota(others.begin(), others.end(), 0);
      }
      std::vector<float> read(others.size());
      COHORT_RETURN_IF_ERROR(parameters.rows().Lookup(static_cast<int>(table), others,
                                                      /*training=*/false, read));
      Say(fmt::format("{} rows {:g}", parameters.tables()[table].name, fmt::join(read, " ")));
    }
  }
  return {};
}

Status RunWith(const Options& options, ParameterServerStrategy& strategy) {
  ParameterSet parameters = options.count           ? CountingParameters(options)
                            : !options.rows.empty() ? RowParameters(options)
                                                    : testing::IntegerParameters();
  AwaitGateIn("setup", options, strategy);
  COHORT_ASSIGN_OR_RETURN(auto optimizer, MakeOptimizer(options.optimizer));
  if (options.count) {
    optimizer = Sgd({.learning_rate = static_cast<double>(options.batch)});
  }
  COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, std::move(optimizer)));
  if (options.functions) {
    COHORT_RETURN_IF_ERROR(CallFunctions(options, strategy, parameters));
    COHORT_RETURN_IF_ERROR(strategy.Serve());
    if (strategy.is_chief()) {
      COHORT_RETURN_IF_ERROR(Report(options, strategy, parameters));
    }
    return strategy.Shutdown();
  }
  if (!options.folder.empty()) {
    int steps = 0;
    Trainer trainer(strategy, parameters,
                    {.epochs = options.epochs,
                     .checkpoint_dir = options.folder,
                     .save_every_epochs = options.save_epochs,
                     .save_every_steps = options.save_steps,
                     .full_save_every = options.full_save_every,
                     .stop = &stop_requested});
    COHORT_RETURN_IF_ERROR(trainer
                               .Fit(testing::IntegerData(options.examples, options.batch),
                                    StepOf(options, strategy.cluster().task.ToString(), steps))
                               .status());
    AwaitGateIn("end", options, strategy);
    if (strategy.is_chief()) {
      COHORT_RETURN_IF_ERROR(Report(options, strategy, parameters));
    }
    return strategy.Shutdown();
  }
  if (!options.lost_saves.empty()) {
    COHORT_ASSIGN_OR_RETURN(SavePlan plan,
                            testing::PlanWithoutAWayBack(options.lost_saves, strategy));
    strategy.SaveBetweenUpdates(std::move(plan));
  }
  COHORT_ASSIGN_OR_RETURN(
      const auto data, strategy.Distribute(testing::IntegerData(options.examples, options.batch)));
  if (strategy.trains()) {
    COHORT_RETURN_IF_ERROR(Train(options, strategy, *data));
  } else {
    COHORT_RETURN_IF_ERROR(strategy.Serve());
  }
  if (strategy.is_chief()) {
    COHORT_RETURN_IF_ERROR(Report(options, strategy, parameters));
  }
  return strategy.Shutdown();
}

Status Run(const Options& options) {
  COHORT_ASSIGN_OR_RETURN(const ClusterConfig config, ResolveCluster({}, Environment::OfProcess()));
  StrategyOptions strategy_options;
  COHORT_ASSIGN_OR_RETURN(strategy_options.consistency, Consistency::Parse(options.consistency));
  strategy_options.join_timeout = std::chrono::milliseconds(options.join_ms);
  strategy_options.heartbeat_timeout = std::chrono::milliseconds(options.heartbeat_ms);
  strategy_options.communication.timeout = std::chrono::milliseconds(options.collective_ms);
  strategy_options.rejoin_grace = std::chrono::milliseconds(options.rejoin_ms);
  strategy_options.journal_folder = options.folder;
  strategy_options.communication.transport = options.communication;
  strategy_options.server_loss = options.replica   ? ServerLoss::kReplica
                                 : options.partial ? ServerLoss::kPartial
                                                   : ServerLoss::kRollBack;
  strategy_options.lookahead = options.lookahead;
  strategy_options.balance_interval = std::chrono::milliseconds(options.balance_ms);
  if (options.far) {
    strategy_options.devices = {testing::MakeFarDevice("far:0", [] { return MakeInlineStream(); })};
  }
  strategy_options.log = StderrLog(config.task.ToString());
  COHORT_ASSIGN_OR_RETURN(strategy_options.partitioner, Partitioner::Parse(options.partitioner));
  COHORT_ASSIGN_OR_RETURN(strategy_options.start, StartPolicy::Parse(options.start));
  COHORT_ASSIGN_OR_RETURN(const auto strategy,
                          ParameterServerStrategy::Make(config, strategy_options));
  Say("joined, pid " + std::to_string(::getpid()));
  const Status status = RunWith(options, *strategy);
  if (status.code() == StatusCode::kCancelled) {
    (void)strategy->Shutdown();  // all stop
  } else if (!status.ok()) {
    strategy->ReportError(status);
  }
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("a job of the parameter-server strategy");
  app.add_option("--epochs", options.epochs);
  app.add_option("--examples", options.examples);
  app.add_option("--batch", options.batch);
  app.add_option("--consistency", options.consistency);
  app.add_option("--optimizer", options.optimizer);
  app.add_option("--join-ms", options.join_ms);
  app.add_option("--heartbeat-ms", options.heartbeat_ms);
  app.add_option("--collective-ms", options.collective_ms);
  app.add_option("--rejoin-ms", options.rejoin_ms);
  app.add_option("--folder", options.folder);
  app.add_option("--save-steps", options.save_steps);
  app.add_option("--save-epochs", options.save_epochs);
  app.add_flag("--count", options.count);
  app.add_flag("--partial", options.partial);
  app.add_flag("--replica", options.replica);
  app.add_flag("--far", options.far);
  app.add_flag("--real", options.real);
  app.add_option("--aging", options.aging);
  app.add_option("--rows", options.rows);
  app.add_flag("--functions", options.functions);
  app.add_option("--save-calls", options.save_calls);
  app.add_option("--balance-ms", options.balance_ms);
  app.add_option("--lookahead", options.lookahead);
  app.add_option("--full-save-every", options.full_save_every);
  app.add_option("--partitioner", options.partitioner);
  app.add_option("--start", options.start);
  app.add_option("--communication", options.communication);
  app.add_option("--floats", options.floats);
  app.add_flag("--rows-only", options.rows_only);
  app.add_option("--step-ms", options.step_ms);
  app.add_option("--gate", options.gate);
  app.add_option("--gate-at", options.gate_at);
  app.add_option("--gate-chief", options.gate_chief);
  app.add_option("--hold-at", options.hold_at);
  app.add_option("--hold", options.hold);
  app.add_option("--lost-saves", options.lost_saves);
  app.add_option("--fail-at", options.fail_at);
  CLI11_PARSE(app, argc, argv);
  if (!options.folder.empty()) {
    std::signal(SIGTERM, [](int) { stop_requested = true; });
  }
  const cohort::Status status = Run(options);
  if (!status.ok()) {
    std::fprintf(stderr, "error: %s\n", status.ToString().c_str());
  }
  return cohort::ExitCode(status);
}
