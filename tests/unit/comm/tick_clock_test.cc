#include "tick_clock.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

namespace cohort {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr auto kRounding = microseconds(200);  // a thousand times what it should be

// Also across its readings of the clock, and after a sleep.
TEST(TickClock, IsBetweenTwoReadingsOfTheClockAndNeverGoesBack) {
  TickClock clock;
  Deadline last;
  int compared = 0;
  const Deadline give_up = DeadlineAfter(std::chrono::seconds(20));
  for (int i = 0; compared < 100'000; ++i) {
    if (i % 30'000 == 10'000) {
      std::this_thread::sleep_for(milliseconds(2));
    }
    const Deadline before = std::chrono::steady_clock::now();
    const Deadline at = clock.At(TickClock::Ticks());
    const Deadline after = std::chrono::steady_clock::now();
    ASSERT_GE(at, last);
    ASSERT_LE(at, after + kRounding);
    last = at;
    if (after - before < microseconds(50)) {  // not interrupted meanwhile
      ASSERT_GE(at, before - kRounding);
      ++compared;
    }
    ASSERT_LT(after, give_up);
  }
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
