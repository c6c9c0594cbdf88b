// Servers that are killed, stopped and replaced while a job trains: it goes back to its last save,
// or its beginning, and ends as if nothing had happened. So it does without its chief.
//
// worker:0 stops at a gate before its last steps, so that no job is over before its server was
// lost. The counting model tells how often each example is in the values.

#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cohort/io/checkpoint.h>
#include <cohort/optim/optimizers.h>

#include "process/ps_job.h"
#include "testing/process_cluster.h"
#include "testing/temp_dir.h"
#include "testing/text_case_name.h"

namespace cohort::testing {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;
using namespace std::chrono_literals;

// Takes the addresses of another process from it, which keeps its connections. How many it had.
int StopListening(pid_t pid) {
  const int process = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
  int stopped = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd")) {
    const int theirs = std::stoi(entry.path().filename().string());
    const int fd = static_cast<int>(::syscall(SYS_pidfd_getfd, process, theirs, 0));
    int listens = 0;
    socklen_t size = sizeof(listens);
    if (fd >= 0 && ::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0 &&
        listens != 0 && ::shutdown(fd, SHUT_RDWR) == 0) {
      ++stopped;
    }
    ::close(fd);
  }
  ::close(process);
  return stopped;
}

// A task of the process "launch", which has joined and said so.
void KillLaunched(const ProcessCluster& cluster, const std::string& task) {
  const std::string out = cluster.Stdout("launch");
  const std::string said = "[" + task + "] joined, pid ";
  ASSERT_THAT(out, HasSubstr(said));
  ASSERT_EQ(::kill(std::stoi(out.substr(out.find(said) + said.size())), SIGKILL), 0);
}

class LostServer : public ::testing::TestWithParam<std::string> {};

// The workers are in a later epoch than the one that they go back to.
TEST_P(LostServer, IsReplacedAndTheJobBeginsAnewWhereItHasNoSave) {
  Job job(Arguments(GetParam(), 3, kEven), /*gate_at=*/210);
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "step 201 ", kPatience));
  job.Kill("ps:1");
  job.Replace(1, "again");
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "to step 0; the job goes on", kPatience));
  job.OpenGate();
  job.ExpectCodes();
  ExpectWholeOutcome(job, "chief:0", GetParam(), 3);
}

INSTANTIATE_TEST_SUITE_P(ParameterServerRecoveryTest, LostServer,
                         ::testing::Values("async", "ssp:2", "sync", "sync:1", "async_far",
                                           "ssp:2_far", "sync_far", "sync:1_far"),
                         TextCaseName);

class LostServerWithSaves : public ::testing::TestWithParam<std::string> {};

TEST_P(LostServerWithSaves, IsReplacedAndTheJobGoesOnFromTheLast) {
  const TempDir folder;
  Job job(
      Arguments(GetParam(), 4, {"--folder", folder.path(), "--save-steps", "10", "--step-ms", "1"}),
      /*gate_at=*/350);
  ASSERT_TRUE(job.WaitForSave(folder.path(), /*whole=*/true));
  job.Kill("ps:0");
  job.Replace(0, "again");
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "the job goes on after", kPatience));
  EXPECT_THAT(job.cluster.Stderr("chief:0"), Not(HasSubstr("to step 0;")));
  job.OpenGate();
  job.ExpectCodes();
  ExpectWholeOutcome(job, "chief:0", GetParam(), 4);
}

INSTANTIATE_TEST_SUITE_P(ParameterServerRecoveryTest, LostServerWithSaves,
                         ::testing::Values("async", "ssp:2", "sync", "async_far", "sync_far"),
                         TextCaseName);

// A model without a parameter: its saves are as many, and have its rows and the place in the data.
class LostServerOfRows : public ::testing::TestWithParam<std::string> {};

