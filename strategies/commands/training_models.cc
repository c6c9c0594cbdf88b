#include "training_models.h"

#include <utility>

#include <cohort/data/clicks.h>
#include <cohort/data/digits.h>
#include <cohort/data/tokens.h>
#include <cohort/nn/gpt.h>
#include <cohort/nn/models.h>
#include <cohort/nn/resnet.h>
#include <cohort/optim/optimizers.h>
#include <cohort/workloads/binary_step.h>
#include <cohort/workloads/census.h>
#include <cohort/workloads/clicks.h>
#include <cohort/workloads/drawn_images.h>
#include <cohort/workloads/image_step.h>
#include <cohort/workloads/language.h>

namespace cohort {
namespace {

using workloads::BinaryStep;
using workloads::GptStep;
using workloads::ImageStep;

constexpr auto kPrecision = nn::Precision::kFloat32;

// image_classifier's: images of 28 x 28. With SGD, as the peer has it.
class Classifier final : public TrainingModel {
 public:
  static Result<std::unique_ptr<TrainingModel>> Make(const TrainingModelOptions& o,
                                                     ParameterSet& parameters) {
    nn::ImageModelOptions options{.seed = 1};
    if (o.sizes.contains("hidden")) {
      options.hidden = o.sizes.at("hidden");
    }
    COHORT_ASSIGN_OR_RETURN(
        auto model, nn::MakeImageModel(o.name == "mlp2048" ? "mlp" : o.name, parameters, options));
    return std::unique_ptr<TrainingModel>(new Classifier(
        data::GeneratedDigits({.count = o.examples, .seed = 1, .first = o.rank * o.examples}),
        std::move(model)));
  }
  StepFn Step() override { return step_.Of(true); }
  std::unique_ptr<Optimizer> MakeOptimizer() const override { return Sgd({.learning_rate = 0.01}); }

 private:
  Classifier(data::Dataset examples, std::unique_ptr<nn::ImageModel> model)
      : TrainingModel(std::move(examples)), model_(std::move(model)) {}
  const std::unique_ptr<nn::ImageModel> model_;
  ImageStep step_{*model_, kPrecision};
};

class ResNetOfImages final : public TrainingModel {
 public:
  static Result<std::unique_ptr<TrainingModel>> Make(const TrainingModelOptions& o,
                                                     ParameterSet& parameters) {
    COHORT_ASSIGN_OR_RETURN(data::Dataset images,
                            workloads::DrawImages({.count = o.examples,
                                                   .size = o.sizes.at("image-size"),
                                                   .part = static_cast<std::uint64_t>(o.rank)}));
    return std::unique_ptr<TrainingModel>(new ResNetOfImages(std::move(images), o, parameters));
  }
  StepFn Step() override { return step_.Of(true); }
  std::unique_ptr<Optimizer> MakeOptimizer() const override {
    return Sgd(workloads::ResNetSgd(workloads::ResNetRate(0.1, global_batch_), 1e-4));
  }

 private:
  ResNetOfImages(data::Dataset images, const TrainingModelOptions& o, ParameterSet& parameters)
      : TrainingModel(std::move(images)),
        global_batch_(o.global_batch),
        model_(parameters, {.depth = static_cast<int>(o.sizes.at("depth")),
                            .classes = 10,
                            .width = o.sizes.at("width"),
                            .small_images = o.sizes.at("image-size") < 64,
                            .seed = 1}) {}
  const std::int64_t global_batch_;
  const nn::ResNet model_;
  ImageStep step_{model_, kPrecision};
};

class GptOfText final : public TrainingModel {
 public:
  static Result<std::unique_ptr<TrainingModel>> Make(const TrainingModelOptions& o,
                                                     ParameterSet& parameters) {
    nn::GptOptions options{.length = o.sizes.at("length"),
                           .layers = o.sizes.at("layers"),
                           .heads = o.sizes.at("heads"),
                           .width = o.sizes.at("width"),
                           .seed = 1};
    constexpr std::int64_t kBytes = 100'000;  // so that all workers' have the same letters
    const std::string text = data::GenerateText(kBytes + options.length + o.examples).text;
    const data::ByteVocabulary bytes(text);
    options.vocabulary = bytes.size();
    COHORT_ASSIGN_OR_RETURN(const Tensor tokens, bytes.Encode(text));
    COHORT_ASSIGN_OR_RETURN(data::Dataset windows, data::TokenWindows(tokens, options.length, 1));
    return std::unique_ptr<TrainingModel>(
        new GptOfText(windows.Shuffle(static_cast<std::uint64_t>(o.rank)).Take(o.examples),
                      parameters, options, o.global_batch));
  }
  StepFn Step() override { return step_.Of(true); }
  std::unique_ptr<Optimizer> MakeOptimizer() const override {
    return AdamW(workloads::GptAdamW(0.002, 0.1, 1));
  }

