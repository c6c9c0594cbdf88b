#include "job.h"

#include <cohort/cluster/resolve.h>
#include <cohort/device/step_trace.h>
#include <cohort/io/crc32c.h>
#include <cohort/strategies/devices.h>
#include <cohort/strategies/parameter_server.h>
#include <fmt/format.h>
#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <map>
#include <memory>
#include <thread>

#include "job_metrics.h"

using cohort::Result;
using cohort::Status;

namespace {

std::atomic<bool> stop_requested = false;

std::chrono::milliseconds Seconds(double seconds) {
  return std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000));
}

std::function<std::unique_ptr<cohort::BucketHook>()> MakeCompression(const JobFlags& f) {
  if (f.compression == "powersgd") {
    return [rank = f.powersgd_rank, seed = f.seed] {
      return cohort::MakePowerSgdHook({.rank = rank, .seed = seed});
    };
  }
  if (f.compression == "none") {
    return nullptr;
  }
  const auto dtype = f.compression == "fp16" ? cohort::DType::kFloat16 : cohort::DType::kBFloat16;
  return [dtype] { return cohort::MakeCompressionHook({.dtype = dtype}); };
}

Result<cohort::StrategyOptions> MakeStrategyOptions(const JobFlags& f,
                                                    const cohort::ParameterSet& model) {
  cohort::StrategyOptions options;
  options.log = cohort::StderrLog("");
  COHORT_ASSIGN_OR_RETURN(options.cluster,
                          cohort::ResolveCluster({}, cohort::EnvironmentOf(options), options.log));
  COHORT_ASSIGN_OR_RETURN(options.consistency,
                          cohort::Consistency::Parse(f.synchronous_ps ? "sync" : f.consistency));
  // Do dense variables go to servers?
  COHORT_ASSIGN_OR_RETURN(const std::string kind,
                          cohort::Strategy::KindFromEnv(model, f.strategy, options));
  const bool servers = kind == "parameter_server";
  options.loss_scale = f.loss_scale == "sum"            ? cohort::LossScale::kSum
                       : f.loss_scale == "replica_mean" ? cohort::LossScale::kReplicaMean
                                                        : cohort::LossScale::kGlobalMean;
  if (PrecisionOf(f) == cohort::nn::Precision::kMixedFloat16) {
    options.grad_scaler.emplace();
  }
  options.communication.timeout = Seconds(f.communication_timeout);
  options.join_timeout = Seconds(f.join_timeout);
  options.rejoin_grace = Seconds(f.rejoin_grace);
  options.worker_patience = Seconds(f.worker_patience);
  options.min_workers = f.min_workers;
  options.journal_folder = f.checkpoint_dir;
  options.communication.transport = f.communication;
  options.communication.implementation = f.algorithm;
  options.communication.bind_host = f.bind_host;
  options.cross_device_ops = f.cross_device_ops;
  options.rails = f.rails;
  options.mpi_implementation = f.mpi_implementation;
  options.flight_folder = f.flight_folder;
  options.metrics = &ProcessMetrics();
  options.virtual_shards = f.virtual_shards;
  options.deterministic = f.deterministic;
  const std::map<std::string, cohort::DType> wires = {{"bf16", cohort::DType::kBFloat16},
                                                      {"fp16", cohort::DType::kFloat16},
                                                      {"int8", cohort::DType::kUInt8}};
  const auto wire = wires.find(f.compression);
  if (f.compression == "int8" && !servers) {
    return cohort::InvalidArgument("--compression int8 with --strategy '" + f.strategy +
                                   "' [it goes with --strategy parameter_server]");
  }
  if (f.compress_values && (!servers || wire == wires.end())) {
    return cohort::InvalidArgument(
        "--compress-values with --strategy '" + f.strategy + "' and --compression " +
        f.compression +
        " [it goes with --strategy parameter_server and --compression bf16, fp16 or int8]");
  }
  if (servers && wire != wires.end()) {
    options.server_wire = {.push = wire->second,
                           .pull = f.compress_values ? wire->second : cohort::DType::kFloat32};
  } else {
    options.make_bucket_hook = MakeCompression(f);
  }
  options.server_loss = f.server_loss == "replica"   ? cohort::ServerLoss::kReplica
                        : f.server_loss == "partial" ? cohort::ServerLoss::kPartial
                                                     : cohort::ServerLoss::kRollBack;
  options.lookahead = f.lookahead;
  COHORT_ASSIGN_OR_RETURN(options.partitioner, cohort::Partitioner::Parse(f.partitioner));
  COHORT_ASSIGN_OR_RETURN(options.start, cohort::StartPolicy::Parse(f.start));
  options.communication.bytes_per_pack = f.bytes_per_pack;
  options.intra_op_threads = f.threads;
  COHORT_RETURN_IF_ERROR(cohort::ChooseDevices(f.devices, f.strategy, options));
  return options;
}

