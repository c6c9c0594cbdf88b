// Memory that ends inside an operation: an error on every rank, whoever ran it, and nobody waits.
#include <cohort/comm/local.h>
#include <cohort/comm/shm.h>
#include <cohort/comm/tcp.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "testing/failing_new.h"
#include "testing/memory_store.h"
#include "testing/run_ranks.h"

namespace {

// The next allocation of at least so many bytes fails, on whichever thread; 0: none does.
std::atomic<std::size_t> refused_from = 0;

}  // namespace

bool cohort::testing::AllocationFails(std::size_t bytes) {
  std::size_t from = refused_from.load();
  return from > 0 && bytes >= from && refused_from.compare_exchange_strong(from, 0);
}

namespace cohort {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr std::size_t kElements = std::size_t{1} << 20;
constexpr std::size_t kBytes = kElements * sizeof(float);  // more than anything else takes at once

Status WaitFor(Communicator::Pending pending) {
  COHORT_RETURN_IF_ERROR(pending.status());
  return pending.value()->Wait();
}

// Over which transport, and who runs the operation: its caller, or the communicator's thread.
class NoMemory : public ::testing::TestWithParam<std::tuple<std::string, bool>> {
 protected:
  std::vector<Status> RunRanks(int size, const std::function<Status(Communicator&)>& fn) {
    CommunicatorOptions options;
    options.timeout = std::chrono::seconds(50);  // a rank that is waited for is another error
    options.peer_name = [](int rank) { return "worker:" + std::to_string(rank); };
    const std::string transport = std::get<0>(GetParam());
    std::vector<std::unique_ptr<Communicator>> local;
    if (transport == "local") {
      local = MakeLocalCommunicators(size, options);
    }
    testing::MemoryStore store;
    return testing::RunRanks(size, [&](int rank) -> Status {
      Result<std::unique_ptr<Communicator>> made =
          transport == "local" ? std::move(local[static_cast<std::size_t>(rank)])
          : transport == "shm" ? MakeShmCommunicator(rank, size, store, "job", {}, options)
                               : MakeTcpCommunicator(rank, size, store, "job", {}, options);
      COHORT_RETURN_IF_ERROR(made.status());
      const std::unique_ptr<Communicator> mine = std::move(made).value();
      return fn(*mine);
    });
  }
  static Status Finish(Communicator::Pending pending) {
    COHORT_RETURN_IF_ERROR(pending.status());
    return std::get<1>(GetParam()) ? pending.value()->Wait()
                                   : pending.value()->Wait(DeadlineAfter(std::chrono::seconds(55)));
  }
};

// What an algorithm combines in: on one of the ranks that need it.
TEST_P(NoMemory, ForAnAlgorithmEndsTheOperationOnAllRanks) {
  const std::vector<Status> statuses = RunRanks(4, [](Communicator& comm) -> Status {
    std::vector<float> values(kElements);
    COHORT_RETURN_IF_ERROR(WaitFor(comm.Barrier()));
    if (comm.rank() == 0) {
      refused_from = kBytes;
    }
    COHORT_RETURN_IF_ERROR(WaitFor(comm.Barrier()));
    const Status status = Finish(comm.AllReduce(
        std::span(values), ReduceOp::kSum, {.name = "fc1", .algorithm = "recursive_doubling"}));
    EXPECT_EQ(comm.status(), status);
    EXPECT_EQ(comm.Barrier().status(), status);  // and so does everything after
    return status;
  });
  EXPECT_EQ(refused_from, 0U) << "the algorithm has not asked for memory";
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status.ToString();
    EXPECT_EQ(status, statuses[0]);
    EXPECT_THAT(status.message(),
                AllOf(HasSubstr("AllReduce 'fc1' float32[1048576]"), HasSubstr("on rank "),
                      HasSubstr(" (worker:"), HasSubstr("no memory is left")));
  }
}

// What a rank that has joined gives to an operation of the others.
TEST_P(NoMemory, ForAJoinedRanksPartEndsItOnAllRanks) {
  const std::vector<Status> statuses = RunRanks(2, [](Communicator& comm) -> Status {
    std::vector<float> values(kElements);
    COHORT_RETURN_IF_ERROR(WaitFor(comm.Barrier()));
    if (comm.rank() == 0) {
      return comm.Join().status();
    }
    refused_from = kBytes;
    return Finish(
        comm.AllReduce(std::span(values), ReduceOp::kSum, {.name = "fc1", .algorithm = "direct"}));
  });
  EXPECT_EQ(refused_from, 0U) << "the joined rank has not asked for memory";
  for (const Status& status : statuses) {
    EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status.ToString();
    EXPECT_THAT(status.message(), AllOf(HasSubstr("AllReduce 'fc1' float32[1048576]"),
                                        HasSubstr("on rank 0 (worker:0): no memory is left")));
  }
}

INSTANTIATE_TEST_SUITE_P(Transports, NoMemory,
                         ::testing::Combine(::testing::Values("local", "shm", "tcp"),
                                            ::testing::Bool()),
                         [](const auto& which) {
                           return std::get<0>(which.param) + (std::get<1>(which.param)
                                                                  ? "_run_by_its_caller"
                                                                  : "_run_by_the_thread");
                         });

}  // namespace
}  // namespace cohort
