// What the conformance suite cannot see from outside: the log, and who is blamed.
#include <cohort/comm/local.h>
#include <gmock/gmock.h>

#include <mutex>
#include <thread>

#include "testing/run_ranks.h"

namespace cohort {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(Exchange, SlowPeersAreNamedInTheLog) {
  std::mutex mutex;
  std::string log;
  CommunicatorOptions options;
  options.slow_peer_warning = std::chrono::milliseconds(30);
  options.log = Log([&](LogLevel, std::string_view line) {
    const std::lock_guard lock(mutex);
    log += std::string(line) + "\n";
  });
  const auto logged = [&] {
    const std::lock_guard lock(mutex);
    return log;
  };
  auto communicators = MakeLocalCommunicators(2, options);
  testing::ExpectAllOk(testing::RunRanks(2, [&](int rank) -> Status {
    while (rank == 1 && logged().empty()) {  // rank 1 comes when rank 0 has complained
      std::this_thread::yield();
    }
    std::vector<float> values(10);
    auto work = communicators[static_cast<std::size_t>(rank)]->AllReduce(
        std::span(values), ReduceOp::kSum, {.name = "fc1"});
    COHORT_RETURN_IF_ERROR(work.status());
    return work.value()->Wait();
  }));
  EXPECT_THAT(logged(), AllOf(HasSubstr("AllReduce 'fc1' float32[10] #1"),
                              HasSubstr("on rank 0 has waited"), HasSubstr("for rank 1")));
}

// In a ring everyone waits for the neighbour; the one who never came is not everyone's neighbour.
TEST(Exchange, TheAbsentRankIsBlamedNotTheNeighbour) {
  CommunicatorOptions options;
  options.timeout = std::chrono::milliseconds(200);
  auto communicators = MakeLocalCommunicators(5, options);
  const std::vector<Status> statuses = testing::RunRanks(5, [&](int rank) -> Status {
    Communicator& comm = *communicators[static_cast<std::size_t>(rank)];
    if (rank == 3) {
      while (comm.status().ok()) {
        std::this_thread::yield();
      }
      return comm.status();
    }
    std::vector<float> values(1000);
    auto work = comm.AllReduce(std::span(values), ReduceOp::kSum, {.algorithm = "ring"});
    COHORT_RETURN_IF_ERROR(work.status());
    return work.value()->Wait();
  });
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded);
    EXPECT_THAT(status.message(),
                AllOf(HasSubstr("rank 3 has not entered it, nor any operation before"),
                      Not(HasSubstr("rank 2 has")), Not(HasSubstr("rank 4 has"))));
  }
}

}  // namespace
}  // namespace cohort
