// Trains a ResNet on a folder of images, under any strategy.
//
// One process:                   resnet --data DIR
// On every GPU there is:         resnet --data DIR --strategy mirrored --precision mixed_bfloat16
// Two processes under MPI:       mpirun -n 2 resnet --data DIR
// Two processes without MPI:     cohort launch -n 2 -- resnet --data DIR
// Workers and servers:           cohort launch -n 2 --ps 2 --chief -- resnet --data DIR
//
// DIR has two folders, train and val, each with a folder of JPEG or PNG images for every class, as
// ImageNet's. Training sees random parts of the images, mirrored or not; validation their middles.
// Without --data the program draws its own images, of classes that can be told apart, and holds a
// few of them in memory: to try it, and to measure speed.
//
// SGD with momentum and weight decay; the learning rate rises over the first epochs and falls along
// a cosine (He et al., 2015; Goyal et al., "Accurate, large minibatch SGD", 2017).

#include <cohort/data/image_folder.h>
#include <cohort/nn/resnet.h>
#include <cohort/workloads/drawn_images.h>
#include <cohort/workloads/image_step.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "job.h"

namespace {

using cohort::Result;
using cohort::Status;
namespace data = cohort::data;
namespace nn = cohort::nn;
namespace workloads = cohort::workloads;

struct Flags {
  JobFlags job;
  std::string data;
  int depth = 18;
  std::int64_t image_size = 224;
  std::int64_t width = 64;
  std::string stem = "auto";
  std::int64_t classes = 10;
  std::int64_t examples = 10'000;
  bool skip_others = false;
  double min_area = 0.08;
  bool flip = true;
  double center = 0.875;
  int epochs = 90;
  double learning_rate = 0.1;
  double warm_up_epochs = -1;
  double weight_decay = 1e-4;
  int input_threads = data::kAutotune;
};

void DeclareFlags(CLI::App& app, Flags& f) {
  const auto drawn = "of the images that the program draws";
  auto* const folder = app.add_option("--data", f.data, "folder with train/CLASS/ and val/CLASS/");
  app.add_option("--depth", f.depth, "layers of the network")
      ->check(CLI::IsMember({18, 34, 50}))
      ->capture_default_str();
  app.add_option("--image-size", f.image_size, "height and width that images are brought to")
      ->check(CLI::Range(8, 4096))
      ->capture_default_str();
  app.add_option("--width", f.width, "channels of the first stage")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--stem", f.stem,
                 "large (7x7 of stride 2, and a pool), small (3x3), auto (small below 64 pixels)")
      ->check(CLI::IsMember({"auto", "large", "small"}))
      ->capture_default_str();
  app.add_option("--classes", f.classes, drawn)
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str()
      ->excludes(folder);
  app.add_option("--examples", f.examples, std::string("in an epoch, ") + drawn)
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->excludes(folder);
  app.add_flag("--skip-others", f.skip_others,
               "pass over files that are no images, instead of ending with their name");
  app.add_option("--min-area", f.min_area, "of the part of an image that training sees")
      ->check(CLI::Range(0.01, 1.0))
      ->capture_default_str();
  app.add_flag("!--no-flip", f.flip, "images are never mirrored");
  app.add_option("--center", f.center, "share of an image's sides that validation sees")
      ->check(CLI::Range(0.1, 1.0))
      ->capture_default_str();
  app.add_option("--epochs", f.epochs, "each ends with a look at the validation images")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--learning-rate", f.learning_rate,
                 "for 256 examples: grows in proportion to the global batch")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--warm-up-epochs", f.warm_up_epochs,
                 "to the full learning rate (default: 5, or a fifth of the epochs)")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--weight-decay", f.weight_decay)
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--input-threads", f.input_threads, "that decode images (default: adapted)")
      ->check(CLI::PositiveNumber);
  DeclareJobFlags(app, f.job);
}

// ---- Images -------------------------------------------------------------------------------------

struct Images {
  data::Dataset train, val;
  std::int64_t classes = 0;
};

Result<Images> LoadFolder(const Flags& f) {
  data::ImageFolderOptions options = {
      .image = {.height = f.image_size, .width = f.image_size},
      .augmentation =
          data::ImageAugmentation{.min_area = f.min_area, .flip = f.flip, .seed = f.job.seed},
      .skip_others = f.skip_others,
      .log = cohort::StderrLog("")};
  COHORT_ASSIGN_OR_RETURN(data::LabelledImages train,
                          data::ImageFolder(f.data + "/train", options));
  options.augmentation.reset();
  options.center = f.center;
  options.classes = train.classes;
  COHORT_ASSIGN_OR_RETURN(data::LabelledImages val, data::ImageFolder(f.data + "/val", options));
  return Images{std::move(train.dataset), std::move(val.dataset), std::ssize(train.classes)};
}

Result<Images> Draw(const Flags& f) {
  constexpr std::int64_t kHeld = 512;  // images in memory, for each of both
  const std::int64_t held = std::min(f.examples, kHeld);
  workloads::DrawnImages drawn = {
      .count = held, .size = f.image_size, .classes = f.classes, .seed = f.job.seed};
  COHORT_ASSIGN_OR_RETURN(const data::Dataset train, workloads::DrawImages(drawn));
  drawn.part = 1;
  COHORT_ASSIGN_OR_RETURN(data::Dataset val, workloads::DrawImages(drawn));
  const std::int64_t times = (f.examples + held - 1) / held;
  return Images{times > 1 ? train.Repeat(times).Take(f.examples) : train, std::move(val),
                f.classes};
}

