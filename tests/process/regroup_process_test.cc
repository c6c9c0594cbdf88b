// Processes that go on without restart when one of them is lost, and when it has come back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>

#include "testing/process_cluster.h"

namespace cohort::testing {
namespace {

using std::chrono::seconds;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

class RegroupProcesses : public ::testing::Test {
 protected:
  void Start(int index, const std::string& as = "", int timeout_ms = 60'000) {
    std::vector<std::string> argv = {COHORT_BIN_DIR "/../tests/regroup_task", address_, Name(index),
                                     "3", std::to_string(timeout_ms)};
    argv.insert(argv.end(), what_.begin(), what_.end());
    cluster_.Start(Name(index) + as, argv);
  }
  void StartProcesses(int timeout_ms = 60'000) {
    address_ = "127.0.0.1:0";
    Start(0, "", timeout_ms);
    ASSERT_TRUE(cluster_.WaitForOutput(Name(0), ".\n", seconds(20))) << cluster_.Logs();
    const std::string out = cluster_.Stdout(Name(0));
    address_ = "127.0.0.1:" + out.substr(5, out.find('.') - 5);
    Start(1, "", timeout_ms);
    Start(2, "", timeout_ms);
  }
  // Three tasks in generation 2.
  void StartAll(int timeout_ms = 60'000) {
    StartProcesses(timeout_ms);
    ExpectGeneration(2, 3, 7, {"worker:0", "worker:1", "worker:2"});
  }
  // All say the same, and in the same state but for what a newcomer has not seen.
  void ExpectGeneration(int number, int size, int sum, const std::vector<std::string>& names) {
    const std::string text = "generation " + std::to_string(number) + " over " + backend_ +
                             ": size " + std::to_string(size) + ", sum " + std::to_string(sum) +
                             ", rank ";
    for (const std::string& name : names) {
      ASSERT_TRUE(cluster_.WaitForOutput(name, text, seconds(30))) << name << cluster_.Logs();
    }
    const auto state = [&](const std::string& name) {
      const std::string out = cluster_.Stdout(name);
      const std::size_t at = out.find("state ", out.find(text));
      return out.substr(at, out.find('\n', at) - at);
    };
    for (const std::string& name : names) {
      ASSERT_TRUE(cluster_.WaitForOutput(name, state(names[0]) + "\n", seconds(5)))
          << cluster_.Logs();
    }
  }
  static std::string Name(int index) { return "worker:" + std::to_string(index); }

  void Await(const std::vector<std::string>& names, const std::string& text) {
    for (const std::string& name : names) {
      ASSERT_TRUE(cluster_.WaitForOutput(name, text, seconds(30))) << name << cluster_.Logs();
    }
  }

  // Of three, one is killed in a large sum of private memory; the two go on by shared memory, and
  // then all three.
  void KillInALargeSum(const std::string& transport) {
    what_ = {transport, "1000000"};
    backend_ = "shm";
    StartAll();
    ASSERT_TRUE(cluster_.Signal(Name(1), SIGKILL));
    ExpectGeneration(3, 2, 5, {"worker:0", "worker:2"});
    for (const int survivor : {0, 2}) {
      EXPECT_THAT(cluster_.Stdout(Name(survivor)),
                  ContainsRegex(
                      "generation 2 ends: Unavailable: .*rank 1 .worker:1. is gone (during|after) "
                      "AllReduce 'step' int64.1000000."));
    }
    Start(1, " again");
    ExpectGeneration(4, 3, 7, {"worker:0", "worker:1 again", "worker:2"});
    for (const std::string name : {"worker:0", "worker:1 again", "worker:2"}) {
      EXPECT_EQ(cluster_.Wait(name, seconds(30)), 0) << name << cluster_.Logs();
    }
    EXPECT_EQ(cluster_.Wait("worker:1", seconds(1)), 128 + SIGKILL);
  }

