// MultiWorkerMirrored between real processes: they agree on every bit, and none outlives another's
// end by more than the heartbeat.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <cohort/comm/mpi.h>
#include <cohort/core/file_system.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/process_cluster.h"
#include "testing/temp_dir.h"

namespace cohort::testing {
namespace {

using ::testing::HasSubstr;
using namespace std::chrono_literals;

constexpr int kConfiguration = 2;
constexpr int kPeerLost = 138;
constexpr auto kStart = 60s;  // for a loaded machine
constexpr auto kEnd = 15s;    // what an end may take

std::vector<std::string> Task(const std::string& kind, std::int64_t steps,
                              const std::vector<std::string>& settings = {}) {
  std::vector<std::string> argv{COHORT_BIN_DIR "/../tests/strategy_task", kind,
                                std::to_string(steps)};
  argv.insert(argv.end(), settings.begin(), settings.end());
  return argv;
}

constexpr std::int64_t kForever = 100'000'000;

void AwaitTraining(ProcessCluster& cluster) {
  for (const std::string& name : cluster.names()) {
    ASSERT_TRUE(cluster.WaitForOutput(name, "step 100\n", kStart)) << cluster.Logs();
  }
}

// Every process but `gone` has ended with `code` in time, saying `text`.
void ExpectEnded(ProcessCluster& cluster, const std::string& gone, int code,
                 const std::string& text) {
  const auto codes = cluster.WaitAll(kEnd);
  for (const std::string& name : cluster.names()) {
    if (name != gone) {
      EXPECT_EQ(codes.at(name), code) << name;
      EXPECT_THAT(cluster.Stderr(name), HasSubstr(text)) << name;
    }
  }
}

std::string DoneLine(const std::string& output) {
  const std::size_t at = output.find("done ");
  return at == std::string::npos ? "not done" : output.substr(at, output.find('\n', at) - at);
}

std::string TrainAlone(const std::vector<std::string>& argv) {
  ProcessCluster cluster;
  cluster.Start("alone", argv);
  EXPECT_EQ(cluster.Wait("alone", kStart), 0);
  return DoneLine(cluster.Stdout("alone"));
}

TEST(MultiWorkerMirrored, ProcessesEndWithOneProcessesParameters) {
  const std::string expected = TrainAlone(Task("one_device", 40));
  ASSERT_THAT(expected, HasSubstr("done "));
  EXPECT_EQ(TrainAlone(Task("mirrored", 40, {"devices=3"})), expected);
  const std::vector<std::vector<std::pair<std::string, int>>> clusters{
      {{"worker", 2}}, {{"worker", 3}}, {{"chief", 1}, {"worker", 2}}};
  for (const auto& jobs : clusters) {
    ProcessCluster cluster;
    cluster.StartTasks(jobs, Task("-", 40, {"devices=2"}));  // the kind is the environment's
    for (const auto& [name, code] : cluster.WaitAll(kStart)) {
      EXPECT_EQ(code, 0) << name;
      EXPECT_EQ(DoneLine(cluster.Stdout(name)), expected) << name;
    }
  }
}

// From the command to the end of a job's first step, of eight: in less than a second. In one
// of ten at least, since a machine may do something else meanwhile.
TEST(MultiWorkerMirrored, EightUnderLaunchAreSoonReady) {
  std::chrono::steady_clock::duration best = kStart;
  for (int start = 0; start < 10 && best >= 1s; ++start) {
    ProcessCluster cluster;
    std::vector<std::string> argv = {COHORT_BIN_DIR "/cohort", "launch", "-n", "8", "--"};
    const std::vector<std::string> task = Task("-", 1);
    argv.insert(argv.end(), task.begin(), task.end());
    const auto started = std::chrono::steady_clock::now();
    cluster.Start("launch", argv);
    EXPECT_EQ(cluster.Wait("launch", kStart), 0) << cluster.Logs();
    best = std::min(best, std::chrono::steady_clock::now() - started);
    EXPECT_THAT(cluster.Stdout("launch"), HasSubstr("[worker:7] done "));
  }
  EXPECT_LT(best, 1s);
}

// Each process reads its own part of the bytes of one large file, and no other; together they are
// trained on every row once, and all end after the same step.
TEST(MultiWorkerMirrored, ProcessesReadTheirOwnPartsOfACsvFile) {
  const TempDir folder;
  std::string rows = "x0,x1,x2,x3,id,tokens\n";
  constexpr int kRows = 500;
  for (int i = 0; i < kRows; ++i) {
    // The first rows are long: parts of as many bytes have other numbers of rows.
    rows += std::to_string(i % 7 - 3) + "," + std::string(i < 100 ? 60 : 0, ' ') +
            std::to_string(i % 5 - 2) + ",1,-1," + std::to_string(i) + "," + std::to_string(i % 3) +
            "\n";
  }
  const std::string path = folder / "rows.csv";
  OrThrow(WriteFileAtomically(FileSystem::Local(), path, rows));
  ProcessCluster cluster;
  cluster.StartTasks({{"worker", 3}}, Task("-", 120, {"csv=" + path}));
  std::int64_t ids = 0;
  std::int64_t examples = 0;
  std::set<std::string> done;
  std::set<std::int64_t> shares;
  for (const auto& [name, code] : cluster.WaitAll(kStart)) {
    EXPECT_EQ(code, 0) << name << cluster.Stderr(name);
    const std::string out = cluster.Stdout(name);
    const std::size_t at = out.find("ids ");
    ASSERT_NE(at, std::string::npos) << out;
    std::int64_t sum = 0;
    std::int64_t count = 0;
    ASSERT_EQ(std::sscanf(out.c_str() + at, "ids %ld of %ld", &sum, &count), 2) << out;
    ids += sum;
    examples += count;
    shares.insert(count);
    done.insert(DoneLine(out));
  }
  EXPECT_EQ(examples, kRows);
  EXPECT_EQ(ids, kRows * (kRows - 1) / 2) << "every row once";
  EXPECT_GT(shares.size(), 1U) << "of other sizes";
  EXPECT_EQ(done.size(), 1U) << "one and the same model";
}

// The gradient of one replica of one process overflows: all processes leave that step out, as one
// process does.
TEST(MultiWorkerMirrored, AnOverflowIsSkippedByAllProcesses) {
  const std::string expected = TrainAlone(Task("one_device", 40, {"overflow_at=7"}));
  ASSERT_THAT(expected, HasSubstr("done "));
  EXPECT_NE(TrainAlone(Task("one_device", 40)), expected);
  ProcessCluster cluster;
  cluster.StartTasks({{"worker", 2}}, Task("-", 40, {"devices=2", "overflow_at=7"}));
  for (const auto& [name, code] : cluster.WaitAll(kStart)) {
    EXPECT_EQ(code, 0) << name;
    EXPECT_THAT(cluster.Stdout(name), HasSubstr("skipped 7, scale 16384\n")) << name;
    EXPECT_EQ(DoneLine(cluster.Stdout(name)), expected) << name;
  }
}

TEST(MultiWorkerMirrored, TheLossOfAWorkerEndsTheOthers) {
  ProcessCluster cluster;
  cluster.StartTasks({{"worker", 3}}, Task("multi_worker_mirrored", kForever));
  AwaitTraining(cluster);
  ASSERT_TRUE(cluster.Signal("worker:1", SIGKILL));
  ExpectEnded(cluster, "worker:1", kPeerLost, "worker:1");
  for (const std::string name : {"worker:0", "worker:2"}) {  // by whom and where it is missed
    EXPECT_THAT(cluster.Stderr(name),
                ::testing::ContainsRegex("(AllReduce|Barrier|AllGather|Broadcast).* #[0-9]+"));
    EXPECT_THAT(cluster.Stderr(name), HasSubstr("(generation 1)"));
    EXPECT_THAT(cluster.Stderr(name),
                ::testing::ContainsRegex("last heartbeat [0-9]+\\.[0-9] s ago"));
  }
}

TEST(MultiWorkerMirrored, TheLossOfTheChiefEndsTheOthers) {
  ProcessCluster cluster;
  cluster.StartTasks({{"worker", 3}}, Task("multi_worker_mirrored", kForever));
  AwaitTraining(cluster);
  ASSERT_TRUE(cluster.Signal("worker:0", SIGKILL));
  ExpectEnded(cluster, "worker:0", kPeerLost, "worker:0");
}

TEST(MultiWorkerMirrored, AWorkerThatStandsStillEndsTheOthers) {
  ProcessCluster cluster;
  cluster.StartTasks({{"worker", 3}},
                     Task("multi_worker_mirrored", kForever, {"heartbeat_timeout_ms=3000"}));
  AwaitTraining(cluster);
  std::this_thread::sleep_for(std::chrono::milliseconds(1500));  // a heartbeat tells of operations
  ASSERT_TRUE(cluster.Signal("worker:2", SIGSTOP));
  ASSERT_TRUE(cluster.Wait("worker:0", kEnd).has_value()) << cluster.Logs();
  ASSERT_TRUE(cluster.Wait("worker:1", kEnd).has_value()) << cluster.Logs();
  cluster.Signal("worker:2", SIGKILL);
  ExpectEnded(cluster, "worker:2", kPeerLost, "worker:2");
  EXPECT_THAT(cluster.Stderr("worker:0"),
              ::testing::ContainsRegex("sent no heartbeat for [3-9]\\.[0-9]"));
  EXPECT_THAT(cluster.Stderr("worker:0"),
              ::testing::ContainsRegex("it last entered (All|Broadcast).* #[0-9]+"));
}

TEST(MultiWorkerMirrored, AWorkersErrorIsEverybodysError) {
  ProcessCluster cluster;
  const std::string json = cluster.StartTasks(
      {{"worker", 3}}, Task("multi_worker_mirrored", kForever), {}, {"worker:1"});
  cluster.Start(
      "worker:1", Task("multi_worker_mirrored", kForever, {"fail_at=31"}),
      {{"TF_CONFIG", R"({"cluster":)" + json + R"(,"task":{"type":"worker","index":1}})"}});
  ExpectEnded(cluster, "nobody", 1, "the accelerator is on fire");
  EXPECT_THAT(cluster.Stderr("worker:0"), HasSubstr("worker:1, replica 1"));
}

TEST(MultiWorkerMirrored, AMissingWorkerIsCalledAndThenNamed) {
  ProcessCluster cluster;
  cluster.StartTasks({{"worker", 3}}, Task("multi_worker_mirrored", 10, {"join_timeout_ms=2000"}),
                     {}, {"worker:2"});
  ExpectEnded(cluster, "nobody", kPeerLost, "worker:2");
  EXPECT_THAT(cluster.Stderr("worker:0"), HasSubstr("waiting for 1/3: worker:2"));
}

std::vector<std::string> UnderMpirun(int processes, const std::vector<std::string>& task) {
  std::vector<std::string> argv{"mpirun", "--allow-run-as-root", "--oversubscribe", "-n",
                                std::to_string(processes)};
  argv.insert(argv.end(), task.begin(), task.end());
  return argv;
}

TEST(MultiWorkerMirroredUnderMpirun, EndsWithOneProcessesParameters) {
  if (!MpiBuilt()) {
    GTEST_SKIP() << "built without MPI";
  }
  const std::string expected = TrainAlone(Task("one_device", 40));
  ProcessCluster cluster;
  cluster.Start("mpirun", UnderMpirun(3, Task("-", 40, {"devices=2"})));
  EXPECT_EQ(cluster.Wait("mpirun", kStart), 0);
  const std::string output = cluster.Stdout("mpirun");
  std::size_t ranks = 0;
  for (std::size_t at = output.find(expected); at != std::string::npos;
       at = output.find(expected, at + 1)) {
    ++ranks;
  }
  EXPECT_EQ(ranks, 3U);
}

// The flight records, which are written when the job fails, say by what gradients went.
TEST(MultiWorkerMirroredUnderMpirun, GradientsGoByMpisOwnCollectivesWhereAskedFor) {
  if (!MpiBuilt()) {
    GTEST_SKIP() << "built without MPI";
  }
  const TempDir folder;
  ProcessCluster cluster;
  cluster.Start("mpirun", UnderMpirun(2, Task("multi_worker_mirrored", kForever,
                                              {"fail_at=20", "mpi=" + folder.path()})));
  const std::optional<int> code = cluster.Wait("mpirun", kStart);
  ASSERT_TRUE(code.has_value());
  EXPECT_NE(*code, 0);
  std::ifstream file(folder.path() + "/collectives.g1.rank0.jsonl");
  const std::string record((std::istreambuf_iterator<char>(file)),
                           std::istreambuf_iterator<char>());
  EXPECT_THAT(record, HasSubstr(R"("algorithm": "mpi")"));
}

TEST(MultiWorkerMirroredUnderMpirun, TheLossOfARankEndsTheOthers) {
  if (!MpiBuilt()) {
    GTEST_SKIP() << "built without MPI";
  }
  ProcessCluster cluster;
  cluster.Start("mpirun", UnderMpirun(3, Task("multi_worker_mirrored", kForever)));
  ASSERT_TRUE(cluster.WaitForOutput("mpirun", "step 100\n", kStart));
  // "worker:1 (host NAME, pid 4711) joined" says the coordination service.
  const std::string log = cluster.Stderr("mpirun");
  const std::size_t task = log.find("worker:1 (host ");
  ASSERT_NE(task, std::string::npos) << log;
  const std::size_t pid = log.find("pid ", task);
  ASSERT_NE(pid, std::string::npos) << log;
  ASSERT_EQ(::kill(std::stoi(log.substr(pid + 4)), SIGKILL), 0);
  const std::optional<int> code = cluster.Wait("mpirun", kEnd);
  ASSERT_TRUE(code.has_value());
  EXPECT_NE(*code, 0);
}

TEST(MultiWorkerMirrored, OneProcessKindsRefuseACluster) {
  for (const std::string kind : {"one_device", "mirrored", "parameter_server"}) {
    ProcessCluster cluster;
    cluster.StartTasks({{"worker", 2}}, Task(kind, 10), {}, {"worker:1"});
    EXPECT_EQ(cluster.Wait("worker:0", kStart), kConfiguration) << kind;
    EXPECT_THAT(cluster.Stderr("worker:0"), HasSubstr("worker:0 worker:1")) << kind;
    EXPECT_THAT(cluster.Stderr("worker:0"), HasSubstr("multi_worker_mirrored")) << kind;
  }
}

}  // namespace
}  // namespace cohort::testing
