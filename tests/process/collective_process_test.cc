// Collectives among real processes: killed, stopped, absent.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "testing/process_cluster.h"
#include "testing/temp_dir.h"

namespace cohort::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kForever = 1'000'000'000;

class CollectiveProcesses : public ::testing::Test {
 protected:
  void Start(int rank, int size, int timeout_ms, int connect_ms, int steps) {
    cluster_.Start(Name(rank), {COHORT_BIN_DIR "/../tests/collective_task", std::to_string(rank),
                                std::to_string(size), folder_.path(), std::to_string(timeout_ms),
                                std::to_string(connect_ms), std::to_string(steps)});
  }
  static std::string Name(int rank) { return "worker:" + std::to_string(rank); }
  void ExpectFailure(int rank, seconds limit, const std::string& part, const std::string& other) {
    EXPECT_EQ(cluster_.Wait(Name(rank), limit), 138) << cluster_.Logs();
    EXPECT_THAT(cluster_.Stderr(Name(rank)), AllOf(HasSubstr(part), HasSubstr(other)));
  }

  TempDir folder_;
  ProcessCluster cluster_;
};

TEST_F(CollectiveProcesses, StartInAnyOrderAndLeaveInGoodOrder) {
  for (const int rank : {2, 0, 1}) {
    Start(rank, 3, 20000, 20000, 20);
  }
  for (const auto& [name, code] : cluster_.WaitAll(seconds(30))) {
    EXPECT_EQ(code, 0) << cluster_.Logs();
    EXPECT_THAT(cluster_.Stdout(name), HasSubstr("step 20\n"));
  }
}

TEST_F(CollectiveProcesses, AKilledPeerIsNamedByAll) {
  for (int rank = 0; rank < 4; ++rank) {
    Start(rank, 4, 60000, 20000, kForever);
  }
  ASSERT_TRUE(cluster_.WaitForOutput(Name(2), "step 3\n", seconds(30))) << cluster_.Logs();
  ASSERT_TRUE(cluster_.Signal(Name(2), SIGKILL));
  for (const int rank : {0, 1, 3}) {
    ExpectFailure(rank, seconds(15), "Unavailable: rank 2 (worker:2) is gone ",
                  "AllReduce 'gradients' float32[500000] #");
  }
}

TEST_F(CollectiveProcesses, AStoppedPeerIsNamedAtTheDeadline) {
  for (int rank = 0; rank < 4; ++rank) {
    Start(rank, 4, 2000, 20000, kForever);
  }
  ASSERT_TRUE(cluster_.WaitForOutput(Name(1), "step 3\n", seconds(30))) << cluster_.Logs();
  ASSERT_TRUE(cluster_.Signal(Name(1), SIGSTOP));
  const auto stopped = std::chrono::steady_clock::now();
  for (const int rank : {0, 2, 3}) {
    ExpectFailure(rank, seconds(15), "DeadlineExceeded: AllReduce 'gradients' float32[500000] #",
                  "rank 1 (worker:1) gives no sign of life");
  }
  // 1.5 times the timeout, and what the last step and leaving take.
  EXPECT_LT(std::chrono::steady_clock::now() - stopped, milliseconds(3000 + 2000));
}

TEST_F(CollectiveProcesses, AnAbsentPeerIsNamedAtTheDeadline) {
  for (const int rank : {0, 2}) {
    Start(rank, 3, 20000, 1000, kForever);
  }
  for (const int rank : {0, 2}) {
    ExpectFailure(rank, seconds(15), "DeadlineExceeded: rank " + std::to_string(rank),
                  "rank 1 (worker:1) (has not published an address)");
  }
}

}  // namespace
}  // namespace cohort::testing
