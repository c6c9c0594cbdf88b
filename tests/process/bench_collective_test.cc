// `cohort bench allreduce` and its kin, as a user runs them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "testing/process_cluster.h"

namespace cohort {
namespace {

using ::testing::HasSubstr;

struct Outcome {
  int code = -1;
  std::string out, err;
};

std::vector<std::string> Command(const std::string& operation,
                                 const std::vector<std::string>& arguments) {
  std::vector<std::string> argv = {COHORT_BIN_DIR "/cohort", "bench", operation};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  return argv;
}

Outcome RunBench(const std::string& operation, const std::vector<std::string>& arguments) {
  testing::ProcessCluster processes;
  processes.Start("bench", Command(operation, arguments));
  const auto code = processes.Wait("bench", std::chrono::seconds(60));
  return {code.value_or(-1), processes.Stdout("bench"), processes.Stderr("bench")};
}

std::vector<nlohmann::json> Lines(const std::string& text) {
  std::vector<nlohmann::json> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    lines.push_back(nlohmann::json::parse(line));
  }
  return lines;
}

bool Has(const std::string& peer) { return std::string(PEERS).find(peer) != std::string::npos; }

void ExpectRight(const nlohmann::json& line, const std::string& operation, int ranks) {
  EXPECT_EQ(line["op"], operation);
  EXPECT_EQ(line["ranks"], ranks);
  EXPECT_EQ(line["wrong"], 0);
  EXPECT_GT(line["time_us"].get<double>(), 0);
  EXPECT_TRUE(line["transport"].is_string());
  const double algbw = line["algbw_gbps"];
  const double factor = operation == "allreduce"   ? 2.0 * (ranks - 1) / ranks
                        : operation == "broadcast" ? 1.0
                                                   : 1.0 * (ranks - 1) / ranks;
  EXPECT_NEAR(algbw, line["bytes"].get<double>() / line["time_us"].get<double>() / 1e3,
              algbw * 1e-6);
  EXPECT_NEAR(line["busbw_gbps"].get<double>(), algbw * factor, algbw * 1e-6);
}

TEST(BenchCollective, EveryOperationAndTransportIsRight) {
  std::vector<std::string> transports = {"local", "shm", "tcp", "hierarchical"};
  if (Has("openmpi")) {
    transports.emplace_back("mpi");
  }
  for (const std::string operation : {"allreduce", "reducescatter", "allgather", "broadcast"}) {
    for (const std::string& transport : transports) {
      const Outcome run = RunBench(
          operation, {"--transport", transport, "--ranks", "3", "--sizes", "12,1200,300k",
                      "--seconds", "0.01", "--rounds", "2", "--ranks-per-host", "2", "--json"});
      ASSERT_EQ(run.code, 0) << operation << " " << transport << "\n" << run.err;
      int ours = 0;
      for (const nlohmann::json& line : Lines(run.out)) {
        ExpectRight(line, operation, 3);
        if (line["impl"] == "cohort" && line["transport"] == transport) {
          EXPECT_EQ(line["rounds_us"].size(), 2U);
          ++ours;
        }
      }
      const bool both_buffers = transport == "shm" || transport == "hierarchical";
      EXPECT_EQ(ours, both_buffers ? 6 : 3) << run.out;
    }
  }
}

// Whatever is measured beside cohort of `operation` over `transport`, in its order.
std::vector<std::string> Beside(const std::string& operation, const std::string& transport) {
  std::vector<std::string> names = {"cohort"};
  if (transport == "shm") {
    names = {"cohort shared", "cohort"};
  }
  if (Has("openmpi")) {
    if (transport == "shm") {
      names.insert(names.end(), {"openmpi default", "openmpi no-cma"});
    }
    names.emplace_back("openmpi tcp");
  }
  if (Has("gloo")) {
    names.emplace_back(operation == "reducescatter" ? "gloo halving-doubling" : "gloo ring");
    if (operation == "allreduce") {
      names.emplace_back("gloo bcube");
    }
  }
  names.emplace_back("memory");
  if (operation == "allreduce") {
    names.emplace_back("handover");
  }
  names.emplace_back("loopback");
  return names;
}

TEST(BenchCollective, PeersAndLimitsTakeTurnsInTheSameRun) {
  for (const std::string operation : {"allreduce", "reducescatter", "allgather", "broadcast"}) {
    for (const std::string transport : {"tcp", "shm"}) {
      std::vector<std::string> arguments = {
          "--transport", transport, "--sizes", "64k",      "--seconds", "0.01",  "--rounds",
          "2",           "--json",  "--limit", "loopback", "--limit",   "memory"};
      if (operation == "allreduce") {
        arguments.insert(arguments.end(), {"--limit", "handover"});
      }
      if (!std::string(PEERS).empty()) {
        arguments.insert(arguments.end(), {"--peer", PEERS});
      }
      const Outcome run = RunBench(operation, arguments);
      ASSERT_EQ(run.code, 0) << operation << " " << transport << "\n" << run.err;
      std::vector<std::string> names;
      for (const nlohmann::json& line : Lines(run.out)) {
        ExpectRight(line, operation, 2);
        EXPECT_GT(line["ratio"].get<double>(), 0);
        EXPECT_EQ(line["rounds_us"].size(), 2U);
        const std::string configuration = line.value("configuration", "");
        names.push_back(line["impl"].get<std::string>() + (configuration.empty() ? "" : " ") +
                        configuration);
      }
      EXPECT_EQ(names, Beside(operation, transport)) << operation << " " << transport;
    }
  }
}

// Gloo's copies its result to where what it sends has not gone from yet, unless it is made to wait.
TEST(BenchCollective, GloosReduceScatterIsRightWhereItFillsTheSocketsToo) {
  if (!Has("gloo")) {
    GTEST_SKIP() << "this build has no Gloo";
  }
  for (const std::string ranks : {"2", "4"}) {
    const Outcome run = RunBench("reducescatter", {"--peer", "gloo", "--ranks", ranks, "--sizes",
                                                   "16m", "--seconds", "0.4", "--rounds", "2"});
    EXPECT_EQ(run.code, 0) << run.out << run.err;
  }
}

// Ours spin a little and sleep then; 50 ms are long beside that.
TEST(BenchCollective, WhatWaitingForALateRankTakesOfACoreIsTold) {
  for (const std::string transport : {"shm", "tcp"}) {
    const Outcome run =
        RunBench("allreduce", {"--transport", transport, "--sizes", "8", "--rounds", "2",
                               "--seconds", "0.4", "--late-ms", "50", "--json"});
    ASSERT_EQ(run.code, 0) << run.err;
    const nlohmann::json line = Lines(run.out).at(0);
    ExpectRight(line, "allreduce", 2);
    EXPECT_EQ(line["late_ms"], 50);
    EXPECT_GE(line["time_us"].get<double>(), 45'000) << "the others wait for the late one";
    EXPECT_GT(line["cpu_per_waiting_second"].get<double>(), 0);
    EXPECT_LT(line["cpu_per_waiting_second"].get<double>(), 0.2) << transport;
  }
}

// Of a build without Gloo, and of one with it: its reduce-scatter is for powers of two.
TEST(BenchCollective, AnAbsentPeerIsExitCode2) {
  const Outcome run =
      RunBench("reducescatter", {"--peer", "gloo", "--ranks", "3", "--sizes", "12"});
  EXPECT_EQ(run.code, 2);
  EXPECT_THAT(run.err, HasSubstr("peer gloo"));
}

TEST(BenchCollective, WrongFlagsAreExitCode2) {
  EXPECT_EQ(RunBench("broadcast", {"--transport", "shm", "--late-ms", "50"}).code, 2);
  EXPECT_EQ(RunBench("allreduce", {"--transport", "local", "--late-ms", "50"}).code, 2);
  EXPECT_EQ(RunBench("allreduce", {"--transport", "carrier-pigeon"}).code, 2);
  EXPECT_EQ(RunBench("allreduce", {"--ranks", "0"}).code, 2);
  EXPECT_EQ(RunBench("allreduce", {"--sizes", "8,0"}).code, 2);
  EXPECT_EQ(RunBench("allreduce", {"--sizes", "-1"}).code, 2);
  EXPECT_EQ(RunBench("allreduce", {"--begin", "64", "--end", "8"}).code, 2);
  EXPECT_EQ(RunBench("allreduce", {"--peer", "nobody"}).code, 2);
  EXPECT_EQ(RunBench("allreduce", {"--limit", "handover", "--sizes", "1m"}).code, 2);
  EXPECT_EQ(RunBench("broadcast", {"--limit", "handover", "--sizes", "8"}).code, 2);
  for (const auto& [flag, value] : {std::pair{"--peer", "openmpi"}, {"--transport", "mpi"}}) {
    const Outcome prefixed = RunBench("allreduce", {flag, value, "--exec-prefix", "env"});
    EXPECT_EQ(prefixed.code, 2) << flag;
    EXPECT_THAT(prefixed.err, HasSubstr("--exec-prefix does not reach [leave them out"));
  }
  const Outcome run = RunBench("allreduce", {"--dtype", "float8"});
  EXPECT_EQ(run.code, 2);
  EXPECT_THAT(run.err, HasSubstr("float8"));
}

TEST(BenchCollective, AnUnknownAlgorithmIsSaidOnceMeasuringBegins) {
  const Outcome run =
      RunBench("allreduce", {"--transport", "tcp", "--algorithm", "bogus", "--sizes", "8"});
  EXPECT_NE(run.code, 0);
  EXPECT_THAT(run.err, HasSubstr("bogus"));
}

std::vector<pid_t> ChildrenOf(pid_t pid) {
  const std::string path =
      "/proc/" + std::to_string(pid) + "/task/" + std::to_string(pid) + "/children";
  std::ifstream file(path);
  std::vector<pid_t> children;
  for (pid_t child = 0; file >> child;) {
    children.push_back(child);
  }
  return children;
}

TEST(BenchCollective, AKilledRankEndsTheRunAndAllOthers) {
  testing::ProcessCluster processes;
  processes.Start("bench", Command("allreduce", {"--transport", "tcp", "--ranks", "3", "--sizes",
                                                 "1m", "--seconds", "500"}));
  ASSERT_TRUE(processes.WaitForOutput("bench", "#wrong", std::chrono::seconds(30)));  // all there
  const std::vector<pid_t> children = ChildrenOf(processes.pid("bench"));
  ASSERT_EQ(children.size(), 6U) << "three ranks and three of the limit";
  ASSERT_EQ(::kill(children[1], SIGKILL), 0);
  EXPECT_EQ(processes.Wait("bench", std::chrono::seconds(20)), 138) << processes.Logs();
  EXPECT_THAT(processes.Stderr("bench"), HasSubstr("cohort"));
  for (const pid_t child : children) {
    EXPECT_EQ(::kill(child, 0), -1) << "process " << child << " is left behind";
  }
}

}  // namespace
}  // namespace cohort