TEST_P(LostServerOfRows, IsReplacedAndTheJobGoesOnFromTheLastSave) {
  const TempDir folder;
  std::vector<std::string> flags = {"--folder",  folder.path(), "--save-steps", "10",
                                    "--step-ms", "1",           "--rows-only"};
  if (GetParam().starts_with("sync")) {
    flags.emplace_back("--count");
  }
  Job job(Arguments(GetParam(), 4, flags), /*gate_at=*/350);
  ASSERT_TRUE(job.WaitForChain(folder.path())) << "of two saves at least";
  job.Kill("ps:0");
  job.Replace(0, "again");
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "the job goes on after", kPatience));
  EXPECT_THAT(job.cluster.Stderr("chief:0"), Not(HasSubstr("to step 0;")));
  job.OpenGate();
  job.ExpectCodes();
  // What is counted; with backup workers late parts are not.
  ExpectWholeOutcome(job, "chief:0", GetParam() == "sync:1" ? "sync:1" : "async", 4);
  EXPECT_THAT(job.cluster.Stdout("chief:0"), HasSubstr("step 800 digest"));
}

INSTANTIATE_TEST_SUITE_P(ParameterServerRecoveryTest, LostServerOfRows,
                         ::testing::Values("async", "ssp:2", "sync", "sync:1"), TextCaseName);

// The disk with the saves is away for a while.
TEST(ParameterServerRecoveryTest, ASaveThatCannotBeReadAtTheMomentIsGoneBackToLater) {
  namespace fs = std::filesystem;
  const TempDir dir;
  const std::string saves = dir / "saves";
  const std::string away = dir / "away";
  // Slow enough for the chief to look and save before the gate.
  Job job(Arguments("sync", 2, {"--folder", saves, "--save-steps", "50", "--step-ms", "10"}),
          /*gate_at=*/121);
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "step 121 begins", kPatience));
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  const auto whole = [&] {
    return std::ranges::count_if(fs::directory_iterator(saves), [](const auto& entry) {
      return entry.path().filename().string().starts_with("step");
    });
  };
  while (whole() < 1 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(10ms);
  }
  ASSERT_GE(whole(), 1);
  fs::rename(saves, away);
  fs::create_symlink(saves, saves);  // to open what leads to itself is an error of the file system
  job.Kill("ps:1");
  job.Replace(1, "again");
  while (job.cluster.Stderr("chief:0").find("has failed, 2 of 10 times") == std::string::npos &&
         std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(10ms);
  }
  fs::remove(saves);
  fs::rename(away, saves);
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "the job goes on after", kPatience));
  EXPECT_THAT(job.cluster.Stderr("chief:0"), Not(HasSubstr("to step 0;")));
  job.OpenGate();
  job.ExpectCodes();
  ExpectWholeOutcome(job, "chief:0", "sync", 2);
}

TEST(ParameterServerRecoveryTest, TwoServersAreLostTogether) {
  const TempDir folder;
  Job job(Arguments("async", 4, {"--folder", folder.path(), "--save-steps", "10"}),
          /*gate_at=*/350);
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "step 31 ", kPatience));
  job.Kill("ps:0");
  job.Kill("ps:1");
  job.Replace(0, "again 0");
  job.Replace(1, "again 1");
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "the job goes on after", kPatience));
  job.OpenGate();
  job.ExpectCodes();
  ExpectWholeOutcome(job, "chief:0", "async", 4);
}

// The newest save has the changes of rows only, and the job goes back to it, twice.
TEST(ParameterServerRecoveryTest, TheJobGoesBackToAChainOfChanges) {
  const TempDir folder;
  Job job(
      Arguments("async", 4, {"--folder", folder.path(), "--save-steps", "10", "--step-ms", "1"}),
      /*gate_at=*/350);
  ASSERT_TRUE(job.WaitForChain(folder.path()));
  job.Kill("ps:0");
  job.Kill("ps:1");
  job.Replace(0, "again 0");
  job.Replace(1, "again 1");
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "the job goes on after", kPatience));
  EXPECT_THAT(job.cluster.Stderr("chief:0"), Not(HasSubstr("to step 0;")));
  job.OpenGate();
  job.ExpectCodes();
  ExpectWholeOutcome(job, "chief:0", "async", 4);
}

