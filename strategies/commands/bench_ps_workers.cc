// `cohort bench ps workers`: a network that 1, 2 and 4 workers train on one server, a process each,
// in rounds and asynchronously, in turns with as many processes that train models of their own, and
// what of the CPU an example takes; how long workers stand still for a save; and the memory of a
// server to which clients send faster than it can apply.

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/data/combine.h>
#include <cohort/data/digits.h>
#include <cohort/nn/layers.h>
#include <cohort/nn/losses.h>
#include <cohort/nn/models.h>
#include <cohort/optim/optimizers.h>
#include <cohort/strategies/parameter_server.h>
#include <cohort/strategies/synchronous.h>

#include "bench_children.h"
#include "bench_ps_modes.h"
#include "core/commands/processes.h"
#include "core/commands/run_command.h"
#include "parameter_server/variables/client.h"
#include "port_reservation.h"

namespace cohort {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::vector<int> workers = {1, 2, 4};
  std::string model = "mlp";
  int batch = 64;                // of a worker
  std::int64_t examples = 8000;  // of an epoch
  int epochs = 4;
  int rounds = 3;
  std::int64_t save_steps = 50;
  int clients = 4;
  std::int64_t bytes = 64 << 20;  // of the variable that they push
  double seconds = 3;
  bool json = false;
};

Status WriteAll(int fd, const void* from, std::size_t bytes) {
  return ::write(fd, from, bytes) == static_cast<ssize_t>(bytes) ? OkStatus() : SystemError("pipe");
}
Status ReadAll(int fd, void* to, std::size_t bytes) {
  return ::read(fd, to, bytes) == static_cast<ssize_t>(bytes)
             ? OkStatus()
             : Internal("a process of the job ended before it had a result");
}

// ---- Training -----------------------------------------------------------------------------------

// What one process of the job has to tell, in one write.
struct Told {
  double examples_per_second = 0;  // of the chief: all epochs but the first
  double cpu_seconds = 0;          // for each example of an epoch
  double begun = 0;                // of a process that trains alone, after the first epoch, and
  double ended = 0;                // its end, on the clock that all share
  std::int64_t pauses = 0;         // of the chief, for saves
  double pause_seconds = 0;
  double longest_pause = 0;
};

// Each worker trains a model of its own, and there is no server.
constexpr const char* kAlone = "alone";

struct Job {
  int workers = 1;
  std::string consistency;      // or kAlone
  std::int64_t save_steps = 0;  // 0: no saves, and worker:0 is the chief
};

