// What a network does to a parameter-server job: connections that break, fall silent in one
// direction or both, are late, repeat what they carry; and processes that are killed when a half of
// a frame is on its way. Real processes, with a TcpProxy between all of them.
//
// TEST_LONG: one of each kind, or the others.

#include <algorithm>
#include <chrono>
#include <csignal>
#include <regex>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "process/ps_job.h"

namespace cohort::testing {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using ::testing::Not;
using Frame = TcpProxy::Frame;

constexpr std::chrono::milliseconds kHeartbeat = 3s;  // StrategyOptions::heartbeat_timeout

std::vector<std::string> Within(const std::vector<std::string>& more = {}) {
  std::vector<std::string> arguments = {"--step-ms", "1", "--heartbeat-ms",
                                        std::to_string(kHeartbeat.count())};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

// A link, and how it is silent.
struct Silence {
  const char* name;
  const char* consistency;
  const char* from;
  const char* to;
  bool one_way;
};
void PrintTo(const Silence& of, std::ostream* out) { *out << of.name; }
std::string NameOf(const ::testing::TestParamInfo<Silence>& of) { return of.param.name; }

// ---- Connections that are forgotten -------------------------------------------------------------

class ForgottenConnections : public ::testing::TestWithParam<Silence> {};

// As by a firewall that drops states: others in their place are well.
TEST_P(ForgottenConnections, AreReplacedAndNothingIsLost) {
  const Silence& of = GetParam();
  Job job(Arguments(of.consistency, 3, Within()), /*gate_at=*/260, kJob, {.proxied = true});
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "step 51 ", kPatience));
  of.one_way ? job.proxy().ForgetOneWay(of.from, of.to) : job.proxy().Forget(of.from, of.to);
  job.OpenGate();
  job.ExpectCodes();
  ExpectWholeOutcome(job, "chief:0", of.consistency, 3);
  EXPECT_THAT(job.cluster.Stderr("chief:0"), Not(HasSubstr("is lost")));
  EXPECT_THAT(job.cluster.Stderr("chief:0"), Not(HasSubstr("goes on without")));
}

#if TEST_LONG
INSTANTIATE_TEST_SUITE_P(
    Long, ForgottenConnections,
    ::testing::Values(Silence{"ToTheServer", "sync", "worker:1", "ps:1", true},
                      Silence{"ToTheServerUnderSsp", "ssp:2", "worker:1", "ps:0", true},
                      Silence{"ToTheWorkerUnderAsync", "async", "ps:0", "worker:1", true},
                      Silence{"ToTheChief", "async", "worker:1", "chief:0", true},
                      Silence{"OfTheChiefToTheWorker", "sync", "chief:0", "worker:1", true}),
    NameOf);
#else
INSTANTIATE_TEST_SUITE_P(
    ParameterServerNetworkTest, ForgottenConnections,
    ::testing::Values(Silence{"BothWays", "async", "worker:1", "ps:1", false},
                      Silence{"ToTheWorker", "ssp:2", "ps:1", "worker:1", true},
                      Silence{"OfTheChief", "sync", "worker:1", "chief:0", false}),
    NameOf);
#endif

// ---- Links that are cut -------------------------------------------------------------------------

class CutFromAServer : public ::testing::TestWithParam<Silence> {};

// The chief hears both. The worker ends, its work is done by the other one.
TEST_P(CutFromAServer, AWorkerEndsAndTheJobGoesOnWithoutIt) {
  const Silence& of = GetParam();
  Job job(Arguments(of.consistency, 2, Within()), /*gate_at=*/90, kJob, {.proxied = true});
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:1", "step 51 ", kPatience));
  of.one_way ? job.proxy().OneWay(of.from, of.to) : job.proxy().HalfOpen(of.from, of.to);
  // Silence for kHeartbeat, and as long until the chief could have said that the server is lost.
  EXPECT_EQ(job.cluster.Wait("worker:1", kHeartbeat + 5s + 10s), kPeerLost);
  const std::string server = of.from[0] == 'p' ? of.from : of.to;
  EXPECT_THAT(job.cluster.Stderr("worker:1"), HasSubstr("error: Unavailable: " + server + " ("));
  EXPECT_THAT(job.cluster.Stderr("worker:1"), HasSubstr("the others go on without this process"));
  job.Expect("worker:1", kPeerLost);
  job.OpenGate();
  job.ExpectCodes();
  const std::string out = job.cluster.Stdout("chief:0");
  EXPECT_THAT(out, HasSubstr("epoch 1: 2000 of 2000 seen"));
  if (std::string(of.consistency) == "sync") {
    EXPECT_THAT(out, HasSubstr(DigestOf(2)));
  }
  EXPECT_THAT(job.cluster.Stderr("chief:0"), HasSubstr("goes on without worker:1"));
}

