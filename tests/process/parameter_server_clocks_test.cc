// The clocks of a job's hosts are hours apart (skewed_clock.cc).

#include <algorithm>
#include <chrono>
#include <csignal>
#include <iterator>
#include <map>
#include <numeric>
#include <sstream>
#include <string>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "process/ps_job.h"

namespace cohort::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Variables ClockOf(const std::string& seconds) {
  return {{"LD_PRELOAD", COHORT_BIN_DIR "/../tests/libskewed_clock.so"},
          {"COHORT_TEST_CLOCK", seconds}};
}

constexpr int kExamples = 1000;  // in batches of 10

// A heartbeat goes out each second. On a busy machine it may be seconds late, which is none of the
// clocks' doing; that they are an hour wrong shows as well beside a silence that is longer.
constexpr std::chrono::seconds kSilence{20};  // that counts as a loss
constexpr std::chrono::seconds kPause{2};     // in which at least one heartbeat is due

// What the chief says at the end, of a job with rows that age, saves and a worker that stops for a
// while.
std::string ReportWith(const std::map<std::string, std::string>& clocks) {
  const TempDir folder;
  std::map<std::string, Variables> of_task;
  for (const auto& [task, seconds] : clocks) {
    of_task[task] = ClockOf(seconds);
  }
  Job job({"--count", "--examples", std::to_string(kExamples), "--aging", "10", "--consistency",
           "sync", "--heartbeat-ms", std::to_string(std::chrono::milliseconds(kSilence).count()),
           "--step-ms", "2", "--folder", folder.path() + "/saves", "--save-steps", "20"},
          /*gate_at=*/60, kJob, {.of_task = of_task});
  EXPECT_TRUE(job.cluster.WaitForOutput("worker:0", "step 51 ", kPatience));
  job.cluster.Signal("worker:1", SIGSTOP);
  std::this_thread::sleep_for(kPause);
  job.cluster.Signal("worker:1", SIGCONT);
  job.OpenGate();
  job.ExpectCodes();
  EXPECT_TRUE(Job::WaitForSave(folder.path() + "/saves", /*whole=*/true));
  for (const std::string& name : job.cluster.names()) {
    EXPECT_THAT(job.cluster.Stderr(name), Not(HasSubstr("is lost"))) << name;
    EXPECT_THAT(job.cluster.Stderr(name), Not(HasSubstr("goes on without"))) << name;
    EXPECT_THAT(job.cluster.Stderr(name), Not(HasSubstr("rolled back"))) << name;
  }
  const std::string out = job.cluster.Stdout("chief:0");
  return out.substr(std::min(out.size(), out.find("epoch 0:")));
}

TEST(ClocksThatAreHoursApart, AreWhatProcessesSee) {
  ProcessCluster cluster;
  cluster.Start("date", {"date", "+%s"}, ClockOf("-3600"));
  ASSERT_EQ(cluster.Wait("date", kPatience), 0);
  const auto now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  EXPECT_NEAR(std::stod(cluster.Stdout("date")) - static_cast<double>(now), -3600, 60);
}

TEST(ClocksThatAreHoursApart, DoNotShowInTheResult) {
  const std::string expected = ReportWith({});
  EXPECT_THAT(expected, HasSubstr("counted 1000, each 1 to 1 times"));
  const std::string aging = "\naging rows ";
  ASSERT_THAT(expected, HasSubstr(aging));
  std::istringstream rows(expected.substr(expected.find(aging) + aging.size()));
  const int left = std::accumulate(std::istream_iterator<int>(rows), {}, 0);
  EXPECT_LT(left, 2 * kExamples / 10) << "no row has been evicted, of which each part used one";
  EXPECT_EQ(ReportWith({{"chief:0", "-3600"}, {"ps:1", "3600"}, {"worker:1", "3600"}}), expected);
}

}  // namespace
}  // namespace cohort::testing