// "10-19"
Result<std::pair<std::int64_t, std::int64_t>> ParseSteps(const std::string& text) {
  std::pair<std::int64_t, std::int64_t> steps;
  const char* const end = text.data() + text.size();
  const auto first = std::from_chars(text.data(), end, steps.first);
  if (first.ec == std::errc() && first.ptr != end && *first.ptr == '-') {
    const auto last = std::from_chars(first.ptr + 1, end, steps.second);
    if (last.ec == std::errc() && last.ptr == end && steps.first >= 0 &&
        steps.second >= steps.first) {
      return steps;
    }
  }
  return cohort::InvalidArgument("steps '" + text + "' [as 10-19]");
}

// steps.worker_1.json of the folder; nullptr where none is asked for.
Result<std::unique_ptr<cohort::StepTrace>> StartStepTrace(const JobFlags& f,
                                                          const cohort::Strategy& strategy) {
  if (f.step_trace.empty() || !strategy.trains()) {
    return std::unique_ptr<cohort::StepTrace>();
  }
  COHORT_ASSIGN_OR_RETURN(const auto steps, ParseSteps(f.traced_steps));
  const cohort::TaskId& task = strategy.cluster().task;
  std::string name = task.ToString();
  std::ranges::replace(name, ':', '_');
  cohort::StepTraceOptions options;
  options.path = f.step_trace + "/steps." + name + ".json";
  options.first_step = steps.first;
  options.last_step = steps.second;
  // As its flight record has.
  options.rank = strategy.kind() == "parameter_server" ? task.index
                                                       : strategy.input_context().input_pipeline_id;
  options.task = task.ToString();
  options.log = cohort::StderrLog("");
  if (!f.flight_folder.empty()) {
    options.written = [&strategy, log = options.log] {
      if (const auto path = strategy.DumpFlightRecord("step trace"); path.ok()) {
        log.Info("flight record: " + *path);
      }
    };
  }
  return cohort::StepTrace::Start(std::move(options));
}

