// The clocks of a job's hosts are hours apart. libfaketime (Debian: faketime) makes them so;
// without it nothing is tested.

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "process/ps_job.h"

namespace cohort::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Where distributions put it, whatever the machine's architecture.
std::optional<std::string> FakeTime() {
  std::error_code none;
  for (const std::string lib : {"/usr/lib", "/usr/lib64", "/usr/local/lib"}) {
    for (const auto& entry : std::filesystem::directory_iterator(lib, none)) {
      for (const std::string& folder : {entry.path().string(), lib}) {
        const std::string path = folder + "/faketime/libfaketimeMT.so.1";
        if (std::filesystem::exists(path, none)) {
          return path;
        }
      }
    }
  }
  return std::nullopt;
}

// What the chief says at the end, of a job with rows that age, saves and a worker that stops for a
// while.
std::string ReportWith(const std::map<std::string, std::string>& clocks,
                       const std::string& library) {
  const TempDir folder;
  std::map<std::string, Variables> of_task;
  for (const auto& [task, offset] : clocks) {
    of_task[task] = {{"LD_PRELOAD", library},
                     {"FAKETIME", offset},
                     {"FAKETIME_DONT_FAKE_MONOTONIC", "1"},
                     {"DONT_FAKE_MONOTONIC", "1"}};
  }
  Job job({"--count", "--aging", "25", "--consistency", "sync", "--epochs", "2", "--heartbeat-ms",
           "4000", "--step-ms", "2", "--folder", folder.path() + "/saves", "--save-steps", "50"},
          /*gate_at=*/250, kJob, {.of_task = of_task});
  EXPECT_TRUE(job.cluster.WaitForOutput("worker:0", "step 241 ", kPatience));
  // A pause that is shorter than the heartbeats' timeout.
  job.cluster.Signal("worker:1", SIGSTOP);
  std::this_thread::sleep_for(std::chrono::seconds(1));
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

TEST(ClocksThatAreHoursApart, DoNotShowInTheResult) {
  const std::optional<std::string> library = FakeTime();
  if (!library.has_value()) {
    GTEST_SKIP() << "libfaketime is not installed (Debian: faketime)";
  }
  const std::string expected = ReportWith({}, "");
  EXPECT_THAT(expected, HasSubstr("counted 4000, each 2 to 2 times"));
  EXPECT_THAT(expected, ::testing::ContainsRegex("aging rows .* 0")) << "none has been evicted";
  EXPECT_EQ(ReportWith({{"chief:0", "-1h"}, {"ps:1", "+1h"}, {"worker:1", "+1h"}}, *library),
            expected);
}

}  // namespace
}  // namespace cohort::testing