double CpuSeconds() {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

// Epochs that are measured.
int Counted(const Options& options) { return options.epochs - 1; }

// Of an epoch's examples, what this process's data set has.
std::int64_t Share(const Options& options, const Job& job) {
  return job.consistency == kAlone ? options.examples / job.workers : options.examples;
}

double Seconds(Clock::time_point time) {
  return std::chrono::duration<double>(time.time_since_epoch()).count();
}

// The worker's CPU seconds, begin and end after the first epoch, in which everything is begun.
Result<Told> TrainEpochs(const Options& options, const Job& job, Strategy& strategy,
                         nn::ImageModel& model) {
  nn::Workspaces workspaces;
  const StepFn step = [&](ReplicaContext& context,
                          const data::Batch& batch) -> Result<ReplicaResult> {
    nn::Tape tape(context.parameters, context.stream,
                  workspaces.For(context.local_replica, context.device),
                  {.step = context.step, .intra_op_threads = 1});
    const nn::Variable loss =
        nn::SoftmaxCrossEntropy(model.Logits(tape.Input(batch["image"])), batch["label"]);
    tape.Backward(loss, context.gradients);
    COHORT_RETURN_IF_ERROR(tape.Finish());
    const auto examples = static_cast<double>(batch.size);
    return ReplicaResult{
        .loss_sum = loss.value() * examples, .weight = examples, .metric_sums = {}};
  };
  // Under rounds a batch is cut among the workers: as many examples for each as without.
  const int batch = options.batch * (job.consistency == "sync" ? job.workers : 1);
  const std::int64_t examples = Share(options, job);
  COHORT_ASSIGN_OR_RETURN(const data::Dataset digits,
                          data::Cache(data::GeneratedDigits({.count = examples})));
  COHORT_ASSIGN_OR_RETURN(const auto dataset, strategy.Distribute(digits.Batch(batch)));
  Told told;
  double begun = CpuSeconds();
  for (int epoch = 0; epoch < options.epochs; ++epoch) {
    COHORT_RETURN_IF_ERROR(dataset->BeginEpoch(epoch, 0));
    for (;;) {
      COHORT_ASSIGN_OR_RETURN(const std::optional<DistributedBatch> next, dataset->Next());
      if (!next.has_value()) {
        break;
      }
      COHORT_RETURN_IF_ERROR(strategy.Step(*next, step).status());
    }
    if (epoch == 0) {
      begun = CpuSeconds();
      told.begun = Seconds(Clock::now());
    }
  }
  told.ended = Seconds(Clock::now());
  told.cpu_seconds =
      (CpuSeconds() - begun) / static_cast<double>(options.examples * Counted(options));
  return told;
}

// A process that shares nothing with the others but the cores.
Status TrainAlone(const Options& options, const Job& job, int result) {
  StrategyOptions how;
  how.intra_op_threads = 1;
  COHORT_ASSIGN_OR_RETURN(
      const auto strategy,
      MakeSynchronousStrategy({.kind = "one_device", .cluster = {}, .communicator = nullptr}, how));
  ParameterSet parameters;
  COHORT_ASSIGN_OR_RETURN(const auto model,
                          nn::MakeImageModel(options.model, parameters, {.seed = 1}));
  parameters.Build();
  COHORT_RETURN_IF_ERROR(strategy->Bind(parameters, Sgd({.learning_rate = 0.01})));
  COHORT_ASSIGN_OR_RETURN(const Told told, TrainEpochs(options, job, *strategy, *model));
  COHORT_RETURN_IF_ERROR(strategy->Shutdown());
  return WriteAll(result, &told, sizeof(told));
}

// What one process of the job does, and then tells.
Status TrainAs(const Options& options, const Job& job, const ClusterConfig& config, int result) {
  StrategyOptions how;
  COHORT_ASSIGN_OR_RETURN(how.consistency, Consistency::Parse(job.consistency));
  how.intra_op_threads = 1;
  COHORT_ASSIGN_OR_RETURN(const auto strategy, ParameterServerStrategy::Make(config, how));
  ParameterSet parameters;
  COHORT_ASSIGN_OR_RETURN(const auto model,
                          nn::MakeImageModel(options.model, parameters, {.seed = 1}));
  parameters.Build();
  COHORT_RETURN_IF_ERROR(strategy->Bind(parameters, Sgd({.learning_rate = 0.01})));
  if (job.save_steps > 0) {
    // Frozen and pulled as any other; it goes nowhere.
    strategy->SaveBetweenUpdates(
        {.every_steps = job.save_steps,
         .save = [&](std::int64_t, std::int64_t) { return strategy->PullState(); }});
  }
  const bool chief = strategy->is_chief();
  const auto examples = static_cast<double>(options.examples);
  Told told;
  if (strategy->trains()) {
    COHORT_ASSIGN_OR_RETURN(told, TrainEpochs(options, job, *strategy, *model));
  } else {
    COHORT_RETURN_IF_ERROR(strategy->Serve());
    told.cpu_seconds = CpuSeconds() / (examples * options.epochs);
  }
  if (chief && job.save_steps > 0) {
    COHORT_ASSIGN_OR_RETURN(const ParameterServerStats stats, strategy->stats());
    told.pauses = stats.save_pauses;
    told.pause_seconds = stats.save_pause_seconds;
    told.longest_pause = stats.longest_save_pause_seconds;
  }
  COHORT_RETURN_IF_ERROR(strategy->Shutdown());
  if (chief) {
    double seconds = 0;
    for (const EpochCoverage& epoch : strategy->coverage()) {
      if (epoch.seen != options.examples) {
        return Internal("not every example was seen");
      }
      seconds += epoch.epoch > 0 ? epoch.seconds : 0;
    }
    told.examples_per_second = examples * Counted(options) / seconds;
  }
  return WriteAll(result, &told, sizeof(told));
}

// All processes' together.
Result<Told> Train(const Options& options, const Job& job) {
  COHORT_ASSIGN_OR_RETURN(PortReservation ports, PortReservation::Make(1));
  const bool alone = job.consistency == kAlone;
  const bool chief = job.save_steps > 0;
  std::map<TaskId, std::string> addresses;
  if (!alone) {
    addresses[{TaskType::kPs, 0}] = "127.0.0.1:0";
  }
  for (int w = 0; w < job.workers; ++w) {
    addresses[{TaskType::kWorker, w}] = "127.0.0.1:0";
  }
  addresses[chief ? TaskId{TaskType::kChief, 0} : TaskId{TaskType::kWorker, 0}] =
      "127.0.0.1:" + std::to_string(ports.ports()[0]);
  ClusterConfig config;
  config.cluster = ClusterSpec(addresses);
  int result[2];
  if (::pipe2(result, O_CLOEXEC) != 0) {
    return SystemError("pipe");
  }
  ports.Release(0);
  Children children;
  Status status;
  for (const auto& [task, address] : addresses) {
    config.task = task;
    status = children
                 .Start(task.ToString(),
                        [&] {
                          return alone ? TrainAlone(options, job, result[1])
                                       : TrainAs(options, job, config, result[1]);
                        })
                 .status();
    COHORT_RETURN_IF_ERROR(status);
  }
  ::close(result[1]);
  status = children.Wait();
  Told all;
  double begun = std::numeric_limits<double>::infinity();
  double ended = 0;
  for (std::size_t i = 0; i < addresses.size() && status.ok(); ++i) {
    Told told;
    status = ReadAll(result[0], &told, sizeof(told));
    begun = std::min(begun, told.begun);
    ended = std::max(ended, told.ended);
    all.examples_per_second = std::max(all.examples_per_second, told.examples_per_second);
    all.cpu_seconds += told.cpu_seconds;
    all.pauses += told.pauses;
    all.pause_seconds += told.pause_seconds;
    all.longest_pause = std::max(all.longest_pause, told.longest_pause);
  }
  ::close(result[0]);
  COHORT_RETURN_IF_ERROR(status);
  if (alone) {
    all.examples_per_second =
        static_cast<double>(Share(options, job) * job.workers) * Counted(options) / (ended - begun);
  }
  return all;
}

// ---- The server's memory ------------------------------------------------------------------------

struct Memory {
  std::int64_t one = 0;   // the server's, with one client that pushes and waits
  std::int64_t most = 0;  // with several, at once
  double one_rate = 0;    // pushes applied a second
  double rate = 0;
};

Status PushFrom(const ps::ModelSpec& spec, const std::string& address, std::uint64_t client,
                const std::vector<float>& gradient, const std::atomic<bool>& stop,
                std::atomic<std::int64_t>* pushes) {
  ps::ClientOptions identity;
  identity.client = client;
  const auto pusher = ps::Client::Make(spec, {address}, identity);
  while (!stop) {
    COHORT_RETURN_IF_ERROR(pusher->Push({.arena = gradient, .weight = 1}, {}));
    pushes->fetch_add(1);
  }
  return {};
}

Result<Memory> MeasureMemory(const Options& options) {
  Children children;
  COHORT_ASSIGN_OR_RETURN(const auto server, ServerProcess::Start(children));
  ps::ModelSpec spec;
  spec.parameters = {{.name = "w", .shape = {options.bytes / 4}}};
  spec.optimizer = Adam()->config();
  const std::string& address = server->address();
  const std::vector<float> gradient(static_cast<std::size_t>(options.bytes / 4), 0.001F);
  const auto chief = ps::Client::Make(spec, {address}, {});
  COHORT_RETURN_IF_ERROR(chief->Declare());
  COHORT_RETURN_IF_ERROR(chief->Assign(gradient, {}, 0));
  Memory memory;
  std::uint64_t number = 100;  // of the next client: each pass has its own
  for (const int clients : {1, options.clients}) {
    std::atomic<bool> stop{false};
    std::atomic<std::int64_t> pushes{0};
    std::vector<Status> ends(static_cast<std::size_t>(clients));
    std::vector<std::thread> threads;
    const Clock::time_point begun = Clock::now();
    for (int c = 0; c < clients; ++c) {
      threads.emplace_back([&, c] {
        ends[static_cast<std::size_t>(c)] = PushFrom(
            spec, address, number + static_cast<std::uint64_t>(c), gradient, stop, &pushes);
      });
    }
    std::this_thread::sleep_for(std::chrono::duration<double>(options.seconds));
    stop = true;
    for (std::thread& thread : threads) {
      thread.join();
    }
    const double rate =
        static_cast<double>(pushes) / std::chrono::duration<double>(Clock::now() - begun).count();
    for (const Status& ended : ends) {
      COHORT_RETURN_IF_ERROR(ended);
    }
    number += static_cast<std::uint64_t>(clients);
    (clients == 1 ? memory.one_rate : memory.rate) = rate;
    (clients == 1 ? memory.one : memory.most) = MemoryOf(server->pid(), "VmHWM");
    if (options.clients == 1) {
      memory.most = memory.one;
      memory.rate = rate;
    }
  }
  server->End();
  COHORT_RETURN_IF_ERROR(children.Wait());
  return memory;
}

// -------------------------------------------------------------------------------------------------

// gRPC has no part in this process before the last fork.
Status Run(const Options& options) {
  nlohmann::ordered_json report = {{"model", options.model},
                                   {"batch", options.batch},
                                   {"rounds", options.rounds},
                                   {"workers", nlohmann::ordered_json::array()},
                                   {"saves", nlohmann::ordered_json::array()}};
  if (!options.json) {
    std::printf(
        "%s, %d examples a worker and step, one server, medians of %d rounds; alone: as many "
        "processes that train models of their own; CPU: of all processes, microseconds an "
        "example\n%8s %12s %8s %12s %8s %14s %12s %8s %14s\n",
        options.model.c_str(), options.batch, options.rounds, "workers", "sync, ex/s", "CPU",
        "async, ex/s", "CPU", "async / sync", "alone, ex/s", "CPU", "async / alone");
  }
  for (const int workers : options.workers) {
    std::map<std::string, std::vector<double>> rates;
    std::map<std::string, std::vector<double>> cpus;
    std::vector<double> ratios;
    std::vector<double> to_alone;
    for (int round = 0; round < options.rounds; ++round) {
      for (const char* const consistency : {"sync", "async", kAlone}) {
        COHORT_ASSIGN_OR_RETURN(const Told told,
                                Train(options, {.workers = workers, .consistency = consistency}));
        rates[consistency].push_back(told.examples_per_second);
        cpus[consistency].push_back(1e6 * told.cpu_seconds);
      }
      ratios.push_back(rates["async"].back() / rates["sync"].back());
      to_alone.push_back(rates["async"].back() / rates[kAlone].back());
    }
    report["workers"].push_back({{"workers", workers},
                                 {"sync_examples_per_second", Median(rates["sync"])},
                                 {"async_examples_per_second", Median(rates["async"])},
                                 {"async_to_sync", Median(ratios)},
                                 {"sync_cpu_us_per_example", Median(cpus["sync"])},
                                 {"async_cpu_us_per_example", Median(cpus["async"])},
                                 {"alone_examples_per_second", Median(rates[kAlone])},
                                 {"alone_cpu_us_per_example", Median(cpus[kAlone])},
                                 {"async_to_alone", Median(to_alone)}});
    if (!options.json) {
      std::printf("%8d %12.0f %8.0f %12.0f %8.0f %14.2f %12.0f %8.0f %14.2f\n", workers,
                  Median(rates["sync"]), Median(cpus["sync"]), Median(rates["async"]),
                  Median(cpus["async"]), Median(ratios), Median(rates[kAlone]),
                  Median(cpus[kAlone]), Median(to_alone));
    }
  }
  if (!options.json) {
    std::printf(
        "a save each %lld steps, asynchronous, with a chief, one run each; ms, of which workers "
        "wait a part\n%8s %8s %12s %12s %12s\n",
        static_cast<long long>(options.save_steps), "workers", "saves", "mean", "longest",
        "a step");
  }
  for (const int workers : options.workers) {
    COHORT_ASSIGN_OR_RETURN(const Told told, Train(options, {.workers = workers,
                                                             .consistency = "async",
                                                             .save_steps = options.save_steps}));
    const double mean =
        told.pauses == 0 ? 0 : told.pause_seconds / static_cast<double>(told.pauses);
    // What a worker is at when the save is due.
    const double step = workers * options.batch / told.examples_per_second;
    report["saves"].push_back({{"workers", workers},
                               {"saves", told.pauses},
                               {"mean_pause_ms", 1e3 * mean},
                               {"longest_pause_ms", 1e3 * told.longest_pause},
                               {"step_ms", 1e3 * step}});
    if (!options.json) {
      std::printf("%8d %8lld %12.1f %12.1f %12.1f\n", workers, static_cast<long long>(told.pauses),
                  1e3 * mean, 1e3 * told.longest_pause, 1e3 * step);
    }
  }
  COHORT_ASSIGN_OR_RETURN(const Memory memory, MeasureMemory(options));
  report["memory"] = {{"variable_bytes", options.bytes},
                      {"clients", options.clients},
                      {"one_client_bytes", memory.one},
                      {"most_bytes", memory.most},
                      {"one_client_pushes_per_second", memory.one_rate},
                      {"pushes_per_second", memory.rate}};
  if (options.json) {
    std::printf("%s\n", report.dump().c_str());
    return {};
  }
  std::printf(
      "a server of %lld MiB with Adam: %lld MiB at most under one client (%.1f pushes/s), "
      "%lld MiB under %d at once (%.1f pushes/s together)\n",
      static_cast<long long>(options.bytes >> 20), static_cast<long long>(memory.one >> 20),
      memory.one_rate, static_cast<long long>(memory.most >> 20), options.clients, memory.rate);
  return {};
}

}  // namespace

