// Trains an image classifier under any strategy, and says how well it did.
//
// One process:                   image_classifier --data DIR --model cnn --epochs 5
// Two replicas in it:            image_classifier --data DIR --strategy mirrored --devices 2
// On every GPU there is:         image_classifier --data DIR --strategy mirrored
// On one GPU, as two replicas:   image_classifier --data DIR --devices cuda:0/2
// Two processes under MPI:       mpirun -n 2 image_classifier --data DIR
// Two processes without MPI:     cohort launch -n 2 -- image_classifier --data DIR
// Workers and servers:           cohort launch -n 2 --ps 2 --chief -- image_classifier --data DIR
//
// DIR holds MNIST's four files, or any data set in its format. Without --data the program draws
// digits itself.

#include <cohort/cohort.h>
#include <cohort/data/digits.h>
#include <cohort/data/idx.h>
#include <cohort/io/crc32c.h>
#include <cohort/nn/losses.h>
#include <cohort/nn/metrics.h>
#include <cohort/nn/models.h>
#include <cohort/strategies/devices.h>
#include <cohort/strategies/parameter_server.h>
#include <fmt/format.h>
#include <malloc.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

namespace {

using cohort::Result;
using cohort::Status;

struct Flags {
  std::string data;
  std::string strategy;
  std::string model = "cnn";
  std::int64_t hidden = 512;
  std::int64_t global_batch = 64;
  int epochs = 5;
  std::uint64_t seed = 1;
  int classes = 0;
  std::string devices;
  int threads = 0;
  std::string optimizer = "adam";
  double learning_rate = 0.001;
  std::string loss_scale = "global_mean";
  bool synchronous_ps = false;
  std::string consistency;
  std::string communication = "auto";
  int virtual_shards = 0;
  int batches_per_step = 1;
  std::string compression = "none";
  int powersgd_rank = 4;
  std::int64_t bucket_bytes = 0;
  std::string mpi_implementation = "cohort";
  std::string checkpoint_dir;
  std::int64_t save_every_steps = 0;
  bool no_resume = false;
  std::string log_dir;
  std::string metrics_json;
  double join_timeout = 300;
  double rejoin_grace = 60;
  double collective_timeout = 120;
  std::string flight_folder;
  bool quiet = false;
};

std::atomic<bool> stop_requested = false;

void DeclareFlags(CLI::App& app, Flags& f) {
  app.add_option("--data", f.data,
                 "folder with MNIST's four files (default: digits drawn by the program)");
  app.add_option("--strategy", f.strategy,
                 "how replicas are kept one model (default: from the environment)")
      ->check(
          CLI::IsMember({"one_device", "mirrored", "multi_worker_mirrored", "parameter_server"}));
  app.add_option("--model", f.model, "network")
      ->check(CLI::IsMember({"linear", "mlp", "cnn"}))
      ->capture_default_str();
  app.add_option("--hidden", f.hidden, "units of each hidden layer of mlp")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--global-batch", f.global_batch, "examples in a batch, over all replicas")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--epochs", f.epochs, "passes over the data")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--seed", f.seed, "of initial values and order")->capture_default_str();
  app.add_option("--classes", f.classes, "number of classes (default: the largest label + 1)")
      ->check(CLI::PositiveNumber);
  app.add_option("--devices", f.devices,
                 "of each process's replicas: a number of them on the CPU, or cuda, cuda:0, "
                 "cuda:0/2 (two on one), cpu:2, with commas between (default: 1; of mirrored: "
                 "every GPU there is)");
  app.add_option("--threads", f.threads, "threads of each replica (default: the cores, shared out)")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--optimizer", f.optimizer, "update rule")
      ->check(CLI::IsMember({"sgd", "momentum", "adagrad", "rmsprop", "adam", "adamw", "ftrl"}))
      ->capture_default_str();
  app.add_option("--learning-rate", f.learning_rate)
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--loss-scale", f.loss_scale, "how gradients are combined")
      ->check(CLI::IsMember({"global_mean", "replica_mean", "sum"}))
      ->capture_default_str();
  app.add_option("--virtual-shards", f.virtual_shards,
                 "the same bits for every number of replicas that divides this power of two")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--batches-per-step", f.batches_per_step, "whose gradients add up to one update")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--compression", f.compression, "of gradients between processes")
      ->check(CLI::IsMember({"none", "bf16", "fp16", "powersgd"}))
      ->capture_default_str();
  app.add_option("--powersgd-rank", f.powersgd_rank, "columns that a gradient matrix travels as")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--bucket-bytes", f.bucket_bytes, "of gradients that travel together (0: adapted)")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--synchronous-ps", f.synchronous_ps, "the same as --consistency sync");
  app.add_option("--consistency", f.consistency,
                 "of parameter servers: async, ssp:STALENESS, sync, sync:BACKUP_WORKERS")
      ->check([](const std::string& text) {
        return cohort::Consistency::Parse(text).status().message();
      })
      ->excludes("--synchronous-ps");
  app.add_option("--communication", f.communication, "how processes reach each other")
      ->check(CLI::IsMember({"auto", "shm", "tcp"}))
      ->capture_default_str();
  app.add_option("--mpi-implementation", f.mpi_implementation,
                 "under mpirun: our algorithms, or MPI's")
      ->check(CLI::IsMember({"cohort", "mpi"}))
      ->capture_default_str();
  app.add_option("--checkpoint-dir", f.checkpoint_dir, "save here, and resume from what is there");
  app.add_option("--save-every-steps", f.save_every_steps, "besides at the end of each epoch")
      ->check(CLI::NonNegativeNumber);
  app.add_flag("--no-resume", f.no_resume, "refuse a checkpoint folder that is in use");
  app.add_option("--log-dir", f.log_dir, "TensorBoard curves");
  app.add_option("--metrics-json", f.metrics_json, "the chief writes its results here");
  app.add_option("--join-timeout", f.join_timeout, "seconds to wait for the other processes")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--rejoin-grace", f.rejoin_grace,
                 "seconds to wait for another process in a lost server's place")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--collective-timeout", f.collective_timeout, "seconds one collective may take")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--flight-folder", f.flight_folder,
                 "where the last collectives are written when one fails, and on SIGUSR1");
  app.add_flag("--quiet", f.quiet, "no progress");
}