// The writer is killed while it writes changes, early and late: what is there is whole, and the job
// goes on from it.
TEST(ParameterServerRecoveryTest, TheChiefIsKilledWhileItSavesChanges) {
  const TempDir folder;
  Job job(Arguments("async", 12,
                    {"--folder", folder.path(), "--save-steps", "1", "--step-ms", "5", "--floats",
                     "100000"}),
          /*gate_at=*/1150);
  std::set<std::string> seen;
  std::filesystem::path newest;
  std::string chief = "chief:0";
  for (const std::string file : {"", "model.safetensors", "table-0.rows"}) {
    ASSERT_TRUE(job.WaitForChain(folder.path(), &newest));
    ASSERT_TRUE(job.WaitForWriting(folder.path(), file, seen));
    job.Kill(chief);
    const io::CheckpointStore store(FileSystem::Local(), folder.path());
    const auto checkpoint = OrThrow(store.OpenLatest());
    EXPECT_EQ(checkpoint->state().step, OrThrow(store.Steps()).back());
    EXPECT_GT(OrThrow(checkpoint->Chain("table-0.rows")).size(), 1U);
    chief = "chief after " + std::to_string(seen.size());
    job.ReplaceChief(chief);
  }
  job.OpenGate();
  job.ExpectCodes();
  ExpectWholeOutcome(job, chief, "async", 12);
}

// Buckets move all the while, and each example is in the rows as often as it was trained on.
TEST(ParameterServerRecoveryTest, BucketsMoveWhileTheJobTrains) {
  for (const std::string consistency : {"async", "ssp:2"}) {
    const TempDir folder;
    Job job(Arguments(consistency, 4,
                      {"--folder", folder.path(), "--save-steps", "50", "--step-ms", "1",
                       "--balance-ms", "20"}),
            /*gate_at=*/350);
    job.OpenGate();
    job.ExpectCodes();
    ExpectWholeOutcome(job, "chief:0", consistency, 4);
    EXPECT_THAT(job.cluster.Stdout("chief:0"), HasSubstr("buckets have moved"));
    EXPECT_THAT(job.cluster.Stdout("chief:0"), HasSubstr("hot rows 800 800"));
  }
}

// To give a bucket, to read it, to take it and to forget it are a call each, which a slow network
// makes 40 ms long; the chief is killed in each of them. Without a save each of the chiefs begins
// anew, so there are moves again, and the job is not over before.
TEST(ParameterServerRecoveryTest, TheChiefIsKilledWhileABucketMoves) {
  const TempDir folder;
  Job job(Arguments("async", 4,
                    {"--folder", folder.path(), "--save-epochs", "9", "--step-ms", "5",
                     "--balance-ms", "20"}),
          /*gate_at=*/0, kJob, {.proxied = true});
  job.proxy().Delay("chief:0", "ps:0", 20ms);
  job.proxy().Delay("chief:0", "ps:1", 20ms);
  std::string chief = "chief:0";
  for (const auto after : {20ms, 60ms, 100ms, 140ms}) {
    ASSERT_TRUE(job.cluster.WaitForOutput(chief, " moves to ps:1", kPatience));
    std::this_thread::sleep_for(after);
    job.Kill(chief);
    chief = "chief after " + std::to_string(after.count()) + " ms";
    job.ReplaceChief(chief);
  }
  job.proxy().Heal();
  job.ExpectCodes();
  ExpectWholeOutcome(job, chief, "async", 4);
  EXPECT_THAT(job.cluster.Stdout(chief), HasSubstr("hot rows 800 800"));
}

TEST(ParameterServerRecoveryTest, WithoutAChiefWorkerZeroBringsTheJobBack) {
  for (const std::string consistency : {"async", "sync"}) {
    Job job(Arguments(consistency, 2), /*gate_at=*/90, {{"worker", 2}, {"ps", 2}});
    ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "step 31 ", kPatience));
    job.Kill("ps:1");
    job.Replace(1, "again");
    job.OpenGate();  // it may stand there, and nobody else brings the job back
    job.ExpectCodes();
    EXPECT_THAT(job.cluster.Stderr("worker:0"), HasSubstr("the job goes on after"));
    ExpectWholeOutcome(job, "worker:0", consistency, 2);
  }
}

TEST(ParameterServerRecoveryTest, AServerThatComesBackWhenItWasGivenUpDoesNotServeAgain) {
  Job job(Arguments("async", 3, {"--heartbeat-ms", "3000"}), /*gate_at=*/150);
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "step 31 ", kPatience));
  job.cluster.Signal("ps:0", SIGSTOP);
  ASSERT_TRUE(
      job.cluster.WaitForOutput("chief:0", "ps:0 is lost, and the workers wait", kPatience));
  job.cluster.Signal("ps:0", SIGCONT);
  EXPECT_EQ(job.cluster.Wait("ps:0", kPatience), kPeerLost);
  job.Expect("ps:0", kPeerLost);
  job.Replace(0, "again");
  job.OpenGate();
  job.ExpectCodes();
  ExpectWholeOutcome(job, "chief:0", "async", 3);
}

