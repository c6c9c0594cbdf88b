// A wide & deep model of who earns more than 50,000 a year, with its sparse part on parameter
// servers.
//
// One process:           wide_and_deep --data DIR
// Workers in step:       cohort launch -n 3 --ps 2 -- wide_and_deep --data DIR
// Asynchronous workers:  cohort launch -n 3 --ps 2 --chief -- wide_and_deep --data DIR
//
// DIR holds adult.data and adult.test of the census income data set (UCI, "Adult") with a header
// line. Without --data the program draws people itself.
//
// The wide part adds up one weight for each feature and each cross of features that a person has
// (a table of dim 1, FTRL). The deep part looks up a vector for each feature (a table of its own,
// Adagrad) and puts dense layers on them. Ids are 64-bit hashes: there is no vocabulary, a row is
// made when its id comes up first, on the server that its id belongs to.
//
// Cheng et al., "Wide & deep learning for recommender systems", DLRS 2016.

#include <cohort/cohort.h>
#include <cohort/workloads/census.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>

#include "job.h"

namespace {

using cohort::Result;
using cohort::Status;
using cohort::Tensor;
namespace workloads = cohort::workloads;

struct Flags {
  JobFlags job{.global_batch = 128, .threads = 1};  // the layers are small
  std::string data;
  std::int64_t people = 8000;
  int epochs = 4;
  workloads::WideAndDeepOptions model;
};

void DeclareFlags(CLI::App& app, Flags& f) {
  DeclareJobFlags(app, f.job);
  app.add_option("--data", f.data,
                 "folder with adult.data and adult.test (default: people drawn by the program)");
  app.add_option("--people", f.people, "to draw for training, without --data")
      ->check(CLI::Range(100, 10'000'000))
      ->capture_default_str();
  app.add_option("--epochs", f.epochs, "passes over the data")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--embedding", f.model.embedding, "floats of a feature's vector in the deep part")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--wide-learning-rate", f.model.wide_learning_rate, "of FTRL")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--deep-learning-rate", f.model.deep_learning_rate, "of Adagrad")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
}

// ---- The job ------------------------------------------------------------------------------------

// Features of examples: workloads/census.h.
struct People {
  cohort::data::Dataset train;
  cohort::data::Dataset test;
};

Result<People> LoadPeople(const Flags& f) {
  if (f.data.empty()) {
    COHORT_ASSIGN_OR_RETURN(auto train, workloads::DrawPeople(f.people, 1));
    COHORT_ASSIGN_OR_RETURN(auto test,
                            workloads::DrawPeople(std::max<std::int64_t>(100, f.people / 4), 2));
    return People{std::move(train), std::move(test)};
  }
  COHORT_ASSIGN_OR_RETURN(auto train, workloads::ReadPeople(f.data + "/adult.data", ""));
  COHORT_ASSIGN_OR_RETURN(auto test, workloads::ReadPeople(f.data + "/adult.test", "."));
  return People{std::move(train), std::move(test)};
}

Status Report(const Flags& f, cohort::Strategy& strategy, const cohort::ParameterSet& parameters,
              const cohort::History& history, const cohort::EpochResult& test, double auc) {
  const double accuracy = test.metrics.empty() ? 0 : test.metrics[0];
  std::printf(
      "%s: test AUC %.4f, accuracy %.4f, loss %.4f; %lld steps, %.0f examples in %.1f s "
      "(%.0f examples/s)\n",
      std::string(strategy.kind()).c_str(), auc, accuracy, test.loss,
      static_cast<long long>(history.steps), history.examples, history.seconds,
      history.examples_per_second());
  COHORT_ASSIGN_OR_RETURN(nlohmann::json metrics, JobMetrics(strategy, parameters, history));
  metrics["loss"] = test.loss;
  metrics["accuracy"] = accuracy;
  metrics["auc"] = auc;
  return WriteMetrics(f.job, metrics);
}

Status Train(const Flags& f, const workloads::WideAndDeep& model, cohort::ParameterSet& parameters,
             cohort::Strategy& strategy) {
  COHORT_ASSIGN_OR_RETURN(const People people, LoadPeople(f));
  COHORT_RETURN_IF_ERROR(
      strategy.Bind(parameters, cohort::Adagrad({.learning_rate = f.model.deep_learning_rate})));

  cohort::TrainerOptions options = MakeTrainerOptions(f.job);
  options.epochs = f.epochs;
  options.metric_names = {"accuracy"};
  workloads::BinaryStep step = workloads::CensusStep(model, PrecisionOf(f.job));
  cohort::Trainer trainer(strategy, parameters, std::move(options));
  const auto training = people.train.Shuffle(f.job.seed)
                            .Map(workloads::CensusFeatures)
                            .Batch(f.job.global_batch)
                            .Prefetch(2);
  COHORT_ASSIGN_OR_RETURN(const cohort::History history, trainer.Fit(training, step.Of(true)));
  const auto test = people.test.Map(workloads::CensusFeatures).Batch(1024);
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
  CLI::App app("Trains a wide & deep model, with its sparse part on parameter servers.");
  DeclareFlags(app, f);
  return RunProgram("wide_and_deep", app, argc, argv, [&] {
    cohort::ParameterSet parameters;
    f.model.seed = f.job.seed;
    const workloads::WideAndDeep model(parameters, f.model);
    parameters.Build();
    return RunJob(f.job, parameters, [&](cohort::Strategy& strategy) {
      return Train(f, model, parameters, strategy);
    });
  });
}
