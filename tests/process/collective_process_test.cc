// Collectives among real processes: killed, stopped, absent.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>

#include <cohort/core/status.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <thread>

#include "testing/process_cluster.h"
#include "testing/temp_dir.h"

namespace cohort::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;

std::string Contents(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

constexpr int kForever = 1'000'000'000;

class CollectiveProcesses : public ::testing::TestWithParam<std::string> {
 protected:
  static std::vector<std::string> Task(int rank, int size, const std::string& folder,
                                       int timeout_ms, int connect_ms, int steps) {
    return {COHORT_BIN_DIR "/../tests/collective_task",
            GetParam(),
            std::to_string(rank),
            std::to_string(size),
            folder,
            std::to_string(timeout_ms),
            std::to_string(connect_ms),
            std::to_string(steps)};
  }
  void Start(int rank, int size, int timeout_ms, int connect_ms, int steps, int stop_after = 0) {
    std::vector<std::string> task = Task(rank, size, folder_.path(), timeout_ms, connect_ms, steps);
    task.push_back("stop_after=" + std::to_string(stop_after));
    cluster_.Start(Name(rank), task);
  }
  std::string Record(int rank) {
    return folder_.path() + "/flight/collectives.g1.rank" + std::to_string(rank) + ".jsonl";
  }
  // `cohort trace`: its output, errors too.
  std::string Trace(std::vector<std::string> arguments, int code = 0) {
    const std::string name = "trace " + std::to_string(++traces_);
    arguments.insert(arguments.begin(), {COHORT_BIN_DIR "/cohort", "trace"});
    cluster_.Start(name, arguments);
    EXPECT_EQ(cluster_.Wait(name, seconds(10)), code) << cluster_.Logs();
    return cluster_.Stdout(name) + cluster_.Stderr(name);
  }
  static std::string Name(int rank) { return "worker:" + std::to_string(rank); }
  void ExpectFailure(int rank, seconds limit, const std::string& part, const std::string& other) {
    EXPECT_EQ(cluster_.Wait(Name(rank), limit), 138) << cluster_.Logs();
    EXPECT_THAT(cluster_.Stderr(Name(rank)), AllOf(HasSubstr(part), HasSubstr(other)));
  }

  int traces_ = 0;
  TempDir folder_;
  ProcessCluster cluster_;
};

TEST_P(CollectiveProcesses, StartInAnyOrderAndLeaveInGoodOrder) {
  for (const int rank : {2, 0, 1}) {
    Start(rank, 3, 20000, 20000, 20);
  }
  for (const auto& [name, code] : cluster_.WaitAll(seconds(30))) {
    EXPECT_EQ(code, 0) << cluster_.Logs();
    EXPECT_THAT(cluster_.Stdout(name), HasSubstr("step 20\n"));
  }
}

TEST_P(CollectiveProcesses, AKilledPeerIsNamedByAll) {
  for (int rank = 0; rank < 4; ++rank) {
    Start(rank, 4, 60000, 20000, kForever);
  }
  ASSERT_TRUE(cluster_.WaitForOutput(Name(2), "step 3\n", seconds(30))) << cluster_.Logs();
  ASSERT_TRUE(cluster_.Signal(Name(2), SIGKILL));
  for (const int rank : {0, 1, 3}) {
    ExpectFailure(rank, seconds(15), "rank 2 (worker:2) is gone ",
                  "AllReduce 'gradients' float32[500000] #");
    EXPECT_THAT(cluster_.Stderr(Name(rank)), HasSubstr("Unavailable: "));
  }
}

TEST_P(CollectiveProcesses, AStoppedPeerIsNamedAtTheDeadline) {
  for (int rank = 0; rank < 4; ++rank) {
    Start(rank, 4, 4000, 20000, kForever);
  }
  ASSERT_TRUE(cluster_.WaitForOutput(Name(1), "step 3\n", seconds(30))) << cluster_.Logs();
  ASSERT_TRUE(cluster_.Signal(Name(1), SIGSTOP));
  const auto stopped = std::chrono::steady_clock::now();
  for (const int rank : {0, 2, 3}) {
    ExpectFailure(rank, seconds(15), "DeadlineExceeded: AllReduce 'gradients' float32[500000] #",
                  "rank 1 (worker:1) gives no sign of life (last heard of in operation #");
  }
  // 1.5 times the timeout, and what the last step and leaving take.
  EXPECT_LT(std::chrono::steady_clock::now() - stopped, milliseconds(6000 + 5000));
}

TEST_P(CollectiveProcesses, MergedFlightRecordsNameTheRankThatIsBehind) {
  for (int rank = 0; rank < 3; ++rank) {
    Start(rank, 3, 3000, 20000, kForever, rank == 1 ? 5 : 0);
  }
  for (const int rank : {0, 2}) {
    ExpectFailure(rank, seconds(20), "AllReduce 'gradients' float32[500000] #6",
                  "rank 1 (worker:1) gives no sign of life (last heard of in operation #5)");
  }
  EXPECT_THAT(Trace({Record(0), Record(2)}),
              AllOf(HasSubstr("collectives, generation 1: 3 ranks, 2 records"),
                    HasSubstr("behind, or gone: rank 1 wrote no record"),
                    HasSubstr("rank 0 (worker:0), rank 2 (worker:2) are in AllReduce 'gradients' "
                              "float32[500000] #6")));
  // It wakes up, hears what became of the job, and writes its own.
  ASSERT_TRUE(cluster_.Signal(Name(1), SIGCONT));
  ExpectFailure(1, seconds(20), "rank 1 (worker:1) gives no sign of life", "#6");
  // Usually before it enters #6; but its threads wake in any order, and the one that reads the
  // news may be the last.
  const std::string chrome = folder_.path() + "/trace.json";
  EXPECT_THAT(Trace({Record(0), Record(1), Record(2), "--chrome", chrome}),
              AllOf(HasSubstr("3 ranks, 3 records"),
                    AnyOf(HasSubstr("behind: rank 1 (worker:1) last entered AllReduce 'gradients' "
                                    "float32[500000] #5 (done, "),
                          HasSubstr("all ranks are in AllReduce 'gradients' float32[500000] #6")),
                    HasSubstr("wrote " + chrome)));
  EXPECT_THAT(Contents(chrome),
              AllOf(HasSubstr("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[{"),
                    HasSubstr("\"cat\":\"AllReduce\""), HasSubstr("\"ph\":\"X\"")));
}

TEST_P(CollectiveProcesses, AFlightRecordOnRequest) {
  for (int rank = 0; rank < 2; ++rank) {
    Start(rank, 2, 20000, 20000, kForever);
  }
  ASSERT_TRUE(cluster_.WaitForOutput(Name(0), "step 3\n", seconds(30))) << cluster_.Logs();
  ASSERT_TRUE(cluster_.Signal(Name(0), SIGUSR1));
  ASSERT_TRUE(cluster_.WaitForOutput(Name(0), "dumped " + Record(0), seconds(30)))
      << cluster_.Logs();
  EXPECT_THAT(Trace({Record(0)}), AllOf(HasSubstr("rank 1 wrote no record"),
                                        HasSubstr("rank 0 (worker:0) is in AllReduce")));

  const std::string record = Contents(Record(0));
  const std::string cut = folder_.path() + "/cut";
  std::ofstream(cut) << record.substr(0, record.size() - 20);
  EXPECT_THAT(Trace({cut}, ExitCode(DataLoss(""))), HasSubstr(cut + " was cut: "));
  const std::string foreign = folder_.path() + "/foreign";
  std::ofstream(foreign) << "{\"step\": 1}\n";
  EXPECT_THAT(
      Trace({foreign}, ExitCode(InvalidArgument(""))),
      HasSubstr(foreign + " is neither a flight record nor a step trace: its first line is no "
                          "header"));
  EXPECT_THAT(Trace({Record(0), Record(0)}, ExitCode(InvalidArgument(""))),
              HasSubstr("are both of rank 0"));
  EXPECT_THAT(Trace({folder_.path() + "/none"}, ExitCode(NotFound(""))), HasSubstr("/none"));
}

TEST_P(CollectiveProcesses, AnAbsentPeerIsNamedAtTheDeadline) {
  for (const int rank : {0, 2}) {
    Start(rank, 3, 20000, 3000, kForever);
  }
  for (const int rank : {0, 2}) {
    ExpectFailure(rank, seconds(15), "DeadlineExceeded: rank " + std::to_string(rank),
                  "missing rank 1 (worker:1) (has not published ");
  }
}

// Eight processes of one host are ready in less than a second (comm/README.md): in one of ten
// starts at least, since a machine may do something else meanwhile.
TEST_P(CollectiveProcesses, EightAreSoonReady) {
  std::chrono::steady_clock::duration best = seconds(30);
  for (int start = 0; start < 10 && best >= seconds(1); ++start) {
    const TempDir folder;
    ProcessCluster cluster;
    const auto started = std::chrono::steady_clock::now();
    for (int rank = 0; rank < 8; ++rank) {
      cluster.Start(Name(rank), Task(rank, 8, folder.path(), 20000, 20000, 1));
    }
    for (const auto& [name, code] : cluster.WaitAll(seconds(30))) {
      EXPECT_EQ(code, 0) << cluster.Logs();
    }
    best = std::min(best, std::chrono::steady_clock::now() - started);
  }
  RecordProperty("milliseconds",
                 static_cast<int>(std::chrono::duration_cast<milliseconds>(best).count()));
  EXPECT_LT(best, seconds(1));
}

INSTANTIATE_TEST_SUITE_P(Tcp, CollectiveProcesses, ::testing::Values("tcp"));
INSTANTIATE_TEST_SUITE_P(Shm, CollectiveProcesses, ::testing::Values("shm"));
INSTANTIATE_TEST_SUITE_P(Hierarchical, CollectiveProcesses, ::testing::Values("hierarchical"));

std::chrono::nanoseconds ProcessorTimeOf(pid_t pid) {
  clockid_t clock = {};
  timespec used = {};
  EXPECT_EQ(::clock_getcpuclockid(pid, &clock), 0);
  EXPECT_EQ(::clock_gettime(clock, &used), 0);
  return seconds(used.tv_sec) + std::chrono::nanoseconds(used.tv_nsec);
}

// One process is stopped; those that wait for it, all threads of theirs, leave their core alone.
class WaitingProcesses : public ::testing::TestWithParam<std::string> {};

TEST_P(WaitingProcesses, TakeNoCore) {
  const int ranks = GetParam() == "hierarchical" ? 3 : 2;  // two of them share a host
  const TempDir folder;
  ProcessCluster cluster;
  const auto task = [&](int rank) -> std::vector<std::string> {
    return {COHORT_BIN_DIR "/../tests/collective_task",
            GetParam(),
            std::to_string(rank),
            std::to_string(ranks),
            folder.path(),
            "60000",
            "20000",
            std::to_string(kForever),
            "count=100000",
            "log=1"};
  };
  if (GetParam() == "mpi") {
    if (std::string(TEST_MPIEXEC).empty()) {
      GTEST_SKIP() << "built without MPI";
    }
    std::vector<std::string> command = {TEST_MPIEXEC, "--allow-run-as-root", "--oversubscribe",
                                        "-n", std::to_string(ranks)};
    const std::vector<std::string> program = task(0);
    command.insert(command.end(), program.begin(), program.end());
    cluster.Start("mpirun", command);
  } else {
    for (int rank = 0; rank < ranks; ++rank) {
      cluster.Start("worker:" + std::to_string(rank), task(rank));
    }
  }
  std::vector<pid_t> pids;
  const auto deadline = std::chrono::steady_clock::now() + seconds(30);
  for (int rank = 0; rank < ranks; ++rank) {
    const std::string number = std::to_string(rank);
    while (Contents(folder.path() + "/log." + number).find("step 100\n") == std::string::npos) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << cluster.Logs();
      std::this_thread::sleep_for(milliseconds(1));
    }
    pids.push_back(std::atoi(Contents(folder.path() + "/pid." + number).c_str()));
  }
  ASSERT_EQ(::kill(pids.back(), SIGSTOP), 0);
  constexpr milliseconds kWait{1000};
  bool little = false;
  // Others may disturb it, and at first what the stopped one has sent before is used.
  for (int attempt = 0; attempt < 5 && !little; ++attempt) {
    std::vector<std::chrono::nanoseconds> before;
    for (int rank = 0; rank + 1 < ranks; ++rank) {
      before.push_back(ProcessorTimeOf(pids[static_cast<std::size_t>(rank)]));
    }
    std::this_thread::sleep_for(kWait);
    little = true;
    for (int rank = 0; rank + 1 < ranks; ++rank) {
      const auto used = ProcessorTimeOf(pids[static_cast<std::size_t>(rank)]) -
                        before[static_cast<std::size_t>(rank)];
      RecordProperty("cpu_us_" + std::to_string(rank), static_cast<int>(used.count() / 1000));
      little &= used < kWait / 50;
    }
  }
  EXPECT_TRUE(little) << "more than 2% of a core";
  for (const int signal : {SIGSTOP, SIGKILL}) {  // so that none hears of another's end
    for (const pid_t pid : pids) {
      ::kill(pid, signal);
    }
  }
  for (const auto& [name, code] : cluster.WaitAll(seconds(15))) {
    EXPECT_EQ(code, 128 + SIGKILL) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Transports, WaitingProcesses,
                         ::testing::Values("tcp", "shm", "hierarchical", "mpi"),
                         [](const auto& transport) { return transport.param; });

// The memory that a process shares with others, as the kernel tells it from all other: device and
// inode. None of it has a name.
std::set<std::string> SharedMemoryOf(pid_t pid) {
  std::set<std::string> memory;
  std::ifstream maps("/proc/" + std::to_string(pid) + "/maps");
  for (std::string line; std::getline(maps, line);) {
    std::istringstream fields(line);
    std::string range, permissions, offset, device, inode, path;
    fields >> range >> permissions >> offset >> device >> inode >> path;
    if (permissions.back() == 's' && inode != "0") {
      EXPECT_THAT(line, EndsWith("/memfd:cohort (deleted)"));
      memory.insert(device + " " + inode);
    }
  }
  return memory;
}

// Whether a process has a descriptor of some of it.
bool HasDescriptorOf(const std::filesystem::path& process, const std::set<std::string>& memory) {
  std::error_code gone;
  for (const auto& entry : std::filesystem::directory_iterator(process / "fd", gone)) {
    struct stat file = {};
    if (::stat(entry.path().c_str(), &file) != 0) {
      continue;
    }
    std::array<char, 64> text = {};
    std::snprintf(text.data(), text.size(), "%02x:%02x %llu", major(file.st_dev),
                  minor(file.st_dev), static_cast<unsigned long long>(file.st_ino));
    if (memory.contains(text.data())) {
      return true;
    }
  }
  return false;
}

// The processes of this machine that keep some of it, by a mapping or by a descriptor; of those
// that this one may look at.
std::set<pid_t> Keepers(const std::set<std::string>& memory) {
  std::set<pid_t> keepers;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const pid_t pid = std::atoi(entry.path().filename().c_str());
    if (pid <= 0) {
      continue;
    }
    const std::string maps = Contents(entry.path() / "maps");
    if (HasDescriptorOf(entry.path(), memory) ||
        std::ranges::any_of(memory, [&](const std::string& inode) {
          return maps.find(" " + inode + " ") != std::string::npos;
        })) {
      keepers.insert(pid);
    }
  }
  return keepers;
}

