// `cohort bench ps resume`: a job of real processes, a chief that saves, a worker and a server; the
// server is killed with SIGKILL and another one started in its place, and the time goes by phases:
// until the chief says that it is lost, until the new one has joined, until it has what was saved,
// until the worker's first step after that is applied.

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/core/status.h>
#include <cohort/data/memory.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/row_source.h>
#include <cohort/strategies/parameter_server.h>
#include <cohort/train/trainer.h>

#include "bench_children.h"
#include "bench_ps_modes.h"
#include "core/commands/processes.h"
#include "core/commands/run_command.h"
#include "port_reservation.h"

namespace cohort {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::int64_t bytes = 100'000'000;  // of the server's state: half dense, half rows
  int rounds = 5;
  std::string folder = ".";
  bool json = false;
};

constexpr std::int64_t kDim = 16;
constexpr std::size_t kIds = 16'384;  // rows of a step: the table is full after a few
constexpr std::chrono::seconds kPatience{120};

// ---- What happens, told by the processes to the one that measures -------------------------------

enum class Kind : int { kStep, kLost, kThere, kGoesOn };

// Clocks of processes of one machine are one.
struct Event {
  Kind kind;
  Clock::time_point at;
};

void Tell(int pipe, Kind kind) {
  const Event event = {kind, Clock::now()};
  (void)!::write(pipe, &event,
                 sizeof(event));  // shorter than PIPE_BUF: whole, or the bench times out
}

// ---- The job ------------------------------------------------------------------------------------

ParameterSet Model(const Options& options) {
  ParameterSet parameters;
  parameters.Add("dense", {options.bytes / 2 / static_cast<std::int64_t>(sizeof(float))}, {});
  parameters.AddTable({.name = "rows", .dim = kDim, .optimizer = Adagrad()->config()});
  parameters.Build();
  return parameters;
}

std::uint64_t RowsOf(const Options& options) {
  // A record: 24 bytes, weights, and as many floats of Adagrad's.
  return std::max<std::uint64_t>(static_cast<std::uint64_t>(options.bytes) / 2 / (24 + 8 * kDim),
                                 1);
}

// Goes through the rows, and leaves the dense values alone: what is measured is not the step.
StepFn StepOf(const Options& options, int pipe) {
  return [rows = RowsOf(options), pipe, step = std::uint64_t{0}](
             ReplicaContext& context, const data::Batch& batch) mutable -> Result<ReplicaResult> {
    Tell(pipe, Kind::kStep);
    std::vector<std::uint64_t> ids(kIds);
    for (std::uint64_t& id : ids) {
      id = step++ % rows;
    }
    std::vector<float> weights(kIds * kDim);
    COHORT_RETURN_IF_ERROR(context.parameters.rows().Lookup(0, ids, /*training=*/true, weights));
    context.gradients.AddRows(0, ids, std::vector<float>(kIds * kDim, 0.01F));
    context.gradients.Ready(0);
    return ReplicaResult{
        .loss_sum = 0, .weight = static_cast<double>(batch.size), .metric_sums = {}};
  };
}

Status RunTask(const Options& options, const ClusterConfig& config, int pipe) {
  StrategyOptions how;
  how.log = Log([pipe](LogLevel level, std::string_view text) {
    // What the chief says of a loss; Measure is an error where one of these does not come.
    if (text.find(" is lost, and the workers wait") != std::string_view::npos) {
      Tell(pipe, Kind::kLost);
    } else if (text.find(" there: the servers go back") != std::string_view::npos) {
      Tell(pipe, Kind::kThere);
    } else if (text.starts_with("rolled back ")) {
      Tell(pipe, Kind::kGoesOn);
    } else if (level >= LogLevel::kError) {
      std::fprintf(stderr, "%.*s\n", static_cast<int>(text.size()), text.data());
    }
  });
  COHORT_ASSIGN_OR_RETURN(const auto strategy, ParameterServerStrategy::Make(config, how));
  ParameterSet parameters = Model(options);
  COHORT_RETURN_IF_ERROR(strategy->Bind(parameters, Sgd()));
  // One example a batch, ten batches a split, after each of which there may be a save.
  std::vector<std::int64_t> id(100);
  std::iota(id.begin(), id.end(), 0);
  COHORT_ASSIGN_OR_RETURN(
      const data::Dataset examples,
      data::FromTensors(
          {{"id", Tensor::Of<std::int64_t>({static_cast<std::int64_t>(id.size())}, id)}}));
  Trainer trainer(*strategy, parameters,
                  {.epochs = 1'000'000,  // more than the bench takes
                   .checkpoint_dir = options.folder,
                   .save_every_steps = 1,
                   .max_to_keep = 2});
  const Status status = trainer.Fit(examples.Batch(1), StepOf(options, pipe)).status();
  return status.ok() ? strategy->Shutdown() : status;
}

