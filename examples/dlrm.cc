// DLRM on a click log: 13 integers through a bottom network, 26 categories through embeddings that
// parameter servers hold, inner products of all pairs, a top network.
//
// One process:           dlrm
// Workers and servers:   cohort launch -n 2 --ps 2 --chief -- dlrm
// Workers in step:       cohort launch -n 2 --ps 2 -- dlrm --strategy multi_worker_mirrored
// Criteo's log:          dlrm --data day_0 day_1 --test-data day_2
//
// Without --data the log is generated (cohort/data/clicks.h): ids by Zipf's law, clicks with known
// probabilities, so that the area under the curve has a known best value, which the program prints
// beside its own.
//
// Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation
// Systems", 2019.

#include <cohort/cohort.h>
#include <cohort/data/clicks.h>
#include <cohort/data/criteo.h>
#include <cohort/nn/losses.h>
#include <cohort/nn/metrics.h>
#include <cohort/nn/models.h>
#include <cohort/strategies/devices.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

namespace {

using cohort::Result;
using cohort::Status;
using cohort::Tensor;
namespace nn = cohort::nn;

struct Flags {
  std::vector<std::string> data;
  std::vector<std::string> test_data;
  bool csv = false;
  std::int64_t examples = 1'000'000;
  std::int64_t test = 100'000;
  std::int64_t ids = 10'000'000;
  double zipf = 1.05;
  std::string strategy;
  std::int64_t global_batch = 256;
  int epochs = 1;
  std::uint64_t seed = 1;
  std::string devices;
  int intra_op_threads = 1;  // the other cores draw clicks
  std::int64_t embedding = 16;
  double learning_rate = 0.05;
  double row_learning_rate = 1;
  std::string wire = "float32";
  std::string compression = "none";
  std::string partitioner = "pieces";
  std::string start = "all";
  std::string checkpoint_dir;
  std::string metrics_json;
  double join_timeout = 300;
  double rejoin_grace = 60;
  bool quiet = false;
};

void DeclareFlags(CLI::App& app, Flags& f) {
  auto* const data = app.add_option(
      "--data", f.data, "files of Criteo's format to train on, gzip or not (default: generated)");
  app.add_option("--test-data", f.test_data, "files to test on (default: the end of --data)")
      ->needs(data);
  app.add_flag("--csv", f.csv, "the files have commas for tabs, and a header line")->needs(data);
  app.add_option("--examples", f.examples, "clicks to train on, where they are generated")
      ->check(CLI::Range(1000LL, 1LL << 40))
      ->excludes(data)
      ->capture_default_str();
  app.add_option("--test", f.test, "clicks to test on, after those")
      ->check(CLI::Range(10, 100'000'000))
      ->capture_default_str();
  app.add_option("--ids", f.ids, "values of all categories together, where they are generated")
      ->check(CLI::Range(1LL, 1LL << 32))
      ->excludes(data)
      ->capture_default_str();
  app.add_option("--zipf", f.zipf, "exponent of their popularity, where they are generated")
      ->check(CLI::Range(0.0, 4.0))
      ->excludes(data)
      ->capture_default_str();
  app.add_option("--strategy", f.strategy,
                 "how replicas are kept one model (default: from the environment)")
      ->check(
          CLI::IsMember({"one_device", "mirrored", "multi_worker_mirrored", "parameter_server"}));
  app.add_option("--global-batch", f.global_batch, "clicks in a batch")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--epochs", f.epochs, "passes over the clicks")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--seed", f.seed, "of the clicks and the initial values")->capture_default_str();
  app.add_option("--devices", f.devices,
                 "of each process's replicas: a number of them on the CPU, or cuda:0, cuda:0/2, "
                 "cpu:2 (default: 1; of mirrored: every GPU there is)");
  app.add_option("--intra-op-threads", f.intra_op_threads,
                 "threads of a replica (0: its share of the cores)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--embedding", f.embedding, "floats of a category's vector")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--learning-rate", f.learning_rate, "of the dense networks' Adagrad")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--row-learning-rate", f.row_learning_rate, "of the embeddings' Adagrad")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--wire", f.wire, "how rows travel between workers and servers")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16", "int8"}))
      ->capture_default_str();
  app.add_option("--compression", f.compression,
                 "parameter_server: how gradients of the dense networks travel to servers")
      ->check(CLI::IsMember({"none", "bf16", "fp16", "int8"}))
      ->capture_default_str();
  app.add_option("--partitioner", f.partitioner,
                 "parameter_server: how the dense networks' parameters are cut: pieces, "
                 "fixed:SHARDS, min:BYTES[:SHARDS], max:BYTES[:SHARDS]")
      ->capture_default_str();
  app.add_option("--start", f.start,
                 "parameter_server: workers that are waited for before it begins: all, quorum:N, "
                 "elastic")
      ->capture_default_str();
  app.add_option("--checkpoint-dir", f.checkpoint_dir, "save here, and resume from what is there");
  app.add_option("--metrics-json", f.metrics_json, "the chief writes its results here");
  app.add_option("--join-timeout", f.join_timeout, "seconds to wait for the other processes")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--rejoin-grace", f.rejoin_grace,
                 "seconds to wait for another process in a lost server's place")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_flag("--quiet", f.quiet, "no progress");
}