#if TEST_LONG
INSTANTIATE_TEST_SUITE_P(Long, CutFromAServer,
                         ::testing::Values(Silence{"BothWays", "sync", "worker:1", "ps:1", false},
                                           Silence{"ToTheWorker", "sync", "ps:1", "worker:1", true},
                                           Silence{"BothWaysUnderSsp", "ssp:2", "worker:1", "ps:0",
                                                   false}),
                         NameOf);
#else
INSTANTIATE_TEST_SUITE_P(ParameterServerNetworkTest, CutFromAServer,
                         ::testing::Values(Silence{"ToTheServer", "async", "worker:1", "ps:1",
                                                   true}),
                         NameOf);
#endif

class CutFromTheChief : public ::testing::TestWithParam<Silence> {};

TEST_P(CutFromTheChief, AWorkerIsLostAndTheJobGoesOnWithoutIt) {
  const Silence& of = GetParam();
  Job job(Arguments(of.consistency, 2, Within()), /*gate_at=*/90, kJob, {.proxied = true});
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:1", "step 51 ", kPatience));
  of.one_way ? job.proxy().OneWay(of.from, of.to) : job.proxy().HalfOpen(of.from, of.to);
  EXPECT_EQ(job.cluster.Wait("worker:1", kHeartbeat + 10s), kPeerLost);
  EXPECT_THAT(job.cluster.Stderr("worker:1"), HasSubstr("error: Unavailable: chief:0 ("));
  job.Expect("worker:1", kPeerLost);
  job.OpenGate();
  job.ExpectCodes();
  const std::string out = job.cluster.Stdout("chief:0");
  EXPECT_THAT(out, HasSubstr("epoch 1: 2000 of 2000 seen"));
  if (std::string(of.consistency) == "sync") {
    EXPECT_THAT(out, HasSubstr(DigestOf(2)));
  }
  EXPECT_THAT(job.cluster.Stderr("chief:0"), HasSubstr("goes on without worker:1"));
}

#if TEST_LONG
INSTANTIATE_TEST_SUITE_P(
    Long, CutFromTheChief,
    ::testing::Values(Silence{"ToTheChief", "sync", "worker:1", "chief:0", true},
                      Silence{"ToTheWorker", "sync", "chief:0", "worker:1", true}),
    NameOf);
#else
INSTANTIATE_TEST_SUITE_P(ParameterServerNetworkTest, CutFromTheChief,
                         ::testing::Values(Silence{"BothWays", "async", "worker:1", "chief:0",
                                                   false}),
                         NameOf);
#endif

class ServerThatIsCutOff : public ::testing::TestWithParam<Silence> {};

// It is lost, and takes the chief for lost. Without a journal both end the job, by rejoin_grace.
TEST_P(ServerThatIsCutOff, EndsTheJobWhereNobodyTakesItsPlace) {
  const Silence& of = GetParam();
  Job job(Arguments(of.consistency, 3, Within({"--rejoin-ms", "1000"})), /*gate_at=*/150, kJob,
          {.proxied = true});
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:1", "step 51 ", kPatience));
  of.one_way ? job.proxy().OneWay(of.from, of.to) : job.proxy().HalfOpen(of.from, of.to);
  EXPECT_EQ(job.cluster.Wait("ps:1", kHeartbeat + 10s), kPeerLost);
  EXPECT_THAT(job.cluster.Stderr("ps:1"), HasSubstr("error: Unavailable: chief:0 ("));
  job.OpenGate();
  for (const char* name : {"chief:0", "worker:0", "worker:1", "ps:0"}) {
    EXPECT_EQ(job.cluster.Wait(name, 30s), kPeerLost) << name;
    EXPECT_THAT(job.cluster.Stderr(name), HasSubstr("no other process has taken its place"))
        << name;
    EXPECT_THAT(job.cluster.Stderr(name), HasSubstr("ps:1")) << name;
  }
}

// With one it joins anew when the network is there again, as another process in its place.
TEST_P(ServerThatIsCutOff, JoinsAnewWhenTheNetworkIsBack) {
  const Silence& of = GetParam();
  const TempDir folder;
  Job job(Arguments(of.consistency, 3,
                    Within({"--folder", folder.path() + "/saves", "--save-steps", "20"})),
          /*gate_at=*/250, kJob, {.proxied = true});
  ASSERT_TRUE(Job::WaitForSave(folder.path() + "/saves", /*whole=*/true));
  of.one_way ? job.proxy().OneWay(of.from, of.to) : job.proxy().HalfOpen(of.from, of.to);
  ASSERT_TRUE(job.cluster.WaitForOutput("ps:1", "waits for another process in its place", 20s));
  job.proxy().Heal();
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "the job goes on after", 30s));
  job.OpenGate();
  job.ExpectCodes();
  ExpectWholeOutcome(job, "chief:0", of.consistency, 3);
}

