// How a click is drawn.

#include <cohort/data/clicks.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/core/zipf.h>

namespace cohort::data {
namespace {

constexpr int kIntegers = 13;
constexpr int kCategories = 26;
// Part of the fingerprint: to be changed with anything that changes an example.
constexpr std::uint64_t kDrawingVersion = 1;

constexpr float kBias = -1.2F;
constexpr float kCategoryEffect = 0.28F;  // standard deviation, of popular values
constexpr double kPopular = 200;          // ranks after this one have less and less effect
constexpr float kIntegerEffect = 0.2F;
constexpr float kProductEffect = 0.35F;
constexpr int kHidden = 4;        // elements of a hidden vector
constexpr int kFirstHidden = 14;  // the categories from this one have hidden vectors
constexpr float kMissing = 0.1F;  // share of the integers

// The random numbers of one example, in the order of their use.
class Draws {
 public:
  Draws(const Philox& philox, std::int64_t index)
      : philox_(philox), index_(static_cast<std::uint64_t>(index)) {}

  double Uniform() {  // 53 bits
    if (used_ == 4) {
      words_ = philox_.At(next_++, index_);
      used_ = 0;
    }
    const std::uint64_t high = words_[used_];
    const std::uint64_t low = words_[used_ + 1];
    used_ += 2;
    return static_cast<double>((high << 32U | low) >> 11U) * 0x1p-53;
  }
  double Normal() {
    const double radius = std::sqrt(-2 * std::log1p(-Uniform()));
    return radius * std::cos(2 * M_PI * Uniform());
  }

 private:
  const Philox& philox_;
  std::uint64_t index_;
  std::uint64_t next_ = 0;
  Philox::Block words_ = {};
  std::size_t used_ = 4;
};

// One to one on 32 bits (the finaliser of MurmurHash3): categories look like hashes.
std::uint32_t Scramble(std::uint32_t x) {
  x ^= x >> 16U;
  x *= 0x85ebca6bU;
  x ^= x >> 13U;
  x *= 0xc2b2ae35U;
  return x ^ x >> 16U;
}

class ClicksSource final : public Source {
 public:
  explicit ClicksSource(const ClicksOptions& options) : options_(options), model_(options) {}

  std::int64_t size() const override { return options_.count; }
  const std::vector<FeatureSpec>& features() const override { return features_; }

  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    const Click click = model_.Draw(index);
    const float label = click.clicked ? 1.0F : 0.0F;
    std::memcpy(rows[0], &label, sizeof(label));
    auto* integers = reinterpret_cast<float*>(rows[1]);
    for (const std::optional<std::int32_t>& x : click.integers) {
      *integers++ = std::log1p(static_cast<float>(std::max(x.value_or(0), 0)));
    }
    auto* categories = reinterpret_cast<std::int64_t*>(rows[2]);
    for (std::int64_t f = 0; f < kCategories; ++f) {
      categories[f] = f << 32 | click.categories[static_cast<std::size_t>(f)];
    }
    return {};
  }

  std::string Where(std::int64_t index) const override {
    return "generated click " + std::to_string(options_.first + index) + " of seed " +
           std::to_string(options_.seed);
  }
  std::uint64_t Fingerprint() const override {
    std::uint64_t zipf = 0;
    std::memcpy(&zipf, &options_.zipf, sizeof(zipf));
    const std::uint64_t words[] = {kDrawingVersion,
                                   options_.seed,
                                   static_cast<std::uint64_t>(options_.first),
                                   static_cast<std::uint64_t>(options_.count),
                                   static_cast<std::uint64_t>(options_.ids),
                                   zipf};
    return Hash64({reinterpret_cast<const char*>(words), sizeof(words)});
  }

 private:
  ClicksOptions options_;
  ClickModel model_;
  std::vector<FeatureSpec> features_ = {{"label", DType::kFloat32, Shape()},
                                        {"integers", DType::kFloat32, {kIntegers}},
                                        {"categories", DType::kInt64, {kCategories}}};
};

}  // namespace