// It has the values and the connections that it had; its address is its successor's.
TEST(ParameterServerRecoveryTest, AServerThatComesBackAfterItWasReplacedHasNoEffect) {
  Job job(Arguments("async", 3, {"--heartbeat-ms", "3000"}), /*gate_at=*/150);
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "step 31 ", kPatience));
  job.cluster.Signal("ps:0", SIGSTOP);
  ASSERT_TRUE(
      job.cluster.WaitForOutput("chief:0", "ps:0 is lost, and the workers wait", kPatience));
  ASSERT_EQ(StopListening(job.cluster.pid("ps:0")), 3) << "for gRPC, and for frames both ways";
  job.Replace(0, "again");
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "the job goes on after", kPatience));
  job.cluster.Signal("ps:0", SIGCONT);
  EXPECT_NE(job.cluster.Wait("ps:0", kPatience), 0);
  EXPECT_THAT(job.cluster.Stderr("ps:0"), HasSubstr("was replaced by incarnation"));
  job.Expect("ps:0", *job.cluster.Wait("ps:0", kPatience));
  job.OpenGate();
  job.ExpectCodes();
  ExpectWholeOutcome(job, "chief:0", "async", 3);
}

// Every process by `cohort launch`, as a person has it.
TEST(ParameterServerRecoveryTest, LaunchStartsServersAgain) {
  const TempDir folder;
  const std::string gate = folder.path() + "/gate";
  ProcessCluster cluster;
  cluster.Start("launch", {COHORT_BIN_DIR "/cohort", "launch", "-n", "2", "--ps", "1", "--chief",
                           "--restart", "1", "--", COHORT_BIN_DIR "/../tests/ps_program", "--count",
                           "--epochs", "2", "--gate", gate, "--gate-at", "90"});
  ASSERT_TRUE(cluster.WaitForOutput("launch", "[worker:0] step 31 ", kPatience));
  ASSERT_NO_FATAL_FAILURE(KillLaunched(cluster, "ps:0"));
  ASSERT_TRUE(cluster.WaitForOutput("launch", "the job goes on after", kPatience));
  EXPECT_THAT(cluster.Stderr("launch"),
              HasSubstr("ps:0 is lost: killed by signal 9 (SIGKILL), exit code 137; started again, "
                        "1 of 1 times"));
  std::ofstream(gate) << "open";
  EXPECT_EQ(cluster.Wait("launch", kPatience), 0);
  EXPECT_THAT(cluster.Stdout("launch"), HasSubstr("counted 4000, each 2 to 2 times"));
}

// Of its part the updates since the save are lost, and counted; nothing else is done again.
TEST(ParameterServerRecoveryTest, AServerAloneGoesBackToTheSave) {
  const TempDir folder;
  const std::vector<std::string> flags = {"--folder", folder.path(), "--partial", "--floats",
                                          "5",        "--step-ms",   "2"};
  {
    Job job(Arguments("async", 1, flags), /*gate_at=*/0);
    job.ExpectCodes();
    ASSERT_THAT(job.cluster.Stdout("chief:0"), HasSubstr("counted 2000, each 1 to 1 times"));
  }
  // worker:0 stops in the second epoch's first split, worker:1 does all others; then ps:1 is lost,
  // which has "count".
  Job job(Arguments("async", 2, flags), /*gate_at=*/5);
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:1", "step 181 begins", kPatience));
  job.Kill("ps:1");
  job.Replace(1, "again");
  ASSERT_TRUE(job.cluster.WaitForOutput(
      "chief:0", "1 of 2 servers go on from step 200, the others as they are", kPatience));
  job.OpenGate();
  job.ExpectCodes();
  const std::string out = job.cluster.Stdout("chief:0");
  EXPECT_THAT(out, HasSubstr("epoch 1: 2000 of 2000 seen"));
  const auto number_after = [&out](const std::string& text) {
    const std::size_t at = out.find(text);
    return at == std::string::npos ? -1 : std::stoi(out.substr(at + text.size()));
  };
  EXPECT_THAT(out, HasSubstr("more counted 4000 to 4000")) << "ps:0 had every step once";
  const int lost = number_after("lost updates ");
  EXPECT_GE(lost, 180);
  EXPECT_LE(lost, 200);
  // Where ps:0 had a step that worker:1 had under way, it counts as lost, and is sent again.
  EXPECT_THAT(number_after("counted "), AnyOf(4000 - 10 * lost, 4000 - 10 * (lost - 1)));
}

