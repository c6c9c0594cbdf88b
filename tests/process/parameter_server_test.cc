// Real processes of a parameter-server job: it ends in order, outlives its workers, and names the
// server or chief that it does not outlive.

#include <csignal>
#include <fstream>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cohort/optim/optimizers.h>

#include "process/ps_report.h"
#include "testing/process_cluster.h"
#include "testing/temp_dir.h"
#include "testing/text_case_name.h"

namespace cohort::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using namespace std::chrono_literals;

constexpr auto kPatience = 60s;
constexpr int kPeerLost = 138;
constexpr auto kNoticed = 15s;

std::vector<std::string> Program(const std::vector<std::string>& arguments = {}) {
  std::vector<std::string> argv = {COHORT_BIN_DIR "/../tests/ps_program"};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  return argv;
}

void ExpectAllCodes(ProcessCluster& cluster, int code, std::chrono::milliseconds patience,
                    const std::vector<std::string>& except = {}) {
  for (const auto& [name, got] : cluster.WaitAll(patience)) {
    if (std::find(except.begin(), except.end(), name) == except.end()) {
      EXPECT_EQ(got, code) << name;
    }
  }
}

// Of a job that is equal to one process.
std::string DigestOf(std::int64_t examples, std::int64_t batch, int epochs) {
  return cohort::testing::DigestOf(examples, batch, epochs,
                                   *Sgd({.learning_rate = 0.0625, .momentum = 0.5}));
}

const std::vector<std::pair<std::string, int>> kJob = {{"chief", 1}, {"worker", 2}, {"ps", 2}};

TEST(ParameterServerProcessTest, AJobTrainsAndEndsInOrder) {
  ProcessCluster cluster;
  cluster.StartTasks(kJob, Program({"--epochs", "2"}));
  ExpectAllCodes(cluster, 0, kPatience);
  EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr("epoch 0: 2000 of 2000 seen, reissued 0"));
  EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr("epoch 1: 2000 of 2000 seen, reissued 0"));
  EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr("step 400 digest"))
      << "200 batches in each of two epochs, each an update";
}

TEST(ParameterServerProcessTest, WithoutAChiefWorkerZeroCoordinates) {
  ProcessCluster cluster;
  cluster.StartTasks({{"worker", 2}, {"ps", 1}}, Program());
  ExpectAllCodes(cluster, 0, kPatience);
  EXPECT_THAT(cluster.Stdout("worker:0"), HasSubstr("epoch 0: 2000 of 2000 seen"));
  EXPECT_THAT(cluster.Stdout("worker:0"), HasSubstr("step 200 digest"));
}

TEST(ParameterServerProcessTest, SynchronousApplicationEqualsOneProcess) {
  ProcessCluster cluster;
  cluster.StartTasks(
      {{"chief", 1}, {"worker", 3}, {"ps", 2}},
      Program({"--consistency", "sync", "--epochs", "2", "--examples", "127", "--batch", "10"}));
  ExpectAllCodes(cluster, 0, kPatience);
  EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr(DigestOf(127, 10, 2)));
}

// ---- Which workers a job begins with ------------------------------------------------------------

TEST(StartPolicyProcessTest, AQuorumTrainsWithoutTheWorkerThatNeverComes) {
  ProcessCluster cluster;
  cluster.StartTasks({{"chief", 1}, {"worker", 3}, {"ps", 2}},
                     Program({"--start", "quorum:2", "--consistency", "sync", "--epochs", "2",
                              "--examples", "127"}),
                     {}, {"worker:1"});
  ExpectAllCodes(cluster, 0, kPatience);
  EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr(DigestOf(127, 10, 2)));
  EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr("epoch 1: 127 of 127 seen, reissued 0"));
  EXPECT_THAT(cluster.Stderr("chief:0"),
              HasSubstr("begins with 2 of 3 workers (start quorum:2); worker:1 may come later"));
}

