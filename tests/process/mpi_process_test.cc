// Jobs under mpirun, of each MPI that is here, in which a rank stops or never comes: the others say
// who it is, and end.
#include <gtest/gtest.h>
#include <signal.h>

#include <cohort/core/status.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "testing/process_cluster.h"
#include "testing/temp_dir.h"

namespace cohort::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr milliseconds kTimeout{4000};
// 1.5 times the timeout, and what leaving takes: a second for what is under way, and one for the
// others.
constexpr milliseconds kMost = kTimeout * 3 / 2 + seconds(4);
constexpr const char* kNamed = "rank 1 (worker:1) gives no sign of life";
constexpr const char* kHearsOfNone = " hears of no other rank [";
constexpr auto kStart = seconds(60);     // for a loaded machine
constexpr auto kLaunch = seconds(15);    // of that, where a test counts from there
constexpr auto kPatience = seconds(10);  // for what has been said to come through mpirun

struct Mpi {
  std::string name;
  std::string task;
  // The second leaves alone those that are left when a process fails, or, of MPICH, sends them
  // SIGUSR1.
  std::vector<std::string> launcher;
  std::vector<std::string> going_on;
};

std::vector<Mpi> Mpis() {
  std::vector<Mpi> all;
  const std::string mpiexec = TEST_MPIEXEC;
  const std::string mpich = TEST_MPICH_EXEC;
  const bool first_is_mpich = TEST_FIRST_IS_MPICH;
  if (!first_is_mpich) {
    all.push_back({"OpenMpi",
                   "mpi_task",
                   {mpiexec, "--allow-run-as-root", "--oversubscribe"},
                   {"--enable-recovery"}});
  }
  if (first_is_mpich || !mpich.empty()) {
    all.push_back({"Mpich",
                   first_is_mpich ? "mpi_task" : "mpich_task",
                   {first_is_mpich ? mpiexec : mpich},
                   {"-disable-auto-cleanup"}});
  }
  return all;
}