// Nothing is saved: what a server had comes from the next one, to the last push. So it does of
// every server in turn, and with a step of each worker under way.
// With few floats two of three servers have rows, and no parameter.
struct WithACopy {
  std::string consistency;
  std::string floats;  // empty: there is no parameter at all
  int lookahead = 1;
};
class LostServerWithACopy : public ::testing::TestWithParam<WithACopy> {};

const std::vector<std::pair<std::string, int>> kThreeServers = {
    {"chief", 1}, {"worker", 2}, {"ps", 3}};

// Each of three servers, and one again, while worker:1 is at its first 150 steps.
void LoseServersInTurn(Job& job) {
  int at = 21;
  for (const int server : {1, 0, 2, 1}) {
    ASSERT_TRUE(
        job.cluster.WaitForOutput("worker:1", "step " + std::to_string(at) + " ", kPatience));
    const std::string name = at == 141 ? "again1" : "ps:" + std::to_string(server);
    job.Kill(name);
    job.Replace(server, (at == 141 ? "again1-" : "again") + std::to_string(server));
    ASSERT_TRUE(job.cluster.WaitForOutput(
        "worker:1", "goes on in epoch " + std::to_string(2 + (at - 21) / 40), kPatience));
    at += 40;
  }
  job.OpenGate();
  job.ExpectCodes();
  EXPECT_THAT(job.cluster.Stdout("chief:0"), Not(HasSubstr("lost updates")));
  EXPECT_THAT(job.cluster.Stderr("chief:0"), HasSubstr("all servers have what they had"));
  EXPECT_THAT(job.cluster.Stderr("chief:0"), Not(HasSubstr("rolled back")));
}

TEST_P(LostServerWithACopy, AServerGetsWhatTheCopyOfItsPartHas) {
  const auto& [consistency, floats, lookahead] = GetParam();
  std::vector<std::string> more = {"--replica", "--step-ms", "1", "--lookahead",
                                   std::to_string(lookahead)};
  if (floats.empty()) {
    more.emplace_back("--rows-only");
  } else {
    more.insert(more.end(), {"--floats", floats});
  }
  if (consistency.starts_with("sync")) {
    more.emplace_back("--count");
  }
  // Under ssp the workers go through their steps together, wherever the first of each was.
  Job job(Arguments(consistency, 2, more), /*gate_at=*/175, kThreeServers);
  LoseServersInTurn(job);
  ExpectWholeOutcome(job, "chief:0", "async", 2);  // what is counted
}

INSTANTIATE_TEST_SUITE_P(ParameterServerRecoveryTest, LostServerWithACopy,
                         ::testing::Values(WithACopy{"async", "0"}, WithACopy{"async", "300000"},
                                           WithACopy{"async_far", "300000"},
                                           WithACopy{"ssp:2", "0"}, WithACopy{"ssp:2", "300000"},
                                           WithACopy{"sync", "0"}, WithACopy{"sync", "300000"},
                                           WithACopy{"sync_far", "300000"}, WithACopy{"async", ""},
                                           WithACopy{"ssp:2", ""}, WithACopy{"sync", ""},
                                           WithACopy{"async", "0", 4}, WithACopy{"ssp:2", "0", 4}),
                         [](const auto& of) {
                           const std::string& floats = of.param.floats;
                           std::string name =
                               of.param.consistency + "_" + (floats.empty() ? "rows" : floats);
                           if (of.param.lookahead > 1) {
                             name += "_ahead" + std::to_string(of.param.lookahead);
                           }
                           std::ranges::replace(name, ':', '_');
                           return name;
                         });