TEST(StartPolicyProcessTest, AWorkerThatComesLaterTakesPart) {
  ProcessCluster cluster;
  const TempDir dir;
  const std::vector<std::string> program =
      Program({"--start", "quorum:1", "--consistency", "sync", "--examples", "127", "--gate",
               dir / "gate", "--gate-at", "3"});
  const std::string spec = cluster.StartTasks(kJob, program, {}, {"worker:1"});
  ASSERT_TRUE(cluster.WaitForOutput("worker:0", "step 1 begins", kPatience));
  cluster.Start(
      "late", program,
      {{"TF_CONFIG", R"({"cluster":)" + spec + R"(,"task":{"type":"worker","index":1}})"}});
  ASSERT_TRUE(cluster.WaitForOutput("chief:0", "worker:1 has come", kPatience));
  std::ofstream(dir / "gate").put('1');
  ExpectAllCodes(cluster, 0, kPatience);
  EXPECT_THAT(cluster.Stdout("late"), HasSubstr("step 1 begins"));
  EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr(DigestOf(127, 10, 1)));
}

TEST(StartPolicyProcessTest, AnElasticJobWaitsForItsFirstWorker) {
  ProcessCluster cluster;
  const std::vector<std::string> program = Program({"--start", "elastic"});
  const std::string spec = cluster.StartTasks(kJob, program, {}, {"worker:0", "worker:1"});
  ASSERT_TRUE(cluster.WaitForOutput("chief:0", "begins with 0 of 2 workers", kPatience));
  cluster.Start(
      "late", program,
      {{"TF_CONFIG", R"({"cluster":)" + spec + R"(,"task":{"type":"worker","index":1}})"}});
  ExpectAllCodes(cluster, 0, kPatience);
  EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr("epoch 0: 2000 of 2000 seen, reissued 0"));
}

TEST(StartPolicyProcessTest, AnElasticJobThatNobodyComesToEnds) {
  ProcessCluster cluster;
  cluster.StartTasks({{"chief", 1}, {"worker", 2}, {"ps", 1}},
                     Program({"--start", "elastic", "--join-ms", "2000"}), {},
                     {"worker:0", "worker:1"});
  ExpectAllCodes(cluster, kPeerLost, kPatience);
  EXPECT_THAT(cluster.Stderr("chief:0"),
              HasSubstr("no worker has come for 2 s: not worker:0, worker:1"));
}

TEST(StartPolicyProcessTest, AQuorumThatDoesNotMeetIsToldWhoIsAbsent) {
  ProcessCluster cluster;
  cluster.StartTasks({{"chief", 1}, {"worker", 3}, {"ps", 1}},
                     Program({"--start", "quorum:2", "--join-ms", "10000"}), {},
                     {"worker:0", "worker:2"});
  ExpectAllCodes(cluster, kPeerLost, kPatience);
  for (const char* task : {"chief:0", "ps:0", "worker:1"}) {
    EXPECT_THAT(cluster.Stderr(task),
                AllOf(HasSubstr("joining gave up after 1"), HasSubstr("2/5: worker:0 ("),
                      HasSubstr("worker:2 ("), HasSubstr("the job begins with 1 of 2 of these")))
        << task;
  }
}

TEST(StartPolicyProcessTest, AQuorumOfMoreWorkersThanThereAreIsRefused) {
  ProcessCluster cluster;
  cluster.StartTasks({{"chief", 1}, {"worker", 1}, {"ps", 1}}, Program({"--start", "quorum:2"}));
  ExpectAllCodes(cluster, 2, kPatience);
  EXPECT_THAT(cluster.Stderr("worker:0"),
              HasSubstr("start quorum:2 of a cluster with 1 workers [a quorum of 1 to 1"));
}

// ---- Workers that are lost ----------------------------------------------------------------------

TEST(ParameterServerProcessTest, TheJobGoesOnWithoutAKilledWorkerAndSeesEveryExample) {
  ProcessCluster cluster;
  cluster.StartTasks(kJob, Program({"--step-ms", "5", "--hold-at", "5", "--hold", "worker:1"}));
  ASSERT_TRUE(cluster.WaitForOutput("worker:1", "holding", kPatience));
  cluster.Signal("worker:1", SIGKILL);
  ExpectAllCodes(cluster, 0, kPatience, {"worker:1"});
  EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr("epoch 0: 2000 of 2000 seen, reissued 1"));
  EXPECT_THAT(cluster.Stderr("chief:0"), HasSubstr("goes on without worker:1"));
}

