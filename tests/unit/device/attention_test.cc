// Attention against plain loops in double.

#include <cohort/device/kernels.h>

#include <cohort/core/random.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace cohort {
namespace {

using Doubles = std::vector<double>;

std::vector<float> Random(std::int64_t n, std::uint64_t seed) {
  std::vector<float> v;
  for (std::int64_t i = 0; i < n; ++i) {
    v.push_back(Philox(seed).Uniform(static_cast<std::uint64_t>(i)) * 4 - 2);
  }
  return v;
}

std::int64_t Elements(const AttentionSpec& s) { return s.batch * s.length * s.heads * s.head_size; }

// Where element (row, column) of a head's matrix is; `matrix` of the `matrices` side by side.
struct Places {
  AttentionSpec s;
  std::int64_t matrices;
  std::size_t operator()(std::int64_t b, std::int64_t h, std::int64_t matrix, std::int64_t row,
                         std::int64_t column) const {
    return static_cast<std::size_t>(
        (((b * s.length + row) * matrices + matrix) * s.heads + h) * s.head_size + column);
  }
};

struct Attended {
  Doubles y, dqkv;
};

// Forward, and the gradients for dy.
Attended Loops(const AttentionSpec& s, const std::vector<float>& qkv,
               const std::vector<float>& dy) {
  const Places in{s, 3};
  const Places out{s, 1};
  const double scale = 1 / std::sqrt(static_cast<double>(s.head_size));
  Attended result{Doubles(dy.size()), Doubles(qkv.size())};
  for (std::int64_t b = 0; b < s.batch; ++b) {
    for (std::int64_t h = 0; h < s.heads; ++h) {
      for (std::int64_t i = 0; i < s.length; ++i) {
        const std::int64_t keys = s.causal ? i + 1 : s.length;
        Doubles p(static_cast<std::size_t>(keys)), dp(p.size());
        double sum = 0;
        for (std::int64_t j = 0; j < keys; ++j) {
          double score = 0;
          for (std::int64_t c = 0; c < s.head_size; ++c) {
            score += static_cast<double>(qkv[in(b, h, 0, i, c)]) * qkv[in(b, h, 1, j, c)];
            dp[static_cast<std::size_t>(j)] +=
                static_cast<double>(dy[out(b, h, 0, i, c)]) * qkv[in(b, h, 2, j, c)];
          }
          p[static_cast<std::size_t>(j)] = std::exp(score * scale);
          sum += p[static_cast<std::size_t>(j)];
        }
        double mean = 0;
        for (std::size_t j = 0; j < p.size(); ++j) {
          p[j] /= sum;
          mean += p[j] * dp[j];
        }
        for (std::int64_t j = 0; j < keys; ++j) {
          const auto at = static_cast<std::size_t>(j);
          const double ds = p[at] * (dp[at] - mean) * scale;
          for (std::int64_t c = 0; c < s.head_size; ++c) {
            result.y[out(b, h, 0, i, c)] += p[at] * qkv[in(b, h, 2, j, c)];
            result.dqkv[in(b, h, 0, i, c)] += ds * qkv[in(b, h, 1, j, c)];
            result.dqkv[in(b, h, 1, j, c)] += ds * qkv[in(b, h, 0, i, c)];
            result.dqkv[in(b, h, 2, j, c)] += p[at] * dy[out(b, h, 0, i, c)];
          }
        }
      }
    }
  }
  return result;
}

// What the table computes; memory that is overwritten begins as NaN.
struct Computed {
  std::vector<float> y, saved, dqkv;
};

Computed Compute(Kernels& kernels, const AttentionSpec& s, const std::vector<float>& qkv,
                 const std::vector<float>& dy) {
  const auto stream = MakeInlineStream();
  AttentionPlan& plan = kernels.Attention(s);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  Computed c{std::vector<float>(dy.size(), nan),
             std::vector<float>(static_cast<std::size_t>(plan.saved_elements()), nan),
             std::vector<float>(qkv.size(), nan)};
  plan.Forward(*stream, qkv.data(), c.y.data(), c.saved.data());
  plan.Backward(*stream, qkv.data(), c.y.data(), c.saved.data(), dy.data(), c.dqkv.data());
  EXPECT_EQ(stream->Synchronize(DeadlineAfter(std::chrono::seconds(30))), OkStatus());
  return c;
}

void ExpectNear(const std::vector<float>& got, const Doubles& want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    ASSERT_NEAR(got[i], want[i], 2e-5 * std::max(1.0, std::abs(want[i])))
        << what << " element " << i;
  }
}

