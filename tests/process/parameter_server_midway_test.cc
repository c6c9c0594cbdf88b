// Servers and chiefs that are killed in the middle of what a job does beside training: a bucket is
// on its way, the servers go back, a save reads them, a cut is made. The proxy holds a message of
// that, so that it is under way for certain; what was held comes late.

#include <chrono>
#include <cstdint>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "process/ps_job.h"
#include "testing/text_case_name.h"

namespace cohort::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using namespace std::chrono_literals;
using Frame = TcpProxy::Frame;

const std::string kDump = "/cohort.ps.Rows/Dump";
const std::string kFreeze = "/cohort.ps.Servers/Freeze";
const std::string kMove = "/cohort.ps.Rows/Move";
const std::string kRestore = "/cohort.ps.Rows/Restore";

// Both servers have a parameter of the counting model.
std::vector<std::string> Settings(const std::vector<std::string>& more,
                                  const std::string& step_ms = "1") {
  std::vector<std::string> settings = {"--step-ms", step_ms, "--floats", "5"};
  settings.insert(settings.end(), more.begin(), more.end());
  return settings;
}

bool AwaitHeld(Job& job) {
  return Job::Await([&] { return job.proxy().held() == 1; });
}

void KillServer(Job& job, const std::string& name, const std::string& successor) {
  job.Kill(name);
  job.Replace(name == "ps:0" ? 0 : 1, successor);
}

template <typename Case>
std::string CaseName(const ::testing::TestParamInfo<Case>& of) {
  return of.param.name;
}

// ---- A bucket is on its way ---------------------------------------------------------------------

struct Moving {
  std::string name;
  std::string to;    // of the chief's call that is held: of the server that gives, or that gets it
  std::string call;  // its first one there
  std::string lost;
};
void PrintTo(const Moving& of, std::ostream* out) { *out << of.name; }

class LostWhileABucketMoves : public ::testing::TestWithParam<Moving> {};

TEST_P(LostWhileABucketMoves, TheJobBeginsAnewAndCountsEachExample) {
  const Moving& of = GetParam();
  Job job(Arguments("async", 2, Settings({"--balance-ms", "20"})), /*gate_at=*/150, kJob,
          {.proxied = true,
           .network = [&](TcpProxy& proxy) { proxy.HoldCall("chief:0", of.to, of.call); }});
  ASSERT_TRUE(AwaitHeld(job)) << "no bucket moves";
  // The chief goes on to nothing else.
  const std::string moves = " moves to ";
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", moves, kPatience));
  const std::string said = job.cluster.Stderr("chief:0");
  const std::string last = said.substr(said.rfind(moves) + moves.size());
  EXPECT_THAT(last, ::testing::StartsWith("ps:1"));
  EXPECT_THAT(last, Not(HasSubstr("stay where they are")));
  KillServer(job, of.lost, "again");
  job.proxy().Heal();
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "to step 0; the job goes on after", kPatience));
  job.OpenGate();
  job.ExpectCodes();
  ExpectWholeOutcome(job, "chief:0", "async", 2);
  EXPECT_THAT(job.cluster.Stdout("chief:0"), HasSubstr("hot rows 400 400"));
}

INSTANTIATE_TEST_SUITE_P(ParameterServer, LostWhileABucketMoves,
                         ::testing::Values(Moving{"WhoIsToGiveIt", "ps:0", kMove, "ps:0"},
                                           Moving{"WhoHasGivenIt", "ps:1", kRestore, "ps:0"},
                                           Moving{"WhoIsToGetIt", "ps:1", kRestore, "ps:1"}),
                         CaseName<Moving>);

// ---- The servers go back ------------------------------------------------------------------------

struct GoingBack {
  std::string name;
  std::string consistency;
  std::string lost;  // when the values of ps:1's successor are on their way
};
void PrintTo(const GoingBack& of, std::ostream* out) { *out << of.name; }

class LostWhileTheJobGoesBack : public ::testing::TestWithParam<GoingBack> {};

TEST_P(LostWhileTheJobGoesBack, ItGoesBackOnceMore) {
  const GoingBack& of = GetParam();
  Job job(Arguments(of.consistency, 2, Settings({})), /*gate_at=*/150, kJob, {.proxied = true});
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "step 31 ", kPatience));
  job.Kill("ps:1");
  job.proxy().Hold("chief:0", "ps:1", Frame::kAssign);
  job.Replace(1, "successor");
  ASSERT_TRUE(AwaitHeld(job)) << "it does not get its values";
  EXPECT_THAT(job.cluster.Stderr("chief:0"), HasSubstr("the servers go back to the last save"));
  EXPECT_THAT(job.cluster.Stderr("chief:0"), Not(HasSubstr("the job goes on after")));
  KillServer(job, of.lost, "again");
  ASSERT_TRUE(job.cluster.WaitForOutput(
      "chief:0", "going back to the last save has failed, 1 of 10 times", kPatience));
  job.proxy().Heal();
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "to step 0; the job goes on after", kPatience));
  job.OpenGate();
  job.ExpectCodes();
  ExpectWholeOutcome(job, "chief:0", of.consistency, 2);
}

INSTANTIATE_TEST_SUITE_P(ParameterServer, LostWhileTheJobGoesBack,
                         ::testing::Values(GoingBack{"TheSuccessor", "async", "successor"},
                                           GoingBack{"AnotherServer", "sync", "ps:0"}),
                         CaseName<GoingBack>);

// ---- A save reads the servers -------------------------------------------------------------------

struct Saving {
  std::string name;
  std::string read;  // the server from which nothing comes
  std::string lost;
  bool rows = false;  // of the first save; else values, of a later one
};
void PrintTo(const Saving& of, std::ostream* out) { *out << of.name; }