// The memory has no name, so that nothing is left when its processes are killed.
class SharedMemoryProcesses : public CollectiveProcesses {};

TEST_P(SharedMemoryProcesses, NothingIsLeftAfterAKill) {
  for (int rank = 0; rank < 2; ++rank) {
    Start(rank, 2, 60000, 20000, kForever);
  }
  ASSERT_TRUE(cluster_.WaitForOutput(Name(1), "step 3\n", seconds(30))) << cluster_.Logs();
  const pid_t first = cluster_.pid(Name(0));
  const pid_t second = cluster_.pid(Name(1));
  std::set<std::string> memory = SharedMemoryOf(first);
  memory.merge(SharedMemoryOf(second));
  EXPECT_GE(memory.size(), 4U) << "of each its rings and board, and its gradients";
  EXPECT_EQ(Keepers(memory), (std::set<pid_t>{first, second}));
  ASSERT_TRUE(cluster_.Signal(Name(1), SIGKILL));
  EXPECT_EQ(cluster_.Wait(Name(1), seconds(15)), 128 + SIGKILL);
  ExpectFailure(0, seconds(15), "Unavailable: rank 1 (worker:1) is gone ", "AllReduce 'gradients'");
  EXPECT_THAT(Keepers(memory), ::testing::IsEmpty());  // and so the kernel has it back
}

INSTANTIATE_TEST_SUITE_P(Shm, SharedMemoryProcesses, ::testing::Values("shm"));

}  // namespace
}  // namespace cohort::testing