TEST(Attention, IsThePlainLoopAndItsGradient) {
  const auto kernels = MakeCpuKernels(1);
  for (const bool causal : {false, true}) {
    for (const AttentionSpec& s : {AttentionSpec{1, 1, 1, 1, causal},
                                   {2, 5, 3, 4, causal},
                                   {1, 32, 2, 8, causal},
                                   {2, 33, 1, 17, causal},
                                   {1, 100, 2, 16, causal}}) {
      const auto qkv = Random(3 * Elements(s), 1);
      const auto dy = Random(Elements(s), 2);
      const Computed got = Compute(*kernels, s, qkv, dy);
      const Attended want = Loops(s, qkv, dy);
      const std::string what = "length " + std::to_string(s.length) + (causal ? ", causal" : "");
      ExpectNear(got.y, want.y, "y, " + what);
      ExpectNear(got.dqkv, want.dqkv, "dqkv, " + what);
    }
  }
}

TEST(Attention, IsTheSameBitsForAnyNumberOfThreads) {
  const AttentionSpec s{.batch = 3, .length = 130, .heads = 3, .head_size = 8, .causal = true};
  const auto qkv = Random(3 * Elements(s), 1);
  const auto dy = Random(Elements(s), 2);
  const Computed one = Compute(*MakeCpuKernels(1), s, qkv, dy);
  const Computed two = Compute(*MakeCpuKernels(2), s, qkv, dy);
  EXPECT_EQ(one.y, two.y);
  EXPECT_EQ(one.dqkv, two.dqkv);
}

TEST(Attention, CausalPlacesDoNotSeeThoseBehindThem) {
  const AttentionSpec s{.batch = 1, .length = 70, .heads = 2, .head_size = 4, .causal = true};
  auto qkv = Random(3 * Elements(s), 1);
  const auto dy = Random(Elements(s), 2);
  const auto kernels = MakeCpuKernels(1);
  const Computed before = Compute(*kernels, s, qkv, dy);
  const std::int64_t changed = 40;
  for (std::int64_t i = changed * 3 * 8; i < 3 * Elements(s); ++i) {
    qkv[static_cast<std::size_t>(i)] += 1;
  }
  const Computed after = Compute(*kernels, s, qkv, dy);
  for (std::int64_t i = 0; i < Elements(s); ++i) {
    const auto at = static_cast<std::size_t>(i);
    ASSERT_EQ(before.y[at] == after.y[at], i < changed * 8) << "element " << i;
  }
}

// Scores far beyond what exp can take; log(sum of exp) is what is saved.
TEST(Attention, TakesLargeScores) {
  const AttentionSpec s{.batch = 1, .length = 2, .heads = 1, .head_size = 1, .causal = true};
  //                              q     k    v
  const std::vector<float> qkv = {1000, 10,  1,  //
                                  1000, -10, 3};
  const Computed got = Compute(*MakeCpuKernels(1), s, qkv, {1, 1});
  ExpectNear(got.y, {1, 1}, "y");
  ExpectNear(got.saved, {10'000, 10'000}, "saved");
  ExpectNear(got.dqkv, {0, 0, 2, 0, 0, 0}, "dqkv");
}

TEST(Attention, OfNothingIsNothing) {
  const auto kernels = MakeCpuKernels(2);
  for (const AttentionSpec& s : {AttentionSpec{0, 4, 2, 3, true}, {2, 0, 2, 3, false}}) {
    EXPECT_EQ(Compute(*kernels, s, {}, {}).saved.size(), 0U);
  }
  EXPECT_THROW(kernels->Attention({.batch = 1, .length = 1, .heads = 0, .head_size = 1}),
               ContractError);
  EXPECT_THROW(kernels->Attention({.batch = 1, .length = 1, .heads = 1, .head_size = 0}),
               ContractError);
}

TEST(Attention, HandsNanOn) {
  const AttentionSpec s{.batch = 1, .length = 3, .heads = 1, .head_size = 2, .causal = true};
  auto qkv = Random(3 * Elements(s), 1);
  qkv[6 + 2] = std::numeric_limits<float>::quiet_NaN();  // a key of the second place
  const Computed got = Compute(*MakeCpuKernels(1), s, qkv, Random(Elements(s), 2));
  EXPECT_FALSE(std::isnan(got.y[0]) || std::isnan(got.y[1]));
  for (std::size_t i = 2; i < 6; ++i) {
    EXPECT_TRUE(std::isnan(got.y[i])) << i;
  }
}

}  // namespace
}  // namespace cohort