  std::vector<std::string> what_;  // more arguments
  std::string backend_ = "tcp";
  std::string address_;
  ProcessCluster cluster_;
};

TEST_F(RegroupProcesses, SurvivorsOfAKillGoOnAndTakeTheRestartedTaskBack) {
  StartAll();
  ASSERT_TRUE(cluster_.Signal(Name(1), SIGKILL));
  ExpectGeneration(3, 2, 5, {"worker:0", "worker:2"});
  EXPECT_THAT(cluster_.Stdout(Name(0)), HasSubstr("generation 2 ends: Unavailable: "));
  EXPECT_THAT(cluster_.Stdout(Name(0)), HasSubstr("(worker:1)"));

  Start(1, " again");
  ExpectGeneration(4, 3, 7, {"worker:0", "worker:1 again", "worker:2"});
  // It knows what the survivors had done, and has the last rank.
  EXPECT_THAT(cluster_.Stdout(Name(1) + " again"), HasSubstr(", rank 2, state "));
  EXPECT_THAT(cluster_.Stdout(Name(0)) + cluster_.Stdout(Name(2)),
              HasSubstr("worker:1 waits for a new generation"));
  for (const std::string name : {"worker:0", "worker:1 again", "worker:2"}) {
    EXPECT_EQ(cluster_.Wait(name, seconds(30)), 0) << name << cluster_.Logs();
  }
  EXPECT_EQ(cluster_.Wait("worker:1", seconds(1)), 128 + SIGKILL);
}

TEST_F(RegroupProcesses, AStoppedTaskIsLeftBehindAndComesBackInTheSameProcess) {
  StartAll(/*timeout_ms=*/3000);
  ASSERT_TRUE(cluster_.Signal(Name(2), SIGSTOP));
  ExpectGeneration(3, 2, 3, {"worker:0", "worker:1"});
  EXPECT_THAT(cluster_.Stdout(Name(0)), HasSubstr("rank 2 (worker:2) gives no sign of life"));
  ASSERT_TRUE(cluster_.Signal(Name(2), SIGCONT));
  ExpectGeneration(4, 3, 7, {"worker:0", "worker:1", "worker:2"});
  EXPECT_THAT(cluster_.Stdout(Name(2)), HasSubstr("sent no heartbeat for "));
  for (const int index : {0, 1, 2}) {
    EXPECT_EQ(cluster_.Wait(Name(index), seconds(30)), 0) << cluster_.Logs();
  }
}

TEST_F(RegroupProcesses, SurvivorsOfAKillInALargeSumGoOnOverSharedMemory) {
  KillInALargeSum("shm");
}
TEST_F(RegroupProcesses, WhatAutoTakesOnOneHostIsSharedMemoryAgainAfterALoss) {
  KillInALargeSum("auto");
}

// One of three training processes is killed, two go on, it comes back: the parameters are those of
// one process that trained as many steps alone.
TEST_F(RegroupProcesses, TrainingGoesOnExactlyThroughLossAndReturn) {
  what_ = {"model"};
  StartProcesses();
  Await({"worker:0", "worker:1", "worker:2"}, "step 30 of 3\n");
  ASSERT_TRUE(cluster_.Signal(Name(2), SIGKILL));
  Await({"worker:0", "worker:1"}, " of 2\n");
  Start(2, " again");
  std::string done;
  for (const std::string name : {"worker:0", "worker:1", "worker:2 again"}) {
    ASSERT_EQ(cluster_.Wait(name, seconds(40)), 0) << name << cluster_.Logs();
    const std::string out = cluster_.Stdout(name);
    ASSERT_NE(out.find("done "), std::string::npos) << name << cluster_.Logs();
    const std::string line = out.substr(out.find("done "));
    EXPECT_EQ(line, done.empty() ? line : done) << name;
    done = line;
  }
  const std::string steps = done.substr(5, done.find(' ', 5) - 5);
  cluster_.Start("alone", {COHORT_BIN_DIR "/../tests/strategy_task", "one_device", steps});
  ASSERT_EQ(cluster_.Wait("alone", seconds(60)), 0) << cluster_.Stderr("alone");
  const std::string out = cluster_.Stdout("alone");
  EXPECT_EQ("done " + steps + " " + out.substr(out.find("done ") + 5), done);
}

}  // namespace
}  // namespace cohort::testing