// Of calls that are out none is made again: each example is in the values, and in its row, once.
class FunctionsWithACopy : public ::testing::TestWithParam<std::string> {};

TEST_P(FunctionsWithACopy, GoOnWhenAServerIsLost) {
  Job job(Arguments(GetParam(), 1, {"--replica", "--functions", "--step-ms", "3"}), /*gate_at=*/33,
          kThreeServers);
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:1", "step 21 ", kPatience));
  job.Kill("ps:1");
  job.Replace(1, "again");
  ASSERT_TRUE(job.cluster.WaitForOutput(
      "chief:0", "all servers have what they had; the job goes on", kPatience));
  job.OpenGate();
  job.ExpectCodes();
  EXPECT_THAT(job.cluster.Stdout("chief:0"), HasSubstr("counted 2000, each 1 to 1 times"));
  EXPECT_THAT(job.cluster.Stdout("chief:0"), HasSubstr("rows counted 2000"));
}

INSTANTIATE_TEST_SUITE_P(ParameterServerRecoveryTest, FunctionsWithACopy,
                         ::testing::Values("async", "ssp:2"), TextCaseName);

// There is no save: what the server had of all calls until then is lost, and that is said.
TEST(ParameterServerRecoveryTest, FunctionsGoOnWhereAServerAloneGoesBack) {
  Job job(Arguments("async", 1, {"--partial", "--functions", "--floats", "5", "--step-ms", "3"}),
          /*gate_at=*/33);
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:1", "step 21 ", kPatience));
  job.Kill("ps:1");  // which has "count"
  job.Replace(1, "again");
  ASSERT_TRUE(job.cluster.WaitForOutput(
      "chief:0", "1 of 2 servers go on from step 0, the others as they are", kPatience));
  job.OpenGate();
  job.ExpectCodes();
  const std::string out = job.cluster.Stdout("chief:0");
  EXPECT_THAT(out, HasSubstr("more counted 2000 to 2000")) << "ps:0 had every step once";
  EXPECT_THAT(out, HasSubstr("lost updates "));
  EXPECT_THAT(out, Not(HasSubstr("counted 2000, each")));
}

// Under sync, bit by bit: as one process, or, where the norm is added chunk by chunk, as a job that
// has lost nothing. With backup workers the parts that count are not always the same.
class LostServerInARound : public ::testing::TestWithParam<std::string> {};

TEST_P(LostServerInARound, EndsAsIfNothingWereLost) {
  std::string consistency = GetParam();
  std::vector<std::string> flags = {"--replica", "--step-ms", "1"};
  if (consistency.ends_with(" rows")) {
    consistency.resize(consistency.size() - 5);
    flags.emplace_back("--count");
  }
  const bool clips = consistency.ends_with(" clip");
  if (clips) {
    consistency.resize(consistency.size() - 5);
    const auto sgd =
        Sgd({.learning_rate = 0.0625, .momentum = 0.5, .global_clip_norm = 40})->config();
    flags.insert(flags.end(), {"--optimizer", sgd});
  }
  Job job(Arguments(consistency, 2, flags), /*gate_at=*/175, kThreeServers);
  LoseServersInTurn(job);
  if (!clips) {
    ExpectWholeOutcome(job, "chief:0", consistency, 2);
    return;
  }
  Job whole(Arguments(consistency, 2, flags), /*gate_at=*/0, kThreeServers);
  whole.ExpectCodes();
  const auto digest = [](Job& of) {
    const std::string out = of.cluster.Stdout("chief:0");
    const std::size_t at = out.find("step 400 digest ");
    return at == std::string::npos ? out : out.substr(at, out.find('\n', at) - at);
  };
  EXPECT_THAT(digest(job), ::testing::StartsWith("step 400 digest "));
  EXPECT_EQ(digest(job), digest(whole));
}

INSTANTIATE_TEST_SUITE_P(ParameterServerRecoveryTest, LostServerInARound,
                         ::testing::Values("sync", "sync clip", "sync:1", "sync:1 rows",
                                           "sync_far"),
                         [](const auto& of) {
                           std::string name = of.param;
                           std::ranges::replace_if(
                               name, [](char c) { return c == ':' || c == ' '; }, '_');
                           return name;
                         });