// F28: nothing is left but what it holds.
TEST(ParameterServerProcessTest, ADeadWorkersSplitIsDoneByOthersAlsoWhereItIsTheLast) {
  ProcessCluster cluster;
  // 201 batches, of which worker:1 gets 10 with its first split: the last step of the others says
  // that it is done.
  cluster.StartTasks(kJob, Program({"--examples", "2010", "--step-ms", "3", "--hold-at", "5",
                                    "--hold", "worker:1"}));
  ASSERT_TRUE(cluster.WaitForOutput("worker:1", "holding", kPatience));
  ASSERT_TRUE(cluster.WaitForOutput("worker:0", "step 191 loss", kPatience));
  cluster.Signal("worker:1", SIGKILL);
  EXPECT_EQ(cluster.Wait("worker:1", kPatience), 128 + SIGKILL);
  ExpectAllCodes(cluster, 0, kPatience, {"worker:1"});
  EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr("epoch 0: 2010 of 2010 seen, reissued 1"));
  EXPECT_THAT(cluster.Stdout("worker:0"), HasSubstr("trained 201 steps"));
}

// F10: SIGTERM of one worker. It finishes what it has, and is no loss.
class WorkerToldToStop : public ::testing::TestWithParam<std::string> {};

TEST_P(WorkerToldToStop, LeavesAndTheOthersDoTheRest) {
  const bool rounds = GetParam() == "sync";
  const TempDir dir;
  std::vector<std::string> arguments = {"--consistency", GetParam(),    "--epochs",  "2",
                                        "--folder",      dir / "saves", "--gate",    dir / "gate",
                                        "--gate-at",     "12",          "--step-ms", "5"};
  if (rounds) {  // with the round that is under way; soon after it this worker would hang
    arguments.insert(arguments.end(), {"--hold-at", "15", "--hold", "worker:1"});
  } else {
    arguments.emplace_back("--count");
  }
  ProcessCluster cluster;
  cluster.StartTasks({{"chief", 1}, {"worker", 3}, {"ps", 2}}, Program(arguments));
  // Before worker:0 goes on the first epoch is not over: there is work for a step after the signal.
  ASSERT_TRUE(cluster.WaitForOutput("worker:1", "step 11 begins", kPatience));
  ASSERT_TRUE(cluster.Signal("worker:1", SIGTERM));
  std::ofstream(dir / "gate").put('1');
  EXPECT_EQ(cluster.Wait("worker:1", kPatience), 128 + SIGTERM);
  ExpectAllCodes(cluster, 0, kPatience, {"worker:1"});
  EXPECT_THAT(cluster.Stderr("worker:1"), HasSubstr("stopped as asked"));
  EXPECT_THAT(cluster.Stderr("chief:0"), Not(HasSubstr("goes on without")));
  const std::string out = cluster.Stdout("chief:0");
  for (const char* epoch : {"0", "1"}) {
    EXPECT_THAT(out, HasSubstr(std::string("epoch ") + epoch + ": 2000 of 2000 seen, reissued 0"));
  }
  EXPECT_THAT(out, HasSubstr(rounds ? DigestOf(2000, 10, 2) : "counted 4000, each 2 to 2 times"));
}

INSTANTIATE_TEST_SUITE_P(ParameterServerProcessTest, WorkerToldToStop,
                         ::testing::Values("async", "ssp:2", "sync"), TextCaseName);

