// A job of which every process is killed goes on from its last save, on another number of servers,
// and ends with the bits of one that was never killed; under every optimizer.

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cohort/optim/optimizers.h>
#include <cohort/optim/row_optimizer.h>
#include <cohort/optim/server_side.h>

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
constexpr int kUsedIds = 76 + 150;  // of ps_program --rows

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

std::vector<std::string> Program(const std::string& folder, const std::vector<std::string>& more) {
  std::vector<std::string> argv = {COHORT_BIN_DIR "/../tests/ps_program",
                                   "--consistency",
                                   "sync",
                                   "--examples",
                                   std::to_string(kExamples),
                                   "--batch",
                                   std::to_string(kBatch),
                                   "--epochs",
                                   "2",
                                   "--folder",
                                   folder};
  argv.insert(argv.end(), more.begin(), more.end());
  return argv;
}

// Kills all of a job on so many servers, which has saved, in its second epoch.
void KillMidway(const std::vector<std::string>& argv, const std::string& folder, int servers) {
  ProcessCluster killed;
  // Slowly enough for the chief to save between the first epoch and there.
  std::vector<std::string> stopped = argv;
  stopped.insert(stopped.end(), {"--gate", folder + ".never", "--gate-at",
                                 std::to_string(2 * kStepsOfAnEpoch - 5), "--step-ms", "20"});
  killed.StartTasks({{"chief", 1}, {"worker", 2}, {"ps", servers}}, stopped);
  ASSERT_TRUE(killed.WaitForOutput(
      "worker:0", "step " + std::to_string(kStepsOfAnEpoch + 11) + " begins", kPatience))
      << killed.Logs();
  const auto give_up = std::chrono::steady_clock::now() + kPatience;
  while (!HasSave(folder)) {
    ASSERT_LT(std::chrono::steady_clock::now(), give_up) << killed.Logs();
    std::this_thread::sleep_for(5ms);
  }
  for (const std::string& task : killed.names()) {
    ASSERT_TRUE(killed.Signal(task, SIGKILL)) << task;
  }
  for (const std::string& task : killed.names()) {
    EXPECT_EQ(killed.Wait(task, kPatience), 128 + SIGKILL) << task;
  }
}

void RunToTheEnd(ProcessCluster& job, const std::vector<std::string>& argv, int servers) {
  job.StartTasks({{"chief", 1}, {"worker", 2}, {"ps", servers}}, argv);
  for (const auto& [task, code] : job.WaitAll(kPatience)) {
    EXPECT_EQ(code, 0) << task << "\n" << job.Logs();
  }
}

void ExpectThatItWentOn(const ProcessCluster& again) {
  EXPECT_THAT(again.Stdout("worker:0"),
              Not(HasSubstr("step " + std::to_string(kStepsOfAnEpoch + 1) + " begins")))
      << "it began anew";
}

TEST_P(KilledJob, GoesOnOnAnotherNumberOfServers) {
  const std::unique_ptr<Optimizer> optimizer = GetParam().make();
  const TempDir dir;
  const std::string folder = dir / "saves";
  const std::vector<std::string> argv = Program(folder, {"--optimizer", optimizer->config()});
  ASSERT_NO_FATAL_FAILURE(KillMidway(argv, folder, /*servers=*/2));
  ProcessCluster again;
  RunToTheEnd(again, argv, /*servers=*/3);
  EXPECT_THAT(again.Stdout("chief:0"), HasSubstr(DigestOf(kExamples, kBatch, 2, *optimizer)));
  ExpectThatItWentOn(again);
}