// ---- Measuring ----------------------------------------------------------------------------------

class Events {
 public:
  Events(int pipe, Children& children) : pipe_(pipe), children_(children) {}

  // Of the next event of this kind, not before `from`; what comes before is passed over.
  Result<Clock::time_point> Await(Kind kind, Clock::time_point from) {
    const Clock::time_point give_up = Clock::now() + kPatience;
    for (;;) {
      pollfd ready = {pipe_, POLLIN, 0};
      if (::poll(&ready, 1, 100) > 0) {
        Event event{};
        if (::read(pipe_, &event, sizeof(event)) != sizeof(event)) {
          return Internal("the job has ended");
        }
        if (event.kind == kind && event.at >= from) {
          return event.at;
        }
      }
      COHORT_RETURN_IF_ERROR(children_.AllRun());
      if (Clock::now() >= give_up) {
        return DeadlineExceeded("the job has not gone on within " +
                                std::to_string(kPatience.count()) + " s");
      }
    }
  }

 private:
  const int pipe_;
  Children& children_;
};

struct Round {
  double noticed = 0, restarted = 0, restored = 0, stepped = 0;
  double all() const { return noticed + restarted + restored + stepped; }
};

// How many whole checkpoints there are, and the newest.
std::pair<int, std::string> Saves(const std::string& folder) {
  std::pair<int, std::string> saves;
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(folder, none)) {
    const std::string name = entry.path().filename();
    if (name.starts_with("step-")) {
      ++saves.first;
      saves.second = std::max(saves.second, name);
    }
  }
  return saves;
}

Result<std::vector<Round>> Measure(const Options& options) {
  COHORT_ASSIGN_OR_RETURN(PortReservation ports, PortReservation::Make(1));
  ClusterConfig config;
  config.cluster = ClusterSpec(std::map<TaskId, std::string>{
      {{TaskType::kChief, 0}, "127.0.0.1:" + std::to_string(ports.ports()[0])},
      {{TaskType::kWorker, 0}, "127.0.0.1:0"},
      {{TaskType::kPs, 0}, "127.0.0.1:0"}});
  int pipe[2];
  if (::pipe2(pipe, O_CLOEXEC) != 0) {
    return SystemError("pipe");
  }
  ports.Release(0);
  Children children;
  const auto start = [&](TaskType type) {
    config.task = {type, 0};
    return children.Start(config.task.ToString(),
                          [&] { return RunTask(options, config, pipe[1]); });
  };
  COHORT_RETURN_IF_ERROR(start(TaskType::kChief).status());
  COHORT_RETURN_IF_ERROR(start(TaskType::kWorker).status());
  COHORT_ASSIGN_OR_RETURN(pid_t server, start(TaskType::kPs));
  Events events(pipe[0], children);
  std::vector<Round> rounds;
  std::string last;
  const std::uint64_t filled = RowsOf(options) / kIds + 1;
  for (std::uint64_t step = 0; step < filled; ++step) {
    COHORT_RETURN_IF_ERROR(events.Await(Kind::kStep, {}).status());
  }
  for (int r = 0; r < options.rounds; ++r) {
    // A save of all of it, after the round before.
    const std::string before = Saves(options.folder).second;
    for (int saves = 0; saves < 2;) {
      const std::string newest = Saves(options.folder).second;
      saves += newest > std::max(before, last) ? 1 : 0;
      last = std::max(newest, last);
      COHORT_RETURN_IF_ERROR(events.Await(Kind::kStep, {}).status());
    }
    const Clock::time_point killed = Clock::now();
    children.Kill(server);
    COHORT_ASSIGN_OR_RETURN(server, start(TaskType::kPs));
    Round round;
    auto phase = [&, from = killed](Kind kind, double* seconds) mutable -> Status {
      COHORT_ASSIGN_OR_RETURN(const Clock::time_point at, events.Await(kind, from));
      *seconds = std::chrono::duration<double>(at - from).count();
      from = at;
      return {};
    };
    COHORT_RETURN_IF_ERROR(phase(Kind::kLost, &round.noticed));
    COHORT_RETURN_IF_ERROR(phase(Kind::kThere, &round.restarted));
    COHORT_RETURN_IF_ERROR(phase(Kind::kGoesOn, &round.restored));
    // The second step begins when the first was applied.
    double first = 0;
    COHORT_RETURN_IF_ERROR(phase(Kind::kStep, &first));
    COHORT_RETURN_IF_ERROR(phase(Kind::kStep, &round.stepped));
    round.stepped += first;
    rounds.push_back(round);
  }
  return rounds;
}