// Where all servers must be at one step, and a part is lost with its copy, the job goes back.
class LostWithItsCopy : public ::testing::TestWithParam<std::string> {};

TEST_P(LostWithItsCopy, AllServersGoBackToTheSave) {
  const TempDir folder;
  std::vector<std::string> flags = {"--replica", "--folder", folder.path(), "--save-steps", "10",
                                    "--step-ms", "1"};
  if (GetParam() == "sync:1") {
    flags.emplace_back("--count");  // servers of rows are told which parts a round has
  }
  Job job(Arguments(GetParam(), 4, flags), /*gate_at=*/350, kThreeServers);
  ASSERT_TRUE(job.WaitForSave(folder.path(), /*whole=*/true));
  job.Kill("ps:0");
  job.Kill("ps:1");
  job.Replace(0, "again0");
  job.Replace(1, "again1");
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "the job goes on after", kPatience));
  EXPECT_THAT(job.cluster.Stderr("chief:0"), HasSubstr("all servers go back to the last save"));
  EXPECT_THAT(job.cluster.Stderr("chief:0"), HasSubstr("rolled back"));
  job.OpenGate();
  job.ExpectCodes();
  EXPECT_THAT(job.cluster.Stdout("chief:0"), Not(HasSubstr("lost updates")));
  ExpectWholeOutcome(job, "chief:0", GetParam(), 4);
}

INSTANTIATE_TEST_SUITE_P(ParameterServerRecoveryTest, LostWithItsCopy,
                         ::testing::Values("ssp:2", "sync", "sync:1"), TextCaseName);

// Together with its copy a part is lost, and goes back to the save.
TEST(ParameterServerRecoveryTest, APartThatIsLostWithItsCopyGoesBackToTheSave) {
  const TempDir folder;
  const std::vector<std::string> flags = {"--folder", folder.path(), "--replica", "--floats",
                                          "5",        "--step-ms",   "1"};
  {
    Job job(Arguments("async", 1, flags), /*gate_at=*/0);
    job.ExpectCodes();
    ASSERT_THAT(job.cluster.Stdout("chief:0"), HasSubstr("counted 2000, each 1 to 1 times"));
  }
  Job job(Arguments("async", 2, flags), /*gate_at=*/5);
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:1", "step 101 begins", kPatience));
  job.Kill("ps:0");
  job.Kill("ps:1");
  job.Replace(0, "again0");
  job.Replace(1, "again1");
  ASSERT_TRUE(
      job.cluster.WaitForOutput("chief:0", "2 of 2 servers go on from step 200", kPatience));
  job.OpenGate();
  job.ExpectCodes();
  const std::string out = job.cluster.Stdout("chief:0");
  EXPECT_THAT(out, HasSubstr("epoch 1: 2000 of 2000 seen"));
  EXPECT_THAT(out, HasSubstr("lost updates "));
}

class LostChief : public ::testing::TestWithParam<std::string> {};

TEST_P(LostChief, IsReplacedAndTheJobGoesOnFromTheLastSave) {
  const TempDir folder;
  Job job(
      Arguments(GetParam(), 3, {"--folder", folder.path(), "--save-steps", "10", "--step-ms", "1"}),
      /*gate_at=*/250);
  ASSERT_TRUE(job.WaitForSave(folder.path(), /*whole=*/true));
  job.Kill("chief:0");
  job.ReplaceChief("again");
  job.OpenGate();
  job.ExpectCodes();
  EXPECT_THAT(job.cluster.Stderr("again"), HasSubstr("takes the place of a chief that is gone"));
  EXPECT_THAT(job.cluster.Stderr("worker:0"), HasSubstr("goes on in epoch 2 of the servers"));
  ExpectWholeOutcome(job, "again", GetParam(), 3);
  EXPECT_FALSE(std::filesystem::exists(folder.path() + "/chief.journal")) << "the job is over";
}

INSTANTIATE_TEST_SUITE_P(ParameterServerRecoveryTest, LostChief,
                         ::testing::Values("async", "ssp:2", "sync"), TextCaseName);

