// The coordination service between processes that are killed, stopped and restarted.
#include <csignal>
#include <regex>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/process_cluster.h"

namespace cohort::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using namespace std::chrono_literals;

constexpr int kPeerLost = 138;

// Processes worker:0 (with the service) to worker:N-1, all joined.
class Tasks {
 public:
  Tasks(int count, int heartbeat_timeout_ms, bool may_leave = false, Variables env = {},
        int grace_ms = 0)
      : count_(count),
        heartbeat_timeout_ms_(heartbeat_timeout_ms),
        may_leave_(may_leave),
        env_(std::move(env)),
        grace_ms_(grace_ms) {
    Start("worker:0", "worker:0", "127.0.0.1:0");
    EXPECT_TRUE(cluster.WaitForOutput("worker:0", ".\n", 30s)) << cluster.Logs();
    const std::string out = cluster.Stdout("worker:0");
    port_ = out.substr(5, out.find('.') - 5);
    for (int i = 1; i < count; ++i) {
      Start("worker:" + std::to_string(i), "worker:" + std::to_string(i));
    }
    for (const std::string& name : cluster.names()) {
      EXPECT_TRUE(cluster.WaitForOutput(name, "joined", 30s)) << cluster.Logs();
    }
  }

  // A process `name` for `task`.
  void Start(const std::string& name, const std::string& task, std::string address = {}) {
    std::vector<std::string> argv = {COHORT_BIN_DIR "/../tests/coordination_task",
                                     address.empty() ? "127.0.0.1:" + port_ : address, task,
                                     std::to_string(count_), std::to_string(heartbeat_timeout_ms_)};
    if (may_leave_) {
      argv.push_back("may_leave");
    }
    if (grace_ms_ > 0) {
      argv.push_back("grace_ms=" + std::to_string(grace_ms_));
    }
    cluster.Start(name, argv, env_);
  }
  std::string Pid(const std::string& name) const {
    return "pid " + std::to_string(cluster.pid(name)) + ")";
  }

  ProcessCluster cluster;

 private:
  int count_;
  int heartbeat_timeout_ms_;
  bool may_leave_;
  Variables env_;
  int grace_ms_;  // 0: the default
  std::string port_;
};

