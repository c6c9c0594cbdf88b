// scripts/netns: hosts that are network namespaces, and collectives between them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "testing/process_cluster.h"

namespace cohort {
namespace {

using ::testing::HasSubstr;

const std::string kScript = COHORT_SOURCE_DIR "/scripts/netns";

struct Outcome {
  int code = -1;
  std::string out, err;
};

Outcome RunCommand(const std::vector<std::string>& argv) {
  testing::ProcessCluster processes;
  processes.Start("it", argv);
  const auto code = processes.Wait("it", std::chrono::seconds(60));
  return {code.value_or(-1), processes.Stdout("it"), processes.Stderr("it")};
}

// Takes the hosts down whatever happens.
struct Hosts {
  std::string name = "t" + std::to_string(::getpid()) + "x";
  Outcome up;

  explicit Hosts(const std::vector<std::string>& arguments) {
    std::vector<std::string> argv = {kScript, "up", "2", "--name", name};
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    up = RunCommand(argv);
  }
  ~Hosts() { RunCommand({kScript, "down", "--name", name}); }
};

// What a machine may lack; the script names it, and nothing else is an excuse.
bool Lacks(const Outcome& up) {
  if (up.code == 0) {
    return false;
  }
  EXPECT_EQ(up.code, 2);
  EXPECT_THAT(up.err, ::testing::AnyOf(HasSubstr("CAP_NET_ADMIN"), HasSubstr("CAP_SYS_ADMIN"),
                                       HasSubstr("install iproute2"), HasSubstr("the kernel")));
  return true;
}

TEST(NetworkNamespaces, RanksOnTwoHostsReduceOverAShapedLink) {
  for (const std::string towards : {"10.77.0.1", "fd77::1"}) {
    const Hosts hosts({"--rate", "1gbit"});
    if (Lacks(hosts.up)) {
      GTEST_SKIP() << hosts.up.err;
    }
    EXPECT_THAT(hosts.up.out, HasSubstr(hosts.name + "1 10.77.0.2 fd77::2"));
    const Outcome bench = RunCommand({COHORT_BIN_DIR "/cohort",
                                      "bench",
                                      "allreduce",
                                      "--transport",
                                      "tcp",
                                      "--ranks",
                                      "2",
                                      "--exec-prefix",
                                      kScript + " exec --name " + hosts.name + " {rank}",
                                      "--rendezvous-host",
                                      towards,
                                      "--sizes",
                                      "4m",
                                      "--seconds",
                                      "0.3",
                                      "--rounds",
                                      "1",
                                      "--limit",
                                      "loopback",
                                      "--json"});
    ASSERT_EQ(bench.code, 0) << bench.err;
    const auto line = nlohmann::json::parse(bench.out.substr(0, bench.out.find('\n')));
    EXPECT_EQ(line["impl"], "cohort");
    EXPECT_EQ(line["wrong"], 0);
    EXPECT_LT(line["busbw_gbps"].get<double>(), 0.125 * 1.05) << "faster than the link";
  }
}

TEST(NetworkNamespaces, DownLeavesNothing) {
  std::string name;
  {
    const Hosts hosts({});
    if (Lacks(hosts.up)) {
      GTEST_SKIP() << hosts.up.err;
    }
    name = hosts.name;
    EXPECT_THAT(RunCommand({"ip", "netns", "list"}).out, HasSubstr(name));
    EXPECT_EQ(RunCommand({kScript, "up", "2", "--name", name}).code, 2) << "up twice";
  }
  EXPECT_THAT(RunCommand({"ip", "netns", "list"}).out, ::testing::Not(HasSubstr(name)));
}

TEST(NetworkNamespaces, WhatIsMissingIsNamed) {
  std::vector<std::string> argv = {kScript, "up", "2", "--name", "never"};
  if (::geteuid() == 0) {
    argv.insert(argv.begin(),
                {"setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"});
  }
  const Outcome up = RunCommand(argv);
  EXPECT_EQ(up.code, 2);
  EXPECT_THAT(up.err, ::testing::AnyOf(HasSubstr("CAP_NET_ADMIN"), HasSubstr("install iproute2")));
  EXPECT_EQ(RunCommand({kScript, "fly"}).code, 2);
}

}  // namespace
}  // namespace cohort
