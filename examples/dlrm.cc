// DLRM on a click log: 13 integers through a bottom network, 26 categories through embeddings that
// parameter servers hold, inner products of all pairs, a top network.
//
// One process:           dlrm
// Workers in step:       cohort launch -n 2 --ps 2 -- dlrm
// Asynchronous workers:  cohort launch -n 2 --ps 2 --chief -- dlrm
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
#include <cohort/nn/models.h>
#include <cohort/workloads/clicks.h>

#include <algorithm>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include "job.h"

namespace {

using cohort::Result;
using cohort::Status;
using cohort::Tensor;
namespace nn = cohort::nn;
namespace workloads = cohort::workloads;

struct Flags {
  // One thread to a replica: the other cores draw clicks.
  JobFlags job{.global_batch = 256, .threads = 1};
  std::vector<std::string> data;
  std::vector<std::string> test_data;
  bool csv = false;
  std::int64_t examples = 1'000'000;
  std::int64_t test = 100'000;
  std::int64_t ids = 10'000'000;
  double zipf = 1.05;
  int epochs = 1;
  workloads::ClickOptions model;
  std::string wire = "float32";
  std::uint64_t wire_feedback = 0;
};

void DeclareFlags(CLI::App& app, Flags& f) {
  DeclareJobFlags(app, f.job);
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
  app.add_option("--epochs", f.epochs, "passes over the clicks")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--embedding", f.model.embedding, "floats of a category's vector")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--learning-rate", f.model.learning_rate, "of the dense networks' Adagrad")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--row-learning-rate", f.model.row_learning_rate, "of the embeddings' Adagrad")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--wire", f.wire, "how rows travel between workers and servers")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16", "int8"}))
      ->capture_default_str();
  app.add_option(
         "--wire-feedback", f.wire_feedback,
         "rows of which a worker keeps what --wire rounds off their gradients, for the next "
         "ones; 0: it is lost")
      ->check(CLI::Range(0LL, 1LL << 31))
      ->capture_default_str();
}

cohort::data::ClicksOptions TrainClicks(const Flags& f) {
  return {.count = f.examples, .seed = f.job.seed, .ids = f.ids, .zipf = f.zipf};
}
cohort::data::ClicksOptions TestClicks(const Flags& f) {
  return {.count = f.test, .seed = f.job.seed, .first = f.examples, .ids = f.ids, .zipf = f.zipf};
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
  workloads::ClickOptions of_clicks = f.model;
  of_clicks.seed = f.job.seed;
  nn::DlrmOptions options = workloads::DlrmOfClicks(of_clicks);
  options.table.wire = f.wire == "int8"       ? cohort::TableSpec::Wire::kInt8
                       : f.wire == "bfloat16" ? cohort::TableSpec::Wire::kBFloat16
                       : f.wire == "float16"  ? cohort::TableSpec::Wire::kFloat16
                                              : cohort::TableSpec::Wire::kFloat32;
  options.table.wire_feedback = f.wire_feedback;
  return options;
}

Status Report(const Flags& f, cohort::Strategy& strategy, const cohort::ParameterSet& parameters,
              const cohort::History& history, const cohort::EpochResult& test, double auc) {
  std::printf("%s: test AUC %.4f, loss %.4f; %lld steps, %.0f clicks in %.1f s (%.0f clicks/s)\n",
              std::string(strategy.kind()).c_str(), auc, test.loss,
              static_cast<long long>(history.steps), history.examples, history.seconds,
              history.examples_per_second());
  COHORT_ASSIGN_OR_RETURN(nlohmann::json metrics, JobMetrics(strategy, parameters, history));
  metrics["loss"] = test.loss;
  metrics["accuracy"] = test.metrics.empty() ? 0 : test.metrics[0];
  metrics["auc"] = auc;
  if (f.data.empty()) {
    const double best = cohort::data::BayesAuc(TestClicks(f));
    const double excess = (auc - 0.5) / (best - 0.5);
    std::printf("best possible AUC %.4f, of whose excess over 0.5 that is %.1f %%\n", best,
                100 * excess);
    metrics["bayes_auc"] = best;
    metrics["of_bayes_excess"] = excess;
  }
  return WriteMetrics(f.job, metrics);
}

Status Train(const Flags& f, const nn::Dlrm& model, cohort::ParameterSet& parameters,
             cohort::Strategy& strategy) {
  COHORT_RETURN_IF_ERROR(
      strategy.Bind(parameters, cohort::Adagrad({.learning_rate = f.model.learning_rate})));

  cohort::TrainerOptions options = MakeTrainerOptions(f.job);
  options.epochs = f.epochs;
  options.metric_names = {"accuracy"};
  workloads::BinaryStep step = workloads::ClickStep(model, PrecisionOf(f.job));
  cohort::Trainer trainer(strategy, parameters, std::move(options));
  COHORT_ASSIGN_OR_RETURN(const Clicks clicks, ClicksOf(f));
  const auto training = clicks.training.Batch(f.job.global_batch).Prefetch(2);
  COHORT_ASSIGN_OR_RETURN(const cohort::History history, trainer.Fit(training, step.Of(true)));
  const auto test = clicks.test.Batch(2048).Prefetch(2);
  COHORT_ASSIGN_OR_RETURN(const cohort::EpochResult result, trainer.Evaluate(test, step.Of(false)));
  COHORT_ASSIGN_OR_RETURN(const Tensor predictions, trainer.Predict(test, step.Predictions()));
  if (!strategy.is_chief()) {
    return {};
  }
  COHORT_ASSIGN_OR_RETURN(const double auc, workloads::AucOf(predictions));
  return Report(f, strategy, parameters, history, result, auc);
}

}  // namespace

int main(int argc, char** argv) {
  Flags f;
  CLI::App app("Trains a deep recommendation model, with its embeddings on parameter servers.");
  DeclareFlags(app, f);
  return RunProgram("dlrm", app, argc, argv, [&] {
    cohort::ParameterSet parameters;
    const nn::Dlrm model(parameters, ModelOptions(f));
    parameters.Build();
    return RunJob(f.job, parameters, [&](cohort::Strategy& strategy) {
      return Train(f, model, parameters, strategy);
    });
  });
}
