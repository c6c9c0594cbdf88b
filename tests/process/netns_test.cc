// scripts/netns: hosts that are network namespaces, and collectives between them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "testing/process_cluster.h"
#include "testing/temp_dir.h"

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
                                       HasSubstr("install iproute2"), HasSubstr("the kernel"),
                                       HasSubstr("this kernel has no netem")));
  return true;
}

// What each rank's flight record, of those in the folder, says moves its bytes.
std::vector<std::string> BackendsOf(const std::string& folder) {
  std::vector<std::string> backends;
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(folder, none)) {
    std::ifstream file(entry.path());
    std::string header;
    std::getline(file, header);
    backends.push_back(nlohmann::json::parse(header).value("backend", ""));
  }
  return backends;
}

TEST(NetworkNamespaces, RanksOnTwoHostsReduceOverAShapedLink) {
  for (const std::string towards : {"10.77.0.1", "fd77::1"}) {
    const Hosts hosts({"--rate", "1gbit"});
    if (Lacks(hosts.up)) {
      GTEST_SKIP() << hosts.up.err;
    }
    EXPECT_THAT(hosts.up.out, HasSubstr(hosts.name + "1 10.77.0.2 fd77::2"));
    std::vector<std::string> argv = {COHORT_BIN_DIR "/cohort",
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
                                     "--json"};
    if (TEST_GLOO) {
      argv.insert(argv.end(), {"--peer", "gloo"});
    }
    const Outcome bench = RunCommand(argv);
    ASSERT_EQ(bench.code, 0) << bench.err;
    std::vector<std::string> measured;
    std::istringstream lines(bench.out);
    for (std::string text; std::getline(lines, text);) {
      const auto line = nlohmann::json::parse(text);
      measured.push_back(line["impl"]);
      EXPECT_EQ(line["wrong"], 0);
      EXPECT_LT(line["busbw_gbps"].get<double>(), 0.125 * 1.05) << "faster than the link: " << text;
    }
    EXPECT_EQ(measured, TEST_GLOO ? std::vector<std::string>({"cohort", "gloo", "gloo", "loopback"})
                                  : std::vector<std::string>({"cohort", "loopback"}));
  }
}

// `cohort bench` between the two hosts, as JSON.
nlohmann::json BenchBetween(const Hosts& hosts, std::vector<std::string> arguments) {
  std::vector<std::string> argv = {COHORT_BIN_DIR "/cohort", "bench"};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  argv.insert(argv.end(), {"--transport", "tcp", "--exec-prefix",
                           kScript + " exec --name " + hosts.name + " {rank}", "--rendezvous-host",
                           "10.77.0.1", "--json"});
  const Outcome bench = RunCommand(argv);
  EXPECT_EQ(bench.code, 0) << bench.err;
  return bench.code == 0 ? nlohmann::json::parse(bench.out.substr(0, bench.out.find('\n')))
                         : nlohmann::json();
}

nlohmann::json Collective(const Hosts& hosts, const std::string& op, const std::string& bytes) {
  return BenchBetween(hosts,
                      {op, "--ranks", "2", "--sizes", bytes, "--seconds", "0.3", "--rounds", "1"});
}

// By the kernel's netem, and by the relay. A broadcast is a round trip: the root hears that the
// other is ready, and sends.
TEST(NetworkNamespaces, ADelayIsThatOfEachWay) {
  int measured = 0;
  for (const bool relay : {false, true}) {
    std::vector<std::string> arguments = {"--rate", "1gbit", "--delay", "5ms"};
    if (relay) {
      arguments.emplace_back("--relay");
    }
    const Hosts hosts(arguments);
    if (Lacks(hosts.up)) {
      continue;
    }
    ++measured;
    EXPECT_GE(Collective(hosts, "broadcast", "8")["time_us"].get<double>(), 2 * 5000);
    EXPECT_LT(Collective(hosts, "allreduce", "4m")["busbw_gbps"].get<double>(), 0.125 * 1.05);
  }
  if (measured == 0) {
    GTEST_SKIP() << "neither netem nor a relay can be had";
  }
}

// Each connection of a relayed network gets its share of a link that has much more.
TEST(NetworkNamespaces, AFlowHasNoMoreThanItsShare) {
  const Hosts hosts({"--relay", "--rate", "10gbit", "--flow-rate", "100mbit"});
  if (Lacks(hosts.up)) {
    GTEST_SKIP() << hosts.up.err;
  }
  const nlohmann::json line = Collective(hosts, "allreduce", "1m");
  EXPECT_EQ(line["wrong"], 0);
  EXPECT_LT(line["busbw_gbps"].get<double>(), 0.0125 * 1.05);
}

TEST(NetworkNamespaces, FastLinksAreShapedToo) {
  for (const auto& [rate, shown, most] :
       {std::tuple("10gbit", "rate 10Gbit", 1.25), {"25gbit", "rate 25Gbit", 3.125}}) {
    const Hosts hosts({"--rate", rate});
    if (Lacks(hosts.up)) {
      GTEST_SKIP() << hosts.up.err;
    }
    EXPECT_THAT(RunCommand({"tc", "-n", hosts.name + "0", "qdisc", "show", "dev", "eth0"}).out,
                HasSubstr(shown));
    EXPECT_LT(Collective(hosts, "allreduce", "16m")["busbw_gbps"].get<double>(), most * 1.05);
  }
}