Status Run(const Options& given) {
  Options options = given;
  options.folder += "/bench_resume";
  std::filesystem::remove_all(options.folder);
  const Result<std::vector<Round>> measured = Measure(options);
  std::error_code none;
  std::filesystem::remove_all(options.folder, none);
  COHORT_RETURN_IF_ERROR(measured.status());
  const auto median = [&](const auto& of) {
    std::vector<double> all;
    for (const Round& round : *measured) {
      all.push_back(of(round));
    }
    return Median(std::move(all));
  };
  const nlohmann::ordered_json report = {
      {"bytes", options.bytes},
      {"rounds", options.rounds},
      {"noticed_seconds", median([](const Round& r) { return r.noticed; })},
      {"restarted_seconds", median([](const Round& r) { return r.restarted; })},
      {"restored_seconds", median([](const Round& r) { return r.restored; })},
      {"first_step_seconds", median([](const Round& r) { return r.stepped; })},
      {"all_seconds", median([](const Round& r) { return r.all(); })},
      {"worst_seconds", std::ranges::max(*measured, {}, &Round::all).all()}};
  if (options.json) {
    std::printf("%s\n", report.dump().c_str());
    return {};
  }
  std::printf("a server with %.0f MB, half of it rows, is killed; medians of %d rounds\n",
              static_cast<double>(options.bytes) / 1e6, options.rounds);
  for (const char* phase : {"noticed", "restarted", "restored", "first_step"}) {
    std::printf("%-12s %8.3f s\n", phase, report[std::string(phase) + "_seconds"].get<double>());
  }
  std::printf("%-12s %8.3f s, at worst %.3f\n", "all", report["all_seconds"].get<double>(),
              report["worst_seconds"].get<double>());
  return {};
}

}  // namespace

int BenchPsResumeCommand(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Measures how long a job stands still when its parameter server is killed: until that is "
      "noticed, until another process has joined in its place, until it has the last save, and "
      "until the first step after that is applied.",
      argv[0]);
  app.add_option("--bytes", options.bytes, "of the server's state, half of it rows of a table")
      ->transform(CLI::AsSizeValue(true))
      ->check(CLI::Range(std::int64_t{1} << 20, std::int64_t{1} << 38))
      ->capture_default_str();
  app.add_option("--rounds", options.rounds, "the medians of so many")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--folder", options.folder, "for the saves")
      ->check(CLI::ExistingDirectory)
      ->capture_default_str();
  app.add_flag("--json", options.json, "machine-readable output");
  return ParseAndRun(app, argc, argv, [&] { return Run(options); });
}

}  // namespace cohort
