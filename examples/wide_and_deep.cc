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
#include <cohort/core/random.h>
#include <cohort/data/csv.h>
#include <cohort/data/memory.h>
#include <cohort/nn/layers.h>
#include <fmt/format.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "binary_step.h"
#include "job.h"

namespace {

using cohort::Result;
using cohort::Status;
using cohort::Tensor;
namespace nn = cohort::nn;

struct Flags {
  JobFlags job{.global_batch = 128, .threads = 1};  // the layers are small
  std::string data;
  std::int64_t people = 8000;
  int epochs = 4;
  std::int64_t embedding = 16;
  double wide_learning_rate = 0.05;
  double deep_learning_rate = 0.02;
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
  app.add_option("--embedding", f.embedding, "floats of a feature's vector in the deep part")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--wide-learning-rate", f.wide_learning_rate, "of FTRL")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--deep-learning-rate", f.deep_learning_rate, "of Adagrad")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
}

// ---- People -------------------------------------------------------------------------------------

constexpr std::array kNumbers = {"age", "education-num", "capital-gain", "capital-loss",
                                 "hours-per-week"};
constexpr std::array kTexts = {"workclass",  "education",     "marital-status",
                               "occupation", "relationship",  "race",
                               "sex",        "native-country"};
enum Number { kAge, kEducationYears, kGain, kLoss, kHours };
enum Text { kWork, kEducation, kMarital, kOccupation, kRelationship, kRace, kSex, kCountry };

// Features "number" [5], "text" [8] (hashes) and "label" of each person.
struct People {
  cohort::data::Dataset train;
  cohort::data::Dataset test;
};

Result<cohort::data::Dataset> ReadPeople(const std::string& path, const std::string& stop) {
  cohort::data::CsvOptions options;
  for (const char* name : kNumbers) {
    options.columns.push_back({.name = name, .feature = "number"});
  }
  for (const char* name : kTexts) {
    options.columns.push_back(
        {.name = name, .type = cohort::data::CsvType::kHash, .missing = 0, .feature = "text"});
  }
  options.columns.push_back({.name = "Y",
                             .type = cohort::data::CsvType::kCategory,
                             .categories = {"<=50K" + stop, ">50K" + stop},
                             .feature = "label"});
  COHORT_ASSIGN_OR_RETURN(cohort::data::CsvData csv, cohort::data::Csv({path}, options));
  return csv.dataset;
}

// People whose income depends on their numbers, on some texts, and on pairs of texts.
Result<cohort::data::Dataset> DrawPeople(std::int64_t count, std::uint64_t seed) {
  constexpr std::array<std::uint64_t, kTexts.size()> kKinds = {8, 16, 7, 14, 6, 5, 2, 40};
  const cohort::Philox random(seed, "people");
  const auto effect = [](std::uint64_t a, std::uint64_t b, std::uint64_t c) {
    return cohort::Philox(7, "effects").Normal(a * 1000 + b, c);
  };
  Tensor number(cohort::DType::kFloat32, {count, static_cast<std::int64_t>(kNumbers.size())});
  Tensor text(cohort::DType::kInt64, {count, static_cast<std::int64_t>(kTexts.size())});
  Tensor label(cohort::DType::kInt64, {count, 1});
  for (std::int64_t i = 0; i < count; ++i) {
    const auto person = static_cast<std::uint64_t>(i);
    const std::array<float, kNumbers.size()> numbers = {
        17 + 60 * random.Uniform(0, person), 1 + std::floor(16 * random.Uniform(1, person)),
        random.Uniform(2, person) < 0.08F ? 20000 * random.Uniform(3, person) : 0,
        random.Uniform(4, person) < 0.05F ? 3000 * random.Uniform(5, person) : 0,
        10 + 60 * random.Uniform(6, person)};
    double score = -2 + 0.03 * (numbers[kAge] - 40) + 0.25 * (numbers[kEducationYears] - 8) +
                   0.0003 * numbers[kGain] + 0.03 * (numbers[kHours] - 40);
    std::array<std::uint64_t, kTexts.size()> texts{};
    for (std::size_t t = 0; t < kTexts.size(); ++t) {
      texts[t] = random.Below(kKinds[t], 10 + t, person);
      score += 0.4 * effect(t, texts[t], 0);
    }
    score += 1.5 * effect(texts[kEducation], texts[kOccupation], 1) +
             1.0 * effect(texts[kMarital], texts[kWork], 2);
    for (std::size_t n = 0; n < numbers.size(); ++n) {
      number.data<float>()[person * numbers.size() + n] = numbers[n];
    }
    for (std::size_t t = 0; t < texts.size(); ++t) {
      text.data<std::int64_t>()[person * texts.size() + t] = static_cast<std::int64_t>(texts[t]);
    }
    const double chance = 1 / (1 + std::exp(-2 * score));
    label.data<std::int64_t>()[person] = random.Uniform(30, person) < chance ? 1 : 0;
  }
  return cohort::data::FromTensors({{"number", number}, {"text", text}, {"label", label}});
}

