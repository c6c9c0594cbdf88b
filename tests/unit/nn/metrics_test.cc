#include <cohort/core/random.h>
#include <cohort/nn/metrics.h>
#include <gtest/gtest.h>

#include <cmath>

namespace cohort::nn {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

template <typename T>
Tensor Make(Shape shape, const std::vector<T>& values) {
  return Tensor::Of<T>(std::move(shape), values);
}

const Tensor kScores = Make<float>({4, 3}, {0.1F, 0.7F, 0.2F,  //
                                            0.5F, 0.2F, 0.3F,  //
                                            0.4F, 0.4F, 0.2F,  //
                                            -1.0F, -3.0F, -2.0F});

TEST(Metrics, AccuracyCountsTheLargest) {
  for (const Tensor& labels :
       {Make<std::int32_t>({4}, {1, 2, 0, 0}), Make<std::int64_t>({4}, {1, 2, 0, 0}),
        Make<std::uint8_t>({4}, {1, 2, 0, 0})}) {
    const auto accuracy = Accuracy(kScores, labels);
    ASSERT_TRUE(accuracy.ok());
    EXPECT_EQ(accuracy->sum, 3);
    EXPECT_EQ(accuracy->weight, 4);
    EXPECT_EQ(accuracy->mean(), 0.75);
  }
  EXPECT_EQ(Accuracy(kScores, Make<std::int32_t>({4}, {1, 0, 1, 0}))->sum, 3)
      << "of equal scores only the first is the largest";
}

TEST(Metrics, WeightsWeigh) {
  const std::vector<float> weights = {2, 3, 0.5F, 0};
  const auto accuracy = Accuracy(kScores, Make<std::int32_t>({4}, {1, 2, 0, 0}), weights);
  EXPECT_EQ(accuracy->sum, 2.5);
  EXPECT_EQ(accuracy->weight, 5.5);
}

TEST(Metrics, TopK) {
  const Tensor labels = Make<std::int32_t>({4}, {2, 2, 2, 1});
  EXPECT_EQ(TopKAccuracy(kScores, labels, 1)->sum, 0);
  EXPECT_EQ(TopKAccuracy(kScores, labels, 2)->sum, 2);
  EXPECT_EQ(TopKAccuracy(kScores, labels, 3)->sum, 4);
  EXPECT_EQ(TopKAccuracy(kScores, labels, 99)->sum, 4);
}

TEST(Metrics, NaNIsNeverRight) {
  const Tensor scores = Make<float>({2, 2}, {kNaN, 0.0F, kNaN, kNaN});
  EXPECT_EQ(Accuracy(scores, Make<std::int32_t>({2}, {0, 0}))->sum, 0);
  EXPECT_EQ(Accuracy(scores, Make<std::int32_t>({2}, {1, 1}))->sum, 0);
  EXPECT_EQ(TopKAccuracy(scores, Make<std::int32_t>({2}, {1, 1}), 2)->sum, 1);
}

TEST(Metrics, LabelOutOfRangeNamesTheRow) {
  for (const std::int32_t bad : {-1, 3}) {
    const auto result = Accuracy(kScores, Make<std::int32_t>({4}, {0, 0, bad, 0}));
    EXPECT_EQ(result.status().code(), StatusCode::kOutOfRange);
    EXPECT_EQ(result.status().message(),
              "label " + std::to_string(bad) + " of row 2 is not in [0, 3)");
  }
}

TEST(Metrics, EmptyBatchesCountNothing) {
  const Tensor none(DType::kFloat32, {0, 3});
  const Tensor no_labels(DType::kInt32, {0});
  const auto accuracy = Accuracy(none, no_labels);
  ASSERT_TRUE(accuracy.ok());
  EXPECT_EQ(accuracy->weight, 0);
  EXPECT_EQ(accuracy->mean(), 0);
}

TEST(Metrics, BreachesThrow) {
  const Tensor labels = Make<std::int32_t>({4}, {0, 0, 0, 0});
  const std::vector<float> weights(3);
  EXPECT_THROW(static_cast<void>(Accuracy(kScores, Make<std::int32_t>({1}, {0}))), ContractError);
  EXPECT_THROW(static_cast<void>(Accuracy(kScores, Make<float>({4}, {0, 0, 0, 0}))), ContractError);
  EXPECT_THROW(static_cast<void>(Accuracy(kScores, labels, weights)), ContractError);
  EXPECT_THROW(static_cast<void>(TopKAccuracy(kScores, labels, 0)), ContractError);
}

TEST(Metrics, MeanAddsUpOverParts) {
  const std::vector<float> values = {1, 2, 3, 10};
  const std::vector<float> weights = {1, 1, 2, 0};
  WeightedSum parts = Mean(std::span(values).first(1), std::span(weights).first(1));
  parts += Mean(std::span(values).subspan(1), std::span(weights).subspan(1));
  EXPECT_EQ(parts.mean(), Mean(values, weights).mean());
  EXPECT_EQ(parts.mean(), 9.0 / 4);
  EXPECT_EQ(Mean(values).mean(), 4.0);
}

// Over all pairs: wins of positives over negatives, ties half.
double ExactAuc(const std::vector<float>& scores, const std::vector<std::int32_t>& labels) {
  double wins = 0;
  double pairs = 0;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    for (std::size_t j = 0; j < scores.size(); ++j) {
      if (labels[i] == 1 && labels[j] == 0) {
        ++pairs;
        wins += scores[i] > scores[j] ? 1 : scores[i] == scores[j] ? 0.5 : 0;
      }
    }
  }
  return wins / pairs;
}