TEST(CoordinationProcess, AKilledTaskIsFoundLongBeforeItsHeartbeatIsMissed) {
  Tasks tasks(3, 60'000);
  ASSERT_TRUE(tasks.cluster.Signal("worker:2", SIGKILL));
  for (const char* survivor : {"worker:0", "worker:1"}) {
    EXPECT_EQ(tasks.cluster.Wait(survivor, 15s), kPeerLost) << survivor;
    EXPECT_THAT(tasks.cluster.Stdout(survivor),
                AllOf(HasSubstr("failure Unavailable: worker:2 (host "),
                      HasSubstr(tasks.Pid("worker:2")), HasSubstr("closed its connection")));
  }
}

TEST(CoordinationProcess, AStoppedTaskMissesItsHeartbeat) {
  Tasks tasks(3, 4'000);
  ASSERT_TRUE(tasks.cluster.Signal("worker:2", SIGSTOP));
  for (const char* survivor : {"worker:0", "worker:1"}) {
    EXPECT_EQ(tasks.cluster.Wait(survivor, 15s), kPeerLost) << survivor;
    EXPECT_THAT(tasks.cluster.Stdout(survivor),
                AllOf(HasSubstr("failure Unavailable: worker:2 (host "),
                      HasSubstr(tasks.Pid("worker:2")), HasSubstr("sent no heartbeat for ")));
  }
}

TEST(CoordinationProcess, AKilledChiefIsNamedByAll) {
  Tasks tasks(3, 60'000);
  ASSERT_TRUE(tasks.cluster.Signal("worker:0", SIGKILL));
  for (const char* survivor : {"worker:1", "worker:2"}) {
    EXPECT_EQ(tasks.cluster.Wait(survivor, 15s), kPeerLost) << survivor;
    EXPECT_THAT(tasks.cluster.Stdout(survivor),
                AllOf(HasSubstr("failure Unavailable: worker:0 (the chief"),
                      HasSubstr("connection refused")));
  }
}

TEST(CoordinationProcess, AStoppedChiefIsNamedByAll) {
  Tasks tasks(3, 4'000);
  ASSERT_TRUE(tasks.cluster.Signal("worker:0", SIGSTOP));
  for (const char* survivor : {"worker:1", "worker:2"}) {
    EXPECT_EQ(tasks.cluster.Wait(survivor, 15s), kPeerLost) << survivor;
    EXPECT_THAT(tasks.cluster.Stdout(survivor),
                AllOf(HasSubstr("failure Unavailable: worker:0 (the chief"),
                      HasSubstr("answered no heartbeat for ")));
  }
}

TEST(CoordinationProcess, ARestartedTaskEndsTheJob) {
  Tasks tasks(3, 60'000);
  ASSERT_TRUE(tasks.cluster.Signal("worker:2", SIGKILL));
  ASSERT_EQ(tasks.cluster.Wait("worker:2", 30s), 128 + SIGKILL);
  tasks.Start("again", "worker:2");
  for (const char* name : {"worker:0", "worker:1", "again"}) {
    // The restart is seen first, or else the death; both name the task. Where the chief has ended
    // by then, the new process waits for it until its join timeout.
    EXPECT_EQ(tasks.cluster.Wait(name, 90s), kPeerLost) << name;
    EXPECT_THAT(tasks.cluster.Stdout(name), HasSubstr("worker:2"));
  }
  EXPECT_THAT(tasks.cluster.Stdout("again"), HasSubstr("refused "));
}

// Where the death has not been found yet, the new process is what ends the job: all are told which
// it is, and which was before.
TEST(CoordinationProcess, ARestartIsToldWithBothIncarnations) {
  Tasks tasks(3, 60'000, /*may_leave=*/false, {}, /*grace_ms=*/20'000);
  const std::string before = tasks.Pid("worker:2");
  ASSERT_TRUE(tasks.cluster.Signal("worker:2", SIGKILL));
  ASSERT_EQ(tasks.cluster.Wait("worker:2", 30s), 128 + SIGKILL);
  tasks.Start("again", "worker:2");
  const std::regex restarted(
      "failure Aborted: worker:2 was restarted: incarnation ([0-9a-f]{16}) \\(host [^ ,]+, (pid "
      "[0-9]+\\)) comes after incarnation ([0-9a-f]{16}) \\(host [^ ,]+, (pid [0-9]+\\))");
  for (const char* name : {"worker:0", "worker:1"}) {
    EXPECT_EQ(tasks.cluster.Wait(name, 90s), kPeerLost) << name;
    const std::string out = tasks.cluster.Stdout(name);
    std::smatch words;
    ASSERT_TRUE(std::regex_search(out, words, restarted)) << tasks.cluster.Logs();
    EXPECT_NE(words[1], words[3]) << "one incarnation";
    EXPECT_EQ(words[2], tasks.Pid("again"));
    EXPECT_EQ(words[4], before);
  }
  EXPECT_EQ(tasks.cluster.Wait("again", 90s), kPeerLost);
  EXPECT_THAT(tasks.cluster.Stdout("again"), HasSubstr("refused "));
}

TEST(CoordinationProcess, ASecondProcessForATaskIsRefused) {
  Tasks tasks(2, 60'000);
  tasks.Start("second", "worker:1");
  EXPECT_EQ(tasks.cluster.Wait("second", 15s), 2);
  EXPECT_THAT(tasks.cluster.Stdout("second"),
              AllOf(HasSubstr("refused AlreadyExists: worker:1"), HasSubstr("host "),
                    HasSubstr("pid " + std::to_string(tasks.cluster.pid("worker:1")))));
  EXPECT_EQ(tasks.cluster.Wait("worker:1", 0ms), std::nullopt);
}

TEST(CoordinationProcess, ATaskThatMayLeaveIsReplaced) {
  Tasks tasks(2, 60'000, /*may_leave=*/true);
  ASSERT_TRUE(tasks.cluster.Signal("worker:1", SIGKILL));
  ASSERT_TRUE(tasks.cluster.WaitForOutput("worker:0", "lost worker:1", 15s));
  tasks.Start("again", "worker:1");
  EXPECT_TRUE(tasks.cluster.WaitForOutput("again", "joined", 15s)) << tasks.cluster.Logs();
  EXPECT_THAT(tasks.cluster.Stdout("worker:0"), Not(HasSubstr("failure")));
}

TEST(CoordinationProcess, AProxyOfTheEnvironmentIsNotUsed) {
  const std::string nowhere = "http://127.0.0.1:1";
  const Tasks tasks(2, 60'000, false,
                    {{"http_proxy", nowhere}, {"https_proxy", nowhere}, {"grpc_proxy", nowhere}});
}

}  // namespace
}  // namespace cohort::testing
