// A synchronous round of one chunk, alone: which parts count, and what they come to.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "parameter_server/variables/block_round.h"

namespace cohort::ps {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

Round Attempt(std::uint64_t number, std::uint32_t attempt, std::uint32_t parts) {
  Round round;
  round.set_round(number);
  round.set_attempt(attempt);
  round.set_parts(parts);
  return round;
}

Commit Winners(std::uint64_t number, std::uint32_t attempt, std::vector<std::uint32_t> winners) {
  Commit commit;
  commit.set_round(number);
  commit.set_attempt(attempt);
  commit.mutable_winners()->Assign(winners.begin(), winners.end());
  return commit;
}

void Put(BlockRound& round, std::uint32_t part, double weight, const std::vector<float>& values) {
  std::ranges::copy(values, round.Room(part, weight, values.size()).begin());
  round.Arrived(part);
}

std::vector<float> GradientOf(const BlockRound& round) {
  return {round.gradient().begin(), round.gradient().end()};
}

TEST(BlockRound, AddsUpInTheOrderOfTheParts) {
  BlockRound round;
  ASSERT_TRUE(round.Enter(Attempt(1, 0, 3), 0));
  // (1e8 - 1e8) + 1 is 1; in the order of arrival it would be 0.
  EXPECT_FALSE(round.IsLastMissing(2));
  Put(round, 2, 1, {1, 3});
  Put(round, 1, 1, {-1e8F, 2});
  EXPECT_TRUE(round.IsLastMissing(0));
  EXPECT_FALSE(round.has(0));
  Put(round, 0, 2, {1e8F, 1});
  EXPECT_TRUE(round.has(0));
  round.Sum(/*trainable=*/true, /*waits=*/false);
  EXPECT_THAT(GradientOf(round), ElementsAre(1.0F, 6.0F));
  EXPECT_EQ(round.weight(), 4);
  EXPECT_EQ(round.squares(), 0);
  EXPECT_FALSE(round.Completed(1, 0));  // it waits for nothing, and is not applied yet
}

TEST(BlockRound, WaitsForItsFactorUntilItIsFinished) {
  BlockRound round;
  ASSERT_TRUE(round.Enter(Attempt(5, 0, 2), 4));
  Put(round, 0, 1, {3});
  Put(round, 1, 1, {1});
  round.Sum(/*trainable=*/true, /*waits=*/true);
  EXPECT_TRUE(round.waits());
  EXPECT_EQ(round.squares(), 16);
  EXPECT_TRUE(round.Completed(5, 4));
  EXPECT_FALSE(round.Completed(6, 4));
  round.Finish();
  EXPECT_FALSE(round.waits());
  EXPECT_TRUE(round.Completed(5, 5));
  EXPECT_FALSE(round.Completed(6, 5));
  ASSERT_TRUE(round.Enter(Attempt(6, 0, 2), 5));
  EXPECT_FALSE(round.has(0));
}

TEST(BlockRound, PartsOfAnAppliedRoundOrAnOlderAttemptAreLate) {
  BlockRound round;
  EXPECT_FALSE(round.Enter(Attempt(3, 0, 2), 3));
  ASSERT_TRUE(round.Enter(Attempt(4, 1, 2), 3));
  Put(round, 0, 1, {1});
  EXPECT_FALSE(round.Enter(Attempt(4, 0, 2), 3));
  EXPECT_TRUE(round.has(0));
  ASSERT_TRUE(round.Enter(Attempt(4, 2, 2), 3));  // cut anew
  EXPECT_FALSE(round.has(0));
  Put(round, 1, 1, {7});
  round.Clear();
  ASSERT_TRUE(round.Enter(Attempt(4, 0, 2), 3));
  EXPECT_FALSE(round.has(1));
}

TEST(BlockRound, ACommitDropsThePartsThatItDoesNotName) {
  BlockRound round;
  ASSERT_TRUE(round.Enter(Attempt(2, 1, 4), 1));
  Put(round, 0, 1, {1});
  Put(round, 1, 2, {10});
  Put(round, 3, 4, {100});
  EXPECT_EQ(round.Elect(Winners(3, 1, {0}), 1), std::nullopt);
  EXPECT_EQ(round.Elect(Winners(2, 0, {0}), 1), std::nullopt);
  EXPECT_EQ(round.Elect(Winners(2, 1, {}), 1), std::nullopt);
  EXPECT_EQ(round.Elect(Winners(2, 1, {0, 2}), 1), std::nullopt);  // 2 has not come
  EXPECT_EQ(round.Elect(Winners(2, 1, {0, 4}), 1), std::nullopt);
  EXPECT_EQ(round.Elect(Winners(2, 1, {0, 3}), 1), 1U);
  round.Sum(/*trainable=*/true, /*waits=*/false);
  EXPECT_THAT(GradientOf(round), ElementsAre(101.0F));
  EXPECT_EQ(round.weight(), 5);
}

TEST(BlockRound, WhatIsNotTrainedIsTheMeanByWeight) {
  BlockRound round;
  ASSERT_TRUE(round.Enter(Attempt(1, 0, 3), 0));
  Put(round, 0, 1, {2, 4});
  Put(round, 1, 3, {6, 0});
  Put(round, 2, 0, {});  // a part without examples
  round.Sum(/*trainable=*/false, /*waits=*/true);
  EXPECT_EQ(round.squares(), 0);
  std::vector<float> values = {9, 9};
  round.Mean(values);
  EXPECT_THAT(values, ElementsAre(5.0F, 1.0F));
}

TEST(BlockRound, WithoutExamplesThereIsNothingToApply) {
  BlockRound round;
  ASSERT_TRUE(round.Enter(Attempt(1, 0, 1), 0));
  Put(round, 0, 0, {});
  round.Sum(/*trainable=*/true, /*waits=*/true);
  EXPECT_THAT(GradientOf(round), IsEmpty());
  EXPECT_EQ(round.weight(), 0);
  std::vector<float> values = {9};
  round.Mean(values);
  EXPECT_THAT(values, ElementsAre(9.0F));
}

// Another server gets the round as it is: in the middle, where it waits for its factor, and behind.
TEST(BlockRound, IsToldToAnotherServer) {
  const auto copy = [](const BlockRound& from) {
    ChunkRound told;
    from.Tell(&told);
    BlockRound to;
    to.Learn(told);
    for (int p = 0; p < told.parts_size(); ++p) {
      const auto part = static_cast<std::uint32_t>(p);
      if (told.parts(p).pieces() > 0) {
        to.SetValues(part, from.ValuesOf(part));
      }
    }
    return to;
  };
  BlockRound round;
  ASSERT_TRUE(round.Enter(Attempt(5, 1, 2), 4));
  Put(round, 1, 3, {1});
  BlockRound other = copy(round);
  EXPECT_FALSE(other.Enter(Attempt(5, 0, 2), 4)) << "an older attempt";
  ASSERT_TRUE(other.Enter(Attempt(5, 1, 2), 4));
  EXPECT_TRUE(other.has(1));
  EXPECT_TRUE(other.IsLastMissing(0));
  Put(other, 0, 1, {3});
  other.Sum(/*trainable=*/true, /*waits=*/true);
  BlockRound waiting = copy(other);
  EXPECT_TRUE(waiting.Completed(5, 4));
  EXPECT_EQ(waiting.squares(), 16);
  EXPECT_EQ(waiting.weight(), 4);
  EXPECT_THAT(GradientOf(waiting), ElementsAre(4.0F));
  waiting.Finish();
  const BlockRound behind = copy(waiting);
  EXPECT_FALSE(behind.waits());
  EXPECT_EQ(behind.squares(), 16) << "for workers that have yet to ask";
  EXPECT_THAT(GradientOf(behind), IsEmpty());
}

}  // namespace
}  // namespace cohort::ps
