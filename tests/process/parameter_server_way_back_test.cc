// A server is lost, another process takes its place, and the chief cannot go back to a save: the
// job ends, on every process with the reason, and nobody goes on with a part of a save.

#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cohort/core/status.h>

#include "process/ps_job.h"

namespace cohort::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

struct WayBack {
  const char* name;
  std::string consistency;
  std::vector<std::string> flags;
  Status error;
};

class WithoutAWayBack : public ::testing::TestWithParam<WayBack> {};

TEST_P(WithoutAWayBack, TheJobEndsOnEveryProcessWithTheReason) {
  std::vector<std::string> flags = GetParam().flags;
  flags.insert(flags.end(),
               {"--step-ms", "3"});  // slow enough for the chief to save before the gate
  Job job(Arguments(GetParam().consistency, 4, flags), /*gate_at=*/350);
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "saved step ", kPatience));
  job.Kill("ps:1");
  job.Replace(1, "again");
  job.OpenGate();
  for (const std::string name : {"chief:0", "worker:0", "worker:1", "ps:0", "again"}) {
    job.Expect(name, ExitCode(GetParam().error));
  }
  job.ExpectCodes();
  for (const std::string name : {"chief:0", "worker:0", "worker:1", "ps:0", "again"}) {
    const std::string said = job.cluster.Stderr(name);
    EXPECT_THAT(said, HasSubstr("ps:1 is lost, and going back to the last save has failed: " +
                                GetParam().error.message()))
        << name;
    EXPECT_THAT(said, Not(HasSubstr("goes on in epoch 2"))) << name;
    EXPECT_THAT(said, Not(HasSubstr("the job goes on after"))) << name;
  }
}

const WayBack kWaysBack[] = {
    {"AsyncError", "async", {"--lost-saves", "error"}, DataLoss("shelf 7 of the saves is damaged")},
    {"AsyncThrows",
     "async",
     {"--lost-saves", "throws"},
     FailedPrecondition("SavePlan::restore has thrown: the saves have no shelf 7")},
    {"PartialThrows",
     "async",
     {"--lost-saves", "throws", "--partial"},
     FailedPrecondition("SavePlan::restore has thrown: the saves have no shelf 7")},
    {"SspNothing",
     "ssp:2",
     {"--lost-saves", "nothing"},
     FailedPrecondition("SavePlan::restore has returned step ")},
    {"SyncError", "sync", {"--lost-saves", "error"}, DataLoss("shelf 7 of the saves is damaged")},
};

INSTANTIATE_TEST_SUITE_P(ParameterServerWayBackTest, WithoutAWayBack,
                         ::testing::ValuesIn(kWaysBack),
                         [](const auto& way) { return std::string(way.param.name); });

}  // namespace
}  // namespace cohort::testing
