#include "synchronous/bucket_plan.h"

#include "synchronous/bucket_tuner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cohort {
namespace {

using ::testing::ElementsAre;

BucketPlan Plan(const ParameterSet& parameters, std::int64_t first, std::int64_t others) {
  return BucketPlan::Make(parameters, BucketOrder::Declared(parameters),
                          {.first_bytes = first, .bytes = others});
}

ParameterSet Declare(const std::vector<std::int64_t>& sizes, int frozen = -1) {
  ParameterSet parameters;
  for (std::size_t p = 0; p < sizes.size(); ++p) {
    parameters.Add("p" + std::to_string(p), {sizes[p]}, nullptr, static_cast<int>(p) != frozen);
  }
  parameters.Build();
  return parameters;
}

TEST(BucketPlan, TakesParametersInReverseAndClosesABucketBeforeItsLimit) {
  // 64 elements are 256 bytes; the first bucket also has the header's 64 bytes.
  const BucketPlan plan = Plan(Declare({64, 64, 64, 64, 64}), 512 + 64, 512);
  ASSERT_EQ(plan.buckets.size(), 3U);
  EXPECT_THAT(plan.buckets[0].parameters, ElementsAre(4, 3));
  EXPECT_THAT(plan.buckets[1].parameters, ElementsAre(2, 1));
  EXPECT_THAT(plan.buckets[2].parameters, ElementsAre(0));
  EXPECT_EQ(plan.elements, 16 + 5 * 64);
  EXPECT_EQ(plan.buckets[0].begin, 0);
  EXPECT_EQ(plan.buckets[0].end, plan.buckets[1].begin);
  EXPECT_EQ(plan.buckets[2].end, plan.elements);
}

TEST(BucketPlan, TheFirstLimitIsTheFirstBucketsOnly) {
  const BucketPlan plan = Plan(Declare({64, 64, 64, 64}), 1, 1 << 20);
  ASSERT_EQ(plan.buckets.size(), 2U);
  EXPECT_THAT(plan.buckets[0].parameters, ElementsAre(3));
  EXPECT_THAT(plan.buckets[1].parameters, ElementsAre(2, 1, 0));
}

TEST(BucketPlan, AParameterAboveTheLimitGetsItsOwn) {
  const BucketPlan plan = Plan(Declare({64, 100'000, 64}), 512, 512);
  ASSERT_EQ(plan.buckets.size(), 3U);
  EXPECT_THAT(plan.buckets[1].parameters, ElementsAre(1));
}

TEST(BucketPlan, LeavesOutWhatIsNotTrainable) {
  const BucketPlan plan = Plan(Declare({10, 20, 30}, /*frozen=*/1), 1 << 20, 1 << 20);
  ASSERT_EQ(plan.buckets.size(), 1U);
  EXPECT_THAT(plan.buckets[0].parameters, ElementsAre(2, 0));
  EXPECT_EQ(plan.places[1].bucket, -1);
  EXPECT_EQ(plan.places[2].offset, 16);
  EXPECT_EQ(plan.places[0].offset, 16 + 32);
}

TEST(BucketPlan, WithNothingTrainableTheWeightStillTravels) {
  const BucketPlan plan = Plan(Declare({10}, /*frozen=*/0), 1 << 20, 1 << 20);
  ASSERT_EQ(plan.buckets.size(), 1U);
  EXPECT_TRUE(plan.buckets[0].parameters.empty());
  EXPECT_EQ(plan.buckets[0].end, BucketPlan::kHeaderElements);
  EXPECT_TRUE(plan.chunks.empty());
}

TEST(BucketPlan, ChunksCoverEveryTrainableElementOnceAndStayInTheirParameter) {
  const ParameterSet parameters = Declare({40'000, 1, 16'384, 16'385}, /*frozen=*/1);
  const BucketPlan plan = Plan(parameters, 1024, 80'000);
  std::vector<int> covered(static_cast<std::size_t>(parameters.all().size()));
  std::size_t next = 0;
  for (const BucketPlan::Bucket& bucket : plan.buckets) {
    EXPECT_EQ(bucket.first_chunk, next);
    next = bucket.last_chunk;
    for (std::size_t c = bucket.first_chunk; c < bucket.last_chunk; ++c) {
      const BucketPlan::Chunk& chunk = plan.chunks[c];
      EXPECT_GE(chunk.gradient, bucket.begin);
      EXPECT_LE(chunk.gradient + chunk.elements, bucket.end);
      for (std::int64_t e = 0; e < chunk.elements; ++e) {
        ++covered[static_cast<std::size_t>(chunk.value + e)];
      }
    }
  }
  EXPECT_EQ(next, plan.chunks.size());
  for (int p = 0; p < parameters.size(); ++p) {
    const auto begin = static_cast<std::size_t>(parameters[p].offset);
    for (std::size_t e = begin; e < begin + parameters.value(p).size(); ++e) {
      ASSERT_EQ(covered[e], parameters[p].trainable ? 1 : 0) << parameters[p].name;
    }
  }
}

TEST(BucketPlan, FollowsTheOrderGivenAndHasAsManyElementsInAny) {
  const ParameterSet parameters = Declare({64, 40'000, 64, 17});
  const BucketPlan declared = Plan(parameters, 512, 512);
  const BucketPlan seen =
      BucketPlan::Make(parameters, {.parameters = {2, 0, 3, 1}, .rows = {}}, {640, 512});
  ASSERT_EQ(seen.buckets.size(), 3U);
  EXPECT_THAT(seen.buckets[0].parameters, ElementsAre(2, 0));
  EXPECT_THAT(seen.buckets[1].parameters, ElementsAre(3));
  EXPECT_THAT(seen.buckets[2].parameters, ElementsAre(1));
  EXPECT_EQ(seen.elements, declared.elements);
  // A chunk has the same number under both.
  ASSERT_EQ(seen.chunks.size(), declared.chunks.size());
  for (const BucketPlan::Chunk& a : seen.chunks) {
    for (const BucketPlan::Chunk& b : declared.chunks) {
      EXPECT_EQ(a.ordinal == b.ordinal, a.value == b.value);
    }
  }
}

TEST(BucketPlan, RowsStandLastAndAlone) {
  const ParameterSet parameters = Declare({64, 64, 64, 64});
  const BucketPlan plan =
      BucketPlan::Make(parameters, {.parameters = {3, 2, 1, 0}, .rows = {false, true, false, true}},
                       {1 << 20, 1 << 20});
  ASSERT_EQ(plan.buckets.size(), 3U);
  EXPECT_THAT(plan.buckets[0].parameters, ElementsAre(2, 0));
  EXPECT_FALSE(plan.buckets[0].rows);
  EXPECT_THAT(plan.buckets[1].parameters, ElementsAre(3));
  EXPECT_TRUE(plan.buckets[1].rows);
  EXPECT_THAT(plan.buckets[2].parameters, ElementsAre(1));
  EXPECT_EQ(plan.buckets[0].parts[1].begin, 64);  // behind the header, which hooks do not see
}

TEST(BucketTuner, TakesTheSizeAtWhichLatencyAndTheLastBucketCostTheSame) {
  // 100 us and 1 GB/s, 25 MB of gradients: sqrt(1e-4 * 1e9 * 25e6) = 1.58 MB.
  BucketTuner tuner;
  for (const double late : {0.5, 0.0, 0.01}) {  // a peer that comes late
    for (const std::int64_t bytes : {1'000'000, 10'000'000}) {
      tuner.AddBucket(bytes, 1e-4 + static_cast<double>(bytes) / 1e9 + late);
    }
    tuner.AddLatency(1e-4 + late);
  }
  const auto limits = tuner.Propose({1 << 20, 25 << 20}, 25'000'000);
  ASSERT_TRUE(limits.has_value());
  EXPECT_NEAR(static_cast<double>(limits->bytes), 1.58e6, 0.01e6);
  EXPECT_EQ(limits->first_bytes, 1 << 20);
  // Forgotten: with nothing new there is nothing to say.
  EXPECT_FALSE(tuner.Propose({1 << 20, 25 << 20}, 25'000'000).has_value());
}

TEST(BucketTuner, LeavesWhatIsNearlyRightAndKeepsWithinItsBounds) {
  BucketTuner tuner;
  const auto learn = [&](double latency, double bandwidth) {
    tuner.AddBucket(1 << 20, latency + (1 << 20) / bandwidth);
    tuner.AddLatency(latency);
  };
  learn(1e-4, 1e9);
  EXPECT_FALSE(tuner.Propose({1 << 20, 2'000'000}, 25'000'000).has_value());
  learn(1e-6, 1e8);
  EXPECT_EQ(tuner.Propose({1 << 20, 25 << 20}, 1'000'000)->bytes, BucketTuner::kSmallest);
  EXPECT_EQ(tuner.Propose({1 << 20, 25 << 20}, 1'000'000), std::nullopt);
  learn(10, 1e10);
  EXPECT_EQ(tuner.Propose({1 << 20, 25 << 20}, 1'000'000'000'000)->bytes, BucketTuner::kLargest);
  tuner.AddLatency(1e-4);  // no bucket was waited for
  EXPECT_FALSE(tuner.Propose({1 << 20, 25 << 20}, 25'000'000).has_value());
}

TEST(Weight, SumsOfManyReplicasAreExact) {
  // Beyond 2^24, where a single float would round.
  float sum[2] = {};
  double expected = 0;
  for (int replica = 0; replica < 3000; ++replica) {
    const double weight = 16'777'217.0 + replica;
    float header[2];
    PackWeight(weight, header);
    EXPECT_EQ(UnpackWeight(header), weight);
    sum[0] += header[0];
    sum[1] += header[1];
    expected += weight;
  }
  EXPECT_EQ(UnpackWeight(sum), expected);
}

TEST(Weight, FractionsKeepTheirSize) {
  float header[2];
  PackWeight(0.375, header);
  EXPECT_EQ(UnpackWeight(header), 0.375);
  PackWeight(10'000.1, header);
  EXPECT_NEAR(UnpackWeight(header), 10'000.1, 1e-3);
}

}  // namespace
}  // namespace cohort
