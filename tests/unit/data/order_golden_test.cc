// Orders that checkpoints and comparisons rely on: the same in every process, after every restart
// and in every release.

#include <gtest/gtest.h>

#include "collect.h"

namespace cohort::data {
namespace {

std::vector<std::int64_t> OrderOf(const Dataset& data, std::int64_t epoch) {
  return Flatten(Collect(data.Batch(5), {.epoch = epoch}));
}

TEST(OrderGolden, IsTheSameInEveryRelease) {
  using Order = std::vector<std::int64_t>;
  const Order first = {11, 6, 4, 10, 1, 9, 8, 3, 0, 5, 2, 7};
  EXPECT_EQ(OrderOf(Ids(12).Shuffle(7), 0), first);
  EXPECT_EQ(OrderOf(Ids(12).Shuffle(7), 1), (Order{11, 0, 2, 1, 9, 3, 10, 7, 5, 8, 4, 6}));
  EXPECT_EQ(OrderOf(Ids(12).Shuffle(7, /*reshuffle=*/false), 5), first) << "of every epoch";
  EXPECT_EQ(OrderOf(Ids(12).ShuffleBuffer(7, 4), 1), (Order{3, 4, 1, 2, 7, 6, 5, 9, 10, 0, 11, 8}));
  EXPECT_EQ(OrderOf(Ids(12).ShuffleBlocks(7, 3, 2), 1),
            (Order{6, 3, 8, 7, 5, 4, 0, 9, 1, 10, 2, 11}));
}

}  // namespace
}  // namespace cohort::data