cohort::data::ClicksOptions TrainClicks(const Flags& f) {
  return {.count = f.examples, .seed = f.seed, .ids = f.ids, .zipf = f.zipf};
}
cohort::data::ClicksOptions TestClicks(const Flags& f) {
  return {.count = f.test, .seed = f.seed, .first = f.examples, .ids = f.ids, .zipf = f.zipf};
}

// An example of a file as generated ones are: an id has its category's number in the bits from 32,
// behind those of the categories that of an empty one.
Status LikeGenerated(cohort::data::Example& example) {
  Tensor ids = example.at("sparse");
  const std::span<std::int64_t> values = ids.data<std::int64_t>();
  for (std::size_t f = 0; f < values.size(); ++f) {
    const std::size_t number = values[f] < 0 ? f + values.size() : f;
    values[f] = static_cast<std::int64_t>(number << 32) | std::max<std::int64_t>(values[f], 0);
  }
  example["categories"] = ids;
  example["integers"] = example.at("dense");
  example.erase("sparse");
  example.erase("dense");
  return {};
}

Result<cohort::data::Dataset> Lines(const Flags& f, const std::vector<std::string>& files) {
  return cohort::data::TextLines(
      files, {.decoder = cohort::data::CriteoLine({.delimiter = f.csv ? ',' : '\t'}),
              .skip_lines = f.csv ? 1 : 0});
}

struct Clicks {
  cohort::data::Dataset training;
  cohort::data::Dataset test;
};

// In the order of the files, or of the generator: clicks come in no other.
Result<Clicks> ClicksOf(const Flags& f) {
  if (f.data.empty()) {
    return Clicks{cohort::data::GeneratedClicks(TrainClicks(f)),
                  cohort::data::GeneratedClicks(TestClicks(f))};
  }
  COHORT_ASSIGN_OR_RETURN(const cohort::data::Dataset lines, Lines(f, f.data));
  if (!f.test_data.empty()) {
    COHORT_ASSIGN_OR_RETURN(const cohort::data::Dataset test, Lines(f, f.test_data));
    return Clicks{lines.Map(LikeGenerated), test.Map(LikeGenerated)};
  }
  const std::int64_t training = lines.size() - f.test;
  if (training <= 0) {
    return cohort::InvalidArgument("--data has " + std::to_string(lines.size()) +
                                   " clicks, of which --test " + std::to_string(f.test) +
                                   " leaves none to train on [--test-data, or a smaller --test]");
  }
  return Clicks{lines.Take(training).Map(LikeGenerated), lines.Skip(training).Map(LikeGenerated)};
}