// `kill -USR1 PID` tells where this process's collectives are: a thread waits for the signal, which
// all others, made after this was called, leave alone.
void BlockUsr1(sigset_t& signals) {
  sigemptyset(&signals);
  sigaddset(&signals, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

void DumpOnSignal(const std::stop_token& stop, const sigset_t& signals,
                  const cohort::Strategy& strategy) {
  const timespec slice = {0, 100'000'000};
  while (!stop.stop_requested()) {
    if (sigtimedwait(&signals, nullptr, &slice) == SIGUSR1) {
      const Result<std::string> path = strategy.DumpFlightRecord("SIGUSR1");
      std::fprintf(stderr, "flight record: %s\n",
                   path.ok() ? path->c_str() : path.status().ToString().c_str());
    }
  }
}

}  // namespace

void DeclareJobFlags(CLI::App& app, JobFlags& f) {
  app.add_option("--strategy", f.strategy,
                 "how replicas are kept one model (default: from the environment)")
      ->check(
          CLI::IsMember({"one_device", "mirrored", "multi_worker_mirrored", "parameter_server"}));
  app.add_option("--global-batch", f.global_batch, "examples in a batch, over all replicas")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seed", f.seed, "of initial values and order")->capture_default_str();
  app.add_option(
      "--devices", f.devices,
      "where this process's replicas run: a number of them on the CPU, or cuda (every GPU), "
      "cuda:local (a GPU for each process of a host), cuda:0, cuda:0/2 (two on one), "
      "cpu:2, with commas between (default: 1; of mirrored: every GPU there is)");
  app.add_option("--threads", f.threads, "threads of each replica (0: the cores, shared out)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--precision", f.precision,
                 "of products and what lies between them; parameters and updates are float32")
      ->check([](const std::string& text) {
        return cohort::nn::ParsePrecision(text).status().message();
      })
      ->capture_default_str();
  app.add_option("--loss-scale", f.loss_scale, "how gradients are combined")
      ->check(CLI::IsMember({"global_mean", "replica_mean", "sum"}))
      ->capture_default_str();
  app.add_option("--virtual-shards", f.virtual_shards,
                 "the same bits for every number of replicas that divides this power of two")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--deterministic", f.deterministic,
               "the same processes give the same bits in every run, whatever the buckets, the "
               "algorithm and the transport; what cannot is refused");
  app.add_option("--batches-per-step", f.batches_per_step, "whose gradients add up to one update")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--compression", f.compression, "of gradients between processes")
      ->check(CLI::IsMember({"none", "bf16", "fp16", "int8", "powersgd"}))
      ->capture_default_str();
  app.add_flag("--compress-values", f.compress_values,
               "parameter_server: values travel to workers as gradients from them");
  app.add_option("--powersgd-rank", f.powersgd_rank, "columns that a gradient matrix travels as")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--bytes-per-pack", f.bytes_per_pack,
                 "of gradients that travel together (0: adapted)")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--synchronous-ps", f.synchronous_ps, "the same as --consistency sync");
  app.add_option(
         "--consistency", f.consistency,
         "of parameter servers: async, ssp:STALENESS, sync, sync:BACKUP_WORKERS, or hybrid: "
         "workers in step by all-reduce, with only sparse tables on servers. auto: hybrid where "
         "the model has such tables, no chief leads and --strategy is left out, else async")
      ->check([](const std::string& text) {
        return cohort::Consistency::Parse(text).status().message();
      })
      ->excludes("--synchronous-ps")
      ->capture_default_str();
  app.add_option(
         "--server-loss", f.server_loss,
         "what goes back to the last save with a parameter server that is lost: the job, that "
         "server (partial; with consistency async), or nothing, since another server has a copy of "
         "its part (replica)")
      ->check(CLI::IsMember({"rollback", "partial", "replica"}))
      ->capture_default_str();
  app.add_option("--lookahead", f.lookahead,
                 "sparse tables on servers: batches of which a worker pulls the rows beforehand, "
                 "which are that much older under async and ssp; 0: none")
      ->check(CLI::Range(0, cohort::StrategyOptions::kMaxLookahead))
      ->capture_default_str();
  app.add_option("--partitioner", f.partitioner,
                 "how parameters are cut among parameter servers: pieces, fixed:SHARDS, "
                 "min:BYTES[:SHARDS], max:BYTES[:SHARDS]")
      ->capture_default_str();
  app.add_option("--start", f.start,
                 "workers that a parameter-server job waits for before it begins: all, quorum:N, "
                 "elastic")
      ->capture_default_str();
  app.add_option("--communication", f.communication, "how processes reach each other")
      ->check(CLI::IsMember({"auto", "shm", "tcp"}))
      ->capture_default_str();
  app.add_option("--all-reduce", f.algorithm,
                 "how processes add gradients: auto, or an algorithm of comm/README.md by name")
      // What the processes of a job offer is known when they have met; one alone never asks.
      ->check(CLI::IsMember({"auto", "direct", "recursive_doubling", "halving_doubling", "tree",
                             "ring", "hierarchical", "one_shot", "shared", "one_bucket", "mpi"}))
      ->capture_default_str();
  app.add_option(
         "--bind-host", f.bind_host,
         "host or address of this process at which the others reach it over TCP, instead of "
         "the interface that routes to the chief")
      ->envname("COHORT_BIND_HOST");
  app.add_option("--cross-device-ops", f.cross_device_ops, "how gradients of GPUs become one sum")
      ->check(CLI::IsMember({"auto", "nccl", "hierarchical_copy", "reduction_to_one_device"}))
      ->capture_default_str();
  app.add_option("--rails", f.rails,
                 "connections between two processes, where the network limits each of them")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--mpi-implementation", f.mpi_implementation,
                 "under mpirun: our algorithms, or MPI's")
      ->check(CLI::IsMember({"cohort", "mpi"}))
      ->capture_default_str();
  app.add_option("--checkpoint-dir", f.checkpoint_dir, "save here, and resume from what is there");
  app.add_option("--save-every-steps", f.save_every_steps, "besides at the end of each epoch")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--no-resume", f.no_resume, "refuse a checkpoint folder that is in use");
  app.add_flag("--data-allow-changed", f.data_allow_changed,
               "go on from a checkpoint of other data: its epoch is begun anew");
  app.add_option("--log-dir", f.log_dir, "TensorBoard curves");
  app.add_option("--metrics-json", f.metrics_json, "the chief writes its results here");
  app.add_option("--join-timeout", f.join_timeout, "seconds to wait for the other processes")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--rejoin-grace", f.rejoin_grace,
                 "seconds to wait for another process in a lost server's place")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--worker-patience", f.worker_patience,
                 "seconds to wait for another process in a lost worker's place, and to go on "
                 "without it then; of workers in step with tables on servers")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--min-workers", f.min_workers, "so many go on at least; with fewer the job ends")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--communication-timeout", f.communication_timeout,
                 "seconds one collective may take")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--flight-folder", f.flight_folder,
                 "where the last collectives are written when one fails, and on SIGUSR1");
  app.add_option("--step-trace", f.step_trace,
                 "a folder for timelines of some steps, one of each process: what it did, and its "
                 "GPUs. With --flight-folder its collectives are written too, after the last step");
  app.add_option("--traced-steps", f.traced_steps, "the first and the last of them")
      ->check([](const std::string& text) { return ParseSteps(text).status().message(); })
      ->capture_default_str();
  app.add_option("--metrics-port", f.metrics_port,
                 "where Prometheus scrapes this process: this port, plus its place among the "
                 "processes of its host (0: nowhere). With --log-dir the chief writes "
                 "metrics_targets.json there, which names them all")
      ->check(CLI::Range(0, 65535))
      ->envname("COHORT_METRICS_PORT")
      ->capture_default_str();
  app.add_option("--metrics-host", f.metrics_host,
                 "address that it listens on; 0.0.0.0: other hosts may scrape, too")
      ->envname("COHORT_METRICS_HOST")
      ->capture_default_str();
  app.add_flag("--quiet", f.quiet, "no progress");
}