INSTANTIATE_TEST_SUITE_P(
    ParameterServerProcessTest, KilledJob,
    ::testing::Values(
        Case{"Sgd", [] { return Sgd({.learning_rate = 0.0625}); }},
        Case{"Momentum", [] { return Sgd({.learning_rate = 0.0625, .momentum = 0.5}); }},
        Case{"Nesterov",
             [] { return Sgd({.learning_rate = 0.0625, .momentum = 0.5, .nesterov = true}); }},
        Case{"Adagrad", [] { return Adagrad({.learning_rate = 0.05}); }},
        Case{"RmsProp", [] { return RmsProp({.learning_rate = 0.01}); }},
        Case{"RmsPropWithMomentum",
             [] { return RmsProp({.learning_rate = 0.01, .momentum = 0.5}); }},
        Case{"Adam", [] { return Adam({.learning_rate = 0.01}); }},
        Case{"AdamW", [] { return AdamW({.learning_rate = 0.01}); }},
        Case{"Ftrl", [] { return Ftrl({.learning_rate = 0.05}); }},
        Case{"ServerSide",
             [] {
               return ServerSide(Adagrad({.learning_rate = 0.05}),
                                 {.clip_value = 0.5, .weight_decay = 0.01});
             }}),
    [](const auto& of) { return of.param.name; });

// The same of a table, in the middle of whose life there are rows that were evicted, and ids that
// were seen, but not often enough for a row: all that it has, slots and counts of both as well, are
// those of a job that was never killed.
struct RowCase {
  std::string name;
  std::string rule;
  int servers = 0;  // that are killed
  int then = 0;
};

void PrintTo(const RowCase& of, std::ostream* out) { *out << of.name; }

class KilledTable : public ::testing::TestWithParam<RowCase> {};

// "226 rows, ..., digest N", and that of the parameters.
std::string RowsOf(const ProcessCluster& job) {
  const std::string out = job.Stdout("chief:0");
  const std::size_t at = out.find("step " + std::to_string(2 * kStepsOfAnEpoch) + " digest ");
  const std::size_t rows = out.find(" rows, ", at);
  EXPECT_TRUE(at != std::string::npos && rows != std::string::npos) << job.Logs();
  return at == std::string::npos || rows == std::string::npos
             ? ""
             : out.substr(at, out.find('\n', rows) - at);
}

TEST_P(KilledTable, GoesOnOnAnotherNumberOfServers) {
  const RowCase& of = GetParam();
  const TempDir dir;
  const std::vector<std::string> model = {"--rows", of.rule};
  ProcessCluster whole;
  RunToTheEnd(whole, Program(dir / "whole", model), /*servers=*/2);
  const std::string expected = RowsOf(whole);
  const int rows = std::atoi(expected.c_str() + std::min(expected.find('\n') + 1, expected.size()));
  EXPECT_GT(rows, 20) << expected;
  EXPECT_LT(rows, kUsedIds - 20) << expected << ": ids without a row are missing";

  const std::string folder = dir / "saves";
  ASSERT_NO_FATAL_FAILURE(KillMidway(Program(folder, model), folder, of.servers));
  ProcessCluster again;
  RunToTheEnd(again, Program(folder, model), of.then);
  EXPECT_EQ(RowsOf(again), expected);
  ExpectThatItWentOn(again);
}

INSTANTIATE_TEST_SUITE_P(
    ParameterServerProcessTest, KilledTable,
    ::testing::Values(
        RowCase{"Adam", Adam({.learning_rate = 0.01})->config(), 2, 3},
        RowCase{"Ftrl", Ftrl({.learning_rate = 0.05})->config(), 3, 1},
        RowCase{"RowWiseAdagrad", RowWiseAdagradConfig({.learning_rate = 0.05}), 2, 3},
        RowCase{"Momentum", Sgd({.learning_rate = 0.0625, .momentum = 0.5})->config(), 3, 1},
        RowCase{"ServerSide",
                ServerSide(Adagrad({.learning_rate = 0.05})->config(),
                           {.clip_value = 0.5, .weight_decay = 0.01}),
                2, 3}),
    [](const auto& of) { return of.param.name; });

}  // namespace
}  // namespace cohort::testing
