// Many workers start at once, one after the other, or never.

#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "process/ps_job.h"

namespace cohort::testing {
namespace {

using ::testing::HasSubstr;

std::string Worker(int index) { return "worker:" + std::to_string(index); }

class ManyWorkers : public ::testing::TestWithParam<int> {
 protected:
  static Tasks Cluster() { return {{"chief", 1}, {"worker", GetParam()}, {"ps", 2}}; }
  static std::string Never() { return Worker(GetParam() / 2); }
  static std::vector<std::string> Arguments(const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments = {"--count", "--step-ms", "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  static void ExpectEveryExample(Job& job) {
    job.ExpectCodes();
    EXPECT_THAT(job.cluster.Stdout("chief:0"), HasSubstr("epoch 0: 2000 of 2000 seen, reissued 0"));
    EXPECT_THAT(job.cluster.Stdout("chief:0"), HasSubstr("counted 2000, each 1 to 1 times"));
  }
};

TEST_P(ManyWorkers, StartWithinASecond) {
  const auto begun = std::chrono::steady_clock::now();
  Job job(Arguments(), /*gate_at=*/0, Cluster());
  const std::chrono::duration<double> started = std::chrono::steady_clock::now() - begun;
  std::printf("%d workers started within %.2f s\n", GetParam(), started.count());
  ExpectEveryExample(job);
  for (int w = 0; w < GetParam(); ++w) {
    EXPECT_THAT(job.cluster.Stdout(Worker(w)), HasSubstr("joined, ")) << w;
  }
}

TEST_P(ManyWorkers, OfWhomOneNeverComesAreToldItsName) {
  Job job(Arguments({"--join-ms", "6000"}), /*gate_at=*/0, Cluster(), {.absent = {Never()}});
  for (const std::string& name : job.cluster.names()) {
    job.Expect(name, kPeerLost);
  }
  job.ExpectCodes();
  for (const std::string& name : job.cluster.names()) {
    EXPECT_THAT(job.cluster.Stderr(name), HasSubstr("joining gave up after ")) << name;
    EXPECT_THAT(job.cluster.Stderr(name), HasSubstr(Never() + " (")) << name;
  }
}

TEST_P(ManyWorkers, AreAQuorumWithoutTheOneThatNeverComes) {
  Job job(Arguments({"--start", "quorum:" + std::to_string(GetParam() - 1)}), /*gate_at=*/0,
          Cluster(), {.absent = {Never()}});
  ExpectEveryExample(job);
  EXPECT_THAT(job.cluster.Stderr("chief:0"), HasSubstr("; " + Never() + " may come later"));
}

// Each when the one before has joined; the job has begun with none of them.
TEST_P(ManyWorkers, ComeOneAfterTheOther) {
  std::vector<std::string> late;
  for (int w = 0; w < GetParam(); ++w) {
    late.push_back(Worker(w));
  }
  // The first one waits at its gate for the others.
  Job job(Arguments({"--start", "elastic"}), /*gate_at=*/3, Cluster(), {.absent = late});
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "begins with 0 of ", kPatience));
  for (const std::string& worker : late) {
    if (worker != Never()) {
      job.StartTask(worker);
      ASSERT_TRUE(job.cluster.WaitForOutput(worker, "joined, ", kPatience)) << worker;
    }
  }
  job.OpenGate();
  ExpectEveryExample(job);
}

INSTANTIATE_TEST_SUITE_P(Of, ManyWorkers, ::testing::Values(32),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace cohort::testing