std::string Contents(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

class MpiProcesses : public ::testing::TestWithParam<Mpi> {
 protected:
  ~MpiProcesses() override { End(); }

  // All that is left of a job.
  void End() {
    for (int rank = 0; rank < 4; ++rank) {
      if (const pid_t pid = Number("pid", rank).value_or(0); pid > 0) {
        ::kill(pid, SIGKILL);  // it may have stopped, and its launcher may be gone
      }
    }
  }
  // Jobs, each in a folder of its own, until rank 1, which stops in it, was named. In MPI's shared
  // memory nothing passes what a process was about to put into a queue as it stopped. The rank that
  // reads it then hears of nobody, and whether it or another is first to say so is chance.
  void UntilNamed(const std::function<void()>& job) {
    constexpr int kJobs = 3;
    for (int i = 1;; ++i) {
      job();
      if (HasFailure() || Count(kHearsOfNone) == 0) {
        return;
      }
      const std::string logs = cluster_->Logs();
      std::printf("job %d of %d: a rank hears of none\n%s", i, kJobs, logs.c_str());
      if (i == kJobs) {
        ADD_FAILURE() << "in none of " << kJobs << " jobs the stopped rank was named";
        return;
      }
      End();
      cluster_.emplace();
      folder_.emplace();
    }
  }

  // Ranks that do what `whats` say, in this order. What each ends with goes to folder_/exit.RANK.
  void Start(const std::vector<std::string>& whats, bool going_on = true) {
    std::vector<std::string> argv = GetParam().launcher;
    if (going_on) {
      argv.insert(argv.end(), GetParam().going_on.begin(), GetParam().going_on.end());
    }
    for (std::size_t i = 0; i < whats.size(); ++i) {
      if (i > 0) {
        argv.emplace_back(":");
      }
      argv.insert(argv.end(), {"-n", "1"});
      if (going_on) {  // else the launcher is to see the code
        argv.insert(argv.end(),
                    {"sh", "-c",
                     R"(trap "" USR1; "$@"; echo $? > "$0/exit.$OMPI_COMM_WORLD_RANK$PMI_RANK")",
                     folder_->path()});
      }
      argv.insert(argv.end(), {COHORT_BIN_DIR "/../tests/" + GetParam().task, folder_->path(),
                               std::to_string(kTimeout.count()), whats[i]});
    }
    started_ = steady_clock::now();
    cluster_->Start("mpirun", argv);
  }
  void StopInAnAllReduce(int rank, int size) {
    for (int r = 0; r < size; ++r) {
      ASSERT_TRUE(Await([&] { return Number("begun", r).has_value(); }, kStart));
    }
    ASSERT_EQ(::kill(Number("pid", rank).value_or(0), SIGSTOP), 0);
    started_ = steady_clock::now();
  }
  // They end with that code, in time.
  void ExpectEnds(const std::vector<int>& ranks, StatusCode code, milliseconds most = kMost) {
    for (const int rank : ranks) {
      EXPECT_TRUE(Await([&] { return Number("exit", rank).has_value(); }, 2 * most))
          << "rank " << rank << " does not end";
      EXPECT_EQ(Number("exit", rank), ExitCode(Status(code, ""))) << "rank " << rank;
    }
    EXPECT_LT(steady_clock::now() - started_, most);
  }
  // So often, or that a rank hears of none.
  void ExpectSaid(const std::string& text, int times) {
    EXPECT_TRUE(Await([&] { return Count(text) >= times || Count(kHearsOfNone) > 0; }, kPatience))
        << text << "\n"
        << cluster_->Stderr("mpirun");
  }
  void ExpectSaid(const std::vector<std::string>& texts) {
    const auto said = [&](const std::string& text) { return Count(text) > 0; };
    EXPECT_TRUE(Await([&] { return std::ranges::all_of(texts, said); }, kPatience))
        << ::testing::PrintToString(texts) << "\n"
        << cluster_->Stderr("mpirun");
  }
  int Count(const std::string& text) {
    const std::string said = cluster_->Stderr("mpirun");
    int count = 0;
    for (std::size_t at = 0; (at = said.find(text, at)) != std::string::npos; ++at) {
      ++count;
    }
    return count;
  }

  template <typename F>
  static bool Await(const F& done, milliseconds patience) {
    const auto deadline = steady_clock::now() + patience;
    while (!done()) {
      if (steady_clock::now() >= deadline) {
        return false;
      }
      std::this_thread::sleep_for(milliseconds(2));
    }
    return true;
  }
  std::optional<int> Number(const std::string& name, int rank) const {
    const std::string text = Contents(folder_->path() + "/" + name + "." + std::to_string(rank));
    return text.ends_with("\n") ? std::optional(std::atoi(text.c_str())) : std::nullopt;
  }

  std::optional<TempDir> folder_{std::in_place};
  std::optional<ProcessCluster> cluster_{std::in_place};
  steady_clock::time_point started_;
};

TEST_P(MpiProcesses, AStoppedRankKeepsNobodyFromEnding) {
  UntilNamed([&] {
    Start({"reduces", "reduces", "reduces", "reduces"});
    StopInAnAllReduce(1, 4);
    ExpectEnds({0, 2, 3}, StatusCode::kDeadlineExceeded);
    ExpectSaid("not done after 4 s: " + std::string(kNamed), 3);
  });
}

// As jobs are started: the launcher ends them all.
TEST_P(MpiProcesses, AStoppedRankDoesNotKeepTheJobFromEnding) {
  UntilNamed([&] {
    Start({"reduces", "reduces", "reduces"}, /*going_on=*/false);
    StopInAnAllReduce(1, 3);
    const std::optional<int> code = cluster_->Wait("mpirun", kMost + seconds(3));
    ASSERT_TRUE(code.has_value()) << "mpirun does not end";
    EXPECT_NE(*code, 0);
    ExpectSaid(kNamed, 1);
    EXPECT_TRUE(Await([&] { return ::kill(Number("pid", 1).value_or(0), 0) != 0; }, seconds(5)))
        << "the stopped process is left";
  });
}

TEST_P(MpiProcesses, ARankThatStopsWhileTheCommunicatorIsMadeIsNamed) {
  Start({"reduces", "stops", "reduces"});
  ExpectEnds({0, 2}, StatusCode::kDeadlineExceeded, kMost + kLaunch);
  ExpectSaid(
      {"rank 0 (worker:0) did not meet all 3 ranks within 4000 ms: "
       "missing rank 1 (worker:1) [",
       "rank 2 (worker:2) did not meet all 3 ranks within 4000 ms: "
       "missing rank 1 (worker:1) ["});
}

// Another program in the same world, which has nothing to do with cohort.
TEST_P(MpiProcesses, ARankThatMakesNoCommunicatorIsNamed) {
  Start({"reduces", "absent", "reduces"});
  ExpectEnds({0, 2}, StatusCode::kDeadlineExceeded, kMost + kLaunch);
  ExpectSaid(
      {"rank 0 (worker:0) did not meet all 3 ranks within 4000 ms: "
       "missing rank 1 (worker:1) ["});
}

TEST_P(MpiProcesses, AProgramThatAloneMayCallMpiIsRefused) {
  Start({"single", "single"});
  ExpectEnds({0, 1}, StatusCode::kFailedPrecondition, kMost + kLaunch);
  ExpectSaid({"the program initialised MPI with a thread level below MPI_THREAD_SERIALIZED",
              "[initialise it with MPI_Init_thread("});
}

INSTANTIATE_TEST_SUITE_P(Each, MpiProcesses, ::testing::ValuesIn(Mpis()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace cohort::testing