std::chrono::milliseconds Seconds(double seconds) {
  return std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000));
}

std::function<std::unique_ptr<cohort::BucketHook>()> MakeCompression(const Flags& f) {
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

Result<cohort::StrategyOptions> MakeStrategyOptions(const Flags& f) {
  cohort::StrategyOptions options;
  options.loss_scale = f.loss_scale == "sum"            ? cohort::LossScale::kSum
                       : f.loss_scale == "replica_mean" ? cohort::LossScale::kReplicaMean
                                                        : cohort::LossScale::kGlobalMean;
  options.collective_timeout = Seconds(f.collective_timeout);
  options.join_timeout = Seconds(f.join_timeout);
  options.rejoin_grace = Seconds(f.rejoin_grace);
  options.communication.implementation = f.communication;
  options.mpi_implementation = f.mpi_implementation;
  options.flight_folder = f.flight_folder;
  options.consistency =
      cohort::OrThrow(cohort::Consistency::Parse(f.synchronous_ps        ? "sync"
                                                 : f.consistency.empty() ? "async"
                                                                         : f.consistency));
  options.virtual_shards = f.virtual_shards;
  options.make_bucket_hook = MakeCompression(f);
  options.bucket_bytes = f.bucket_bytes;
  options.intra_op_threads = f.threads;
  options.environment = cohort::Environment::OfProcess();
  options.log = cohort::StderrLog("");
  COHORT_RETURN_IF_ERROR(cohort::ChooseDevices(f.devices, f.strategy, options));
  return options;
}

Result<std::unique_ptr<cohort::Optimizer>> MakeOptimizer(const Flags& f) {
  nlohmann::json config = {{"name", f.optimizer}, {"learning_rate", f.learning_rate}};
  if (f.optimizer == "momentum") {
    config["name"] = "sgd";
    config["momentum"] = 0.9;
  }
  return cohort::MakeOptimizer(config.dump());
}

// Forward, loss, backward, on whatever part of a batch the replica is given. The same function
// trains and evaluates.
cohort::StepFn MakeStep(const cohort::nn::ImageModel& model, cohort::nn::Workspaces& workspaces,
                        bool training) {
  return [&model, &workspaces, training](
             cohort::ReplicaContext& context,
             const cohort::data::Batch& batch) -> Result<cohort::ReplicaResult> {
    cohort::nn::Tape tape(
        context.parameters, context.stream, workspaces.For(context.local_replica, context.device),
        {.training = training, .step = context.step, .intra_op_threads = context.intra_op_threads});
    const auto logits = model.Logits(tape.Input(batch["image"]));
    const auto loss = cohort::nn::SoftmaxCrossEntropy(logits, batch["label"]);
    if (training) {
      tape.Backward(loss, context.gradients);
    }
    const auto scores = tape.Fetch(logits);
    const auto mean = tape.Fetch(loss);
    COHORT_RETURN_IF_ERROR(tape.Finish());
    COHORT_ASSIGN_OR_RETURN(const auto accuracy, cohort::nn::Accuracy(scores, batch["label"]));
    const auto examples = static_cast<double>(batch.size);
    return cohort::ReplicaResult{.loss_sum = mean.data<float>()[0] * examples,
                                 .weight = examples,
                                 .metric_sums = {accuracy.sum}};
  };
}

Status WriteMetrics(const Flags& f, cohort::Strategy& strategy,
                    const cohort::ParameterSet& parameters, const cohort::History& history,
                    const cohort::EpochResult& test) {
  nlohmann::json losses = nlohmann::json::array();
  for (const cohort::EpochResult& epoch : history.epochs) {
    losses.push_back(epoch.loss);
  }
  const double accuracy = test.metrics.empty() ? 0 : test.metrics[0];
  nlohmann::json metrics = {
      {"strategy", strategy.kind()},
      {"model", f.model},
      {"replicas", strategy.num_replicas_in_sync()},
      {"steps", history.steps},
      {"examples", history.examples},
      {"loss", test.loss},
      {"accuracy", accuracy},
      {"seconds", history.seconds},
      {"exposed_communication_seconds", history.exposed_communication_seconds},
      {"examples_per_second", history.examples_per_second()},
      {"parameters_crc32c",
       fmt::format("{:08x}", cohort::io::Crc32c(std::as_bytes(parameters.all())))},
      {"epoch_losses", losses},
      {"checkpoint", history.checkpoint}};
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
                                   {"max_lead", stats.max_lead}};
  }
  std::printf(
      "%s, %s, %d replicas: test accuracy %.4f, loss %.4f; %lld steps, %.0f examples in %.1f s "
      "(%.0f examples/s)\n",
      f.model.c_str(), std::string(strategy.kind()).c_str(), strategy.num_replicas_in_sync(),
      accuracy, test.loss, static_cast<long long>(history.steps), history.examples, history.seconds,
      history.examples_per_second());
  if (!history.checkpoint.empty()) {
    std::printf("checkpoint: %s\n", history.checkpoint.c_str());
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

Status Train(const Flags& f, cohort::Strategy& strategy,
             const cohort::data::ImageClassification& images) {
  cohort::ParameterSet parameters;
  const int classes = f.classes > 0 ? f.classes : images.num_classes;
  COHORT_ASSIGN_OR_RETURN(
      const auto model,
      cohort::nn::MakeImageModel(f.model, parameters,
                                 {.classes = classes, .hidden = f.hidden, .seed = f.seed}));
  parameters.Build();
  COHORT_ASSIGN_OR_RETURN(auto optimizer, MakeOptimizer(f));
  COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, std::move(optimizer)));

  cohort::TrainerOptions options;
  options.epochs = f.epochs;
  options.batches_per_step = f.batches_per_step;
  options.metric_names = {"accuracy"};
  options.checkpoint_dir = f.checkpoint_dir;
  options.save_every_steps = f.save_every_steps;
  options.resume = !f.no_resume;
  options.seed = f.seed;
  options.log_dir = f.log_dir;
  options.stop = &stop_requested;
  options.log = cohort::StderrLog("");
  if (!f.quiet) {
    options.progress = cohort::ConsoleProgress();
  }
  // From here on the state can be saved; before, a signal just ends the process.
  std::signal(SIGTERM, [](int) { stop_requested = true; });
  cohort::nn::Workspaces workspaces;
  cohort::Trainer trainer(strategy, parameters, std::move(options));
  const auto training = images.train.Shuffle(f.seed).Batch(f.global_batch).Prefetch(2);
  COHORT_ASSIGN_OR_RETURN(const cohort::History history,
                          trainer.Fit(training, MakeStep(*model, workspaces, true)));
  COHORT_ASSIGN_OR_RETURN(
      const cohort::EpochResult test,
      trainer.Evaluate(images.test.Batch(std::max<std::int64_t>(256, f.global_batch)),
                       MakeStep(*model, workspaces, false)));
  if (strategy.is_chief()) {
    COHORT_RETURN_IF_ERROR(WriteMetrics(f, strategy, parameters, history, test));
  }
  return strategy.Shutdown();
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