#if TEST_LONG
INSTANTIATE_TEST_SUITE_P(Long, ServerThatIsCutOff,
                         ::testing::Values(Silence{"ToTheChief", "sync", "ps:1", "chief:0", true},
                                           Silence{"ToTheServer", "async", "chief:0", "ps:1",
                                                   true}),
                         NameOf);
#else
INSTANTIATE_TEST_SUITE_P(ParameterServerNetworkTest, ServerThatIsCutOff,
                         ::testing::Values(Silence{"BothWays", "async", "chief:0", "ps:1", false}),
                         NameOf);
#endif

// ---- Loss, delay, repetition --------------------------------------------------------------------

class BadNetwork : public ::testing::TestWithParam<const char*> {};

TEST_P(BadNetwork, DoesNotShowInTheResult) {
  const std::string consistency = GetParam();
  Job job(Arguments(consistency, 1, {"--step-ms", "5"}), /*gate_at=*/0, kJob, {.proxied = true});
  for (const char* worker : {"worker:0", "worker:1"}) {
    ASSERT_TRUE(job.cluster.WaitForOutput(worker, "step 11 ", kPatience));
    job.proxy().Duplicate(worker, "*");
    job.proxy().Delay(worker, "ps:1", 1ms);
  }
  job.proxy().Lose("*", "*", 0.01, /*seed=*/7);
  job.ExpectCodes();
  ExpectWholeOutcome(job, "chief:0", consistency, 1);
  EXPECT_GT(job.proxy().lost(), 0);
  EXPECT_GT(job.proxy().duplicated(), 100);
}

#if TEST_LONG
INSTANTIATE_TEST_SUITE_P(Long, BadNetwork, ::testing::Values("ssp:2"), [](const auto& of) {
  std::string name = of.param;
  std::erase(name, ':');
  return name;
});
#else
INSTANTIATE_TEST_SUITE_P(ParameterServerNetworkTest, BadNetwork, ::testing::Values("async", "sync"),
                         [](const auto& of) {
                           std::string name = of.param;
                           std::erase(name, ':');
                           return name;
                         });
#endif

// ---- Killed with half a frame on its way --------------------------------------------------------

struct Half {
  const char* name;
  const char* consistency;
  const char* from;
  const char* to;
  Frame frame;
};
void PrintTo(const Half& of, std::ostream* out) { *out << of.name; }

class ServerKilledInTheMiddle : public ::testing::TestWithParam<Half> {};

TEST_P(ServerKilledInTheMiddle, IsReplacedWithinTenSeconds) {
  const Half& of = GetParam();
  const TempDir folder;
  // Some of its memory is more than sockets have room for.
  std::vector<std::string> more = {
      "--folder", folder.path() + "/saves", "--save-steps", "20", "--step-ms", "1"};
  if (std::string(of.consistency) != "sync") {
    more.insert(more.end(), {"--floats", "100000"});
  }
  Job job(Arguments(of.consistency, 3, more), /*gate_at=*/250, kJob, {.proxied = true});
  ASSERT_TRUE(Job::WaitForSave(folder.path() + "/saves", /*whole=*/true));
  job.proxy().Hold(of.from, of.to, of.frame);
  ASSERT_TRUE(Job::Await([&] { return job.proxy().held() == 1; })) << "no such frame";
  const std::string server = of.from[0] == 'p' ? of.from : of.to;
  job.Kill(server);
  job.Replace(server.back() - '0', "again");
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "the job goes on after", kPatience));
  const std::string said = job.cluster.Stderr("chief:0");
  std::smatch seconds;
  ASSERT_TRUE(std::regex_search(said, seconds, std::regex("goes on after ([0-9.]+) s"))) << said;
  EXPECT_LE(std::stod(seconds[1]), 10.0) << said;
  job.OpenGate();
  job.ExpectCodes();
  ExpectWholeOutcome(job, "chief:0", of.consistency, 3);
}

#if TEST_LONG
INSTANTIATE_TEST_SUITE_P(
    Long, ServerKilledInTheMiddle,
    ::testing::Values(Half{"OfAPushsAnswer", "async", "ps:0", "worker:1", Frame::kPush},
                      Half{"OfAPullOfRows", "async", "ps:1", "worker:1", Frame::kPullRows}),
    [](const auto& of) { return of.param.name; });
