// What strategies/README.md says that parameter servers guarantee, under each consistency, where
// every piece that three workers, two servers and the chief send each other is late by a random
// time. The tasks look at what they read themselves (guarantee_task.cc, staleness_task.cc).
// COHORT_FAULT_SEED has the delays of an earlier run again.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "process/ps_job.h"

namespace cohort::testing {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

constexpr auto kLatest = 3ms;
constexpr int kBatches = 40;  // of guarantee_task

// A job of processes between all of which each piece is late.
struct LateJob {
  LateJob(const std::vector<std::string>& argv, const Tasks& tasks, std::uint64_t seed)
      : proxy(network) {
    proxy.DelayRandomly("*", "*", kLatest, seed);
    cluster.StartTasks(tasks, argv, proxy.Environment());
  }
  void ExpectEnd() {
    for (const auto& [name, code] : cluster.WaitAll(kPatience)) {
      EXPECT_EQ(code, 0) << name << ": " << cluster.Stderr(name);
    }
  }
  // How many a worker has begun.
  int Steps(const std::string& worker) const {
    const std::string out = cluster.Stdout(worker);
    int steps = 0;
    for (std::size_t at = out.find("step "); at != std::string::npos;
         at = out.find("step ", at + 1)) {
      ++steps;
    }
    return steps;
  }

  ProcessCluster network;
  TcpProxy proxy;
  ProcessCluster cluster;
};

class Guarantees : public ::testing::TestWithParam<std::string> {
 protected:
  Guarantees() { std::printf("COHORT_FAULT_SEED=%llu\n", static_cast<unsigned long long>(seed_)); }
  std::string Trace() const { return "COHORT_FAULT_SEED=" + std::to_string(seed_); }

  const std::uint64_t seed_ = FaultSeed();
};

std::string NameOf(const ::testing::TestParamInfo<std::string>& consistency) {
  std::string name = consistency.param;
  std::erase(name, ':');
  return name;
}

const Tasks kWithChief = {{"chief", 1}, {"worker", 3}, {"ps", 2}};
const Tasks kInStep = {{"worker", 3}, {"ps", 2}};  // led by worker:0

// The line that the chief ends with.
std::string Holds(const LateJob& job, const std::string& chief) {
  const std::string out = job.cluster.Stdout(chief);
  const std::size_t at = out.find("holds");
  EXPECT_NE(at, std::string::npos) << out;
  return at == std::string::npos ? "" : out.substr(at, out.find('\n', at) - at);
}

// "A chunk of a variable, or a row, is updated as a whole; a worker's own updates are in all that
// it reads afterwards. Nobody waits."
using AsynchronousGuarantees = Guarantees;
TEST_P(AsynchronousGuarantees, HoldWhateverIsLate) {
  SCOPED_TRACE(Trace());
  const TempDir dir;
  LateJob job({COHORT_BIN_DIR "/../tests/guarantee_task", GetParam(), dir / "gate"}, kWithChief,
              seed_);
  // worker:2 stands at the gate, with a half of all batches at most, what it took first.
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:2", "step 3 begins", kPatience));
  ASSERT_TRUE(Job::Await([&] {
    return job.Steps("worker:0") + job.Steps("worker:1") >= kBatches / 2;
  })) << "others wait for worker:2";
  EXPECT_EQ(job.Steps("worker:2"), 3);
  std::ofstream(dir / "gate") << "open";
  job.ExpectEnd();
  Holds(job, "chief:0");
}
INSTANTIATE_TEST_SUITE_P(ParameterServer, AsynchronousGuarantees, ::testing::Values("async"),
                         NameOf);

// "What a worker reads after its step c has at least the first c - S steps of every worker at work,
// and all of its own."
using BoundedGuarantees = Guarantees;
TEST_P(BoundedGuarantees, HoldWhateverIsLate) {
  SCOPED_TRACE(Trace());
  const TempDir dir;
  const std::string staleness = GetParam().substr(GetParam().find(':') + 1);
  LateJob job({COHORT_BIN_DIR "/../tests/staleness_task", staleness, dir.path()}, kInStep, seed_);
  job.ExpectEnd();
  EXPECT_EQ(Holds(job, "worker:0"), "holds, lead at most " + staleness + ", some parked");
}
INSTANTIATE_TEST_SUITE_P(ParameterServer, BoundedGuarantees, ::testing::Values("ssp:1", "ssp:3"),
                         NameOf);

// "Each update is the sum over all workers' parts in the order of the parts, whatever order they
// came in; the same workers give the same bits": two jobs, whose parts come in other orders. And of
// hybrid: "with a step's rows updated once by the sum over the workers."
using SynchronousGuarantees = Guarantees;
TEST_P(SynchronousGuarantees, HoldWhateverIsLate) {
  SCOPED_TRACE(Trace());
  const bool led_by_worker = GetParam() == "hybrid";
  std::string before;
  for (const std::uint64_t seed : {seed_, seed_ + 1}) {
    LateJob job({COHORT_BIN_DIR "/../tests/guarantee_task", GetParam()},
                led_by_worker ? kInStep : kWithChief, seed);
    job.ExpectEnd();
    const std::string holds = Holds(job, led_by_worker ? "worker:0" : "chief:0");
    EXPECT_THAT(holds, HasSubstr("digest"));
    EXPECT_EQ(holds, before.empty() ? holds : before) << "other bits";
    before = holds;
  }
}
INSTANTIATE_TEST_SUITE_P(ParameterServer, SynchronousGuarantees,
                         ::testing::Values("sync", "hybrid"), NameOf);

// "Each update is that of the first N - B parts to be finished, the same ones on every server; the
// others' have no effect."
using BackupGuarantees = Guarantees;
TEST_P(BackupGuarantees, HoldWhateverIsLate) {
  SCOPED_TRACE(Trace());
  LateJob job({COHORT_BIN_DIR "/../tests/guarantee_task", GetParam()}, kWithChief, seed_);
  job.ExpectEnd();
  Holds(job, "chief:0");
  EXPECT_THAT(job.cluster.Stdout("chief:0"),
              HasSubstr("dropped " + std::to_string(kBatches) + "\n"))
      << "one part of three of each round";
}
INSTANTIATE_TEST_SUITE_P(ParameterServer, BackupGuarantees, ::testing::Values("sync:1"), NameOf);

}  // namespace
}  // namespace cohort::testing
