// cohort launch with real processes: shell scripts that end, fail, hang and refuse to die.

#include <signal.h>

#include <chrono>
#include <fstream>
#include <set>
#include <thread>
#include <tuple>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "testing/process_cluster.h"
#include "testing/temp_dir.h"

namespace cohort::testing {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using namespace std::chrono_literals;

constexpr auto kSoon = 60s;  // far beyond what anything here takes

// A shell script in which `is worker 1` asks for the task, `await FILE` waits until there is that
// file, and `forever` never ends by itself.
std::string Script(const std::string& body) {
  return R"(is() { case "$TF_CONFIG" in *"\"task\":{\"type\":\"$1\",\"index\":$2}"*) return 0;; esac; return 1; }
            forever() { while :; do sleep 0.05; done; }
            await() { until [ -e "$1" ]; do sleep 0.01; done; }
            )" +
         body;
}

// True once that process has ended (a zombie that nobody reaps has, too).
bool WaitUntilGone(int pid) {
  const auto deadline = std::chrono::steady_clock::now() + kSoon;
  while (std::chrono::steady_clock::now() < deadline) {
    std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
    std::string number, name, state;
    if (!(stat >> number >> name >> state) || state == "Z" || state == "X") {
      return true;
    }
    std::this_thread::sleep_for(5ms);
  }
  return false;
}

class LaunchTest : public ::testing::Test {
 protected:
  void Start(std::vector<std::string> options, const std::string& script, Variables env = {}) {
    env["DIR"] = dir_.path();
    std::vector<std::string> argv = {COHORT_BIN_DIR "/cohort", "launch"};
    argv.insert(argv.end(), options.begin(), options.end());
    argv.insert(argv.end(), {"--", "sh", "-c", Script(script)});
    cluster_.Start("launch", argv, env);
  }
  int Wait() { return cluster_.Wait("launch", kSoon).value_or(-1); }
  std::string Out() { return cluster_.Stdout("launch"); }
  std::string Err() { return cluster_.Stderr("launch"); }
  bool Sees(const std::string& text) { return cluster_.WaitForOutput("launch", text, kSoon); }

  // The pids that the script has told with `echo pid=$$`.
  std::set<int> Pids() {
    std::set<int> pids;
    const std::string out = Out();
    for (std::size_t at = out.find("pid="); at != out.npos; at = out.find("pid=", at + 1)) {
      pids.insert(std::stoi(out.substr(at + 4)));
    }
    return pids;
  }

  TempDir dir_;
  ProcessCluster cluster_;
};

TEST_F(LaunchTest, GivesEachProcessItsTaskAndOneCluster) {
  Start({"-n", "2", "--ps", "1", "--chief", "--env", "COLOR=red"}, "echo \"$COLOR $TF_CONFIG\"");
  EXPECT_EQ(Wait(), 0);
  std::set<std::string> addresses;
  nlohmann::json cluster;
  for (const char* task : {"chief:0", "worker:0", "worker:1", "ps:0"}) {
    const std::string prefix = "[" + std::string(task) + "] red ";
    const std::string out = Out();
    const std::size_t at = out.find(prefix);
    ASSERT_NE(at, out.npos) << task << " in " << out;
    const auto config = nlohmann::json::parse(
        out.substr(at + prefix.size(), out.find('\n', at) - at - prefix.size()));
    EXPECT_EQ(config["task"]["type"].get<std::string>() + ":" +
                  std::to_string(config["task"]["index"].get<int>()),
              task);
    EXPECT_TRUE(cluster.is_null() || cluster == config["cluster"]);
    cluster = config["cluster"];
  }
  EXPECT_EQ(cluster["worker"].size(), 2u);
  for (const auto& job : cluster) {
    for (const auto& address : job) {
      EXPECT_THAT(address.get<std::string>(), ::testing::StartsWith("127.0.0.1:"));
      addresses.insert(address);
    }
  }
  EXPECT_EQ(addresses.size(), 4u);
}

