// Operations and streams wait for each other only through events.
#include <cohort/comm/local.h>
#include <gmock/gmock.h>

#include <atomic>
#include <thread>

#include "testing/late_stream.h"
#include "testing/run_ranks.h"

namespace cohort {
namespace {

using testing::ExpectAllOk;
using testing::MakeLateStream;
using testing::RunRanks;

TEST(StreamOrder, OperationsStartAfterTheStreamAndTheStreamGoesOnAfterThem) {
  constexpr int kRanks = 3;
  auto communicators = MakeLocalCommunicators(kRanks);
  ExpectAllOk(RunRanks(kRanks, [&](int rank) -> Status {
    Communicator& comm = *communicators[static_cast<std::size_t>(rank)];
    const std::unique_ptr<Stream> stream = MakeLateStream(static_cast<std::uint64_t>(rank) + 1);
    std::vector<float> gradient(1000);
    std::vector<float> seen(1000);
    for (int step = 1; step <= 20; ++step) {
      stream->Enqueue([&gradient, step] {
        std::fill(gradient.begin(), gradient.end(), static_cast<float>(step));
        return OkStatus();
      });
      COHORT_ASSIGN_OR_RETURN(
          const std::unique_ptr<Work> work,
          comm.AllReduce(std::span(gradient), ReduceOp::kSum, {.stream = stream.get()}));
      work->Order(*stream);
      stream->Enqueue([&] {
        seen = gradient;
        return OkStatus();
      });
      COHORT_RETURN_IF_ERROR(stream->Synchronize(DeadlineAfter(std::chrono::seconds(20))));
      EXPECT_THAT(seen, ::testing::Each(static_cast<float>(kRanks * step)));
    }
    return {};
  }));
}

// Happens just after a wait for it has given up.
class EventAtTheLastMoment final : public Event {
 public:
  bool done() const override { return done_; }
  Status Wait(Deadline deadline) override {
    if (done_.exchange(true)) {
      return OkStatus();
    }
    std::this_thread::sleep_until(deadline);
    return DeadlineExceeded("a wait for the event");
  }

 private:
  std::atomic<bool> done_{false};
};

class StreamOfSuchEvents final : public Stream {
 public:
  void Enqueue(std::function<Status()> /*work*/) override {}
  std::shared_ptr<Event> Record() override { return std::make_shared<EventAtTheLastMoment>(); }
  void WaitFor(std::shared_ptr<Event> /*event*/) override {}
  Status Synchronize(Deadline /*deadline*/) override { return OkStatus(); }
};

TEST(StreamOrder, AnEventThatHappensAsAWaitForItEndsIsNoError) {
  auto communicators = MakeLocalCommunicators(2);
  ExpectAllOk(RunRanks(2, [&](int rank) -> Status {
    StreamOfSuchEvents stream;
    std::vector<float> gradient(10, 1);
    COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Work> work,
                            communicators[static_cast<std::size_t>(rank)]->AllReduce(
                                std::span(gradient), ReduceOp::kSum, {.stream = &stream}));
    return work->Wait();
  }));
}

class EventThatDoesNotCome final : public Event {
 public:
  bool done() const override { return false; }
  Status Wait(Deadline deadline) override {
    std::this_thread::sleep_until(deadline);
    return DeadlineExceeded("a wait for the event");
  }
};

class StreamThatStands final : public Stream {
 public:
  void Enqueue(std::function<Status()> /*work*/) override {}
  std::shared_ptr<Event> Record() override { return std::make_shared<EventThatDoesNotCome>(); }
  void WaitFor(std::shared_ptr<Event> /*event*/) override {}
  Status Synchronize(Deadline /*deadline*/) override { return OkStatus(); }
};

// No rank has come so far that it sends anything.
TEST(StreamOrder, RanksThatDifferHearOfItWhileTheirStreamsAreLate) {
  CommunicatorOptions options;
  options.timeout = std::chrono::seconds(20);
  auto communicators = MakeLocalCommunicators(3, options);
  const std::vector<Status> statuses = RunRanks(3, [&](int rank) -> Status {
    Communicator& comm = *communicators[static_cast<std::size_t>(rank)];
    StreamThatStands stream;
    std::vector<float> gradient(rank == 1 ? 10 : 12);
    COHORT_ASSIGN_OR_RETURN(
        const std::unique_ptr<Work> work,
        comm.AllReduce(std::span(gradient), ReduceOp::kSum, {.stream = &stream}));
    const Status status = work->Wait();
    EXPECT_EQ(comm.status(), OkStatus());
    return status;
  });
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status.ToString();
    EXPECT_THAT(status.message(), ::testing::HasSubstr("rank 1 is in AllReduce float32[10]"));
  }
}

TEST(StreamOrder, AFailedStreamFailsTheOperationEverywhere) {
  auto communicators = MakeLocalCommunicators(2);
  const std::vector<Status> statuses = RunRanks(2, [&](int rank) -> Status {
    const std::unique_ptr<Stream> stream = MakeLateStream(7);
    if (rank == 0) {
      stream->Enqueue([] { return DataLoss("a bad kernel"); });
    }
    std::vector<float> gradient(10);
    COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Work> work,
                            communicators[static_cast<std::size_t>(rank)]->AllReduce(
                                std::span(gradient), ReduceOp::kSum, {.stream = stream.get()}));
    return work->Wait();
  });
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status.ToString();
    EXPECT_THAT(status.message(), ::testing::HasSubstr("a bad kernel"));
  }
}

}  // namespace
}  // namespace cohort