nn::DlrmOptions ModelOptions(const Flags& f) {
  return {.width = f.embedding,
          .table = {.optimizer = cohort::Adagrad({.learning_rate = f.row_learning_rate})->config(),
                    .initializer = {cohort::RowInitializer::Kind::kNormal, 0.05},
                    .wire = f.wire == "int8"       ? cohort::TableSpec::Wire::kInt8
                            : f.wire == "bfloat16" ? cohort::TableSpec::Wire::kBFloat16
                            : f.wire == "float16"  ? cohort::TableSpec::Wire::kFloat16
                                                   : cohort::TableSpec::Wire::kFloat32},
          .seed = f.seed};
}

// Forward, loss, backward on a part of a batch. The same function trains and evaluates.
cohort::StepFn MakeStep(const nn::Dlrm& model, nn::Workspaces& workspaces, bool training) {
  return [&model, &workspaces, training](
             cohort::ReplicaContext& context,
             const cohort::data::Batch& batch) -> Result<cohort::ReplicaResult> {
    nn::Tape tape(
        context.parameters, context.stream, workspaces.For(context.local_replica, context.device),
        {.training = training, .step = context.step, .intra_op_threads = context.intra_op_threads});
    const auto loss = nn::SigmoidCrossEntropy(
        model.Logits(tape, batch["integers"], batch["categories"]), batch["label"]);
    if (training) {
      tape.Backward(loss, context.gradients);
    }
    COHORT_RETURN_IF_ERROR(tape.Finish());
    const auto examples = static_cast<double>(batch.size);
    return cohort::ReplicaResult{
        .loss_sum = loss.value() * examples, .weight = examples, .metric_sums = {}};
  };
}

// Log-odds, and labels: [batch, 2].
cohort::PredictFn MakePredict(const nn::Dlrm& model, nn::Workspaces& workspaces) {
  return [&model, &workspaces](cohort::ReplicaContext& context,
                               const cohort::data::Batch& batch) -> Result<Tensor> {
    nn::Tape tape(context.parameters, context.stream,
                  workspaces.For(context.local_replica, context.device),
                  {.training = false, .intra_op_threads = context.intra_op_threads});
    const auto chance = nn::Sigmoid(model.Logits(tape, batch["integers"], batch["categories"]));
    const Tensor chances = tape.Fetch(chance);
    COHORT_RETURN_IF_ERROR(tape.Finish());
    Tensor rows(cohort::DType::kFloat32, {batch.size, 2});
    for (std::size_t i = 0; i < static_cast<std::size_t>(batch.size); ++i) {
      rows.data<float>()[2 * i] = chances.data<float>()[i];
      rows.data<float>()[2 * i + 1] = batch["label"].data<float>()[i];
    }
    return rows;
  };
}

Result<double> AucOf(const Tensor& rows) {
  const std::int64_t count = rows.shape()[0];
  std::vector<float> chances;
  Tensor labels(cohort::DType::kInt64, {count});
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    chances.push_back(rows.data<float>()[2 * i]);
    labels.data<std::int64_t>()[i] = rows.data<float>()[2 * i + 1] > 0.5F ? 1 : 0;
  }
  nn::Auc auc(10'000);
  COHORT_RETURN_IF_ERROR(auc.Add(chances, labels));
  return auc.value();
}

Status Report(const Flags& f, const cohort::Strategy& strategy, const cohort::History& history,
              const cohort::EpochResult& test, double auc) {
  std::printf("%s: test AUC %.4f, loss %.4f; %lld steps, %.0f clicks in %.1f s (%.0f clicks/s)\n",
              std::string(strategy.kind()).c_str(), auc, test.loss,
              static_cast<long long>(history.steps), history.examples, history.seconds,
              history.examples_per_second());
  if (!history.checkpoint.empty()) {
    std::printf("checkpoint: %s\n", history.checkpoint.c_str());
  }
  nlohmann::json metrics = {{"strategy", strategy.kind()},
                            {"steps", history.steps},
                            {"examples", history.examples},
                            {"loss", test.loss},
                            {"auc", auc},
                            {"seconds", history.seconds},
                            {"examples_per_second", history.examples_per_second()},
                            {"checkpoint", history.checkpoint}};
  if (f.data.empty()) {
    const double best = cohort::data::BayesAuc(TestClicks(f));
    const double excess = (auc - 0.5) / (best - 0.5);
    std::printf("best possible AUC %.4f, of whose excess over 0.5 that is %.1f %%\n", best,
                100 * excess);
    metrics["bayes_auc"] = best;
    metrics["of_bayes_excess"] = excess;
  }
  return f.metrics_json.empty()
             ? cohort::OkStatus()
             : cohort::WriteFileAtomically(cohort::FileSystem::Local(), f.metrics_json,
                                           metrics.dump(2) + "\n");
}