TEST_F(LaunchTest, AProgramResolvesItsPlace) {
  Start({"-n", "2"}, R"(exec ")" COHORT_BIN_DIR R"(/cohort" config check)");
  EXPECT_EQ(Wait(), 0);
  EXPECT_THAT(Out(), HasSubstr("[worker:1] task        worker:1, process 1 of 2 on this host"));
}

TEST_F(LaunchTest, HidesTheLauncherAroundIt) {
  Start({"-n", "1"}, "env; true", {{"RANK", "3"}, {"SLURM_PROCID", "3"}, {"KEPT", "yes"}});
  EXPECT_EQ(Wait(), 0);
  EXPECT_THAT(Out(), HasSubstr("[worker:0] KEPT=yes"));
  EXPECT_THAT(Out(), Not(HasSubstr("RANK=")));
  EXPECT_THAT(Out(), Not(HasSubstr("SLURM_")));
}

TEST_F(LaunchTest, PrefixesEveryLineAlsoTheLastWithoutNewline) {
  Start({"-n", "1"}, "printf 'one\\ntwo'; printf 'err\\n\\nmore' >&2");
  EXPECT_EQ(Wait(), 0);
  EXPECT_EQ(Out(), "[worker:0] one\n[worker:0] two\n");
  EXPECT_EQ(Err(), "[worker:0] err\n[worker:0] \n[worker:0] more\n");
}

TEST_F(LaunchTest, PassesMuchOutputOnWhole) {
  Start({"-n", "2"},
        "i=0; while [ $i -lt 20000 ]; do echo \"line $i of some length\"; i=$((i+1)); done; "
        "head -c 200000 /dev/zero | tr '\\0' x");
  EXPECT_EQ(Wait(), 0);
  const std::string out = Out();
  EXPECT_THAT(out, HasSubstr("[worker:0] line 19999 of"));
  EXPECT_THAT(out, HasSubstr("[worker:1] line 19999 of"));
  EXPECT_EQ(std::count(out.begin(), out.end(), 'x'), 400000);
}

TEST_F(LaunchTest, TheProgramsFlagsAreItsOwn) {
  cluster_.Start("launch", {COHORT_BIN_DIR "/cohort", "launch", "-n", "1", "sh", "-c",
                            "printf '<%s>' \"$@\"", "x", "-n", "7", "--env", "--", "--help"});
  EXPECT_EQ(Wait(), 0);
  EXPECT_EQ(Out(), "[worker:0] <-n><7><--env><--><--help>\n");
}

TEST_F(LaunchTest, StandardInputIsEmpty) {
  Start({"-n", "2"}, "cat; echo end");
  EXPECT_EQ(Wait(), 0);
  EXPECT_THAT(Out(), HasSubstr("[worker:1] end"));
}

TEST_F(LaunchTest, OneFailureEndsAllAndGivesTheCode) {
  Start({"-n", "3"}, "is worker 1 || forever; echo 'bad luck' >&2; exit 7");
  EXPECT_EQ(Wait(), 7);
  EXPECT_THAT(Err(), HasSubstr("[worker:1] bad luck\n"));
  EXPECT_THAT(Err(), HasSubstr("the last that worker:1 wrote to stderr:\n    bad luck\n"));
  EXPECT_THAT(Err(), HasSubstr("root cause: worker:1 (pid "));
  EXPECT_THAT(Err(), EndsWith("failed first: exit code 7: bad luck\n"));
}

TEST_F(LaunchTest, ADeathBySignalIs128PlusItAndSaysSo) {
  Start({"-n", "2"}, "is worker 0 || forever; kill -KILL $$");
  EXPECT_EQ(Wait(), 137);
  EXPECT_THAT(Err(), HasSubstr("root cause: worker:0"));
  EXPECT_THAT(Err(), HasSubstr("killed by signal 9 (SIGKILL)"));
}