Status Run(const Flags& f) {
  sigset_t signals;
  BlockUsr1(signals);
  COHORT_ASSIGN_OR_RETURN(const cohort::StrategyOptions options, MakeStrategyOptions(f));
  COHORT_ASSIGN_OR_RETURN(const auto strategy, cohort::Strategy::FromEnv(f.strategy, options));
  const std::jthread dumper(
      [&](const std::stop_token& stop) { DumpOnSignal(stop, signals, *strategy); });
  const auto work = [&]() -> Status {
    cohort::data::ImageClassification images = cohort::data::GenerateImageClassification();
    if (!f.data.empty()) {
      COHORT_ASSIGN_OR_RETURN(images, cohort::data::LoadImageClassification(f.data));
    }
    return Train(f, *strategy, images);
  };
  Status status = work();
  if (status.code() == cohort::StatusCode::kCancelled) {
    (void)strategy->Shutdown();  // all stopped after the same step: the others leave too
  } else if (!status.ok()) {
    strategy->ReportError(status);  // the others end with this reason too
  }
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Trains an image classifier under any strategy.");
  DeclareFlags(app, flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  // Freed memory stays mapped: a step that pays for page faults is a third slower.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  const Status status = Run(flags);
  if (!status.ok()) {
    std::fprintf(stderr, "image_classifier: %s\n", status.ToString().c_str());
  }
  return cohort::ExitCode(status);
}