TEST(ParameterServerProcessTest, AWorkerThatIsStartedAgainJoinsAnew) {
  ProcessCluster cluster;
  // worker:0 cannot end the epoch alone: it holds too, until worker:1 is back.
  const std::string spec = cluster.StartTasks({{"chief", 1}, {"worker", 1}, {"ps", 1}},
                                              Program({"--hold-at", "5", "--hold", "worker:0"}));
  ASSERT_TRUE(cluster.WaitForOutput("worker:0", "holding", kPatience));
  cluster.Signal("worker:0", SIGKILL);
  ASSERT_EQ(cluster.Wait("worker:0", kPatience), 128 + SIGKILL);
  cluster.Start(
      "again", Program(),
      {{"TF_CONFIG", R"({"cluster":)" + spec + R"(,"task":{"type":"worker","index":0}})"}});
  EXPECT_EQ(cluster.Wait("again", kPatience), 0);
  EXPECT_EQ(cluster.Wait("chief:0", kPatience), 0);
  EXPECT_EQ(cluster.Wait("ps:0", kPatience), 0);
  EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr("epoch 0: 2000 of 2000 seen, reissued 1"));
}

TEST(ParameterServerProcessTest, ARoundWithoutAKilledWorkerIsCutAnewAndStaysExact) {
  ProcessCluster cluster;
  cluster.StartTasks(kJob, Program({"--consistency", "sync", "--hold-at", "5", "--hold", "worker:1",
                                    "--examples", "127"}));
  ASSERT_TRUE(cluster.WaitForOutput("worker:1", "holding", kPatience));
  cluster.Signal("worker:1", SIGKILL);
  ExpectAllCodes(cluster, 0, kPatience, {"worker:1"});
  EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr("epoch 0: 127 of 127 seen, reissued 1"));
  EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr(DigestOf(127, 10, 1)));
}

TEST(ParameterServerProcessTest, UnderBoundedStalenessOthersWaitForAStoppedWorkerUntilItIsLost) {
  ProcessCluster cluster;
  cluster.StartTasks(kJob, Program({"--consistency", "ssp:2", "--step-ms", "5", "--hold-at", "5",
                                    "--hold", "worker:1", "--epochs", "2"}));
  ASSERT_TRUE(cluster.WaitForOutput("worker:1", "holding", kPatience));
  std::this_thread::sleep_for(500ms);
  const std::string before = cluster.Stdout("worker:0");
  std::this_thread::sleep_for(500ms);
  EXPECT_EQ(cluster.Stdout("worker:0"), before);
  EXPECT_THAT(before, Not(HasSubstr("trained")));
  cluster.Signal("worker:1", SIGKILL);
  ExpectAllCodes(cluster, 0, kPatience, {"worker:1"});
  EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr("epoch 1: 2000 of 2000 seen"));
  EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr("lead at most 2, none late, some parked"));
}

TEST(ParameterServerProcessTest, ABackupWorkerMayHangAndRoundsGoOn) {
  ProcessCluster cluster;
  cluster.StartTasks({{"chief", 1}, {"worker", 3}, {"ps", 2}},
                     Program({"--consistency", "sync:1", "--step-ms", "5", "--hold-at", "5",
                              "--hold", "worker:2"}));
  ASSERT_TRUE(cluster.WaitForOutput("worker:2", "holding", kPatience));
  ASSERT_TRUE(cluster.WaitForOutput("worker:0", "trained", kPatience));
  ASSERT_TRUE(cluster.WaitForOutput("worker:1", "trained", kPatience));
  cluster.Signal("worker:2", SIGKILL);
  ExpectAllCodes(cluster, 0, kPatience, {"worker:2"});
  EXPECT_THAT(cluster.Stdout("chief:0"),
              HasSubstr("epoch 0: 2000 of 2000 seen, reissued 0, dropped 200"))
      << "one part of three of each of 200 rounds";
  EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr("step 200 digest"));
}

// It hangs, its process lives, and the others wait for it.
class HangingWorker : public ::testing::TestWithParam<std::string> {};

