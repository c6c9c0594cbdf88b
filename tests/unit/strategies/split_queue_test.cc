// The splits of an epoch, handed out and finished.

#include <gtest/gtest.h>

#include "parameter_server/chief/scheduler.h"
#include "parameter_server/chief/split_queue.h"

namespace cohort::ps {
namespace {

TaskId Worker(int index) { return {TaskType::kWorker, index}; }

TEST(SplitQueue, EveryExampleIsHandedOutAndFinishedOnce) {
  SplitQueue queue(0, 100, 32);
  const auto a = queue.Next(Worker(0));
  const auto b = queue.Next(Worker(1));
  EXPECT_EQ(*a, (Split{1, 0, 32}));
  EXPECT_EQ(*b, (Split{2, 32, 64}));
  EXPECT_EQ(queue.Next(Worker(0)), a) << "asking again gives the same";
  queue.Finish(Worker(0), a->id);
  queue.Finish(Worker(0), a->id);
  EXPECT_EQ(queue.seen(), 32);
  EXPECT_EQ(*queue.Next(Worker(0)), (Split{3, 64, 96}));
  queue.Finish(Worker(0), 3);
  EXPECT_EQ(*queue.Next(Worker(0)), (Split{4, 96, 100}));
  queue.Finish(Worker(0), 4);
  EXPECT_EQ(queue.Next(Worker(0)), std::nullopt);
  EXPECT_FALSE(queue.over()) << "worker:1 still holds one";
  queue.Finish(Worker(1), 2);
  EXPECT_TRUE(queue.over());
  EXPECT_EQ(queue.seen(), 100);
  EXPECT_EQ(queue.splits(), 4);
}

TEST(SplitQueue, SplitsOfAnySizeHaveNumbersOfTheirOwnAlsoAfterAJournal) {
  SplitQueue queue(0, 100, 32);
  EXPECT_EQ(*queue.Next(Worker(0), 10), (Split{1, 0, 10}));
  EXPECT_EQ(*queue.Next(Worker(1), 99), (Split{2, 10, 42}));
  EXPECT_EQ(queue.held(), 42);
  EXPECT_EQ(queue.left(), 58);
  EXPECT_EQ(queue.Next(Worker(2), 0), std::nullopt) << "nothing new";
  SplitQueue again(queue.Keep());
  EXPECT_EQ(*again.Next(Worker(2), 0), (Split{1, 0, 10})) << "what was held is no news";
  EXPECT_EQ(*again.Next(Worker(1), 0), (Split{2, 10, 42}));
  EXPECT_EQ(*again.Next(Worker(0), 5), (Split{3, 42, 47}));
  SplitQueue::Kept old = queue.Keep();
  old.splits = 0;  // as journals were that did not have it
  SplitQueue older(old);
  older.Next(Worker(1));
  older.Next(Worker(2));
  EXPECT_EQ(older.Next(Worker(0), 5)->id, 3);
}

TEST(SplitQueue, WhatALostWorkerHeldIsHandedOutAgain) {
  SplitQueue queue(10, 50, 20);
  EXPECT_EQ(queue.Next(Worker(0))->begin, 10);
  EXPECT_EQ(queue.Next(Worker(1))->begin, 30);
  queue.Lost(Worker(0));
  queue.Finish(Worker(0), 1);  // too late
  EXPECT_EQ(queue.seen(), 0);
  queue.Finish(Worker(1), 2);
  EXPECT_EQ(*queue.Next(Worker(1)), (Split{1, 10, 30}));
  EXPECT_EQ(queue.reissued(), 1);
  queue.Finish(Worker(1), 1);
  EXPECT_TRUE(queue.over());
}

TEST(SplitQueue, AnEmptyEpochIsOver) {
  EXPECT_TRUE(SplitQueue(0, 0, 5).over());
  EXPECT_TRUE(SplitQueue(7, 3, 5).over());
}

TEST(SplitQueue, TenSplitsPerWorkerWherePossible) {
  EXPECT_EQ(BatchesPerSplit(5, 2), 1);
  EXPECT_EQ(BatchesPerSplit(125, 2), 6);
  EXPECT_EQ(BatchesPerSplit(1'000'000, 2), 64);
}

}  // namespace
}  // namespace cohort::ps
