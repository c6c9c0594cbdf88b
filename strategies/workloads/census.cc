#include <cohort/workloads/census.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <span>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/data/csv.h>
#include <cohort/data/memory.h>
#include <cohort/nn/operations.h>
#include <cohort/optim/optimizers.h>

namespace cohort::workloads {
namespace {

constexpr std::array kNumbers = {"age", "education-num", "capital-gain", "capital-loss",
                                 "hours-per-week"};
constexpr std::array kTexts = {"workclass",  "education",     "marital-status",
                               "occupation", "relationship",  "race",
                               "sex",        "native-country"};
enum Number { kAge, kEducationYears, kGain, kLoss, kHours };
enum Text { kWork, kEducation, kMarital, kOccupation, kRelationship, kRace, kSex, kCountry };

constexpr std::size_t kWideIds = 24;
constexpr std::size_t kDeepIds = 10;

// The id of value `value` of feature `feature`; of a cross, of its values in turn.
std::int64_t IdOf(int feature, std::initializer_list<std::int64_t> values) {
  std::uint64_t hash = Hash64("feature", static_cast<std::uint64_t>(feature));
  for (const std::int64_t value : values) {
    hash = Hash64({reinterpret_cast<const char*>(&value), sizeof(value)}, hash);
  }
  return static_cast<std::int64_t>(hash);
}

}  // namespace

Result<data::Dataset> ReadPeople(const std::string& path, const std::string& stop) {
  data::CsvOptions options;
  for (const char* name : kNumbers) {
    options.columns.push_back({.name = name, .feature = "number"});
  }
  for (const char* name : kTexts) {
    options.columns.push_back(
        {.name = name, .type = data::CsvType::kHash, .missing = 0, .feature = "text"});
  }
  options.columns.push_back({.name = "Y",
                             .type = data::CsvType::kCategory,
                             .categories = {"<=50K" + stop, ">50K" + stop},
                             .feature = "label"});
  COHORT_ASSIGN_OR_RETURN(data::CsvData csv, data::Csv({path}, options));
  return csv.dataset;
}

Result<data::Dataset> DrawPeople(std::int64_t count, std::uint64_t seed) {
  constexpr std::array<std::uint64_t, kTexts.size()> kKinds = {8, 16, 7, 14, 6, 5, 2, 40};
  const Philox random(seed, "people");
  const auto effect = [](std::uint64_t a, std::uint64_t b, std::uint64_t c) {
    return Philox(7, "effects").Normal(a * 1000 + b, c);
  };
  Tensor number(DType::kFloat32, {count, static_cast<std::int64_t>(kNumbers.size())});
  Tensor text(DType::kInt64, {count, static_cast<std::int64_t>(kTexts.size())});
  Tensor label(DType::kInt64, {count, 1});
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
  return data::FromTensors({{"number", number}, {"text", text}, {"label", label}});
}

Status CensusFeatures(data::Example& person) {
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

WideAndDeep::WideAndDeep(ParameterSet& parameters, const WideAndDeepOptions& o)
    : wide_(parameters, "wide", 0, 1,
            {.table = TableSpec{.optimizer = Ftrl({.learning_rate = o.wide_learning_rate,
                                                   .lambda1 = 0.5,
                                                   .lambda2 = 0.5})
                                                 ->config()}}),
      deep_(parameters, "deep", 0, o.embedding,
            {.seed = o.seed,
             .table =
                 TableSpec{.optimizer = Adagrad({.learning_rate = o.deep_learning_rate})->config(),
                           .initializer = {RowInitializer::Kind::kNormal, 0.05}}}),
      hidden1_(parameters, "hidden1", kDeepIds * o.embedding + kNumbers.size(), 64,
               {.activation = Activation::kRelu, .seed = o.seed}),
      hidden2_(parameters, "hidden2", 64, 32, {.activation = Activation::kRelu, .seed = o.seed}),
      out_(parameters, "out", 32, 1, {.seed = o.seed}) {}

nn::Variable WideAndDeep::Logit(nn::Tape& tape, const data::Batch& batch) const {
  const nn::Variable wide = nn::Sum(wide_(tape, batch["wide"]), 1);
  const nn::Variable deep =
      nn::Concat({nn::Flatten(deep_(tape, batch["deep"])), tape.Input(batch["dense"])}, 1);
  return nn::Add(wide, out_(hidden2_(hidden1_(deep))));
}

BinaryStep CensusStep(const WideAndDeep& model, nn::Precision precision) {
  return {[&model](nn::Tape& tape, const data::Batch& batch) { return model.Logit(tape, batch); },
          "target", precision};
}

}  // namespace cohort::workloads
