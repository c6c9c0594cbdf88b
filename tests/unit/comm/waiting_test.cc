// What waiting costs.
#include <cohort/comm/local.h>
#include <cohort/comm/shm.h>
#include <cohort/comm/tcp.h>
#include <gtest/gtest.h>
#include <time.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>
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

// How often this process's threads of that name have slept so far.
int TimesAsleep(const std::string& thread) {
  int times = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream name(task.path() / "comm");
    std::string text;
    if (std::getline(name, text) && text == thread) {
      std::ifstream status(task.path() / "status");
      while (std::getline(status, text)) {
        constexpr std::string_view kKey = "voluntary_ctxt_switches:";
        if (text.starts_with(kKey)) {
          times += std::stoi(text.substr(kKey.size()));
        }
      }
    }
  }
  return times;
}

// Whether operation `number` ends without a Wait, within 20 s.
bool Ends(const Communicator& comm, std::uint64_t number) {
  const auto ended = [&] {
    const OperationProgress progress = comm.progress();
    return progress.sequence == number && !progress.under_way;
  };
  const Deadline until = DeadlineAfter(std::chrono::seconds(20));
  while (!ended() && std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  return ended();
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

// A small operation that one thread drives and another sleeps for: who ends it wakes who sleeps.
TEST_P(WaitingRanks, AreWokenByWhoeverDrives) {
  constexpr int kRounds = 2000;
  static constexpr auto kPatience = std::chrono::seconds(20);
  const std::vector<Status> statuses = RunOver(GetParam(), [](Communicator& comm) -> Status {
    for (int round = 0; round < kRounds; ++round) {
      float value = 1;
      if (comm.rank() == 1 && round % 4 != 0) {  // late by 0 to 96 us
        const Deadline until =
            std::chrono::steady_clock::now() + std::chrono::microseconds(round % 97);
        while (std::chrono::steady_clock::now() < until) {
        }
      }
      COHORT_ASSIGN_OR_RETURN(const std::unique_ptr<Work> work,
                              comm.AllReduce(std::span(&value, 1), ReduceOp::kSum, {.name = "x"}));
      std::future<Status> sleeper =
          std::async(std::launch::async, [&] { return work->Wait(DeadlineAfter(kPatience)); });
      COHORT_RETURN_IF_ERROR(work->Wait());
      COHORT_RETURN_IF_ERROR(sleeper.get());
      if (value != kRanks) {
        return Internal("a wrong sum in round " + std::to_string(round));
      }
    }
    return {};
  });
  testing::ExpectAllOk(statuses);
}

// Callers who wait for all they call, as training does, keep their core for themselves: the
// communicator's thread looks less and less often whether it is needed. It is there all the same
// when it is.
TEST_P(WaitingRanks, LeaveTheCoreToCallersWhoWait) {
  static constexpr int kFirst = 100;
  static constexpr int kRounds = 300;
  static constexpr int kMost =
      (kRounds - kFirst) / 2;  // it would be two for each, of 1 ms and more
  const std::vector<Status> statuses = RunOver(GetParam(), [](Communicator& comm) -> Status {
    int before = 0;
    Deadline first;
    float value = 1;
    for (int round = 0; round < kRounds; ++round) {
      if (round == kFirst) {
        before = TimesAsleep("comm-0");
        first = std::chrono::steady_clock::now();
      }
      value = 1;
      COHORT_RETURN_IF_ERROR(
          WaitFor(comm.AllReduce(std::span(&value, 1), ReduceOp::kSum, {.name = "x"})));
      const Deadline until = std::chrono::steady_clock::now() + milliseconds(1);
      while (std::chrono::steady_clock::now() < until) {
      }
    }
    if (comm.rank() == 0) {
      // On a busy machine rounds take longer, and it looks each 16 ms.
      const auto looks = (std::chrono::steady_clock::now() - first) / milliseconds(16);
      EXPECT_LE(TimesAsleep("comm-0") - before, kMost + looks);
    }
    value = 1;
    COHORT_RETURN_IF_ERROR(
        comm.AllReduce(std::span(&value, 1), ReduceOp::kSum, {.name = "x"}).status());
    EXPECT_TRUE(Ends(comm, kRounds + 1));
    EXPECT_EQ(value, kRanks);
    return {};
  });
  testing::ExpectAllOk(statuses);
}

// What a rank has called it is in, whether it waits for it or not, and nobody has to: the
// communicator's thread ends it.
TEST_P(WaitingRanks, AreInWhatTheyHaveCalled) {
  std::promise<void> told;
  const std::vector<Status> statuses = RunOver(GetParam(), [&](Communicator& comm) -> Status {
    float value = 1;
    if (comm.rank() == 1) {
      told.get_future().wait_for(std::chrono::seconds(20));
    }
    const Deadline before = std::chrono::steady_clock::now() - milliseconds(1);
    COHORT_RETURN_IF_ERROR(
        comm.AllReduce(std::span(&value, 1), ReduceOp::kSum, {.name = "x"}).status());
    const Deadline until = DeadlineAfter(std::chrono::seconds(20));
    if (comm.rank() == 0) {
      OperationProgress progress = comm.progress();
      while (!progress.under_way && std::chrono::steady_clock::now() < until) {
        progress = comm.progress();
      }
      EXPECT_TRUE(progress.under_way);
      EXPECT_EQ(progress.sequence, 1U);
      EXPECT_EQ(progress.operation, "AllReduce 'x' float32[1]");
      EXPECT_GE(progress.since, before);
      told.set_value();
    }
    EXPECT_TRUE(Ends(comm, 1));
    EXPECT_EQ(value, kRanks);
    return {};
  });
  testing::ExpectAllOk(statuses);
}

INSTANTIATE_TEST_SUITE_P(Transports, WaitingRanks, ::testing::Values("local", "shm", "tcp"),
                         [](const auto& transport) { return transport.param; });

}  // namespace
}  // namespace cohort
