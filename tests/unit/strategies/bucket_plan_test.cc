#include "synchronous/bucket_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cohort {
namespace {

using ::testing::ElementsAre;

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
  const BucketPlan plan = BucketPlan::Make(Declare({64, 64, 64, 64, 64}), 512 + 64, 512);
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
  const BucketPlan plan = BucketPlan::Make(Declare({64, 64, 64, 64}), 1, 1 << 20);
  ASSERT_EQ(plan.buckets.size(), 2U);
  EXPECT_THAT(plan.buckets[0].parameters, ElementsAre(3));
  EXPECT_THAT(plan.buckets[1].parameters, ElementsAre(2, 1, 0));
}

TEST(BucketPlan, AParameterAboveTheLimitGetsItsOwn) {
  const BucketPlan plan = BucketPlan::Make(Declare({64, 100'000, 64}), 512, 512);
  ASSERT_EQ(plan.buckets.size(), 3U);
  EXPECT_THAT(plan.buckets[1].parameters, ElementsAre(1));
}

TEST(BucketPlan, LeavesOutWhatIsNotTrainable) {
  const BucketPlan plan = BucketPlan::Make(Declare({10, 20, 30}, /*frozen=*/1), 1 << 20, 1 << 20);
  ASSERT_EQ(plan.buckets.size(), 1U);
  EXPECT_THAT(plan.buckets[0].parameters, ElementsAre(2, 0));
  EXPECT_EQ(plan.places[1].bucket, -1);
  EXPECT_EQ(plan.places[2].offset, 16);
  EXPECT_EQ(plan.places[0].offset, 16 + 32);
}

TEST(BucketPlan, WithNothingTrainableTheWeightStillTravels) {
  const BucketPlan plan = BucketPlan::Make(Declare({10}, /*frozen=*/0), 1 << 20, 1 << 20);
  ASSERT_EQ(plan.buckets.size(), 1U);
  EXPECT_TRUE(plan.buckets[0].parameters.empty());
  EXPECT_EQ(plan.buckets[0].end, BucketPlan::kHeaderElements);
  EXPECT_TRUE(plan.chunks.empty());
}

TEST(BucketPlan, ChunksCoverEveryTrainableElementOnceAndStayInTheirParameter) {
  const ParameterSet parameters = Declare({40'000, 1, 16'384, 16'385}, /*frozen=*/1);
  const BucketPlan plan = BucketPlan::Make(parameters, 1024, 80'000);
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