// ---- The job ------------------------------------------------------------------------------------

constexpr int kTop = 5;

Status Report(const Flags& f, cohort::Strategy& strategy, const cohort::ParameterSet& parameters,
              const cohort::History& history, const Images& images,
              const cohort::EpochResult& val) {
  COHORT_ASSIGN_OR_RETURN(nlohmann::json metrics, JobMetrics(strategy, parameters, history));
  nlohmann::json accuracies = nlohmann::json::array();
  for (const cohort::EpochResult& epoch : history.evaluations) {
    accuracies.push_back(epoch.metrics.empty() ? 0 : epoch.metrics[0]);
  }
  metrics.update({{"depth", f.depth},
                  {"parameters", parameters.elements()},
                  {"classes", images.classes},
                  {"training_images", images.train.size()},
                  {"validation_images", images.val.size()},
                  {"loss", val.loss},
                  {"accuracy", val.metrics.at(0)},
                  {"validation_accuracies", accuracies}});
  std::string top;
  if (val.metrics.size() > 1) {
    metrics["top5_accuracy"] = val.metrics[1];
    top = " (top 5: " + std::to_string(val.metrics[1]) + ")";
  }
  std::printf(
      "ResNet-%d, %s, %d replicas: validation accuracy %.4f%s, loss %.4f; %lld steps, %.0f images "
      "in %.1f s (%.0f images/s)\n",
      f.depth, std::string(strategy.kind()).c_str(), strategy.num_replicas_in_sync(),
      val.metrics[0], top.c_str(), val.loss, static_cast<long long>(history.steps),
      history.examples, history.seconds, history.examples_per_second());
  return WriteMetrics(f.job, metrics);
}

cohort::SgdOptions MakeSgd(const Flags& f, std::int64_t batches) {
  const std::int64_t examples = f.job.global_batch * f.job.batches_per_step;
  const double rate = workloads::ResNetRate(f.learning_rate, examples);
  const auto steps_per_epoch =
      static_cast<double>(batches) / static_cast<double>(f.job.batches_per_step);
  const double warm_up_epochs =
      f.warm_up_epochs >= 0 ? f.warm_up_epochs : std::min(5.0, 0.2 * f.epochs);
  const auto warm_up = static_cast<std::int64_t>(warm_up_epochs * steps_per_epoch);
  const auto all = static_cast<std::int64_t>(f.epochs * steps_per_epoch);
  return workloads::ResNetSgd(
      cohort::Schedule::Cosine(rate, std::max<std::int64_t>(1, all - warm_up)).WithWarmUp(warm_up),
      f.weight_decay);
}

Status Train(const Flags& f, const Images& images, cohort::Strategy& strategy) {
  cohort::ParameterSet parameters;
  const nn::ResNet model(
      parameters, {.depth = f.depth,
                   .classes = images.classes,
                   .width = f.width,
                   .small_images = f.stem == "small" || (f.stem == "auto" && f.image_size < 64),
                   .seed = f.job.seed});
  parameters.Build();
  const data::Dataset training = images.train.Shuffle(f.job.seed)
                                     .Batch(f.job.global_batch)
                                     .Prefetch(data::kAutotune, f.input_threads);
  const data::Dataset validation =
      images.val.Batch(f.job.global_batch).Prefetch(data::kAutotune, f.input_threads);
  COHORT_RETURN_IF_ERROR(
      strategy.Bind(parameters, cohort::Sgd(MakeSgd(f, training.batches_per_epoch()))));

  cohort::TrainerOptions options = MakeTrainerOptions(f.job);
  options.epochs = f.epochs;
  options.metric_names = {"accuracy"};
  if (images.classes > kTop) {
    options.metric_names.emplace_back("top5_accuracy");
  }
  workloads::ImageStep step(model, PrecisionOf(f.job),
                            images.classes > kTop ? std::vector{1, kTop} : std::vector{1});
  cohort::Trainer trainer(strategy, parameters, std::move(options));
  const cohort::StepFn evaluate = step.Of(false);
  COHORT_ASSIGN_OR_RETURN(const cohort::History history,
                          trainer.Fit(training, step.Of(true), &validation, evaluate));
  cohort::EpochResult val;
  if (history.evaluations.empty()) {  // all epochs were done before
    COHORT_ASSIGN_OR_RETURN(val, trainer.Evaluate(validation, evaluate));
  } else {
    val = history.evaluations.back();
  }
  return strategy.is_chief() ? Report(f, strategy, parameters, history, images, val) : Status();
}

}  // namespace

int main(int argc, char** argv) {
  Flags f;
  CLI::App app("Trains a ResNet on a folder of images under any strategy.");
  DeclareFlags(app, f);
  return RunProgram("resnet", app, argc, argv, [&] {
    return RunJob(f.job, [&](cohort::Strategy& strategy) -> Status {
      COHORT_ASSIGN_OR_RETURN(const Images images, f.data.empty() ? Draw(f) : LoadFolder(f));
      return Train(f, images, strategy);
    });
  });
}