TEST_F(LaunchTest, AChildThatIgnoresSigtermIsKilledAfterTheGrace) {
  Start({"-n", "2", "--grace", "0.2"},
        "is worker 1 && { trap '' TERM; touch $DIR/ready; while :; do sleep 0.05; done; }; "
        "await $DIR/ready; exit 3");
  EXPECT_EQ(Wait(), 3);
  EXPECT_THAT(Err(), HasSubstr("worker:1 did not end within 0.2 s: killed"));
}

TEST_F(LaunchTest, AStoppedChildIsEndedToo) {
  Start({"-n", "2"},
        "is worker 1 && { touch $DIR/ready; kill -STOP $$; forever; }; await $DIR/ready; exit 3");
  EXPECT_EQ(Wait(), 3);
}

TEST_F(LaunchTest, TheLostPeerIsTheCauseAndNotWhoNoticed) {
  // Both are dead before the launcher looks again: it is stopped meanwhile.
  Start({"-n", "2"},
        "echo pid=$$; is worker 0 && { await $DIR/go; exit 138; }; await $DIR/go; kill -9 $$");
  ASSERT_TRUE(Sees("[worker:0] pid="));
  ASSERT_TRUE(Sees("[worker:1] pid="));
  ASSERT_TRUE(cluster_.Signal("launch", SIGSTOP));
  std::ofstream(dir_ / "go").close();
  for (const int pid : Pids()) {
    ASSERT_TRUE(WaitUntilGone(pid));
  }
  ASSERT_TRUE(cluster_.Signal("launch", SIGCONT));
  EXPECT_EQ(Wait(), 137);
  EXPECT_THAT(Err(), HasSubstr("root cause: worker:1"));
}

TEST_F(LaunchTest, SignalsArePassedOn) {
  for (const auto& [signal, name, code] :
       {std::tuple(SIGINT, "INT", 130), {SIGTERM, "TERM", 143}, {SIGHUP, "HUP", 129}}) {
    SCOPED_TRACE(name);
    ProcessCluster cluster;
    cluster.Start("launch", {COHORT_BIN_DIR "/cohort", "launch", "-n", "2", "--", "sh", "-c",
                             Script(std::string("trap 'echo got ") + name + "; exit 0' " + name +
                                    "; echo up; forever")});
    ASSERT_TRUE(cluster.WaitForOutput("launch", "[worker:0] up", kSoon));
    ASSERT_TRUE(cluster.WaitForOutput("launch", "[worker:1] up", kSoon));
    ASSERT_TRUE(cluster.Signal("launch", signal));
    EXPECT_EQ(cluster.Wait("launch", kSoon), code);
    EXPECT_THAT(cluster.Stdout("launch"), HasSubstr(std::string("[worker:0] got ") + name));
    EXPECT_THAT(cluster.Stdout("launch"), HasSubstr(std::string("[worker:1] got ") + name));
  }
}

TEST_F(LaunchTest, UnderNohupAHangUpIsIgnored) {
  cluster_.Start("launch",
                 {"sh", "-c", R"(trap '' HUP; exec "$0" launch -n 1 -- sh -c "$1")",
                  COHORT_BIN_DIR "/cohort", Script("echo up; await $DIR/go; echo done")},
                 {{"DIR", dir_.path()}});
  ASSERT_TRUE(Sees("[worker:0] up"));
  ASSERT_TRUE(cluster_.Signal("launch", SIGHUP));
  std::ofstream(dir_ / "go").close();
  EXPECT_EQ(Wait(), 0);
  EXPECT_THAT(Out(), HasSubstr("[worker:0] done"));
}

TEST_F(LaunchTest, ASecondCtrlCKillsAtOnce) {
  Start({"-n", "1", "--grace", "3600"},
        "trap 'echo no' INT; echo up; while :; do sleep 0.05; done");
  ASSERT_TRUE(Sees("up"));
  cluster_.Signal("launch", SIGINT);
  ASSERT_TRUE(Sees("[worker:0] no"));
  cluster_.Signal("launch", SIGINT);
  EXPECT_EQ(Wait(), 130);
}