 private:
  GptOfText(data::Dataset windows, ParameterSet& parameters, const nn::GptOptions& options,
            std::int64_t global_batch)
      : TrainingModel(std::move(windows)),
        model_(parameters, options),
        step_(model_, {.seed = 1, .global_batch = global_batch, .precision = kPrecision}) {}
  const nn::Gpt model_;
  GptStep step_;
};

class DlrmOfClicks final : public TrainingModel {
 public:
  DlrmOfClicks(const TrainingModelOptions& o, ParameterSet& parameters)
      : TrainingModel(data::GeneratedClicks(
            {.count = o.examples, .first = o.rank * o.examples, .ids = o.sizes.at("ids")})),
        options_{.embedding = o.sizes.at("embedding"), .seed = 1},
        model_(parameters, workloads::DlrmOfClicks(options_)) {}
  StepFn Step() override { return step_.Of(true); }
  std::unique_ptr<Optimizer> MakeOptimizer() const override {
    return Adagrad({.learning_rate = options_.learning_rate});
  }

 private:
  const workloads::ClickOptions options_;
  const nn::Dlrm model_;
  BinaryStep step_{workloads::ClickStep(model_, kPrecision)};
};

class WideAndDeepOfPeople final : public TrainingModel {
 public:
  static Result<std::unique_ptr<TrainingModel>> Make(const TrainingModelOptions& o,
                                                     ParameterSet& parameters) {
    COHORT_ASSIGN_OR_RETURN(
        const data::Dataset people,
        workloads::DrawPeople(o.examples, static_cast<std::uint64_t>(o.rank) + 1));
    return std::unique_ptr<TrainingModel>(
        new WideAndDeepOfPeople(people.Map(workloads::CensusFeatures), o, parameters));
  }
  StepFn Step() override { return step_.Of(true); }
  std::unique_ptr<Optimizer> MakeOptimizer() const override {
    return Adagrad({.learning_rate = options_.deep_learning_rate});
  }

 private:
  WideAndDeepOfPeople(data::Dataset people, const TrainingModelOptions& o, ParameterSet& parameters)
      : TrainingModel(std::move(people)),
        options_{.embedding = o.sizes.at("embedding"), .seed = 1},
        model_(parameters, options_) {}
  const workloads::WideAndDeepOptions options_;
  const workloads::WideAndDeep model_;
  BinaryStep step_{workloads::CensusStep(model_, kPrecision)};
};

std::map<std::string, TrainingModelInfo> MakeTable() {
  const nn::GptOptions tiny = OrThrow(workloads::GptSize("tiny"));
  ModelSizes gpt = {{"layers", tiny.layers},
                    {"heads", tiny.heads},
                    {"width", tiny.width},
                    {"length", tiny.length}};
  return {
      {"linear", {.what = "784-10", .batch = 256}},
      {"mlp", {.what = "784-512-512-10", .batch = 256, .sizes = {{"hidden", 512}}, .torch = "mlp"}},
      {"mlp2048",
       {.what = "784-2048-2048-10", .batch = 64, .sizes = {{"hidden", 2048}}, .torch = "mlp2048"}},
      {"cnn", {.what = "conv32-conv64-dense128", .batch = 64, .torch = "cnn"}},
      {"resnet18", {.what = "on 28 x 28", .batch = 4}},
      {"resnet34", {.what = "on 28 x 28", .batch = 2}},
      {"resnet50", {.what = "on 28 x 28", .batch = 2}},
      {"resnet",
       {.what = "as the example resnet, but small",
        .batch = 8,
        .sizes = {{"depth", 18}, {"image-size", 32}, {"width", 32}}}},
      {"gpt", {.what = "the example gpt's tiny one", .batch = 4, .sizes = std::move(gpt)}},
      {"dlrm",
       {.what = "tables of 26 categories on servers",
        .batch = 256,
        .batches = 16,
        .sizes = {{"embedding", workloads::ClickOptions().embedding},
                  {"ids", data::ClicksOptions().ids},
                  {"servers", 1}},
        .tables = true}},
      {"wide_and_deep",
       {.what = "tables of 64-bit ids on servers",
        .batch = 128,
        .batches = 16,
        .sizes = {{"embedding", workloads::WideAndDeepOptions().embedding}, {"servers", 1}},
        .tables = true}},
  };
}

}  // namespace

const std::map<std::string, TrainingModelInfo>& TrainingModels() {
  static const std::map<std::string, TrainingModelInfo> models = MakeTable();
  return models;
}

Result<std::unique_ptr<TrainingModel>> MakeTrainingModel(const TrainingModelOptions& options,
                                                         ParameterSet& parameters) {
  if (options.name == "resnet") {
    return ResNetOfImages::Make(options, parameters);
  }
  if (options.name == "gpt") {
    return GptOfText::Make(options, parameters);
  }
  if (options.name == "dlrm") {
    return std::make_unique<DlrmOfClicks>(options, parameters);
  }
  if (options.name == "wide_and_deep") {
    return WideAndDeepOfPeople::Make(options, parameters);
  }
  return Classifier::Make(options, parameters);
}

}  // namespace cohort