Result<People> LoadPeople(const Flags& f) {
  if (f.data.empty()) {
    COHORT_ASSIGN_OR_RETURN(auto train, DrawPeople(f.people, 1));
    COHORT_ASSIGN_OR_RETURN(auto test, DrawPeople(std::max<std::int64_t>(100, f.people / 4), 2));
    return People{std::move(train), std::move(test)};
  }
  COHORT_ASSIGN_OR_RETURN(auto train, ReadPeople(f.data + "/adult.data", ""));
  COHORT_ASSIGN_OR_RETURN(auto test, ReadPeople(f.data + "/adult.test", "."));
  return People{std::move(train), std::move(test)};
}

// ---- Features -----------------------------------------------------------------------------------

// The id of value `value` of feature `feature`; of a cross, of its values in turn.
std::int64_t IdOf(int feature, std::initializer_list<std::int64_t> values) {
  std::uint64_t hash = cohort::Hash64("feature", static_cast<std::uint64_t>(feature));
  for (const std::int64_t value : values) {
    hash = cohort::Hash64({reinterpret_cast<const char*>(&value), sizeof(value)}, hash);
  }
  return static_cast<std::int64_t>(hash);
}

// What the model reads of a person: "wide" and "deep" ids, "dense" numbers, the "target".
constexpr std::size_t kWideIds = 24;
constexpr std::size_t kDeepIds = 10;

Status MakeFeatures(cohort::data::Example& person) {
  const auto numbers = person["number"].data<float>();
  const auto texts = person["text"].data<std::int64_t>();
  const auto bucket = [&](Number n, float width) {
    return static_cast<std::int64_t>(std::floor(numbers[n] / width));
  };
  const auto logarithm = [&](Number n) {
    return static_cast<std::int64_t>(std::floor(2 * std::log1p(std::max(0.0F, numbers[n]))));
  };
  const std::int64_t age = bucket(kAge, 5);
  const std::int64_t hours = bucket(kHours, 5);
  const std::int64_t years = bucket(kEducationYears, 1);
  const std::int64_t gain = logarithm(kGain);
  const std::int64_t loss = logarithm(kLoss);
  const std::array<std::int64_t, kWideIds> wide = {
      IdOf(0, {}),  // the bias
      IdOf(1, {texts[kWork]}),
      IdOf(2, {texts[kEducation]}),
      IdOf(3, {texts[kMarital]}),
      IdOf(4, {texts[kOccupation]}),
      IdOf(5, {texts[kRelationship]}),
      IdOf(6, {texts[kRace]}),
      IdOf(7, {texts[kSex]}),
      IdOf(8, {texts[kCountry]}),
      IdOf(9, {age}),
      IdOf(10, {hours}),
      IdOf(11, {years}),
      IdOf(12, {gain}),
      IdOf(13, {loss}),
      IdOf(14, {texts[kEducation], texts[kOccupation]}),
      IdOf(15, {texts[kMarital], texts[kWork]}),
      IdOf(16, {age, texts[kEducation], texts[kOccupation]}),
      IdOf(17, {texts[kCountry], texts[kOccupation]}),
      IdOf(18, {texts[kRelationship], texts[kOccupation]}),
      IdOf(19, {age, hours}),
      IdOf(20, {texts[kRelationship], years}),
      IdOf(21, {texts[kWork], texts[kOccupation]}),
      IdOf(22, {texts[kSex], age, texts[kMarital]}),
      IdOf(23, {years, hours})};
  std::array<std::int64_t, kDeepIds> deep{};
  for (std::size_t t = 0; t < kTexts.size(); ++t) {
    deep[t] = wide[1 + t];
  }
  deep[8] = wide[9];
  deep[9] = wide[10];
  const std::array<float, 5> dense = {
      (numbers[kAge] - 38) / 14, (numbers[kEducationYears] - 10) / 3,
      std::log1p(std::max(0.0F, numbers[kGain])) / 5,
      std::log1p(std::max(0.0F, numbers[kLoss])) / 5, (numbers[kHours] - 40) / 12};
  const auto target = static_cast<float>(person["label"].data<std::int64_t>()[0]);
  person["wide"] = Tensor::Of<std::int64_t>({wide.size()}, wide);
  person["deep"] = Tensor::Of<std::int64_t>({deep.size()}, deep);
  person["dense"] = Tensor::Of<float>({dense.size()}, dense);
  person["target"] = Tensor::Of<float>({1}, std::span(&target, 1));
  person.erase("number");
  person.erase("text");
  return {};
}

