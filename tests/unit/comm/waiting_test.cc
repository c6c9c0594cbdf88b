// What waiting costs.
#include <cohort/comm/local.h>
#include <cohort/comm/shm.h>
#include <cohort/comm/tcp.h>
#include <gtest/gtest.h>
#include <time.h>

#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "testing/memory_store.h"
#include "testing/run_ranks.h"

namespace cohort {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

constexpr int kRanks = 2;

std::vector<Status> RunOver(const std::string& transport,
                            const std::function<Status(Communicator&)>& fn) {
  testing::MemoryStore store;
  std::vector<std::unique_ptr<Communicator>> local;
  if (transport == "local") {
    local = MakeLocalCommunicators(kRanks);
  }
  return testing::RunRanks(kRanks, [&](int rank) -> Status {
    Result<std::unique_ptr<Communicator>> made =
        transport == "local" ? std::move(local[static_cast<std::size_t>(rank)])
        : transport == "shm" ? MakeShmCommunicator(rank, kRanks, store, "job")
                             : MakeTcpCommunicator(rank, kRanks, store, "job", {});
    COHORT_RETURN_IF_ERROR(made.status());
    const std::unique_ptr<Communicator> mine = std::move(made).value();
    return fn(*mine);
  });
}

nanoseconds ProcessorTime() {
  timespec now = {};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return std::chrono::seconds(now.tv_sec) + nanoseconds(now.tv_nsec);
}

Status WaitFor(Communicator::Pending pending) {
  COHORT_RETURN_IF_ERROR(pending.status());
  return pending.value()->Wait();
}

class WaitingRanks : public ::testing::TestWithParam<std::string> {};

// Two ranks wait, one in an operation and one outside, where what the other has sent lies: neither
// takes the core.
TEST_P(WaitingRanks, TakeNoCore) {
  constexpr milliseconds kWait{1000};
  for (const std::size_t count : {std::size_t{100}, std::size_t{1} << 20}) {
    nanoseconds used{};
    testing::ExpectAllOk(RunOver(GetParam(), [&](Communicator& comm) -> Status {
      std::vector<float> values(count, 1.0F);
      COHORT_RETURN_IF_ERROR(WaitFor(comm.AllReduce(std::span(values), ReduceOp::kMax)));
      if (comm.rank() == 1) {
        const nanoseconds before = ProcessorTime();
        std::promise<void> never;  // a second passes
        (void)never.get_future().wait_for(kWait);
        used = ProcessorTime() - before;
      }
      return WaitFor(comm.AllReduce(std::span(values), ReduceOp::kSum));
    }));
    RecordProperty("cpu_us_" + std::to_string(count), static_cast<int>(used.count() / 1000));
    EXPECT_LT(used, kRanks * kWait / 50) << count << " elements: more than 2% of a core for each";
  }
}

INSTANTIATE_TEST_SUITE_P(Transports, WaitingRanks, ::testing::Values("local", "shm", "tcp"),
                         [](const auto& transport) { return transport.param; });

}  // namespace
}  // namespace cohort
