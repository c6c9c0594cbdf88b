// A job of which every process is killed goes on from its last save, on another number of servers,
// and ends with the bits of one that was never killed; under every optimizer.

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cohort/optim/optimizers.h>

#include "process/ps_report.h"
#include "testing/process_cluster.h"
#include "testing/temp_dir.h"

namespace cohort::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using namespace std::chrono_literals;

constexpr auto kPatience = 60s;
constexpr int kExamples = 400;
constexpr int kBatch = 10;
constexpr int kStepsOfAnEpoch = kExamples / kBatch;

struct Case {
  const char* name;
  std::function<std::unique_ptr<Optimizer>()> make;
};

void PrintTo(const Case& of, std::ostream* out) { *out << of.name; }

class KilledJob : public ::testing::TestWithParam<Case> {};

bool HasSave(const std::filesystem::path& folder) {
  std::error_code none;
  return std::ranges::any_of(
      std::filesystem::directory_iterator(folder, none),
      [](const auto& entry) { return entry.path().filename().string().starts_with("step"); });
}

TEST_P(KilledJob, GoesOnOnAnotherNumberOfServers) {
  const std::unique_ptr<Optimizer> optimizer = GetParam().make();
  const TempDir dir;
  const std::string folder = dir / "saves";
  const std::vector<std::string> argv = {COHORT_BIN_DIR "/../tests/ps_program",
                                         "--consistency",
                                         "sync",
                                         "--examples",
                                         std::to_string(kExamples),
                                         "--batch",
                                         std::to_string(kBatch),
                                         "--epochs",
                                         "2",
                                         "--folder",
                                         folder,
                                         "--optimizer",
                                         optimizer->config()};
  ProcessCluster killed;
  // In its second epoch, and slowly enough for the chief to save between the first one and there.
  std::vector<std::string> stopped = argv;
  stopped.insert(stopped.end(), {"--gate", dir / "never", "--gate-at",
                                 std::to_string(2 * kStepsOfAnEpoch - 5), "--step-ms", "20"});
  killed.StartTasks({{"chief", 1}, {"worker", 2}, {"ps", 2}}, stopped);
  ASSERT_TRUE(killed.WaitForOutput(
      "worker:0", "step " + std::to_string(kStepsOfAnEpoch + 11) + " begins", kPatience))
      << killed.Logs();
  const auto give_up = std::chrono::steady_clock::now() + kPatience;
  while (!HasSave(folder)) {
    ASSERT_LT(std::chrono::steady_clock::now(), give_up) << killed.Logs();
    std::this_thread::sleep_for(5ms);
  }
  const std::vector<std::string> tasks = {"chief:0", "ps:0", "ps:1", "worker:0", "worker:1"};
  for (const std::string& task : tasks) {
    ASSERT_TRUE(killed.Signal(task, SIGKILL)) << task;
  }
  for (const std::string& task : tasks) {
    EXPECT_EQ(killed.Wait(task, kPatience), 128 + SIGKILL) << task;
  }

  ProcessCluster again;
  again.StartTasks({{"chief", 1}, {"worker", 2}, {"ps", 3}}, argv);
  for (const auto& [task, code] : again.WaitAll(kPatience)) {
    EXPECT_EQ(code, 0) << task << "\n" << again.Logs();
  }
  EXPECT_THAT(again.Stdout("chief:0"), HasSubstr(DigestOf(kExamples, kBatch, 2, *optimizer)));
  EXPECT_THAT(again.Stdout("worker:0"),
              Not(HasSubstr("step " + std::to_string(kStepsOfAnEpoch + 1) + " begins")))
      << "it began anew";
}

INSTANTIATE_TEST_SUITE_P(
    ParameterServerProcessTest, KilledJob,
    ::testing::Values(
        Case{"Sgd", [] { return Sgd({.learning_rate = 0.0625}); }},
        Case{"Nesterov",
             [] { return Sgd({.learning_rate = 0.0625, .momentum = 0.5, .nesterov = true}); }},
        Case{"Adagrad", [] { return Adagrad({.learning_rate = 0.05}); }},
        Case{"RmsProp", [] { return RmsProp({.learning_rate = 0.01}); }},
        Case{"Adam", [] { return Adam({.learning_rate = 0.01}); }},
        Case{"AdamW", [] { return AdamW({.learning_rate = 0.01}); }},
        Case{"Ftrl", [] { return Ftrl({.learning_rate = 0.05}); }}),
    [](const auto& of) { return of.param.name; });

}  // namespace
}  // namespace cohort::testing