cohort::nn::Precision PrecisionOf(const JobFlags& f) {
  return cohort::OrThrow(cohort::nn::ParsePrecision(f.precision));
}

cohort::TrainerOptions MakeTrainerOptions(const JobFlags& f) {
  cohort::TrainerOptions options;
  options.batches_per_step = f.batches_per_step;
  options.checkpoint_dir = f.checkpoint_dir;
  options.save_every_steps = f.save_every_steps;
  options.resume = !f.no_resume;
  options.allow_changed_data = f.data_allow_changed;
  options.seed = f.seed;
  options.log_dir = f.log_dir;
  options.stop = &stop_requested;
  options.metrics = &ProcessMetrics();
  options.log = cohort::StderrLog("");
  if (!f.quiet) {
    options.progress = cohort::ConsoleProgress();
  }
  std::signal(SIGTERM, [](int) { stop_requested = true; });
  return options;
}

Status RunJob(const JobFlags& f, const std::function<Status(cohort::Strategy&)>& train) {
  return RunJob(f, cohort::ParameterSet(), train);
}

Status RunJob(const JobFlags& f, const cohort::ParameterSet& model,
              const std::function<Status(cohort::Strategy&)>& train) {
  sigset_t signals;
  BlockUsr1(signals);
  COHORT_ASSIGN_OR_RETURN(cohort::StrategyOptions options, MakeStrategyOptions(f, model));
  // It answers while this process waits for the others.
  COHORT_ASSIGN_OR_RETURN(const auto server, ServeMetrics(f, *options.cluster, options.log));
  COHORT_ASSIGN_OR_RETURN(const auto strategy,
                          cohort::Strategy::FromEnv(model, f.strategy, options));
  if (auto* servers = dynamic_cast<cohort::ParameterServerStrategy*>(strategy.get())) {
    servers->CountIn(ProcessMetrics());
  }
  const std::jthread dumper(
      [&](const std::stop_token& stop) { DumpOnSignal(stop, signals, *strategy); });
  Status status;
  {
    const auto trace = StartStepTrace(f, *strategy);
    status = trace.ok() ? train(*strategy) : trace.status();
  }
  if (status.ok()) {
    status = strategy->Shutdown();
  }
  if (status.code() == cohort::StatusCode::kCancelled) {
    (void)strategy->Shutdown();  // all stopped after the same step: the others leave too
  } else if (!status.ok()) {
    strategy->ReportError(status);  // the others end with this reason too
  }
  return status;
}

