// Jobs whose chief calls functions, and saves while these run: started again they go on from the
// save, and when a server is lost they go back to it. Each example is in the values, and in its
// row, once.

#include <csignal>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "process/ps_job.h"
#include "testing/temp_dir.h"
#include "testing/text_case_name.h"

namespace cohort::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const Tasks kThreeServers = {{"chief", 1}, {"worker", 2}, {"ps", 3}};

// 40 calls of five steps each.
std::vector<std::string> Calls(const std::string& consistency, std::vector<std::string> more) {
  more.insert(more.end(), {"--functions", "--floats", "5", "--step-ms", "3"});
  return Arguments(consistency, 1, more);
}

void ExpectEachOnce(const Job& job, const std::string& chief) {
  const std::string out = job.cluster.Stdout(chief);
  EXPECT_THAT(out, HasSubstr("counted 2000, each 1 to 1 times"));
  EXPECT_THAT(out, HasSubstr("rows counted 2000"));
  EXPECT_THAT(out, HasSubstr("more counted 2000 to 2000"));
}

class CallsGoBack : public ::testing::TestWithParam<std::string> {};

// worker:0 is in the middle of a call, which waits at the gate until the servers have gone back.
TEST_P(CallsGoBack, ToWhatTheJobBeganWith) {
  Job job(Calls(GetParam(), {}), /*gate_at=*/33);
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:1", "step 21 ", kPatience));
  job.Kill("ps:1");
  job.Replace(1, "again");
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "to step 0; the job goes on after", kPatience));
  EXPECT_THAT(job.cluster.Stderr("chief:0"),
              HasSubstr("calls that had returned since run again, their results stay"));
  job.OpenGate();
  job.ExpectCodes();
  ExpectEachOnce(job, "chief:0");
  EXPECT_THAT(job.cluster.Stdout("chief:0"), HasSubstr("fetched 40 results"));
}

TEST_P(CallsGoBack, ToTheLastSave) {
  const TempDir folder;
  Job job(Calls(GetParam(), {"--folder", folder.path(), "--save-calls", "10"}), /*gate_at=*/63);
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "saved after ", kPatience));
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:1", "step 21 ", kPatience));
  job.Kill("ps:1");
  job.Replace(1, "again");
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "; the job goes on after", kPatience));
  EXPECT_THAT(job.cluster.Stderr("chief:0"), Not(HasSubstr("to step 0;")));
  job.OpenGate();
  job.ExpectCodes();
  ExpectEachOnce(job, "chief:0");
  EXPECT_THAT(job.cluster.Stdout("chief:0"), HasSubstr("fetched 40 results"));
}

INSTANTIATE_TEST_SUITE_P(ParameterServerCallsTest, CallsGoBack, ::testing::Values("async", "ssp:2"),
                         TextCaseName);

// Two servers in turn; the second is lost in the epoch that the first one's loss has begun.
TEST(ParameterServerCallsTest, TheServersGoBackTwice) {
  Job job(Calls("async", {}), /*gate_at=*/63);
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:1", "step 11 ", kPatience));
  job.Kill("ps:0");
  job.Replace(0, "again0");
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:1", "goes on in epoch 2", kPatience));
  job.Kill("ps:1");
  job.Replace(1, "again1");
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:1", "goes on in epoch 3", kPatience));
  job.OpenGate();
  job.ExpectCodes();
  ExpectEachOnce(job, "chief:0");
}

// Every process is killed while calls run, and the job started again on more servers.
class CallsThatAreKilled : public ::testing::TestWithParam<std::string> {};

TEST_P(CallsThatAreKilled, GoOnFromTheSaveOnAnotherNumberOfServers) {
  const TempDir folder;
  const std::vector<std::string> argv =
      Calls(GetParam(), {"--folder", folder.path(), "--save-calls", "10"});
  Job killed(argv, /*gate_at=*/63);
  ASSERT_TRUE(killed.cluster.WaitForOutput("chief:0", "saved after ", kPatience));
  ASSERT_TRUE(killed.cluster.WaitForOutput("worker:1", "step 21 ", kPatience));
  for (const std::string& task : killed.cluster.names()) {
    ASSERT_TRUE(killed.cluster.Signal(task, SIGKILL)) << task;
    killed.Expect(task, kKilled);
  }
  killed.ExpectCodes();
  EXPECT_THAT(killed.cluster.Stdout("chief:0"), HasSubstr("goes on after 0 calls"));
  Job again(argv, /*gate_at=*/0, kThreeServers);
  again.ExpectCodes();
  EXPECT_THAT(again.cluster.Stdout("chief:0"), Not(HasSubstr("goes on after 0 calls")));
  ExpectEachOnce(again, "chief:0");
}

INSTANTIATE_TEST_SUITE_P(ParameterServerCallsTest, CallsThatAreKilled,
                         ::testing::Values("async", "ssp:2"), TextCaseName);

int CountOf(const std::string& text, const std::string& part) {
  int count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
    ++count;
  }
  return count;
}

