#include <cohort/device/stream.h>

#include <chrono>
#include <future>
#include <memory>
#include <thread>

#include <gtest/gtest.h>

namespace cohort {
namespace {

using std::chrono::seconds;

Deadline Soon() { return DeadlineAfter(seconds(5)); }

TEST(InlineStream, RunsWorkInsideEnqueueOnTheCallingThread) {
  const auto stream = MakeInlineStream();
  std::thread::id ran_on;
  stream->Enqueue([&] {
    ran_on = std::this_thread::get_id();
    return OkStatus();
  });
  EXPECT_EQ(ran_on, std::this_thread::get_id());
  EXPECT_TRUE(stream->Synchronize(Soon()).ok());
}

TEST(InlineStream, AnErrorDropsLaterWorkUntilSynchronizeReportsIt) {
  const auto stream = MakeInlineStream();
  int ran = 0;
  stream->Enqueue([] { return DataLoss("first"); });
  stream->Enqueue([&] { return ++ran, DataLoss("second"); });
  EXPECT_EQ(stream->Record()->Wait(Soon()), DataLoss("first"));
  EXPECT_EQ(stream->Synchronize(Soon()), DataLoss("first"));
  EXPECT_EQ(ran, 0);
  stream->Enqueue([&] { return ++ran, OkStatus(); });
  EXPECT_EQ(ran, 1);
  EXPECT_TRUE(stream->Synchronize(Soon()).ok());
}

// An event that another thread fires.
class ManualEvent final : public Event {
 public:
  bool done() const override { return fired_.wait_for(seconds(0)) == std::future_status::ready; }
  Status Wait(Deadline deadline) override {
    return fired_.wait_until(deadline) == std::future_status::ready ? fired_.get()
                                                                    : DeadlineExceeded("event");
  }
  void Fire(Status status) { promise_.set_value(std::move(status)); }

 private:
  std::promise<Status> promise_;
  std::shared_future<Status> fired_ = promise_.get_future().share();
};

TEST(InlineStream, WaitForHoldsTheWorkThatFollows) {
  const auto stream = MakeInlineStream();
  const auto event = std::make_shared<ManualEvent>();
  int value = 0;
  std::thread other([&] {
    value = 1;
    event->Fire(OkStatus());
  });
  stream->WaitFor(event);
  int seen = 0;
  stream->Enqueue([&] { return seen = value, OkStatus(); });
  other.join();
  EXPECT_EQ(seen, 1);
  EXPECT_TRUE(stream->Record()->done());
}

TEST(InlineStream, AFailedEventFailsTheStreamThatWaitsForIt) {
  const auto stream = MakeInlineStream();
  const auto event = std::make_shared<ManualEvent>();
  event->Fire(Unavailable("peer"));
  stream->WaitFor(event);
  EXPECT_EQ(stream->Synchronize(Soon()), Unavailable("peer"));
}

}  // namespace
}  // namespace cohort
