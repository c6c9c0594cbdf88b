// Rounds: who has which part of a batch.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "parameter_server/chief/round_table.h"

namespace cohort::ps {
namespace {

using ::testing::ElementsAre;

TaskId Worker(int index) { return {TaskType::kWorker, index}; }

constexpr EpochKey kEpoch{.dataset = 0, .epoch = 0};
using Reply = RoundTable::Reply;

TEST(RoundTable, ABatchIsCutAmongAllAndSumsAddUp) {
  RoundTable rounds(41, {Worker(0), Worker(1)});
  rounds.OpenEpoch(kEpoch, 0, 2);
  RoundPart a;
  RoundPart b;
  EXPECT_EQ(rounds.Join(Worker(0), kEpoch, &a), Reply::kWait);
  EXPECT_EQ(rounds.Join(Worker(1), kEpoch, &b), Reply::kGo);
  EXPECT_EQ(rounds.Join(Worker(0), kEpoch, &a), Reply::kGo);
  EXPECT_EQ(a, (RoundPart{.round = 42, .part = 0, .parts = 2}));
  EXPECT_EQ(b, (RoundPart{.round = 42, .part = 1, .parts = 2}));
  RoundTotal total;
  EXPECT_EQ(rounds.Finish(Worker(0), 42, 0, {1, 3, {5}}, &total), Reply::kWait);
  EXPECT_EQ(rounds.Finish(Worker(1), 42, 0, {2, 4, {6}}, &total), Reply::kGo);
  EXPECT_EQ(total.loss_sum, 3);
  EXPECT_EQ(total.commit, (RoundCommit{.round = 42, .attempt = 0, .winners = {0, 1}}));
  EXPECT_EQ(rounds.Finish(Worker(0), 42, 0, {1, 3, {5}}, &total), Reply::kGo);
  EXPECT_EQ(total.weight, 7);
  EXPECT_THAT(total.metric_sums, ElementsAre(11));
  EXPECT_EQ(rounds.applied(kEpoch), 1);
  EXPECT_EQ(rounds.Join(Worker(1), kEpoch, &b), Reply::kWait);
  EXPECT_EQ(rounds.Join(Worker(0), kEpoch, &a), Reply::kGo);
  EXPECT_EQ(a.round, 43U);
  EXPECT_EQ(a.batch, 1);
}

TEST(RoundTable, WhenAMemberIsLostTheBatchIsCutAnew) {
  RoundTable rounds(0, {Worker(0), Worker(1), Worker(2)});
  rounds.OpenEpoch(kEpoch, 0, 1);
  RoundPart part;
  RoundTotal total;
  rounds.Join(Worker(0), kEpoch, &part);
  rounds.Join(Worker(1), kEpoch, &part);
  rounds.Join(Worker(2), kEpoch, &part);
  EXPECT_EQ(rounds.Finish(Worker(0), 1, 0, {1, 1, {}}, &total), Reply::kWait);
  rounds.Leave(Worker(1));
  EXPECT_EQ(rounds.Finish(Worker(0), 1, 0, {1, 1, {}}, &total), Reply::kOver) << "superseded";
  EXPECT_EQ(rounds.Join(Worker(0), kEpoch, &part), Reply::kGo);
  EXPECT_EQ(part, (RoundPart{.round = 1, .attempt = 1, .part = 0, .parts = 2}));
  EXPECT_EQ(rounds.Finish(Worker(2), 1, 0, {1, 1, {}}, &total), Reply::kOver);
  EXPECT_EQ(rounds.Join(Worker(2), kEpoch, &part), Reply::kGo);
  EXPECT_EQ(part.part, 1);
  EXPECT_EQ(rounds.Finish(Worker(0), 1, 1, {2, 2, {}}, &total), Reply::kWait);
  EXPECT_EQ(rounds.Finish(Worker(2), 1, 1, {2, 2, {}}, &total), Reply::kGo);
  EXPECT_EQ(total.weight, 4);
  EXPECT_EQ(total.commit, (RoundCommit{.round = 1, .attempt = 1, .winners = {0, 1}}));
  EXPECT_EQ(rounds.Join(Worker(0), kEpoch, &part), Reply::kOver);
}

TEST(RoundTable, AMemberThatLeavesAfterItsPartCounts) {
  RoundTable rounds(0, {Worker(0), Worker(1)});
  rounds.OpenEpoch(kEpoch, 0, 1);
  RoundPart part;
  RoundTotal total;
  rounds.Join(Worker(0), kEpoch, &part);
  rounds.Join(Worker(1), kEpoch, &part);
  rounds.Finish(Worker(1), 1, 0, {4, 2, {}}, &total);
  rounds.Leave(Worker(1));
  EXPECT_EQ(rounds.Finish(Worker(0), 1, 0, {1, 1, {}}, &total), Reply::kGo);
  EXPECT_EQ(total.weight, 3);
}

TEST(RoundTable, NewcomersJoinTheNextRoundAndTheLastOneCanBeRepeated) {
  RoundTable rounds(0, {Worker(0)});
  rounds.OpenEpoch(kEpoch, 0, 3);
  RoundPart part;
  RoundTotal total;
  EXPECT_EQ(rounds.Join(Worker(0), kEpoch, &part), Reply::kGo);
  EXPECT_EQ(rounds.Join(Worker(1), kEpoch, &part), Reply::kWait);
  EXPECT_EQ(rounds.Finish(Worker(0), 1, 0, {1, 1, {}}, &total), Reply::kGo);
  EXPECT_EQ(rounds.Join(Worker(0), kEpoch, &part), Reply::kGo);
  EXPECT_EQ(part.parts, 2);
  EXPECT_EQ(rounds.Join(Worker(1), kEpoch, &part), Reply::kGo);
  EXPECT_EQ(part.part, 1);
  // Both are lost: the batch waits for whoever comes.
  rounds.Leave(Worker(0));
  rounds.Leave(Worker(1));
  EXPECT_EQ(rounds.applied(kEpoch), 1);
  EXPECT_EQ(rounds.Join(Worker(1), kEpoch, &part), Reply::kGo);
  EXPECT_EQ(part.round, 2U);
  EXPECT_EQ(part.parts, 1);
  EXPECT_GT(part.attempt, 0);
}

TEST(RoundTable, WhoAsksForAnEpochThatEndsDoesNotHoldUpTheNext) {
  RoundTable rounds(0, {Worker(0)});
  const EpochKey second{.dataset = 0, .epoch = 1};
  rounds.OpenEpoch(kEpoch, 0, 1);
  rounds.OpenEpoch(second, 0, 1);
  RoundPart part;
  RoundTotal total;
  EXPECT_EQ(rounds.Join(Worker(0), kEpoch, &part), Reply::kGo);
  EXPECT_EQ(rounds.Join(Worker(1), kEpoch, &part), Reply::kWait);
  EXPECT_EQ(rounds.Finish(Worker(0), 1, 0, {1, 1, {}}, &total), Reply::kGo);
  EXPECT_EQ(rounds.Join(Worker(0), second, &part), Reply::kGo);
  EXPECT_EQ(part.epoch, second);
  EXPECT_EQ(part.parts, 1);
  EXPECT_EQ(rounds.Join(Worker(1), kEpoch, &part), Reply::kOver);
}

}  // namespace
}  // namespace cohort::ps