class LostWhileTheJobIsSaved : public ::testing::TestWithParam<Saving> {};

TEST_P(LostWhileTheJobIsSaved, TheSaveBeforeCounts) {
  const Saving& of = GetParam();
  const TempDir folder;
  Job job(Arguments("async", 2, Settings({"--folder", folder.path(), "--save-steps", "10"})),
          /*gate_at=*/150, kJob, {.proxied = true, .network = [&](TcpProxy& proxy) {
                                    if (of.rows) {
                                      proxy.HoldCall("chief:0", of.read, kDump);
                                    }
                                  }});
  if (!of.rows) {
    ASSERT_TRUE(Job::WaitForSave(folder.path(), /*whole=*/true));
    job.proxy().Hold("chief:0", of.read, Frame::kPull);  // the chief reads values for saves only
  }
  ASSERT_TRUE(AwaitHeld(job)) << "no save reads " << of.read;
  KillServer(job, of.lost, "again");
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "the job goes on after", kPatience));
  const std::string said = job.cluster.Stderr("chief:0");
  EXPECT_EQ(said.find(" to step 0;") != std::string::npos, of.rows) << said;
  job.proxy().Heal();
  job.OpenGate();
  job.ExpectCodes();
  ExpectWholeOutcome(job, "chief:0", "async", 2);
}

INSTANTIATE_TEST_SUITE_P(ParameterServer, LostWhileTheJobIsSaved,
                         ::testing::Values(Saving{"WhoseValuesAreRead", "ps:1", "ps:1"},
                                           Saving{"BesideTheOneThatIsRead", "ps:0", "ps:1"},
                                           Saving{"WhoseRowsAreRead", "ps:1", "ps:1", true}),
                         CaseName<Saving>);

// ---- The chief ----------------------------------------------------------------------------------

class ChiefLostMidway : public ::testing::TestWithParam<std::string> {
 protected:
  static std::vector<std::string> ArgumentsOf(const TempDir& folder, const std::string& step_ms) {
    return Arguments(GetParam(), 2,
                     Settings({"--folder", folder.path(), "--save-steps", "10"}, step_ms));
  }
  // So that the chief looks, and saves, before the gate, which is a round's, not a worker's.
  static std::string StepMs() { return GetParam() == "sync" ? "5" : "1"; }
  static void ExpectSuccess(Job& job) {
    job.Kill("chief:0");
    job.proxy().Heal();
    job.ReplaceChief("second");
    job.OpenGate();
    job.ExpectCodes();
    EXPECT_THAT(job.cluster.Stderr("second"), HasSubstr("takes the place of a chief that is gone"));
    ExpectWholeOutcome(job, "second", GetParam(), 2);
  }
};

TEST_P(ChiefLostMidway, WhileTheServersGoBackForOneThatWasLost) {
  const TempDir folder;
  Job job(ArgumentsOf(folder, StepMs()), /*gate_at=*/150, kJob, {.proxied = true});
  ASSERT_TRUE(Job::WaitForSave(folder.path(), /*whole=*/true));
  job.Kill("ps:1");
  job.proxy().Hold("chief:0", "ps:1", Frame::kAssign);
  job.Replace(1, "successor");
  ASSERT_TRUE(AwaitHeld(job)) << "the new server does not get its values";
  EXPECT_THAT(job.cluster.Stderr("chief:0"), HasSubstr("the servers go back to the last save"));
  EXPECT_THAT(job.cluster.Stderr("chief:0"), Not(HasSubstr("the job goes on after")));
  ExpectSuccess(job);
}

// worker:0 stands in a split, which the cut waits for, and nothing else is handed out; or in a
// round, of which the other part is there: whether a cut waits for it as well, nobody sees.
TEST_P(ChiefLostMidway, InACutBeforeTheServersKeepWhatTheyHave) {
  const TempDir folder;
  Job job(ArgumentsOf(folder, "5"), /*gate_at=*/25, kJob, {.proxied = true});
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "step 21 begins", kPatience));
  std::int64_t pushed = 0;
  ASSERT_TRUE(Job::Await([&] {
    std::this_thread::sleep_for(500ms);
    const std::int64_t now = job.proxy().Count("worker:1", "ps:0", Frame::kPush);
    return std::exchange(pushed, now) == now && now > 0;
  }));
  const std::int64_t of_the_other = job.proxy().Count("worker:0", "ps:0", Frame::kPush);
  if (GetParam() == "sync") {
    EXPECT_EQ(24 * pushed, 25 * of_the_other) << "frames of 25 rounds, and of 24";
  } else {
    EXPECT_LT(pushed, 175) << "all that are left of this epoch: there is no cut";
    EXPECT_EQ(of_the_other, 24);
  }
  ExpectSuccess(job);
}

INSTANTIATE_TEST_SUITE_P(ParameterServer, ChiefLostMidway, ::testing::Values("async", "sync"));

class ChiefLostInAFlip : public ChiefLostMidway {};

// One server keeps what it has for the save, and the other one does not know of it.
TEST_P(ChiefLostInAFlip, WhenOneServerKeepsWhatItHas) {
  const TempDir folder;
  Job job(ArgumentsOf(folder, StepMs()), /*gate_at=*/150, kJob,
          {.proxied = true,
           .network = [](TcpProxy& proxy) { proxy.HoldCall("chief:0", "ps:1", kFreeze); }});
  ASSERT_TRUE(AwaitHeld(job)) << "there is no cut";
  ExpectSuccess(job);
}

INSTANTIATE_TEST_SUITE_P(ParameterServer, ChiefLostInAFlip,
                         ::testing::Values("async", "ssp:2", "sync"), TextCaseName);

}  // namespace
}  // namespace cohort::testing
