#include <cohort/optim/gradients.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace cohort {
namespace {

TEST(Gradients, SquaredNormIsExactOnIntegersOfEveryLength) {
  for (int n = 0; n <= 40; ++n) {
    std::vector<float> x;
    double expected = 0;
    for (int i = 1; i <= n; ++i) {
      x.push_back(static_cast<float>(i % 2 == 0 ? i : -i));
      expected += i * i;
    }
    EXPECT_EQ(SquaredNorm(x), expected) << n;
  }
}

TEST(Gradients, SquaredNormAccumulatesInDouble) {
  // In float each of these small squares would vanish beside the large one.
  std::vector<float> x(1 + 8 * 1000, 1.0F);
  x[0] = 1e5F;
  EXPECT_EQ(SquaredNorm(x), 1e10 + 8000.0);
}

TEST(Gradients, ClipFactorBoundsTheNorm) {
  EXPECT_EQ(ClipFactor(25, 0), 1.0);
  EXPECT_EQ(ClipFactor(25, 10), 1.0);
  EXPECT_EQ(ClipFactor(25, 5), 1.0);
  EXPECT_EQ(ClipFactor(25, 1), 0.2);
  EXPECT_EQ(ClipFactor(0, 1), 1.0);
  EXPECT_TRUE(std::isnan(ClipFactor(std::numeric_limits<double>::infinity(), 1)));
  EXPECT_TRUE(std::isnan(ClipFactor(std::nan(""), 0)));
}

TEST(Gradients, MergeSortsAndAddsInInputOrder) {
  const std::vector<std::int64_t> indices = {7, 2, 7, 0, 7};
  // 1e8 + 1 + -1e8 in float: the order of addition shows.
  const std::vector<float> values = {1e8F, 1, 5, 6, 1, 2, 9, 9, -1e8F, 3};
  const auto merged = MergeSlices({indices, values}, 8, 2);
  ASSERT_TRUE(merged.ok()) << merged.status().ToString();
  EXPECT_EQ(merged->indices, (std::vector<std::int64_t>{0, 2, 7}));
  EXPECT_EQ(merged->counts, (std::vector<std::int64_t>{1, 1, 3}));
  EXPECT_EQ(merged->values, (std::vector<float>{9, 9, 5, 6, 1e8F + 1.0F - 1e8F, 6}));
  EXPECT_EQ(merged->view().indices.size(), 3U);
}

TEST(Gradients, MergeOfNothingAndOfEmptyRows) {
  const auto none = MergeSlices({}, 8, 2);
  ASSERT_TRUE(none.ok());
  EXPECT_TRUE(none->indices.empty());
  const std::vector<std::int64_t> indices = {1, 1};
  const auto empty_rows = MergeSlices({indices, {}}, 2, 0);
  ASSERT_TRUE(empty_rows.ok());
  EXPECT_EQ(empty_rows->counts, std::vector<std::int64_t>{2});
}

TEST(Gradients, MergeNamesTheRowOutOfRange) {
  const std::vector<float> values = {1, 2};
  for (const std::int64_t bad : {std::int64_t{-1}, std::int64_t{8}}) {
    const std::vector<std::int64_t> indices = {3, bad};
    const auto merged = MergeSlices({indices, values}, 8, 1);
    EXPECT_EQ(merged.status().code(), StatusCode::kOutOfRange);
    EXPECT_NE(merged.status().message().find("row " + std::to_string(bad) + " at position 1"),
              std::string::npos);
  }
  const std::vector<std::int64_t> indices = {3};
  EXPECT_THROW(static_cast<void>(MergeSlices({indices, values}, 8, 1)), ContractError);
}

}  // namespace
}  // namespace cohort
