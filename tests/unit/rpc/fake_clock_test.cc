#include "testing/fake_clock.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

namespace cohort::testing {
namespace {

using std::chrono::seconds;

TEST(FakeClock, StandsStillUntilAdvanced) {
  FakeClock clock;
  const Deadline start = clock.Now();
  EXPECT_EQ(clock.Now(), start);
  clock.Advance(seconds(3));
  EXPECT_EQ(clock.Now() - start, seconds(3));
}

TEST(FakeClock, AWaitEndsAtItsDeadlineOnlyWhenAdvancedToIt) {
  FakeClock clock;
  std::mutex mutex;
  std::condition_variable condition;
  std::atomic<bool> ended = false;
  bool result = true;
  std::thread waiter([&] {
    std::unique_lock lock(mutex);
    result = clock.WaitUntil(lock, condition, clock.Now() + seconds(10), [] { return false; });
    ended = true;
  });
  ASSERT_TRUE(clock.AwaitWaiters(1));
  clock.Advance(seconds(9));
  EXPECT_FALSE(ended);
  clock.Advance(seconds(1));
  waiter.join();
  EXPECT_FALSE(result);
}

TEST(FakeClock, AWaitEndsWhenWhatItWaitsForHolds) {
  FakeClock clock;
  std::mutex mutex;
  std::condition_variable condition;
  bool done = false;
  bool result = false;
  std::thread waiter([&] {
    std::unique_lock lock(mutex);
    result = clock.WaitUntil(lock, condition, clock.Now() + seconds(10), [&] { return done; });
  });
  {
    const std::lock_guard lock(mutex);
    done = true;
  }
  condition.notify_all();
  waiter.join();
  EXPECT_TRUE(result);
}

}  // namespace
}  // namespace cohort::testing
