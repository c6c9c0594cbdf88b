#include "tick_clock.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

namespace cohort {
namespace {

using std::chrono::milliseconds;

constexpr auto kRounding = std::chrono::microseconds(100);  // a thousand times what it should be

// Also across its readings of the clock, and after a sleep.
TEST(TickClock, IsBetweenTwoReadingsOfTheClockAndNeverGoesBack) {
  TickClock clock;
  Deadline last;
  const Deadline until = DeadlineAfter(milliseconds(20));
  int slept = 0;
  for (Deadline before = std::chrono::steady_clock::now(); before < until;
       before = std::chrono::steady_clock::now()) {
    const Deadline at = clock.At(TickClock::Ticks());
    const Deadline after = std::chrono::steady_clock::now();
    ASSERT_GE(at, before - kRounding);
    ASSERT_LE(at, after + kRounding);
    ASSERT_GE(at, last);
    last = at;
    if (slept < 2 && before + milliseconds(10) > until) {
      ++slept;
      std::this_thread::sleep_for(milliseconds(2));
    }
  }
  EXPECT_GT(slept, 0);
}

TEST(TickClock, TicksThatRunBackwardsAreAReadingOfTheClock) {
  TickClock clock;
  const std::uint64_t ticks = TickClock::Ticks();
  clock.At(ticks);
  const Deadline before = std::chrono::steady_clock::now();
  const Deadline at = clock.At(ticks - 1);
  EXPECT_GE(at, before);
  EXPECT_LE(at, std::chrono::steady_clock::now());
}

}  // namespace
}  // namespace cohort