TEST_P(HangingWorker, IsGivenUpAndItsWorkIsDoneByOthers) {
  ProcessCluster cluster;
  cluster.StartTasks({{"chief", 1}, {"worker", 3}, {"ps", 2}},
                     Program({"--consistency", GetParam(), "--collective-ms", "3000", "--step-ms",
                              "5", "--hold-at", "5", "--hold", "worker:2"}));
  ASSERT_TRUE(cluster.WaitForOutput("worker:2", "holding", kPatience));
  ASSERT_TRUE(cluster.WaitForOutput("worker:0", "trained", kPatience));
  ASSERT_TRUE(cluster.WaitForOutput("worker:1", "trained", kPatience));
  EXPECT_THAT(cluster.Stderr("chief:0"), HasSubstr("goes on without worker:2: worker:2 hangs"));
  cluster.Signal("worker:2", SIGKILL);
  ExpectAllCodes(cluster, 0, kPatience, {"worker:2"});
  EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr("epoch 0: 2000 of 2000 seen"));
  if (GetParam() == "sync") {
    EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr(DigestOf(2000, 10, 1)));
  }
}

INSTANTIATE_TEST_SUITE_P(ParameterServerProcessTest, HangingWorker,
                         ::testing::Values("async", "sync"));

TEST(ParameterServerProcessTest, ASaveDoesNotWaitForAWorkerThatHangs) {
  const TempDir folder;
  ProcessCluster cluster;
  cluster.StartTasks(
      kJob, Program({"--folder", folder.path(), "--save-steps", "80", "--heartbeat-ms", "3000",
                     "--step-ms", "5", "--hold-at", "5", "--hold", "worker:1"}));
  // All but what the other one holds, through two saves that were due.
  ASSERT_TRUE(cluster.WaitForOutput("worker:0", "step 181 begins", kPatience));
  EXPECT_THAT(
      cluster.Stderr("chief:0"),
      HasSubstr("put off until the next one is, training goes on: worker:1 was waited for"));
  cluster.Signal("worker:1", SIGKILL);
  ExpectAllCodes(cluster, 0, kPatience, {"worker:1"});
  EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr("epoch 0: 2000 of 2000 seen, reissued 1"));
}

class LostForGood : public ::testing::TestWithParam<std::string> {};

TEST_P(LostForGood, EndsTheOthersWithItsName) {
  ProcessCluster cluster;
  cluster.StartTasks(kJob, Program({"--epochs", "100000", "--rejoin-ms", "0"}));
  ASSERT_TRUE(cluster.WaitForOutput("worker:0", "step 11 ", kPatience));
  ASSERT_TRUE(cluster.WaitForOutput("worker:1", "step 11 ", kPatience));
  cluster.Signal(GetParam(), SIGKILL);
  ExpectAllCodes(cluster, kPeerLost, kNoticed, {GetParam()});
  for (const std::string& name : cluster.names()) {
    if (name != GetParam()) {
      EXPECT_THAT(cluster.Stderr(name), HasSubstr("error: Unavailable: ")) << name;
      EXPECT_THAT(cluster.Stderr(name), HasSubstr(GetParam())) << name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(ParameterServerProcessTest, LostForGood,
                         ::testing::Values("ps:0", "ps:1", "chief:0"), TextCaseName);

TEST(ParameterServerProcessTest, AStoppedServerIsNoticed) {
  ProcessCluster cluster;
  cluster.StartTasks(kJob,
                     Program({"--epochs", "100000", "--heartbeat-ms", "2000", "--rejoin-ms", "0"}));
  ASSERT_TRUE(cluster.WaitForOutput("worker:0", "step 11 ", kPatience));
  cluster.Signal("ps:1", SIGSTOP);
  for (const char* name : {"chief:0", "worker:0", "worker:1", "ps:0"}) {
    EXPECT_EQ(cluster.Wait(name, kNoticed), kPeerLost) << name;
    EXPECT_THAT(cluster.Stderr(name), HasSubstr("ps:1")) << name;
  }
  cluster.Signal("ps:1", SIGCONT);
  EXPECT_EQ(cluster.Wait("ps:1", kNoticed), kPeerLost) << "nobody is left that it could serve";
}

TEST(ParameterServerProcessTest, AServerThatStopsForLessThanItsTimeoutIsWaitedFor) {
  ProcessCluster cluster;
  cluster.StartTasks(kJob, Program({"--epochs", "3"}));
  ASSERT_TRUE(cluster.WaitForOutput("worker:0", "step 11 ", kPatience));
  cluster.Signal("ps:1", SIGSTOP);
  std::this_thread::sleep_for(1s);
  cluster.Signal("ps:1", SIGCONT);
  ExpectAllCodes(cluster, 0, kPatience);
  EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr("epoch 2: 2000 of 2000 seen, reissued 0"));
}

// Of each batch of 10 one part of two counts: 5 examples, each for two. Servers of values and of
// rows, two of each, count the same ones.
TEST(ParameterServerProcessTest, ABackupWorkersRowsAreDroppedAsItsGradientsAre) {
  const TempDir dir;
  for (const bool saves : {false, true}) {
    std::vector<std::string> arguments = {"--count", "--consistency", "sync:1"};
    if (saves) {
      arguments.insert(arguments.end(), {"--folder", dir / "saves", "--save-steps", "40"});
    }
    ProcessCluster cluster;
    cluster.StartTasks(kJob, Program(arguments));
    ExpectAllCodes(cluster, 0, kPatience);
    EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr("counted 2000, each 0 to 2 times"));
    EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr("rows counted 2000"));
  }
}

