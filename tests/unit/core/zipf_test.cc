#include <cohort/core/random.h>
#include <cohort/core/zipf.h>

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace cohort {
namespace {

// Counts against the exact probabilities: within five standard deviations each.
TEST(Zipf, DrawsRanksByThePowerLaw) {
  for (const std::uint64_t ranks : {1, 2, 5, 1000}) {
    for (const double exponent : {0.0, 0.7, 1.0, 1.05, 2.0}) {
      const Philox philox(ranks, "zipf");
      const Zipf zipf(ranks, exponent);
      std::uint64_t next = 0;
      constexpr int kDraws = 200'000;
      std::vector<int> counts(ranks + 1);
      for (int i = 0; i < kDraws; ++i) {
        const std::uint64_t rank = zipf([&] { return double{philox.Uniform(next++)}; });
        ASSERT_TRUE(rank >= 1 && rank <= ranks) << rank;
        ++counts[rank];
      }
      double total = 0;
      for (std::uint64_t k = 1; k <= ranks; ++k) {
        total += std::pow(static_cast<double>(k), -exponent);
      }
      for (std::uint64_t k = 1; k <= ranks; ++k) {
        const double mean = kDraws * std::pow(static_cast<double>(k), -exponent) / total;
        EXPECT_NEAR(counts[k], mean, 5 * std::sqrt(mean) + 1)
            << "rank " << k << " of " << ranks << ", exponent " << exponent;
      }
    }
  }
}

TEST(Zipf, KnowsManyRanks) {
  const Philox philox(1, "zipf");
  const Zipf zipf(std::uint64_t{1} << 40, 1.05);
  std::uint64_t next = 0;
  std::uint64_t most = 0;
  for (int i = 0; i < 1000; ++i) {
    most = std::max(most, zipf([&] { return double{philox.Uniform(next++)}; }));
  }
  EXPECT_GT(most, std::uint64_t{1} << 30);
  EXPECT_LE(most, std::uint64_t{1} << 40);
}

}  // namespace
}  // namespace cohort
