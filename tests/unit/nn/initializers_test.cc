#include <cohort/nn/initializers.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace cohort::nn {
namespace {

constexpr int kDraws = 100'000;

struct Moments {
  double mean = 0;
  double variance = 0;
  double least = 1e9;
  double most = -1e9;
};

Moments MomentsOf(const Initializer& initializer) {
  Moments m;
  double squares = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double x = initializer(static_cast<std::uint64_t>(i));
    m.mean += x / kDraws;
    squares += x * x / kDraws;
    m.least = std::min(m.least, x);
    m.most = std::max(m.most, x);
  }
  m.variance = squares - m.mean * m.mean;
  return m;
}

// Tolerances: about five standard errors of 100,000 draws.
void ExpectUniform(const Initializer& initializer, double limit) {
  const Moments m = MomentsOf(initializer);
  EXPECT_NEAR(m.mean, 0, limit * 0.01);
  EXPECT_NEAR(m.variance, limit * limit / 3, limit * limit / 3 * 0.02);
  EXPECT_GE(m.least, -limit);
  EXPECT_LE(m.most, limit);
  EXPECT_LT(m.least, -limit * 0.999);
  EXPECT_GT(m.most, limit * 0.999);
}

void ExpectNormal(const Initializer& initializer, double mean, double deviation) {
  const Moments m = MomentsOf(initializer);
  EXPECT_NEAR(m.mean, mean, deviation * 0.02);
  EXPECT_NEAR(m.variance, deviation * deviation, deviation * deviation * 0.03);
  EXPECT_GT(m.most, mean + 3.5 * deviation);
  EXPECT_LT(m.least, mean - 3.5 * deviation);
}

TEST(Initializers, FansByShape) {
  EXPECT_EQ(FansOf({784, 512}), (Fans{784, 512}));
  EXPECT_EQ(FansOf({3, 5, 8, 16}), (Fans{120, 240}));
  EXPECT_EQ(FansOf({7}), (Fans{7, 7}));
  EXPECT_EQ(FansOf({}), (Fans{1, 1}));
}

TEST(Initializers, Constants) {
  EXPECT_EQ(Zeros()(3), 0.0F);
  EXPECT_EQ(Constant(2.5F)(1'000'000), 2.5F);
}

TEST(Initializers, Distributions) {
  ExpectUniform(Uniform(-2, 2, 1, "w"), 2);
  ExpectNormal(Normal(3, 0.5F, 1, "w"), 3, 0.5);
  ExpectUniform(GlorotUniform({300, 100}, 1, "w"), std::sqrt(6.0 / 400));
  ExpectNormal(GlorotNormal({300, 100}, 1, "w"), 0, std::sqrt(2.0 / 400));
  ExpectUniform(HeUniform({3, 3, 16, 64}, 1, "w"), std::sqrt(6.0 / 144));
  ExpectNormal(HeNormal({3, 3, 16, 64}, 1, "w"), 0, std::sqrt(2.0 / 144));
}

TEST(Initializers, ValuesAreKeyedBySeedAndName) {
  const auto first = [](const Initializer& i) {
    std::vector<float> values;
    for (std::uint64_t e = 0; e < 8; ++e) {
      values.push_back(i(e));
    }
    return values;
  };
  const auto w = first(Normal(0, 1, 1, "w"));
  EXPECT_EQ(w, first(Normal(0, 1, 1, "w")));
  EXPECT_NE(w, first(Normal(0, 1, 2, "w")));
  EXPECT_NE(w, first(Normal(0, 1, 1, "b")));
  EXPECT_EQ(Normal(0, 1, 1, "w")(5), w[5]) << "an element needs no other";
}

TEST(Initializers, AParameterOfASetIsTheSameWhateverElseIsDeclared) {
  ParameterSet one;
  one.Add("w", {4, 4}, GlorotUniform({4, 4}, 9, "w"));
  one.Build();
  ParameterSet two;
  two.Add("other", {3}, Normal(0, 1, 9, "other"));
  two.Add("w", {4, 4}, GlorotUniform({4, 4}, 9, "w"));
  two.Build();
  EXPECT_TRUE(std::equal(one.value(0).begin(), one.value(0).end(), two.value(1).begin()));
}

TEST(Initializers, EmptyShapesAndBreaches) {
  EXPECT_TRUE(std::isfinite(GlorotUniform({0, 0}, 1, "w")(0)));
  EXPECT_TRUE(std::isfinite(HeNormal({0, 4}, 1, "w")(0)));
  EXPECT_THROW(Uniform(1, 0, 1, "w"), ContractError);
  EXPECT_THROW(Normal(0, -1, 1, "w"), ContractError);
}

}  // namespace
}  // namespace cohort::nn
