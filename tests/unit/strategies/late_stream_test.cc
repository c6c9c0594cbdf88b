#include "testing/late_stream.h"

#include <atomic>
#include <vector>

#include <gtest/gtest.h>

namespace cohort::testing {
namespace {

Deadline Soon() { return DeadlineAfter(std::chrono::seconds(20)); }

TEST(LateStream, RunsInOrder) {
  const auto stream = MakeLateStream(1);
  std::vector<int> order;
  for (int i = 0; i < 20; ++i) {
    stream->Enqueue([&order, i]() -> Status {
      order.push_back(i);
      return {};
    });
  }
  ASSERT_TRUE(stream->Synchronize(Soon()).ok());
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(order[static_cast<std::size_t>(i)], i);
  }
}

TEST(LateStream, WaitsForAnotherStreamsEvent) {
  const auto first = MakeLateStream(1, std::chrono::milliseconds(5));
  const auto second = MakeLateStream(2, std::chrono::microseconds(0));
  for (int round = 0; round < 20; ++round) {
    int value = 0;
    int seen = -1;
    first->Enqueue([&value]() -> Status {
      value = 7;
      return {};
    });
    second->WaitFor(first->Record());
    second->Enqueue([&]() -> Status {
      seen = value;
      return {};
    });
    ASSERT_TRUE(second->Synchronize(Soon()).ok());
    ASSERT_EQ(seen, 7);
    ASSERT_TRUE(first->Synchronize(Soon()).ok());
  }
}

TEST(LateStream, AnErrorDropsWhatFollowsAndIsReportedOnce) {
  const auto stream = MakeLateStream(1);
  std::atomic<bool> ran = false;
  stream->Enqueue([] { return DataLoss("bad"); });
  const auto event = stream->Record();
  stream->Enqueue([&ran]() -> Status {
    ran = true;
    return {};
  });
  EXPECT_EQ(event->Wait(Soon()).code(), StatusCode::kDataLoss);
  EXPECT_TRUE(event->done());
  EXPECT_EQ(stream->Synchronize(Soon()).code(), StatusCode::kDataLoss);
  EXPECT_FALSE(ran);
  EXPECT_TRUE(stream->Synchronize(Soon()).ok());
}

}  // namespace
}  // namespace cohort::testing
