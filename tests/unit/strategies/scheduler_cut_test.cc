// Splits get shorter where all workers are about to wait for each other.

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "parameter_server/chief/scheduler.h"

namespace cohort::ps {
namespace {

constexpr std::chrono::milliseconds kPatience{60'000};
constexpr Duration kAtOnce{0};
constexpr std::int64_t kBatch = 10;
constexpr std::int64_t kBatches = 4000;

Sender Process(int worker) {
  return {.task = {TaskType::kWorker, worker},
          .incarnation = 10 + static_cast<std::uint64_t>(worker)};
}

class CutTest : public ::testing::Test {
 protected:
  CutTest() {
    OrThrow(scheduler_.OpenDataset("chief:0", 0,
                                   {.examples = kBatches * kBatch - 3, .batch_size = kBatch}));
    for (const int worker : {0, 1}) {
      OrThrow(scheduler_.Attach(Process(worker)));
    }
    OrThrow(scheduler_.Open(0));
  }
  // The worker finishes what it has, and gets this many batches; 0: the epoch is over, or it has to
  // wait.
  std::int64_t Next(int worker) {
    Split& held = held_[worker];
    const SplitReply reply = OrThrow(scheduler_.NextSplit(
        Process(worker), {0, 0}, 0, {.id = held.id, .steps = BatchesOf(held)}, kAtOnce));
    held = reply.progress == Progress::kGo ? reply.split : Split{};
    return BatchesOf(held);
  }
  static std::int64_t BatchesOf(const Split& split) {
    return (split.end - split.begin + kBatch - 1) / kBatch;
  }
  std::int64_t Finished() const { return scheduler_.advance().steps; }

  Scheduler scheduler_{{.workers = {Process(0).task, Process(1).task}}};
  std::map<int, Split> held_;
};

TEST_F(CutTest, ACutThatIsDueWaitsForSingleBatches) {
  constexpr std::int64_t kDue = 500;
  scheduler_.CutDue(kDue);
  EXPECT_EQ(Next(0), 64) << "the cut is far";
  // Two workers of any speed: the second finishes one split where the first finishes three.
  std::int64_t last = Next(1);
  for (int turn = 0; Finished() < kDue; ++turn) {
    ASSERT_LT(turn, 1000);
    const std::int64_t got = Next(turn % 4 == 3 ? 1 : 0);
    EXPECT_LE(got, std::max<std::int64_t>(1, (kDue - Finished()) / 4)) << Finished();
    last = got;
  }
  EXPECT_EQ(last, 1);
  EXPECT_EQ(BatchesOf(held_[0]), 1);
  EXPECT_EQ(BatchesOf(held_[1]), 1);
  EXPECT_LE(Finished(), kDue + 2) << "and comes about where it was due";
}

TEST_F(CutTest, TheChiefIsWokenOnceWhenItIsDue) {
  scheduler_.CutDue(64);
  EXPECT_EQ(Next(0), 16);
  const auto begun = std::chrono::steady_clock::now();
  EXPECT_FALSE(OrThrow(scheduler_.WaitOver(kAtOnce))) << "not due yet";
  while (Finished() < 64) {
    Next(0);
  }
  EXPECT_FALSE(OrThrow(scheduler_.WaitOver(kPatience)));
  EXPECT_LT(std::chrono::steady_clock::now() - begun, kPatience);
  const auto again = std::chrono::steady_clock::now();
  EXPECT_FALSE(OrThrow(scheduler_.WaitOver(std::chrono::milliseconds(20))));
  EXPECT_GE(std::chrono::steady_clock::now() - again, std::chrono::milliseconds(20))
      << "a chief that does not cut must not spin";
}

TEST_F(CutTest, TheEndOfAnEpochIsWaitedForByNobodyLong) {
  std::vector<std::int64_t> sizes;
  for (int turn = 0; Next(turn % 3 == 2 ? 1 : 0) > 0; ++turn) {
    sizes.push_back(BatchesOf(held_[turn % 3 == 2 ? 1 : 0]));
  }
  EXPECT_EQ(sizes.front(), 64);
  EXPECT_EQ(sizes.back(), 1);
  EXPECT_TRUE(std::ranges::is_sorted(sizes, std::greater<>()));
  // Few more than of one size: half of a worker's share each, from 64 down.
  EXPECT_LT(sizes.size(), kBatches / 64 + 40);
  for (const int worker : {0, 1}) {
    while (Next(worker) > 0) {
    }
  }
  const EpochCoverage coverage = scheduler_.coverage().at(0);
  EXPECT_EQ(coverage.seen, kBatches * kBatch - 3);
  EXPECT_EQ(coverage.steps, kBatches);
  EXPECT_EQ(coverage.pieces, static_cast<std::int64_t>(sizes.size()));
}

}  // namespace
}  // namespace cohort::ps