TEST_F(LaunchTest, NothingOutlivesTheLauncher) {
  Start({"-n", "2"}, "echo pid=$$; forever");
  ASSERT_TRUE(Sees("[worker:0] pid="));
  ASSERT_TRUE(Sees("[worker:1] pid="));
  const std::set<int> pids = Pids();
  ASSERT_EQ(pids.size(), 2u);
  cluster_.Signal("launch", SIGKILL);
  EXPECT_EQ(Wait(), 137);
  for (const int pid : pids) {
    EXPECT_TRUE(WaitUntilGone(pid));
  }
}

TEST_F(LaunchTest, WhatATaskLeavesBehindIsEndedWithTheJob) {
  Start({"-n", "1"}, "sleep 600 & echo pid=$!");
  EXPECT_EQ(Wait(), 0);
  ASSERT_EQ(Pids().size(), 1u);
  EXPECT_TRUE(WaitUntilGone(*Pids().begin()));
}

TEST_F(LaunchTest, ServersEndWhenTheWorkersHave) {
  Start({"-n", "2", "--ps", "2", "--grace", "2"}, "is ps 0 && forever; is ps 1 && forever; exit 0");
  EXPECT_EQ(Wait(), 0);
  EXPECT_EQ(Err(), "");
}

TEST_F(LaunchTest, ServersThatEndByThemselvesAreWaitedFor) {
  Start({"-n", "1", "--ps", "1", "--grace", "3600"},
        "is worker 0 && { touch $DIR/done; exit 0; }; await $DIR/done; echo saved; exit 0");
  EXPECT_EQ(Wait(), 0);
  EXPECT_THAT(Out(), HasSubstr("[ps:0] saved"));
}

TEST_F(LaunchTest, AServersFailureEndsTheJob) {
  Start({"-n", "2", "--ps", "1", "--chief"}, "is ps 0 || forever; exit 9");
  EXPECT_EQ(Wait(), 9);
  EXPECT_THAT(Err(), HasSubstr("root cause: ps:0"));
}

// Whoever is first at `mkdir` is the first process of its task.
TEST_F(LaunchTest, AServerThatFailsIsStartedAgainSoManyTimes) {
  Start({"-n", "1", "--ps", "2", "--restart", "2"},
        "is worker 0 && { await $DIR/end; exit 0; }; "
        "is ps 0 && { mkdir $DIR/first && exit 9; mkdir $DIR/second && kill -KILL $$; "
        "mkdir $DIR/third; exit 0; }; await $DIR/third; exit 0");
  ASSERT_TRUE(Sees("ps:0 is lost: exit code 9; started again, 1 of 2 times (pid "));
  ASSERT_TRUE(
      Sees("ps:0 is lost: killed by signal 9 (SIGKILL), exit code 137; started again, 2 of 2"));
  std::ofstream(dir_ / "end").close();
  EXPECT_EQ(Wait(), 0);
}

TEST_F(LaunchTest, BeyondThatAServersFailureEndsTheJob) {
  Start({"-n", "1", "--ps", "1", "--restart", "1"}, "is ps 0 || forever; exit 9");
  EXPECT_EQ(Wait(), 9);
  EXPECT_THAT(Err(), HasSubstr("started again, 1 of 1 times"));
  EXPECT_THAT(Err(), HasSubstr("root cause: ps:0"));
}

TEST_F(LaunchTest, NeitherWrongUseNorAWorkerIsStartedAgain) {
  for (const char* task : {"ps 0", "worker 0"}) {
    ProcessCluster cluster;
    const std::string code = task == std::string("ps 0") ? "2" : "9";
    cluster.Start("launch", {COHORT_BIN_DIR "/cohort", "launch", "-n", "1", "--ps", "1",
                             "--restart", "5", "--", "sh", "-c",
                             Script("is " + std::string(task) + " || forever; exit " + code)});
    EXPECT_EQ(cluster.Wait("launch", kSoon), std::stoi(code));
    EXPECT_THAT(cluster.Stderr("launch"), Not(HasSubstr("started again")));
  }
}

