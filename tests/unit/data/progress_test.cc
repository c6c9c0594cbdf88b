// What long commands show, on a terminal and elsewhere.

#include "commands/progress.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "testing/fake_clock.h"

namespace cohort::data {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class ProgressTest : public ::testing::Test {
 protected:
  ProgressOutput Output(bool terminal) {
    return {.write = [this](std::string_view text) { shown_.emplace_back(text); },
            .terminal = terminal,
            .clock = &clock_};
  }

  testing::FakeClock clock_;
  std::vector<std::string> shown_;
};

TEST_F(ProgressTest, ATerminalShowsPartRateAndTimeLeftOnOneLine) {
  {
    Progress progress("convert", 400'000'000, Output(true));
    progress.SetFile("a", 100'000'000);
    clock_.Advance(seconds(2));
    progress.Advance(64, 0.5);
    EXPECT_EQ(shown_.back(),
              "\r\033[Kconvert a: 64 records, 50.0 of 400.0 MB (12 %), 25.0 MB/s, 14 s left");
    clock_.Advance(milliseconds(100));
    const std::size_t before = shown_.size();
    progress.Advance(64, 0.6);
    EXPECT_EQ(shown_.size(), before) << "five times a second";
    progress.SetFile("b", 300'000'000);
    clock_.Advance(milliseconds(1900));
    progress.Advance(64, 0);
    EXPECT_EQ(shown_.back(),
              "\r\033[Kconvert b: 192 records, 100.0 of 400.0 MB (25 %), 25.0 MB/s, 12 s left");
  }
  EXPECT_EQ(shown_.back(), "\r\033[K") << "the line is taken away";
}

TEST_F(ProgressTest, ElsewhereOnlyLongWorkShowsAndEachLineIsWhole) {
  {
    Progress progress("stats", 1'000'000'000, Output(false));
    progress.SetFile("a", 1'000'000'000);
    clock_.Advance(milliseconds(9900));
    progress.Advance(64, 0.01);
    EXPECT_TRUE(shown_.empty());
    clock_.Advance(milliseconds(100));
    progress.Advance(64, 0.01);
    ASSERT_EQ(shown_.size(), 1U);
    EXPECT_EQ(shown_[0],
              "stats a: 128 records, 10.0 of 1000.0 MB (1 %), 1.0 MB/s, 16 min 30 s left\n");
    clock_.Advance(seconds(9));
    progress.Advance(64, 0.5);
    EXPECT_EQ(shown_.size(), 1U);
    clock_.Advance(seconds(1));
    progress.Advance(64, 1);
    ASSERT_EQ(shown_.size(), 2U);
    EXPECT_EQ(shown_[1], "stats a: 256 records, 1000.0 of 1000.0 MB (100 %), 50.0 MB/s\n");
  }
  EXPECT_EQ(shown_.size(), 2U);
}

TEST_F(ProgressTest, WithoutATotalThereIsNoPart) {
  Progress progress("shard", 0, Output(false));
  clock_.Advance(seconds(10));
  progress.Add(5, 20'000'000);
  ASSERT_EQ(shown_.size(), 1U);
  EXPECT_EQ(shown_[0], "shard: 5 records, 20.0 MB, 2.0 MB/s\n");
}

TEST_F(ProgressTest, ThreadsAddUp) {
  Progress progress("shard", 8'000'000, Output(false));
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&progress] {
      for (int i = 0; i < 1000; ++i) {
        progress.Add(1, 1000);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  clock_.Advance(seconds(20));
  progress.Add(2, 0);
  ASSERT_EQ(shown_.size(), 1U);
  EXPECT_EQ(shown_[0], "shard: 4002 records, 4.0 of 8.0 MB (50 %), 0.2 MB/s, 20 s left\n");
}

}  // namespace
}  // namespace cohort::data
