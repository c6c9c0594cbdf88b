// Who a chief knows the workers in step to be, and what it tells them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "multi_worker/crew.h"
#include "multi_worker/worker_roll.h"

namespace cohort {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TaskId Worker(int index) { return {TaskType::kWorker, index}; }

WorkerRoll ThreeWorkers() {
  WorkerRoll roll;
  for (const int w : {2, 0, 1}) {
    roll.Enter(Worker(w), static_cast<std::uint64_t>(11 + w));
  }
  return roll;
}

TEST(WorkerRoll, WorkersAreInTheOrderOfTheirTasks) {
  const WorkerRoll roll = ThreeWorkers();
  EXPECT_THAT(roll.tasks(), ElementsAre(Worker(0), Worker(1), Worker(2)));
  EXPECT_EQ(roll.process(Worker(2)), 13U);
  EXPECT_EQ(roll.process(Worker(3)), 0U);
  EXPECT_EQ(roll.loss(Worker(3)), nullptr);
  EXPECT_TRUE(roll.complete());
}

TEST(WorkerRoll, ALostOneIsLostUntilAnotherProcessIsInItsPlace) {
  WorkerRoll roll = ThreeWorkers();
  roll.Lost(Worker(2), Unavailable("the first loss"));
  roll.Lost(Worker(2), Unavailable("the same worker again"));
  roll.Lost(Worker(1), Unavailable("another worker"));
  EXPECT_EQ(roll.NamesOfLost(), "worker:1, worker:2");
  EXPECT_EQ(roll.why().message(), "another worker");
  ASSERT_NE(roll.loss(Worker(2)), nullptr);
  EXPECT_EQ(roll.loss(Worker(2))->why.message(), "the first loss");
  EXPECT_EQ(roll.process(Worker(2)), 13U) << "of which others may still be told";

  roll.Enter(Worker(1), 22);
  EXPECT_FALSE(roll.complete());
  roll.Enter(Worker(2), 23);
  EXPECT_TRUE(roll.complete());
  EXPECT_EQ(roll.process(Worker(2)), 23U);
}

TEST(WorkerRoll, OrUntilTheJobDoesWithoutIt) {
  WorkerRoll roll = ThreeWorkers();
  roll.Lost(Worker(1), Unavailable("a loss"));
  roll.Drop(Worker(1));
  EXPECT_TRUE(roll.complete());
  EXPECT_EQ(roll.size(), 2);
  EXPECT_THAT(roll.tasks(), ElementsAre(Worker(0), Worker(2)));
  roll.Lost(Worker(1), Unavailable("nobody's loss"));
  EXPECT_TRUE(roll.complete());
}

TEST(Crew, ARankIsTheTasksPlaceAmongThoseThatAreLeft) {
  const std::vector<TaskId> left = {Worker(0), Worker(2)};
  EXPECT_EQ(OrThrow(Crew::Of(left, Worker(2))).rank, 1);
  EXPECT_EQ(OrThrow(Crew::Of(left, Worker(2))).size(), 2);
  const Status given_up = Crew::Of(left, Worker(1)).status();
  EXPECT_EQ(given_up.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(given_up.message(), HasSubstr("goes on without worker:1"));
}

TEST(Crew, WhatItIsTravelsAsText) {
  const std::vector<TaskId> tasks = {Worker(0), Worker(10)};
  EXPECT_EQ(Crew::Text(tasks), "worker:0\nworker:10");
  EXPECT_EQ(OrThrow(Crew::Parse(Crew::Text(tasks))), tasks);
  EXPECT_THAT(OrThrow(Crew::Parse("")), IsEmpty());
  EXPECT_FALSE(Crew::Parse("worker:0\nnobody").ok());
}

}  // namespace
}  // namespace cohort