Status Train(const Flags& f, cohort::Strategy& strategy) {
  cohort::ParameterSet parameters;
  const nn::Dlrm model(parameters, ModelOptions(f));
  parameters.Build();
  COHORT_RETURN_IF_ERROR(
      strategy.Bind(parameters, cohort::Adagrad({.learning_rate = f.learning_rate})));

  cohort::TrainerOptions options;
  options.epochs = f.epochs;
  options.checkpoint_dir = f.checkpoint_dir;
  options.seed = f.seed;
  options.log = cohort::StderrLog("");
  if (!f.quiet) {
    options.progress = cohort::ConsoleProgress();
  }
  nn::Workspaces workspaces;
  cohort::Trainer trainer(strategy, parameters, std::move(options));
  COHORT_ASSIGN_OR_RETURN(const Clicks clicks, ClicksOf(f));
  const auto training = clicks.training.Batch(f.global_batch).Prefetch(2);
  COHORT_ASSIGN_OR_RETURN(const cohort::History history,
                          trainer.Fit(training, MakeStep(model, workspaces, true)));
  const auto test = clicks.test.Batch(2048).Prefetch(2);
  COHORT_ASSIGN_OR_RETURN(const cohort::EpochResult result,
                          trainer.Evaluate(test, MakeStep(model, workspaces, false)));
  COHORT_ASSIGN_OR_RETURN(const Tensor rows, trainer.Predict(test, MakePredict(model, workspaces)));
  if (strategy.is_chief()) {
    COHORT_ASSIGN_OR_RETURN(const double auc, AucOf(rows));
    COHORT_RETURN_IF_ERROR(Report(f, strategy, history, result, auc));
  }
  return strategy.Shutdown();
}

Status Run(const Flags& f) {
  cohort::StrategyOptions options;
  options.intra_op_threads = f.intra_op_threads;
  options.join_timeout =
      std::chrono::milliseconds(static_cast<std::int64_t>(f.join_timeout * 1000));
  options.server_wire.push = f.compression == "bf16"   ? cohort::DType::kBFloat16
                             : f.compression == "fp16" ? cohort::DType::kFloat16
                             : f.compression == "int8" ? cohort::DType::kUInt8
                                                       : cohort::DType::kFloat32;
  COHORT_ASSIGN_OR_RETURN(options.partitioner, cohort::Partitioner::Parse(f.partitioner));
  COHORT_ASSIGN_OR_RETURN(options.start, cohort::StartPolicy::Parse(f.start));
  options.journal_folder = f.checkpoint_dir;
  options.rejoin_grace =
      std::chrono::milliseconds(static_cast<std::int64_t>(f.rejoin_grace * 1000));
  options.log = cohort::StderrLog("");
  COHORT_RETURN_IF_ERROR(cohort::ChooseDevices(f.devices, f.strategy, options));
  COHORT_ASSIGN_OR_RETURN(const auto strategy, cohort::Strategy::FromEnv(f.strategy, options));
  const Status status = Train(f, *strategy);
  if (!status.ok()) {
    strategy->ReportError(status);  // the others end with this reason too
  }
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Trains a deep recommendation model, with its embeddings on parameter servers.");
  DeclareFlags(app, flags);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const Status status = Run(flags);
  if (!status.ok()) {
    std::fprintf(stderr, "dlrm: %s\n", status.ToString().c_str());
  }
  return cohort::ExitCode(status);
}