#else
INSTANTIATE_TEST_SUITE_P(
    ParameterServerNetworkTest, ServerKilledInTheMiddle,
    ::testing::Values(Half{"OfAPush", "sync", "worker:1", "ps:0", Frame::kPush},
                      Half{"OfAPull", "sync", "ps:0", "worker:1", Frame::kPull},
                      Half{"OfAPushOfRows", "async", "worker:1", "ps:1", Frame::kPushRows}),
    [](const auto& of) { return of.param.name; });
#endif

#if !TEST_LONG
// A server has half of a push of a step, the other one has all of it.
void HoldTheMiddleOfAStep(Job& job, const std::string& server, const std::string& other) {
  TcpProxy& proxy = job.proxy();
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:1", "step 31 ", kPatience));
  proxy.Hold("worker:1", server, Frame::kPush);
  ASSERT_TRUE(Job::Await([&] { return proxy.held() == 1; })) << "no such frame";
  ASSERT_TRUE(Job::Await([&] {
    const std::int64_t pushed = proxy.Count("worker:1", other, Frame::kPush);
    return pushed > proxy.Count("worker:1", server, Frame::kPush) &&
           pushed == proxy.Count(other, "worker:1", Frame::kPush);
  })) << "the push of that step is not with "
      << other;
}

void KillInTheMiddleOfAStep(Job& job, const std::string& server, const std::string& other) {
  HoldTheMiddleOfAStep(job, server, other);
  job.Kill("worker:1");
  job.OpenGate();
  job.ExpectCodes();
}

// ServerLoss::kPartial: the step is sent again. The server that had it, and lives, has it once; the
// new one, which has "count", has it, too, though it was counted as lost. So it may be with one of
// worker:0's.
TEST(ServerKilledAloneInTheMiddleOfAStep, TheOthersHaveThatStepOnce) {
  Job job(Arguments("async", 1, {"--partial", "--step-ms", "1", "--floats", "5"}), /*gate_at=*/50,
          kJob, {.proxied = true});
  HoldTheMiddleOfAStep(job, "ps:1", "ps:0");
  job.Kill("ps:1");
  job.Replace(1, "again");
  ASSERT_TRUE(job.cluster.WaitForOutput(
      "chief:0", "1 of 2 servers go on from step 0, the others as they are", kPatience));
  job.OpenGate();
  job.ExpectCodes();
  const std::string out = job.cluster.Stdout("chief:0");
  EXPECT_THAT(out, HasSubstr("epoch 0: 2000 of 2000 seen, reissued 0"));
  EXPECT_THAT(out, HasSubstr("more counted 2000 to 2000"));
  std::smatch counted;
  std::smatch lost;
  ASSERT_TRUE(std::regex_search(out, counted, std::regex("(?:^|\n)counted ([0-9]+),"))) << out;
  ASSERT_TRUE(std::regex_search(out, lost, std::regex("lost updates ([0-9]+)"))) << out;
  const int sent_again = (std::stoi(counted[1]) - (2000 - 10 * std::stoi(lost[1]))) / 10;
  EXPECT_GE(sent_again, 1);
  EXPECT_LE(sent_again, 2);
}

TEST(WorkerKilledInTheMiddleOfAPush, LeavesNoTraceInARound) {
  Job job(Arguments("sync", 2, {"--step-ms", "1"}), /*gate_at=*/120, kJob, {.proxied = true});
  KillInTheMiddleOfAStep(job, "ps:1", "ps:0");
  const std::string out = job.cluster.Stdout("chief:0");
  EXPECT_THAT(out, HasSubstr("epoch 1: 2000 of 2000 seen"));
  EXPECT_THAT(out, HasSubstr(DigestOf(2)));
}

// What it had trained of its split is trained again, on the server that has all of its last step,
// "count"'s, too.
TEST(WorkerKilledInTheMiddleOfAPush, HasNoExampleTrainedMoreThanTwice) {
  Job job(Arguments("async", 1, {"--step-ms", "1", "--floats", "5"}), /*gate_at=*/90, kJob,
          {.proxied = true});
  KillInTheMiddleOfAStep(job, "ps:0", "ps:1");
  const std::string out = job.cluster.Stdout("chief:0");
  EXPECT_THAT(out, HasSubstr("epoch 0: 2000 of 2000 seen, reissued 1"));
  EXPECT_THAT(out, HasSubstr(", each 1 to 2 times"));
  std::smatch counted;
  ASSERT_TRUE(std::regex_search(out, counted, std::regex("(?:^|\n)counted ([0-9]+),"))) << out;
  EXPECT_GT(std::stoi(counted[1]), 2000);
  EXPECT_LE(std::stoi(counted[1]), 2000 + 2000 / 20) << "a split: ten for each worker";
}
#endif

}  // namespace
}  // namespace cohort::testing
