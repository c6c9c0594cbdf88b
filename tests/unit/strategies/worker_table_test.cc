// Who is a worker of a job: the table alone, with a time that the test moves.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "parameter_server/chief/worker_table.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Phase = WorkerTable::Phase;

constexpr seconds kRejoin{300};
constexpr milliseconds kStep{1'000};

Sender Process(int worker, std::uint64_t incarnation = 1, std::uint64_t epoch = 0) {
  return {.task = {TaskType::kWorker, worker}, .incarnation = incarnation, .epoch = epoch};
}

TaskId Worker(int index) { return Process(index).task; }

class WorkerTableTest : public ::testing::Test {
 protected:
  WorkerTable::Place Attach(const Sender& sender) {
    return OrThrow(table_.Attach(sender, /*servers_are_known=*/true, now_));
  }
  std::optional<WorkerTable::Silent> Silent(std::vector<TaskId> awaited,
                                            std::optional<TaskId> self = std::nullopt) {
    return table_.LongestSilent(awaited, kStep, self, now_);
  }

  const std::vector<TaskId> workers_{Worker(0), Worker(1)};
  WorkerTable::Time now_ = WorkerTable::Time() + seconds(1'000);
  WorkerTable table_{workers_, 7, kRejoin, now_};
};

TEST_F(WorkerTableTest, EveryProcessIsAClientOfItsOwn) {
  const WorkerTable::Place first = Attach(Process(0));
  EXPECT_EQ(first.client, 7U);
  EXPECT_EQ(first.before, Phase::kExpected);
  EXPECT_EQ(first.gone, 0U);
  const WorkerTable::Place again = Attach(Process(0));
  EXPECT_EQ(again.client, 7U);
  EXPECT_EQ(again.before, std::nullopt);
  EXPECT_EQ(again.gone, 0U);
  const WorkerTable::Place next = Attach(Process(0, 2));
  EXPECT_EQ(next.client, 8U);
  EXPECT_EQ(next.before, Phase::kAttached);
  EXPECT_EQ(next.gone, 7U);
  EXPECT_EQ(table_.Check(Process(0, 1)).code(), StatusCode::kAborted);
  EXPECT_TRUE(table_.Check(Process(0, 2)).ok());
  EXPECT_EQ(table_.Attach(Process(2), true, now_).status().code(), StatusCode::kFailedPrecondition);
}

TEST_F(WorkerTableTest, WhoWasGivenUpIsRefusedUntilItIsStartedAgain) {
  Attach(Process(0));
  EXPECT_TRUE(table_.Lose(Worker(0), Unavailable("no heartbeat"), now_));
  EXPECT_FALSE(table_.Lose(Worker(0), Unavailable("once more"), now_));
  const Status refused = table_.Check(Process(0));
  EXPECT_EQ(refused.code(), StatusCode::kAborted);
  EXPECT_THAT(refused.message(), HasSubstr("no heartbeat"));
  EXPECT_EQ(Attach(Process(0, 2)).before, Phase::kLost);
  EXPECT_TRUE(table_.Check(Process(0, 2)).ok());
}

TEST_F(WorkerTableTest, ItIsOverWhenOneIsDoneAndNobodyIsLeftOrToCome) {
  Attach(Process(0));
  table_.Leave(Worker(0));
  EXPECT_FALSE(table_.Over(now_));
  EXPECT_THAT(table_.Expected(), ElementsAre(Worker(1)));
  table_.Excuse(Worker(1), now_);
  EXPECT_TRUE(table_.Over(now_));
  EXPECT_THAT(table_.Expected(), IsEmpty());
  EXPECT_FALSE(table_.HaveLeft());
}

TEST_F(WorkerTableTest, LostAloneIsNotOver) {
  for (const TaskId& worker : workers_) {
    table_.Lose(worker, Unavailable("gone"), now_);
  }
  EXPECT_TRUE(table_.HaveLeft());
  EXPECT_FALSE(table_.Over(now_));
}

TEST_F(WorkerTableTest, ASuccessorTakesOverWhoHasEndedAndNotWhoIsBack) {
  Attach(Process(1));
  const std::vector<TaskId> back = table_.Succeed(
      {{Worker(0), JournalState::End::kDone}, {Worker(1), JournalState::End::kLost}}, now_);
  EXPECT_THAT(back, ElementsAre(Worker(1)));
  EXPECT_THAT(table_.Expected(), ElementsAre(Worker(1)));
  table_.Leave(Worker(1));
  EXPECT_TRUE(table_.Over(now_));
}

TEST_F(WorkerTableTest, ASuccessorsExcusedMayComeForAsLongAsTheRejoinTimeout) {
  table_.Succeed({{Worker(0), JournalState::End::kDone}}, now_);
  table_.Excuse(Worker(1), now_);
  now_ += kRejoin - milliseconds(1);
  EXPECT_FALSE(table_.Over(now_));
  now_ += milliseconds(1);
  EXPECT_TRUE(table_.Over(now_));
}

TEST_F(WorkerTableTest, LonelinessIsToldWithTheNamesOrTheLastLoss) {
  table_.Excuse(Worker(0), now_);
  now_ += 2 * kRejoin;
  EXPECT_TRUE(table_.CheckLonely(now_).ok());  // worker:1 is expected
  table_.Excuse(Worker(1), now_);
  now_ += kRejoin;
  EXPECT_TRUE(table_.CheckLonely(now_).ok());
  now_ += milliseconds(1);
  const Status nobody = table_.CheckLonely(now_);
  EXPECT_EQ(nobody.code(), StatusCode::kUnavailable);
  EXPECT_THAT(nobody.message(), HasSubstr("not worker:0, worker:1"));
  Attach(Process(0));
  EXPECT_TRUE(table_.CheckLonely(now_).ok());
  table_.Lose(Worker(0), Unavailable("it broke"), now_);
  now_ += kRejoin + milliseconds(1);
  EXPECT_THAT(table_.CheckLonely(now_).message(), HasSubstr("the last: it broke"));
}

TEST_F(WorkerTableTest, TheLongestSilentHangs) {
  Attach(Process(0));
  Attach(Process(1));
  table_.Got(Worker(0), {0, 0}, 1, now_);
  table_.Got(Worker(1), {0, 0}, 2, now_);
  now_ += milliseconds(10);
  table_.Asked(Worker(1), now_);
  now_ += kStep - milliseconds(1);
  EXPECT_EQ(Silent({Worker(1)}), std::nullopt);
  EXPECT_EQ(Silent({}), std::nullopt);
  EXPECT_EQ(Silent({Worker(0)}, Worker(0)), std::nullopt);
  now_ += milliseconds(1);
  const auto hangs = Silent(workers_);
  ASSERT_TRUE(hangs.has_value());
  EXPECT_EQ(hangs->task, Worker(0));
  EXPECT_DOUBLE_EQ(hangs->seconds, 1.01);
  table_.Moved(now_);
  EXPECT_EQ(Silent(workers_), std::nullopt);
}

TEST_F(WorkerTableTest, StepsAreProgressAndTheSameNumberIsNot) {
  Attach(Process(0));
  table_.Got(Worker(0), {0, 0}, 1, now_);
  table_.Progressed(Process(0), 1, now_);
  now_ += kStep;
  table_.Progressed(Process(0), 1, now_);
  table_.Progressed(Process(0, 2), 2, now_);  // another process
  EXPECT_NE(Silent({Worker(0)}), std::nullopt);
  table_.Progressed(Process(0), 2, now_);
  EXPECT_EQ(Silent({Worker(0)}), std::nullopt);
}

TEST_F(WorkerTableTest, BeforeItsFirstPieceAWorkerHasTheRejoinTimeout) {
  Attach(Process(0));
  now_ += kRejoin - milliseconds(1);
  EXPECT_EQ(Silent({Worker(0)}), std::nullopt);
  now_ += milliseconds(1);
  EXPECT_NE(Silent({Worker(0)}), std::nullopt);
}

TEST_F(WorkerTableTest, APieceIsAsLongAsFromWhenItWasFirstHandedOut) {
  Attach(Process(0));
  table_.Finished(Worker(0), now_);  // of nothing
  EXPECT_EQ(table_.longest_piece(), Duration(0));
  table_.Got(Worker(0), {0, 0}, 1, now_);
  now_ += seconds(2);
  table_.Got(Worker(0), {0, 0}, 1, now_);  // it asks again
  now_ += seconds(1);
  table_.Finished(Worker(0), now_);
  table_.Got(Worker(0), {0, 0}, 2, now_);
  now_ += seconds(1);
  table_.Finished(Worker(0), now_);
  EXPECT_EQ(table_.longest_piece(), seconds(3));
}

TEST_F(WorkerTableTest, AStrangerIsFoundWhenTheServersAreKnown) {
  EXPECT_TRUE(table_.CheckStranger().ok());
  OrThrow(table_.Attach(Process(0, 1, /*epoch=*/3), /*servers_are_known=*/false, now_));
  EXPECT_EQ(table_.CheckStranger().code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(table_.Attach(Process(1, 1, 3), true, now_).status().code(),
            StatusCode::kFailedPrecondition);
  table_.Succeed({}, now_);
  EXPECT_TRUE(table_.CheckStranger().ok());
  EXPECT_TRUE(table_.Attach(Process(1, 1, 3), true, now_).ok());
}

}  // namespace
}  // namespace cohort::ps