TEST(Metrics, AucIsTheShareOfWonPairs) {
  Auc perfect;
  ASSERT_TRUE(
      perfect.Add(std::vector<float>{0, 0.4F, 0.6F, 1}, Make<std::int32_t>({4}, {0, 0, 1, 1}))
          .ok());
  EXPECT_EQ(perfect.value(), 1.0);
  Auc tied;
  ASSERT_TRUE(tied.Add(std::vector<float>{0.5F, 0.5F}, Make<std::int32_t>({2}, {0, 1})).ok());
  EXPECT_EQ(tied.value(), 0.5);

  const Philox random(1);
  std::vector<float> scores;
  std::vector<std::int32_t> labels;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    labels.push_back(random.Uniform(i, 1) < 0.3F ? 1 : 0);
    const float u = random.Uniform(i);
    scores.push_back(labels.back() == 1 ? std::sqrt(u) : u);
  }
  Auc auc(200);
  ASSERT_TRUE(auc.Add(scores, Make<std::int32_t>({1000}, labels)).ok());
  EXPECT_NEAR(auc.value(), ExactAuc(scores, labels), 1.0 / 400);
}

TEST(Metrics, AucAddsUpOverPartsAndSurvivesScaling) {
  const std::vector<float> scores = {0.1F, 0.9F, 0.8F, 0.3F, 0.6F, 0.2F};
  const Tensor labels = Make<std::int32_t>({6}, {0, 1, 0, 1, 1, 0});
  Auc whole;
  ASSERT_TRUE(whole.Add(scores, labels).ok());
  Auc parts;
  Auc other;
  ASSERT_TRUE(parts.Add(std::span(scores).first(2), labels.Rows(0, 2)).ok());
  ASSERT_TRUE(other.Add(std::span(scores).subspan(2), labels.Rows(2, 6)).ok());
  parts.AddCounts(other.counts());
  EXPECT_EQ(parts.counts(), whole.counts());
  std::vector<double> means = whole.counts();
  for (double& m : means) {
    m /= 8;
  }
  Auc scaled;
  scaled.AddCounts(means);
  EXPECT_EQ(scaled.value(), whole.value());
}

TEST(Metrics, AucRejectsBadInputWhole) {
  Auc auc;
  EXPECT_TRUE(std::isnan(auc.value()));
  const Tensor labels = Make<std::int32_t>({2}, {0, 1});
  for (const float bad : {-0.1F, 1.1F, kNaN}) {
    const Status status = auc.Add(std::vector<float>{0.5F, bad}, labels);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find("row 1"), std::string::npos);
  }
  EXPECT_EQ(auc.Add(std::vector<float>{0.5F, 0.5F}, Make<std::int32_t>({2}, {0, 2})).code(),
            StatusCode::kOutOfRange);
  EXPECT_EQ(auc.counts(), Auc().counts()) << "nothing was counted";
  EXPECT_THROW(auc.AddCounts(std::vector<double>(3)), ContractError);
  EXPECT_THROW(Auc(0), ContractError);
}

}  // namespace
}  // namespace cohort::nn