std::int64_t MemoryOf(pid_t pid, const std::string& what) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  for (std::string name; status >> name;) {
    if (name == what + ":") {
      std::int64_t kib = 0;
      status >> kib;
      return kib << 10;
    }
  }
  return 0;
}

int BenchPsWorkersCommand(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Trains a network with parameter servers, in rounds and asynchronously, in turns with as "
      "many "
      "processes that train a model each; then with "
      "saves, for which workers stand still; then measures the memory of a server to which several "
      "clients push at once.",
      argv[0]);
  app.add_option("--workers", options.workers, "numbers of workers")
      ->delimiter(',')
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--model", options.model, "mlp or cnn")
      ->check(CLI::IsMember({"mlp", "cnn"}))
      ->capture_default_str();
  app.add_option("--batch", options.batch, "examples of a worker's step")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--examples", options.examples, "of an epoch")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 40))
      ->capture_default_str();
  app.add_option("--epochs", options.epochs, "all but the first count")
      ->check(CLI::Range(2, 1000))
      ->capture_default_str();
  app.add_option("--rounds", options.rounds, "the median of so many, in turns")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--save-steps", options.save_steps, "of all workers, between two saves")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  app.add_option("--clients", options.clients, "that push at once")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--bytes", options.bytes, "of the variable that they push")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(std::int64_t{4}, std::int64_t{1} << 32))
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "of pushing")
      ->check(CLI::Range(0.001, 600.0))
      ->capture_default_str();
  app.add_flag("--json", options.json, "machine-readable output");
  return ParseAndRun(app, argc, argv, [&] { return Run(options); });
}

}  // namespace cohort
