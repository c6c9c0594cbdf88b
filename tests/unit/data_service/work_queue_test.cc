#include "work_queue.h"

#include <gtest/gtest.h>

#include <chrono>
#include <future>

namespace cohort::data {
namespace {

TEST(WorkQueue, BytesInUseHoldBackWhatDoesNotFit) {
  WorkQueue queue(4, 100, 10);
  std::promise<void> first;
  std::promise<void> second;
  std::promise<void> third;
  ASSERT_TRUE(queue.Submit(60, [&] { first.set_value(); }));
  ASSERT_TRUE(queue.Submit(40, [&] { second.set_value(); }));
  ASSERT_TRUE(queue.Submit(1, [&] { third.set_value(); }));
  first.get_future().wait();
  second.get_future().wait();  // both fit, though none has been released
  std::future<void> last = third.get_future();
  EXPECT_EQ(last.wait_for(std::chrono::milliseconds(20)), std::future_status::timeout)
      << "100 bytes are in use";
  queue.Release(40);
  last.wait();
}

TEST(WorkQueue, WhatIsLargerThanAllRunsAlone) {
  WorkQueue queue(2, 100, 10);
  std::promise<void> large;
  std::promise<void> next;
  ASSERT_TRUE(queue.Submit(1000, [&] { large.set_value(); }));
  ASSERT_TRUE(queue.Submit(10, [&] { next.set_value(); }));
  large.get_future().wait();
  queue.Release(1000);
  next.get_future().wait();
}

TEST(WorkQueue, RefusesWhatIsTooMuchAndEverythingAfterStop) {
  WorkQueue queue(1, 1, 2);
  std::promise<void> begun;
  int ran = 0;
  ASSERT_TRUE(queue.Submit(1, [&] {
    ++ran;
    begun.set_value();
  }));
  begun.get_future().wait();
  EXPECT_TRUE(queue.Submit(1, [&] { ++ran; }));
  EXPECT_TRUE(queue.Submit(1, [&] { ++ran; }));
  EXPECT_FALSE(queue.Submit(1, [&] { ++ran; })) << "two wait";
  queue.Stop();
  EXPECT_EQ(ran, 3) << "what waits runs, to be answered";
  EXPECT_FALSE(queue.Submit(1, [] {}));
}

}  // namespace
}  // namespace cohort::data
