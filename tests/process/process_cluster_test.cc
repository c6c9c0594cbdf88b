#include "testing/process_cluster.h"

#include <unistd.h>

#include <csignal>
#include <fstream>
#include <set>
#include <stdexcept>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "port_reservation.h"

namespace cohort::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using namespace std::chrono_literals;

TEST(ProcessClusterTest, CollectsOutputAndExitCodes) {
  ProcessCluster cluster;
  cluster.Start("good", {"sh", "-c", "echo out; echo err >&2; echo $GREETING"},
                {{"GREETING", "hi"}});
  cluster.Start("bad", {"sh", "-c", "exit 7"});
  const auto codes = cluster.WaitAll(30s);
  EXPECT_EQ(codes.at("good"), 0);
  EXPECT_EQ(codes.at("bad"), 7);
  EXPECT_EQ(cluster.Stdout("good"), "out\nhi\n");
  EXPECT_EQ(cluster.Stderr("good"), "err\n");
  EXPECT_THAT(cluster.Logs(), HasSubstr("exit code 7"));
}

TEST(ProcessClusterTest, KnowsTheMemoryOfAnEndedProcess) {
  ProcessCluster cluster;
  cluster.Start("large", {"dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"});
  cluster.Start("small", {"dd", "if=/dev/zero", "of=/dev/null", "bs=1K", "count=1"});
  EXPECT_THROW(cluster.PeakKilobytes("none"), std::runtime_error);
  cluster.WaitAll(30s);
  EXPECT_GT(cluster.PeakKilobytes("large"), 200'000);
  EXPECT_LT(cluster.PeakKilobytes("small"), 150'000);
}

TEST(ProcessClusterTest, SignalsOneProcessByName) {
  ProcessCluster cluster;
  cluster.Start("victim", {"sleep", "600"});
  cluster.Start("other", {"sleep", "600"});
  EXPECT_TRUE(cluster.Signal("victim", SIGKILL));
  EXPECT_EQ(cluster.Wait("victim", 30s), 128 + SIGKILL);
  EXPECT_FALSE(cluster.Signal("victim", SIGKILL));
  EXPECT_EQ(cluster.Wait("other", 0ms), std::nullopt);
}

TEST(ProcessClusterTest, DestructionKillsStoppedAndStubbornProcesses) {
  pid_t stubborn = 0;
  pid_t stopped = 0;
  {
    ProcessCluster cluster;
    cluster.Start("stubborn", {"sh", "-c", "trap '' TERM INT; echo ready; while :; do :; done"});
    ASSERT_TRUE(cluster.WaitForOutput("stubborn", "ready", 30s));
    cluster.Start("stopped", {"sleep", "600"});
    cluster.Signal("stopped", SIGSTOP);
    stubborn = cluster.pid("stubborn");
    stopped = cluster.pid("stopped");
  }
  EXPECT_EQ(::kill(stubborn, 0), -1);
  EXPECT_EQ(::kill(stopped, 0), -1);
}

TEST(ProcessClusterTest, WaitForOutputGivesUpWhenTheProcessEnds) {
  ProcessCluster cluster;
  cluster.Start("quiet", {"true"});
  EXPECT_FALSE(cluster.WaitForOutput("quiet", "never", 60s));
  EXPECT_EQ(cluster.Wait("quiet", 0ms), 0);
}

TEST(ProcessClusterTest, RefusesWhatCannotBeExecutedAndUnknownNames) {
  ProcessCluster cluster;
  EXPECT_THROW(cluster.Start("x", {"/no/such/program"}), std::runtime_error);
  EXPECT_THROW(cluster.Start("x", {}), std::runtime_error);
  EXPECT_THROW(cluster.Stdout("x"), std::runtime_error);
  cluster.Start("x", {"true"});
  EXPECT_THROW(cluster.Start("x", {"true"}), std::runtime_error);
}

TEST(ProcessClusterTest, TasksGetTheirTfConfig) {
  ProcessCluster cluster;
  const std::string spec = cluster.StartTasks({{"chief", 1}, {"worker", 2}},
                                              {"sh", "-c", "echo $TF_CONFIG"}, {}, {"worker:1"});
  EXPECT_EQ(cluster.names(), (std::vector<std::string>{"chief:0", "worker:0"}));
  cluster.WaitAll(30s);
  EXPECT_EQ(cluster.Stdout("worker:0"),
            R"({"cluster":)" + spec + R"(,"task":{"index":0,"type":"worker"}})" + "\n");
}

TEST(ProcessClusterTest, LauncherVariablesOfTheTestAreNotInherited) {
  ::setenv("OMPI_COMM_WORLD_RANK", "5", 1);  // NOLINT(concurrency-mt-unsafe)
  ProcessCluster cluster;
  cluster.Start("env", {"env"}, {{"RANK", "3"}});
  ::unsetenv("OMPI_COMM_WORLD_RANK");  // NOLINT(concurrency-mt-unsafe)
  ASSERT_EQ(cluster.Wait("env", 30s), 0);
  EXPECT_THAT(cluster.Stdout("env"), Not(HasSubstr("OMPI_")));
  EXPECT_THAT(cluster.Stdout("env"), HasSubstr("\nRANK=3\n"));
}

TEST(PortReservationTest, HoldsDistinctPortsUntilTheyAreReleased) {
  PortReservation reservation = OrThrow(PortReservation::Make(3));
  const std::vector<int> ports = reservation.ports();
  EXPECT_EQ(std::set<int>(ports.begin(), ports.end()).size(), 3u);
  EXPECT_FALSE(CanListen(ports[0]));
  EXPECT_FALSE(CanListen(ports[1]));
  reservation.Release(1);
  EXPECT_FALSE(CanListen(ports[0]));
  EXPECT_TRUE(CanListen(ports[1]));
}

TEST(PortReservationTest, PortsAreNotThoseOfOutgoingConnections) {
  int first = 0;
  ASSERT_TRUE(std::ifstream("/proc/sys/net/ipv4/ip_local_port_range") >> first);
  if (first < 20'000) {
    GTEST_SKIP() << "this machine hands out nearly every port from " << first;
  }
  const PortReservation reservation = OrThrow(PortReservation::Make(50));
  for (const int port : reservation.ports()) {
    EXPECT_LT(port, first);
  }
}

}  // namespace
}  // namespace cohort::testing