// ---- Model --------------------------------------------------------------------------------------

class WideAndDeep {
 public:
  WideAndDeep(cohort::ParameterSet& parameters, const Flags& f)
      : wide_(parameters, "wide", 0, 1,
              {.table = cohort::TableSpec{.optimizer =
                                              cohort::Ftrl({.learning_rate = f.wide_learning_rate,
                                                            .lambda1 = 0.5,
                                                            .lambda2 = 0.5})
                                                  ->config()}}),
        deep_(parameters, "deep", 0, f.embedding,
              {.seed = f.job.seed,
               .table =
                   cohort::TableSpec{
                       .optimizer =
                           cohort::Adagrad({.learning_rate = f.deep_learning_rate})->config(),
                       .initializer = {cohort::RowInitializer::Kind::kNormal, 0.05}}}),
        hidden1_(parameters, "hidden1", kDeepIds * f.embedding + 5, 64,
                 {.activation = cohort::Activation::kRelu, .seed = f.job.seed}),
        hidden2_(parameters, "hidden2", 64, 32,
                 {.activation = cohort::Activation::kRelu, .seed = f.job.seed}),
        out_(parameters, "out", 32, 1, {.seed = f.job.seed}) {}

  // [batch, 1]
  nn::Variable Logit(nn::Tape& tape, const cohort::data::Batch& batch) const {
    const nn::Variable wide = nn::Sum(wide_(tape, batch["wide"]), 1);
    const nn::Variable deep =
        nn::Concat({nn::Flatten(deep_(tape, batch["deep"])), tape.Input(batch["dense"])}, 1);
    return nn::Add(wide, out_(hidden2_(hidden1_(deep))));
  }

 private:
  nn::Embedding wide_;
  nn::Embedding deep_;
  nn::Dense hidden1_;
  nn::Dense hidden2_;
  nn::Dense out_;
};

// ---- The job ------------------------------------------------------------------------------------

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

Status Train(const Flags& f, const WideAndDeep& model, cohort::ParameterSet& parameters,
             cohort::Strategy& strategy) {
  COHORT_ASSIGN_OR_RETURN(const People people, LoadPeople(f));
  COHORT_RETURN_IF_ERROR(
      strategy.Bind(parameters, cohort::Adagrad({.learning_rate = f.deep_learning_rate})));

  cohort::TrainerOptions options = MakeTrainerOptions(f.job);
  options.epochs = f.epochs;
  options.metric_names = {"accuracy"};
  BinaryStep step([&model](nn::Tape& tape,
                           const cohort::data::Batch& batch) { return model.Logit(tape, batch); },
                  "target", PrecisionOf(f.job));
  cohort::Trainer trainer(strategy, parameters, std::move(options));
  const auto training =
      people.train.Shuffle(f.job.seed).Map(MakeFeatures).Batch(f.job.global_batch).Prefetch(2);
  COHORT_ASSIGN_OR_RETURN(const cohort::History history, trainer.Fit(training, step.Of(true)));
  const auto test = people.test.Map(MakeFeatures).Batch(1024);
  COHORT_ASSIGN_OR_RETURN(const cohort::EpochResult result, trainer.Evaluate(test, step.Of(false)));
  COHORT_ASSIGN_OR_RETURN(const Tensor predictions, trainer.Predict(test, step.Predictions()));
  if (!strategy.is_chief()) {
    return {};
  }
  COHORT_ASSIGN_OR_RETURN(const double auc, AucOf(predictions));
  return Report(f, strategy, parameters, history, result, auc);
}

}  // namespace

int main(int argc, char** argv) {
  Flags f;
  CLI::App app("Trains a wide & deep model, with its sparse part on parameter servers.");
  DeclareFlags(app, f);
  return RunProgram("wide_and_deep", app, argc, argv, [&] {
    cohort::ParameterSet parameters;
    const WideAndDeep model(parameters, f);
    parameters.Build();
    return RunJob(f.job, parameters, [&](cohort::Strategy& strategy) {
      return Train(f, model, parameters, strategy);
    });
  });
}