// The workers are in a later epoch than the one that they go back to; and one more chief is lost
// while it takes the place of the first, a server with it.
TEST(ParameterServerRecoveryTest, AChiefIsLostBeforeTheFirstSave) {
  const TempDir folder;
  Job job(
      Arguments("async", 3, {"--folder", folder.path(), "--save-epochs", "9", "--step-ms", "1"}),
      /*gate_at=*/210);
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "step 201 ", kPatience));
  job.Kill("chief:0");
  job.ReplaceChief("second");
  ASSERT_TRUE(job.cluster.WaitForOutput("second", "joined, ", kPatience));
  job.Kill("second");
  job.Kill("ps:1");
  job.ReplaceChief("third");
  job.Replace(1, "again");
  job.OpenGate();
  job.ExpectCodes();
  ExpectWholeOutcome(job, "third", "async", 3);
}

// Before the servers have anything, which workers wait for; and after the last save, when workers
// may be gone.
class LostChiefWhereNobodyTrains : public ::testing::TestWithParam<std::string> {};

TEST_P(LostChiefWhereNobodyTrains, IsReplaced) {
  const TempDir folder;
  Job job(Arguments("async", 1, {"--folder", folder.path(), "--gate-chief", GetParam()}),
          /*gate_at=*/0);
  for (const char* name : {"worker:0", "worker:1", "ps:0", "ps:1"}) {
    ASSERT_TRUE(job.cluster.WaitForOutput(name, "joined, ", kPatience)) << name;
  }
  ASSERT_TRUE(job.cluster.WaitForOutput("chief:0", "waits", kPatience));
  job.Kill("chief:0");
  job.OpenGate();
  job.ReplaceChief("again");
  job.ExpectCodes();
  ExpectWholeOutcome(job, "again", "async", 1);
  EXPECT_FALSE(std::filesystem::exists(folder.path() + "/chief.journal")) << "the job is over";
}

INSTANTIATE_TEST_SUITE_P(ParameterServerRecoveryTest, LostChiefWhereNobodyTrains,
                         ::testing::Values("setup", "end"), TextCaseName);

TEST(ParameterServerRecoveryTest, ThatNoChiefComesInItsPlaceIsSaid) {
  const TempDir folder;
  Job job(Arguments("async", 3, {"--folder", folder.path(), "--rejoin-ms", "500"}),
          /*gate_at=*/150);
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "step 31 ", kPatience));
  job.Kill("chief:0");
  job.OpenGate();
  ExpectNobodyCame(job, {"worker:0", "worker:1", "ps:0", "ps:1"}, "chief:0");
}

TEST(ParameterServerRecoveryTest, LaunchStartsAChiefAgain) {
  const TempDir folder;
  const std::string gate = folder.path() + "/gate";
  ProcessCluster cluster;
  cluster.Start("launch", {COHORT_BIN_DIR "/cohort",
                           "launch",
                           "-n",
                           "2",
                           "--ps",
                           "1",
                           "--chief",
                           "--restart",
                           "1",
                           "--",
                           COHORT_BIN_DIR "/../tests/ps_program",
                           "--count",
                           "--epochs",
                           "2",
                           "--gate",
                           gate,
                           "--gate-at",
                           "90",
                           "--folder",
                           folder.path() + "/saves"});
  ASSERT_TRUE(cluster.WaitForOutput("launch", "[worker:0] step 31 ", kPatience));
  ASSERT_NO_FATAL_FAILURE(KillLaunched(cluster, "chief:0"));
  std::ofstream(gate) << "open";
  EXPECT_EQ(cluster.Wait("launch", kPatience), 0);
  EXPECT_THAT(cluster.Stderr("launch"), HasSubstr("chief:0 is lost: killed by signal 9 (SIGKILL), "
                                                  "exit code 137; started again, 1 of 1 times"));
  EXPECT_THAT(cluster.Stdout("launch"), HasSubstr("counted 4000, each 2 to 2 times"));
}

TEST(ParameterServerRecoveryTest, ThatNobodyComesInItsPlaceIsSaidWithItsName) {
  Job job(Arguments("async", 3, {"--rejoin-ms", "500"}), /*gate_at=*/150);
  ASSERT_TRUE(job.cluster.WaitForOutput("worker:0", "step 31 ", kPatience));
  job.Kill("ps:1");
  job.OpenGate();
  ExpectNobodyCame(job, {"chief:0", "worker:0", "worker:1", "ps:0"}, "ps:1");
}

}  // namespace
}  // namespace cohort::testing