ClickModel::ClickModel(const ClicksOptions& options)
    : first_(options.first),
      examples_(options.seed, "data/clicks"),
      effects_(options.seed, "data/clicks/effects"),
      hidden_(options.seed, "data/clicks/hidden") {
  Require(options.count >= 0 && options.first >= 0, "generated clicks have indices from 0");
  Require(options.ids >= 1 && options.ids <= std::int64_t{1} << 32 && options.zipf >= 0,
          "generated clicks have 1 to 2^32 ids, and a popularity that does not rise");
  for (int f = 0; f < kCategories; ++f) {
    const std::int64_t values = std::max<std::int64_t>(options.ids >> (f + 1), 4);
    popularity_.emplace_back(static_cast<std::uint64_t>(values), options.zipf);
  }
}

Click ClickModel::Draw(std::int64_t index) const {
  Draws draws(examples_, first_ + index);
  Click click;
  double logit = kBias;
  std::array<std::uint64_t, kCategories> ranks;
  for (std::size_t f = 0; f < kCategories; ++f) {
    ranks[f] = popularity_[f]([&] { return draws.Uniform(); });
    click.categories[f] = Scramble(static_cast<std::uint32_t>(ranks[f]) ^
                                   static_cast<std::uint32_t>(f) * 0x9e3779b9U);
    const double fade = std::min(1.0, std::sqrt(kPopular / static_cast<double>(ranks[f])));
    logit += kCategoryEffect * fade * effects_.Normal(ranks[f], f);
  }
  for (std::size_t f = kFirstHidden; f + 1 < kCategories; f += 2) {
    float product = 0;
    for (std::uint64_t k = 0; k < kHidden; ++k) {
      product += hidden_.Normal(ranks[f] * kHidden + k, f) *
                 hidden_.Normal(ranks[f + 1] * kHidden + k, f + 1);
    }
    const double fade =
        std::min(1.0, std::sqrt(kPopular / static_cast<double>(std::max(ranks[f], ranks[f + 1]))));
    logit += kProductEffect / std::sqrt(static_cast<float>(kHidden)) * fade * product;
  }
  for (std::size_t j = 0; j < kIntegers; ++j) {
    const double z = draws.Normal();
    const bool missing = draws.Uniform() < kMissing;
    // A count, of some hundreds in some columns and a few in others.
    const double scale = 1 + static_cast<double>(j % 4);
    click.integers[j] = static_cast<std::int32_t>(std::exp(std::min(scale + z, 20.0)));
    if (missing) {
      click.integers[j].reset();
    } else {
      logit += (j % 2 == 0 ? kIntegerEffect : -kIntegerEffect) * std::tanh(z);
    }
  }
  click.probability = static_cast<float>(1 / (1 + std::exp(-logit)));
  click.clicked = draws.Uniform() < click.probability;
  return click;
}

double BayesAuc(const ClicksOptions& options) {
  const ClickModel model(options);
  std::vector<std::pair<float, bool>> scored(static_cast<std::size_t>(options.count));
  for (std::int64_t i = 0; i < options.count; ++i) {
    const Click click = model.Draw(i);
    scored[static_cast<std::size_t>(i)] = {click.probability, click.clicked};
  }
  std::ranges::sort(scored);
  // Pairs of a click and another in the right order, equal probabilities by half: there are next to
  // none, and false sorts before true, so that they are taken as right.
  double others = 0;
  double clicks = 0;
  double pairs = 0;
  for (const auto& [probability, clicked] : scored) {
    pairs += clicked ? others : 0;
    (clicked ? clicks : others) += 1;
  }
  return clicks == 0 || others == 0 ? 0.5 : pairs / (clicks * others);
}

std::string CriteoLine(const Click& click) {
  std::string line = click.clicked ? "1" : "0";
  for (const std::optional<std::int32_t>& x : click.integers) {
    line += '\t';
    if (x) {
      line += std::to_string(*x);
    }
  }
  for (const std::uint32_t category : click.categories) {
    line += '\t';
    for (int shift = 28; shift >= 0; shift -= 4) {
      line += "0123456789abcdef"[category >> static_cast<unsigned>(shift) & 0xfU];
    }
  }
  return line + '\n';
}

Dataset GeneratedClicks(const ClicksOptions& options) {
  return Dataset(std::make_shared<ClicksSource>(options));
}

}  // namespace cohort::data
