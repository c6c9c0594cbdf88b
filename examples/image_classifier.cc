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

#include <cohort/data/digits.h>
#include <cohort/data/idx.h>
#include <cohort/nn/models.h>
#include <cohort/workloads/image_step.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include "job.h"

namespace {

using cohort::Result;
using cohort::Status;

struct Flags {
  JobFlags job;
  std::string data;
  std::string model = "cnn";
  std::int64_t hidden = 512;
  int epochs = 5;
  int classes = 0;
  std::string optimizer = "adam";
  double learning_rate = 0.001;
};

void DeclareFlags(CLI::App& app, Flags& f) {
  app.add_option("--data", f.data,
                 "folder with MNIST's four files (default: digits drawn by the program)");
  app.add_option("--model", f.model, "network")
      ->check(CLI::IsMember({"linear", "mlp", "cnn", "resnet18", "resnet34", "resnet50"}))
      ->capture_default_str();
  app.add_option("--hidden", f.hidden, "units of each hidden layer of mlp")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--epochs", f.epochs, "passes over the data")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--classes", f.classes, "number of classes (default: the largest label + 1)")
      ->check(CLI::PositiveNumber);
  app.add_option("--optimizer", f.optimizer, "update rule")
      ->check(CLI::IsMember({"sgd", "momentum", "adagrad", "rmsprop", "adam", "adamw", "ftrl"}))
      ->capture_default_str();
  app.add_option("--learning-rate", f.learning_rate)
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  DeclareJobFlags(app, f.job);
}

Result<std::unique_ptr<cohort::Optimizer>> MakeOptimizer(const Flags& f) {
  nlohmann::json config = {{"name", f.optimizer}, {"learning_rate", f.learning_rate}};
  if (f.optimizer == "momentum") {
    config["name"] = "sgd";
    config["momentum"] = 0.9;
  }
  return cohort::MakeOptimizer(config.dump());
}

Status Report(const Flags& f, cohort::Strategy& strategy, const cohort::ParameterSet& parameters,
              const cohort::History& history, const cohort::EpochResult& test) {
  COHORT_ASSIGN_OR_RETURN(nlohmann::json metrics, JobMetrics(strategy, parameters, history));
  const double accuracy = test.metrics.empty() ? 0 : test.metrics[0];
  metrics.update({{"model", f.model}, {"loss", test.loss}, {"accuracy", accuracy}});
  std::printf(
      "%s, %s, %d replicas: test accuracy %.4f, loss %.4f; %lld steps, %.0f examples in %.1f s "
      "(%.0f examples/s)\n",
      f.model.c_str(), std::string(strategy.kind()).c_str(), strategy.num_replicas_in_sync(),
      accuracy, test.loss, static_cast<long long>(history.steps), history.examples, history.seconds,
      history.examples_per_second());
  return WriteMetrics(f.job, metrics);
}

Status Train(const Flags& f, cohort::Strategy& strategy) {
  cohort::data::ImageClassification images = cohort::data::GenerateImageClassification();
  if (!f.data.empty()) {
    COHORT_ASSIGN_OR_RETURN(images, cohort::data::LoadImageClassification(f.data));
  }
  cohort::ParameterSet parameters;
  const int classes = f.classes > 0 ? f.classes : images.num_classes;
  COHORT_ASSIGN_OR_RETURN(
      const auto model,
      cohort::nn::MakeImageModel(f.model, parameters,
                                 {.classes = classes, .hidden = f.hidden, .seed = f.job.seed}));
  parameters.Build();
  COHORT_ASSIGN_OR_RETURN(auto optimizer, MakeOptimizer(f));
  COHORT_RETURN_IF_ERROR(strategy.Bind(parameters, std::move(optimizer)));

  cohort::TrainerOptions options = MakeTrainerOptions(f.job);
  options.epochs = f.epochs;
  options.metric_names = {"accuracy"};
  cohort::workloads::ImageStep step(*model, PrecisionOf(f.job));
  cohort::Trainer trainer(strategy, parameters, std::move(options));
  const auto training = images.train.Shuffle(f.job.seed).Batch(f.job.global_batch).Prefetch(2);
  COHORT_ASSIGN_OR_RETURN(const cohort::History history, trainer.Fit(training, step.Of(true)));
  COHORT_ASSIGN_OR_RETURN(
      const cohort::EpochResult test,
      trainer.Evaluate(images.test.Batch(std::max<std::int64_t>(256, f.job.global_batch)),
                       step.Of(false)));
  return strategy.is_chief() ? Report(f, strategy, parameters, history, test) : Status();
}

}  // namespace

int main(int argc, char** argv) {
  Flags f;
  CLI::App app("Trains an image classifier under any strategy.");
  DeclareFlags(app, f);
  return RunProgram("image_classifier", app, argc, argv, [&] {
    return RunJob(f.job, [&](cohort::Strategy& strategy) { return Train(f, strategy); });
  });
}