// Whoever is first at `mkdir` is the first process of its task.
TEST_F(LaunchTest, AWorkerThatIsKilledIsStartedAgainWhereThatIsAskedFor) {
  Start({"-n", "2", "--ps", "1", "--restart", "1", "--restart-workers"},
        "is worker 1 && { mkdir $DIR/first && kill -KILL $$; mkdir $DIR/second; exit 0; }; "
        "await $DIR/second; exit 0");
  EXPECT_EQ(Wait(), 0);
  EXPECT_THAT(Err(), HasSubstr("worker:1 is lost: killed by signal 9 (SIGKILL), exit code 137; "
                               "started again, 1 of 1 times (pid "));
}

// Nor is one that ends by itself, and has told the others why.
TEST_F(LaunchTest, TheFirstWorkerIsNotWhereItLeadsTheJob) {
  for (const auto& [end, code] : {std::pair{"is worker 0 || forever; kill -KILL $$", 137},
                                  std::pair{"is worker 1 || forever; exit 9", 9}}) {
    ProcessCluster cluster;
    cluster.Start("launch", {COHORT_BIN_DIR "/cohort", "launch", "-n", "2", "--ps", "1",
                             "--restart", "5", "--restart-workers", "--", "sh", "-c", Script(end)});
    EXPECT_EQ(cluster.Wait("launch", kSoon), code) << end;
    EXPECT_THAT(cluster.Stderr("launch"), Not(HasSubstr("started again")));
  }
}

// Whoever is first at `mkdir` is of the first job.
TEST_F(LaunchTest, AJobThatFailsIsStartedAgainAsAWhole) {
  Start({"-n", "2", "--restart-job", "2"},
        "is worker 0 && { mkdir $DIR/zero && forever; exit 0; }; "
        "await $DIR/zero; mkdir $DIR/one && exit 7; exit 0");
  EXPECT_EQ(Wait(), 0);
  EXPECT_THAT(Err(), HasSubstr("root cause: worker:1"));
  EXPECT_THAT(Err(), HasSubstr("the job is started again, 1 of 2 times"));
  EXPECT_THAT(Err(), Not(HasSubstr("2 of 2")));
}

TEST_F(LaunchTest, ButSoManyTimesOnlyAndNotAfterWrongUseOrWhenToldToEnd) {
  Start({"-n", "2", "--restart-job", "2"}, "is worker 0 && exit 7; forever");
  EXPECT_EQ(Wait(), 7);
  EXPECT_THAT(Err(), HasSubstr("the job is started again, 2 of 2 times"));
  for (const bool told : {false, true}) {
    ProcessCluster cluster;
    cluster.Start(
        "launch",
        {COHORT_BIN_DIR "/cohort", "launch", "-n", "2", "--restart-job", "5", "--", "sh", "-c",
         Script(told ? "echo at work; forever" : "is worker 0 && exit 2; forever")});
    if (told) {
      ASSERT_TRUE(cluster.WaitForOutput("launch", "at work", kSoon));
      ASSERT_TRUE(cluster.Signal("launch", SIGTERM));
    }
    EXPECT_EQ(cluster.Wait("launch", kSoon), told ? 143 : 2);
    EXPECT_THAT(cluster.Stderr("launch"), Not(HasSubstr("started again")));
  }
}

