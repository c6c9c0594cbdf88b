// A process is killed or stopped in the middle of a large all-reduce in shared memory, whose
// buffers are private or allocated by the communicator. The others hear of it in time, keep what
// they have, and go on in the next generation: without it, or with it once it is awake.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "testing/process_cluster.h"
#include "testing/temp_dir.h"

namespace cohort::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr milliseconds kTimeout{3000};
constexpr auto kMost = kTimeout * 3 / 2 + seconds(2);  // fault_run_test asks for less
constexpr seconds kPatience{30};
constexpr int kVictim = 1;

// Each rank's memory, 'a'llocated or 'p'rivate, and the signal.
class NextGeneration : public ::testing::TestWithParam<std::tuple<std::string, int>> {
 protected:
  NextGeneration() {
    const auto& [memory, signal] = GetParam();
    for (int rank = 0; rank < static_cast<int>(memory.size()); ++rank) {
      const bool allocated = memory[static_cast<std::size_t>(rank)] == 'a';
      cluster_.Start(
          Name(rank),
          {COHORT_BIN_DIR "/../tests/next_generation_task", std::to_string(rank),
           std::to_string(memory.size()), folder_.path(), std::to_string(kTimeout.count()),
           allocated ? "allocated" : "private", std::to_string(rank == kVictim ? signal : 0)});
    }
  }

  static std::string Name(int rank) { return "worker:" + std::to_string(rank); }
  // How long a rank has waited, and for what; nothing if it has not failed in time.
  std::string FailureOf(int rank) const {
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    std::string text;
    while (text.empty() && std::chrono::steady_clock::now() < deadline) {
      std::ifstream file(folder_.path() + "/failed." + std::to_string(rank));
      text.assign(std::istreambuf_iterator<char>(file), {});
      std::this_thread::sleep_for(milliseconds(1));
    }
    return text;
  }
  void ExpectThatTheyGoOn(const std::vector<int>& members) {
    const std::string path = folder_.path() + "/next";
    std::ofstream file(path + ".draft");
    for (const int rank : members) {
      file << rank << " ";
    }
    file.close();
    ASSERT_EQ(std::rename((path + ".draft").c_str(), path.c_str()), 0);
    for (const int rank : members) {
      EXPECT_EQ(cluster_.Wait(Name(rank), kPatience), 0) << cluster_.Logs();
      EXPECT_EQ(cluster_.Stdout(Name(rank)), "right\n");
    }
  }

  TempDir folder_;
  ProcessCluster cluster_;
};

TEST_P(NextGeneration, FollowsAFailureInTheMiddleOfAnOperation) {
  const bool killed = std::get<1>(GetParam()) == SIGKILL;
  const std::string kind = "AllReduce 'gradients' float32[16777216] #";
  const auto names_the_culprit =
      killed ? AllOf(HasSubstr("Unavailable: rank 1 (worker:1) is gone "), HasSubstr(kind))
             : AllOf(HasSubstr("DeadlineExceeded: " + kind),
                     HasSubstr("rank 1 (worker:1) gives no sign of life"));
  for (const int rank : {0, 2}) {
    const std::string failure = FailureOf(rank);
    EXPECT_THAT(failure, names_the_culprit) << cluster_.Logs();
    EXPECT_LE(milliseconds(std::atoi(failure.c_str())), kMost) << Name(rank);
  }
  if (killed) {
    EXPECT_EQ(cluster_.Wait(Name(kVictim), kPatience), 128 + SIGKILL);
    ExpectThatTheyGoOn({0, 2});
  } else {
    ASSERT_TRUE(cluster_.Signal(Name(kVictim), SIGCONT));
    EXPECT_THAT(FailureOf(kVictim), names_the_culprit) << cluster_.Logs();
    ExpectThatTheyGoOn({0, 1, 2});
  }
}

INSTANTIATE_TEST_SUITE_P(Shm, NextGeneration,
                         ::testing::Combine(::testing::Values("ppp", "app", "pap", "aaa"),
                                            ::testing::Values(SIGKILL, SIGSTOP)),
                         [](const auto& it) {
                           return std::get<0>(it.param) +
                                  (std::get<1>(it.param) == SIGKILL ? "Killed" : "Stopped");
                         });

}  // namespace
}  // namespace cohort::testing