TEST(NetworkNamespaces, TrainingOverAShapedLinkIsMeasured) {
  const Hosts hosts({"--rate", "1gbit"});
  if (Lacks(hosts.up)) {
    GTEST_SKIP() << hosts.up.err;
  }
  const nlohmann::json json = BenchBetween(
      hosts, {"overlap", "--model", "mlp", "--batch", "16", "--rounds", "2", "--seconds", "0.2"});
  // The link takes 21 ms for the 2.7 MB of a step, less what it lets pass in a burst (0.5 MB).
  for (const char* figure : {"ms_per_step_overlapped", "ms_per_step_after_backward"}) {
    EXPECT_GT(json[figure].get<double>(), 15) << figure;
  }
  EXPECT_GT(json["ms_per_step_without_communication"].get<double>(), 0);
  EXPECT_GT(json["speedup"].get<double>(), 0);
}

// Two processes on each of two hosts: shared memory inside, TCP across. The network, the grouping
// and the order of buckets do not show in the result.
TEST(NetworkNamespaces, AJobOnTwoHostsHasTheBitsOfOneOnThisHost) {
  const Hosts hosts({});
  if (Lacks(hosts.up)) {
    GTEST_SKIP() << hosts.up.err;
  }
  const testing::TempDir folder;
  const auto arguments = [&](const std::string& metrics) {
    return std::vector<std::string>{COHORT_BIN_DIR "/image_classifier",
                                    "--strategy",
                                    "multi_worker_mirrored",
                                    "--model",
                                    "mlp",
                                    "--epochs",
                                    "1",
                                    "--global-batch",
                                    "200",
                                    "--threads",
                                    "1",
                                    "--quiet",
                                    "--metrics-json",
                                    folder.path() + "/" + metrics};
  };
  const auto read = [&](const std::string& metrics) {
    std::ifstream file(folder.path() + "/" + metrics);
    return nlohmann::json::parse(file);
  };
  std::vector<std::string> here = {COHORT_BIN_DIR "/cohort", "launch", "-n", "4", "--"};
  const std::vector<std::string> program = arguments("here.json");
  here.insert(here.end(), program.begin(), program.end());
  const Outcome local = RunCommand(here);
  ASSERT_EQ(local.code, 0) << local.err;

  testing::ProcessCluster cluster;
  const nlohmann::json workers = {"10.77.0.1:7000", "10.77.0.1:7001", "10.77.0.2:7000",
                                  "10.77.0.2:7001"};
  for (int w = 0; w < 4; ++w) {
    const nlohmann::json config = {{"cluster", {{"worker", workers}}},
                                   {"task", {{"type", "worker"}, {"index", w}}}};
    std::vector<std::string> argv = {kScript, "exec", "--name", hosts.name, std::to_string(w / 2)};
    const std::vector<std::string> worker = arguments("there.json");
    argv.insert(argv.end(), worker.begin(), worker.end());
    argv.insert(argv.end(), {"--flight-folder", folder.path() + "/flight", "--step-trace",
                             folder.path(), "--traced-steps", "2-3"});
    cluster.Start("worker:" + std::to_string(w), argv, {{"TF_CONFIG", config.dump()}});
  }
  for (const auto& [name, code] : cluster.WaitAll(std::chrono::seconds(100))) {
    ASSERT_EQ(code, 0) << cluster.Logs();
  }
  EXPECT_EQ(read("there.json")["replicas"], 4);
  EXPECT_EQ(read("there.json")["parameters_crc32c"], read("here.json")["parameters_crc32c"]);
  // And they were on two hosts, of two processes each.
  for (int w = 0; w < 4; ++w) {
    EXPECT_THAT(cluster.Stderr("worker:" + std::to_string(w)),
                ::testing::Not(HasSubstr("TCP between all processes")));
  }
  EXPECT_EQ(BackendsOf(folder.path() + "/flight"), std::vector<std::string>(4, "hierarchical"))
      << cluster.Logs();
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

// A relay that ended before: its number may be another process's by now.
TEST(NetworkNamespaces, DownEndsNoProcessButItsRelay) {
  const std::string name = "p" + std::to_string(::getpid()) + "x";
  const std::string file = "/run/netns-relay-" + name + ".pid";
  testing::ProcessCluster processes;
  processes.Start("other", {"sleep", "100"});
  std::ofstream(file) << processes.pid("other") << "\n";
  if (!std::filesystem::exists(file)) {
    GTEST_SKIP() << "/run is not ours";
  }
  const Outcome down = RunCommand({kScript, "down", "--name", name});
  const bool lacks = Lacks(down);
  EXPECT_EQ(std::filesystem::exists(file), lacks);
  std::filesystem::remove(file);
  EXPECT_TRUE(processes.Signal("other", SIGKILL));
  EXPECT_EQ(processes.Wait("other", std::chrono::seconds(10)), 128 + SIGKILL);
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