// The chief has what 20 calls came to, and gives it to servers that have lost it since: when all of
// these calls have run again.
TEST(ParameterServerCallsTest, WhatTheChiefGivesComesBehindTheCallsThatRunAgain) {
  Job job(Calls("async", {"--gate-chief", "given"}), /*gate_at=*/0);
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "waits", kPatience));
  job.Kill("ps:1");
  job.Replace(1, "again");
  job.OpenGate();
  job.ExpectCodes();
  ExpectEachOnce(job, "chief:0");
  const std::string out = job.cluster.Stdout("chief:0");
  EXPECT_THAT(out, HasSubstr("PushState: servers have gone back to a save since the last "
                             "PullState, so it was not made"));
  EXPECT_THAT(out, HasSubstr("fetched 40 results"));
}

// Without a way back to the save that has what the chief gave, that is lost with a server.
TEST(ParameterServerCallsTest, WhatTheChiefGaveIsMissedWhereNoSaveIsGoneBackTo) {
  Job job(Calls("async", {"--gate-chief", "kept"}), /*gate_at=*/0);
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "waits", kPatience));
  job.Kill("ps:1");
  job.Replace(1, "again");
  job.OpenGate();
  EXPECT_NE(job.cluster.Wait("chief:0", kPatience), 0);
  EXPECT_THAT(job.cluster.Stderr("chief:0"), HasSubstr("are in no save, and lost"));
}

TEST(ParameterServerCallsTest, WhatCouldNotBeLoadedIsNotMissed) {
  Job job(Calls("async", {"--gate-chief", "refused"}), /*gate_at=*/0);
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "waits", kPatience));
  job.Kill("ps:1");
  job.Replace(1, "again");
  job.OpenGate();
  job.ExpectCodes();
  ExpectEachOnce(job, "chief:0");
  EXPECT_THAT(job.cluster.Stdout("chief:0"), HasSubstr("refused: NotFound"));
  EXPECT_THAT(job.cluster.Stdout("chief:0"), HasSubstr("refused: InvalidArgument"));
}

// A server is lost when the save is on the disk, and before it was told that it is. What the chief
// had given the servers before is in it.
TEST(ParameterServerCallsTest, ASaveThatIsWholeCountsWhereAServerIsLostBehindIt) {
  const TempDir folder;
  Job job(
      Calls("async", {"--folder", folder.path(), "--save-calls", "10", "--gate-chief", "saved"}),
      /*gate_at=*/0);
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "waits", kPatience));
  job.Kill("ps:1");
  job.Replace(1, "again");
  job.OpenGate();
  job.ExpectCodes();
  ExpectEachOnce(job, "chief:0");
  EXPECT_THAT(job.cluster.Stderr("chief:0"), HasSubstr("; the job goes on after"));
  EXPECT_THAT(job.cluster.Stderr("chief:0"), Not(HasSubstr("to step 0;")));
  const std::string out = job.cluster.Stdout("chief:0");
  EXPECT_EQ(CountOf(out, "wrote a save"), CountOf(out, "saved after ")) << "none was made twice";
  EXPECT_THAT(out, HasSubstr("fetched 40 results"));
}

// Of the lost server's part nothing is left, which is where the count is, and half of the rows.
TEST(ParameterServerCallsTest, AnEvaluationHasValuesOfTheServersThatItsRowsComeFrom) {
  Job job(Calls("async", {"--partial", "--gate-chief", "evaluation"}), /*gate_at=*/0);
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "waits", kPatience));
  job.Kill("ps:1");
  job.Replace(1, "again");
  job.OpenGate();
  job.ExpectCodes();
  EXPECT_THAT(job.cluster.Stderr("chief:0"), HasSubstr("1 of 2 servers go on from step 0"));
  const std::string out = job.cluster.Stdout("chief:0");
  EXPECT_THAT(out, HasSubstr("counted 0, each 0 to 1 times"));
  EXPECT_THAT(out, HasSubstr("evaluated 0 beside rows of "));
  EXPECT_EQ(CountOf(out, "evaluated "), 1);
}

TEST(ParameterServerCallsTest, ThatNobodyComesInItsPlaceIsSaidWithItsName) {
  Job job(Calls("async", {"--rejoin-ms", "500"}), /*gate_at=*/33);
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:1", "step 21 ", kPatience));
  job.Kill("ps:1");
  job.OpenGate();
  ExpectNobodyCame(job, {"chief:0", "worker:0", "worker:1", "ps:0"}, "ps:1");
}

// Also one with a journal, for which the servers wait in vain.
TEST(ParameterServerCallsTest, TheChiefIsNotReplaced) {
  const TempDir folder;
  Job job(Calls("async", {"--folder", folder.path(), "--save-calls", "10", "--rejoin-ms", "500"}),
          /*gate_at=*/63);
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "saved after ", kPatience));
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:1", "step 21 ", kPatience));
  job.Kill("chief:0");
  job.OpenGate();
  for (const char* name : {"worker:0", "worker:1", "ps:0", "ps:1"}) {
    EXPECT_EQ(job.cluster.Wait(name, kPatience), kPeerLost) << name;
    EXPECT_THAT(job.cluster.Stderr(name), HasSubstr("chief:0")) << name;
  }
  for (const char* name : {"worker:0", "worker:1"}) {
    EXPECT_THAT(job.cluster.Stderr(name), HasSubstr("a chief that calls functions is not replaced: "
                                                    "restart the job"))
        << name;
  }
}

}  // namespace
}  // namespace cohort::testing
