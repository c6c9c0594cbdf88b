#include <cohort/data/clicks.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace cohort::data {
namespace {

TEST(GeneratedClicks, AreAFunctionOfSeedAndIndex) {
  const ClickModel model({.seed = 7});
  const ClickModel later({.seed = 7, .first = 40});
  const ClickModel other({.seed = 8});
  int same = 0;
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(CriteoLine(model.Draw(40 + i)), CriteoLine(later.Draw(i)));
    same += CriteoLine(model.Draw(i)) == CriteoLine(other.Draw(i)) ? 1 : 0;
  }
  EXPECT_EQ(same, 0);
}

TEST(GeneratedClicks, AreClickedAsOftenAsTheirProbabilitiesSay) {
  const ClickModel model({});
  constexpr int kCount = 20'000;
  double expected = 0;
  double variance = 0;
  int clicks = 0;
  std::map<int, std::pair<double, int>> bins;  // by probability: clicks and examples
  for (int i = 0; i < kCount; ++i) {
    const Click click = model.Draw(i);
    const double p = double{click.probability};
    expected += p;
    variance += p * (1 - p);
    clicks += click.clicked ? 1 : 0;
    auto& [bin_clicks, bin_count] = bins[static_cast<int>(p * 10)];
    bin_clicks += click.clicked ? 1 : 0;
    ++bin_count;
  }
  EXPECT_NEAR(clicks, expected, 5 * std::sqrt(variance));
  EXPECT_GT(clicks, kCount / 10);
  EXPECT_LT(clicks, kCount / 2);
  for (const auto& [bin, counts] : bins) {
    const auto [bin_clicks, n] = counts;
    EXPECT_NEAR(bin_clicks / n, bin / 10.0 + 0.05, 0.05 + 2.5 / std::sqrt(n)) << "bin " << bin;
  }
}

// Hard enough to be worth learning, and far from certain.
TEST(GeneratedClicks, HaveAKnownBestAreaUnderTheCurve) {
  const double auc = BayesAuc({.count = 20'000});
  EXPECT_GT(auc, 0.75);
  EXPECT_LT(auc, 0.88);
  // By the definition: the share of pairs in the right order.
  const ClicksOptions few{.count = 300, .seed = 3};
  const ClickModel model(few);
  std::vector<Click> clicks;
  for (int i = 0; i < few.count; ++i) {
    clicks.push_back(model.Draw(i));
  }
  double right = 0;
  double pairs = 0;
  for (const Click& a : clicks) {
    for (const Click& b : clicks) {
      if (a.clicked && !b.clicked) {
        ++pairs;
        right += a.probability > b.probability ? 1 : 0;
      }
    }
  }
  EXPECT_DOUBLE_EQ(BayesAuc(few), right / pairs);
}

TEST(GeneratedClicks, HaveManyIdsOfWhichFewArePopular) {
  const ClickModel model({.ids = 10'000'000});
  EXPECT_EQ(model.values(0), 5'000'000U);
  EXPECT_EQ(model.values(25), 4U);
  std::vector<std::map<std::uint32_t, int>> counts(26);
  for (int i = 0; i < 5000; ++i) {
    const Click click = model.Draw(i);
    for (std::size_t f = 0; f < 26; ++f) {
      ++counts[f][click.categories[f]];
    }
  }
  EXPECT_EQ(counts[25].size(), 4U);
  EXPECT_GT(counts[0].size(), 1000U);
  EXPECT_LT(counts[0].size(), 4000U);
}

TEST(GeneratedClicks, AreWrittenAsCriteoDoes) {
  Click click;
  click.clicked = true;
  click.integers[0] = 3;
  click.integers[12] = 0;
  click.categories[0] = 0x05db9164;
  click.categories[25] = 0xffffffff;
  std::string expected = "1\t3";
  for (int j = 1; j < 12; ++j) {
    expected += "\t";
  }
  expected += "\t0\t05db9164";
  for (int f = 1; f < 25; ++f) {
    expected += "\t00000000";
  }
  EXPECT_EQ(CriteoLine(click), expected + "\tffffffff\n");
}

TEST(GeneratedClicks, AreADataSet) {
  const Dataset dataset = GeneratedClicks({.count = 100});
  auto batches = dataset.Batch(100).Iterate({});
  ASSERT_TRUE(batches.ok()) << batches.status().ToString();
  auto batch = batches.value()->Next();
  ASSERT_TRUE(batch.ok()) << batch.status().ToString();
  ASSERT_TRUE(batch->has_value());
  const Tensor& ids = (**batch)["categories"];
  EXPECT_EQ(ids.shape(), Shape({100, 26}));
  const ClickModel model({.count = 100});
  for (int i = 0; i < 100; ++i) {
    const Click click = model.Draw(i);
    const auto row = static_cast<std::size_t>(i);
    EXPECT_EQ((**batch)["label"].data<float>()[row], click.clicked ? 1 : 0);
    for (std::size_t f = 0; f < 26; ++f) {
      EXPECT_EQ(ids.data<std::int64_t>()[row * 26 + f],
                static_cast<std::int64_t>(f) << 32 | click.categories[f]);
    }
    for (std::size_t j = 0; j < 13; ++j) {
      const float x = (**batch)["integers"].data<float>()[row * 13 + j];
      EXPECT_EQ(x, click.integers[j] ? std::log1p(static_cast<float>(*click.integers[j])) : 0);
    }
  }
}

}  // namespace
}  // namespace cohort::data