Result<nlohmann::json> JobMetrics(cohort::Strategy& strategy,
                                  const cohort::ParameterSet& parameters,
                                  const cohort::History& history) {
  nlohmann::json losses = nlohmann::json::array();
  for (const cohort::EpochResult& epoch : history.epochs) {
    losses.push_back(epoch.loss);
  }
  nlohmann::json metrics = {
      {"strategy", strategy.kind()},
      {"replicas", strategy.num_replicas_in_sync()},
      {"steps", history.steps},
      {"examples", history.examples},
      {"seconds", history.seconds},
      {"exposed_communication_seconds", history.exposed_communication_seconds},
      {"input_seconds", history.input_seconds},
      {"examples_per_second", history.examples_per_second()},
      {"parameters_crc32c",
       fmt::format("{:08x}", cohort::io::Crc32c(std::as_bytes(parameters.all())))},
      {"epoch_losses", losses},
      {"checkpoint", history.checkpoint}};
  if (const cohort::GradScaler* const scaler = strategy.grad_scaler(); scaler != nullptr) {
    metrics["grad_scaler"] = {{"scale", scaler->scale()}, {"skipped", scaler->state().skipped}};
  }
  if (auto* servers = dynamic_cast<cohort::ParameterServerStrategy*>(&strategy)) {
    COHORT_ASSIGN_OR_RETURN(const cohort::ParameterServerStats stats, servers->stats());
    metrics["parameter_server"] = {{"consistency", servers->consistency().ToString()},
                                   {"pushes", stats.pushes},
                                   {"repeated", stats.duplicates},
                                   {"rejected", stats.rejected},
                                   {"mean_staleness", stats.mean_staleness},
                                   {"max_staleness", stats.max_staleness},
                                   {"late", stats.late},
                                   {"parked_reads", stats.parked},
                                   {"max_lead", stats.max_lead},
                                   {"lost_updates", stats.lost_updates},
                                   {"foreseen", stats.foreseen},
                                   {"refreshed_rows", stats.refreshed_rows},
                                   {"save_pauses", stats.save_pauses},
                                   {"longest_save_pause_seconds", stats.longest_save_pause_seconds},
                                   {"moved_buckets", stats.moved_buckets},
                                   {"dropped_residuals", stats.dropped_residuals}};
  }
  return metrics;
}

Status WriteMetrics(const JobFlags& f, const nlohmann::json& metrics) {
  if (const std::string checkpoint = metrics.value("checkpoint", ""); !checkpoint.empty()) {
    std::printf("checkpoint: %s\n", checkpoint.c_str());
  }
  if (!f.log_dir.empty()) {
    std::printf("curves:     tensorboard --logdir %s\n", f.log_dir.c_str());
  }
  if (f.metrics_json.empty()) {
    return {};
  }
  std::printf("metrics:    %s\n", f.metrics_json.c_str());
  return cohort::WriteFileAtomically(cohort::FileSystem::Local(), f.metrics_json,
                                     metrics.dump(2) + "\n");
}

int RunProgram(const std::string& name, CLI::App& app, int argc, char** argv,
               const std::function<Status()>& run) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  // Freed memory stays mapped: a step that pays for page faults is a third slower.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  const Status status = run();
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", name.c_str(), status.ToString().c_str());
  }
  return cohort::ExitCode(status);
}