TEST_F(LaunchTest, AJobWithChiefAndServersOutlivesAWorker) {
  Start({"-n", "2", "--ps", "1", "--chief", "--grace", "0.2"},
        "is worker 1 && kill -KILL $$; is ps 0 && forever; "
        "is chief 0 && { await $DIR/end; exit 0; }; await $DIR/end; exit 0");
  ASSERT_TRUE(
      Sees("worker:1 is lost: killed by signal 9 (SIGKILL), exit code 137; the job goes on"));
  std::ofstream(dir_ / "end").close();
  EXPECT_EQ(Wait(), 0);
  EXPECT_THAT(Err(), HasSubstr("the job ended well without worker:1"));
}

TEST_F(LaunchTest, ItDoesNotOutliveTheChiefOrAllWorkers) {
  Start({"-n", "2", "--ps", "1", "--chief"}, "is chief 0 || forever; exit 4");
  EXPECT_EQ(Wait(), 4);
  ProcessCluster cluster;
  cluster.Start("launch",
                {COHORT_BIN_DIR "/cohort", "launch", "-n", "2", "--ps", "1", "--chief", "--", "sh",
                 "-c", Script("is worker 0 && exit 5; is worker 1 && exit 5; forever")});
  EXPECT_EQ(cluster.Wait("launch", kSoon), 5);
}

TEST_F(LaunchTest, KeepingGoingIsASetting) {
  Start({"-n", "2", "--ps", "1", "--chief", "--no-keep-going"}, "is worker 1 || forever; exit 6");
  EXPECT_EQ(Wait(), 6);
  ProcessCluster cluster;
  cluster.Start("launch", {COHORT_BIN_DIR "/cohort", "launch", "-n", "2", "--keep-going", "--",
                           "sh", "-c", Script("is worker 1 && exit 6; exit 0")});
  EXPECT_EQ(cluster.Wait("launch", kSoon), 0);
}

TEST_F(LaunchTest, AProgramThatCannotBeExecutedIsNamed) {
  for (const char* program : {"/no/such/program", "no-such-program", "/etc/passwd"}) {
    ProcessCluster cluster;
    cluster.Start("launch", {COHORT_BIN_DIR "/cohort", "launch", "-n", "2", "--", program});
    EXPECT_EQ(cluster.Wait("launch", kSoon), 2) << program;
    EXPECT_THAT(cluster.Stderr("launch"), HasSubstr(std::string("cannot execute ") + program));
  }
}

TEST_F(LaunchTest, UsageErrorsExitWith2) {
  const std::vector<std::string> cases[] = {
      {},
      {"-n", "2"},
      {"-n", "-1", "true"},
      {"-n", "x", "true"},
      {"-n", "0", "true"},
      {"-n", "0", "--chief", "--ps", "1", "true"},
      {"-n", "1", "--env", "novalue", "true"},
      {"-n", "1", "--env", "TF_CONFIG={}", "true"},
      {"-n", "1", "--grace", "-1", "true"},
      {"-n", "0", "--chief", "--keep-going", "true"},
      {"-n", "2", "--ps", "1", "--restart-workers", "true"},
  };
  for (std::vector<std::string> arguments : cases) {
    ProcessCluster cluster;
    arguments.insert(arguments.begin(), {COHORT_BIN_DIR "/cohort", "launch"});
    cluster.Start("launch", arguments);
    EXPECT_EQ(cluster.Wait("launch", kSoon), 2) << ::testing::PrintToString(arguments);
    EXPECT_NE(cluster.Stderr("launch"), "") << ::testing::PrintToString(arguments);
  }
}

TEST_F(LaunchTest, AReaderThatGoesAwayEndsTheJob) {
  cluster_.Start("pipe",
                 {"bash", "-c",
                  std::string("\"$0\" launch -n 1 -- sh -c 'while :; do echo y; done' | head -1; "
                              "echo code ${PIPESTATUS[0]}"),
                  COHORT_BIN_DIR "/cohort"});
  EXPECT_EQ(cluster_.Wait("pipe", kSoon), 0);
  EXPECT_EQ(cluster_.Stdout("pipe"), "[worker:0] y\ncode 141\n");
}

}  // namespace
}  // namespace cohort::testing