TEST(ParameterServerProcessTest, AWorkerThatComesBackFromALongPauseHasNoEffect) {
  ProcessCluster cluster;
  cluster.StartTasks(kJob, Program({"--epochs", "4", "--heartbeat-ms", "3000", "--consistency",
                                    "sync", "--step-ms", "1"}));
  ASSERT_TRUE(cluster.WaitForOutput("worker:1", "step 11 ", kPatience));
  cluster.Signal("worker:1", SIGSTOP);
  ASSERT_TRUE(cluster.WaitForOutput("worker:0", "trained", kPatience));
  cluster.Signal("worker:1", SIGCONT);
  EXPECT_NE(cluster.Wait("worker:1", kPatience), 0);
  for (const char* name : {"chief:0", "worker:0", "ps:0", "ps:1"}) {
    EXPECT_EQ(cluster.Wait(name, kPatience), 0) << name;
  }
  EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr("epoch 3: 2000 of 2000 seen"));
  EXPECT_THAT(cluster.Stderr("chief:0"), HasSubstr("goes on without worker:1"));
  EXPECT_THAT(cluster.Stdout("chief:0"), HasSubstr(DigestOf(2000, 10, 4)));
}

TEST(ParameterServerProcessTest, AnErrorOfAWorkerReachesAll) {
  ProcessCluster cluster;
  cluster.StartTasks(kJob, Program({"--fail-at", "7"}));
  for (const auto& [name, code] : cluster.WaitAll(kPatience)) {
    EXPECT_EQ(code, ExitCode(DataLoss(""))) << name;
    EXPECT_THAT(cluster.Stderr(name), HasSubstr("example 7 is broken")) << name;
  }
}

TEST(ParameterServerProcessTest, AMissingServerIsNamedAtTheDeadline) {
  ProcessCluster cluster;
  cluster.StartTasks(kJob, Program({"--join-ms", "2000"}), {}, {"ps:1"});
  ExpectAllCodes(cluster, kPeerLost, kPatience);
  EXPECT_THAT(cluster.Stderr("chief:0"), HasSubstr("ps:1"));
}

TEST(ParameterServerProcessTest, DifferentDataIsAnError) {
  ProcessCluster cluster;
  const std::string spec =
      cluster.StartTasks({{"chief", 1}, {"worker", 1}, {"ps", 1}}, Program(), {}, {"worker:0"});
  cluster.Start(
      "worker:0", Program({"--examples", "1999"}),
      {{"TF_CONFIG", R"({"cluster":)" + spec + R"(,"task":{"type":"worker","index":0}})"}});
  ExpectAllCodes(cluster, 2, kPatience);
  EXPECT_THAT(cluster.Stderr("chief:0"), HasSubstr("data set 0 differs"));
}

}  // namespace
}  // namespace cohort::testing
