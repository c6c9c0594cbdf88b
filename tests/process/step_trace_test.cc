// Step traces of a job, and what `cohort trace` makes of them beside its flight records.

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include <cohort/core/file_system.h>

#include "testing/temp_dir.h"
#include "training.h"

namespace cohort::testing {
namespace {

using nlohmann::json;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

// Two workers on the CPU: without a GPU the trace has what the host does.
TEST(StepTraces, OfTwoWorkersAreOnOneClockWithTheirCollectives) {
  ProcessCluster cluster;
  const TempDir dir;
  cluster.StartTasks(
      {{"worker", 2}},
      {Bin("image_classifier"), "--strategy", "multi_worker_mirrored", "--model", "mlp",
       "--devices", "cpu", "--epochs", "1", "--global-batch", "64", "--step-trace", dir.path(),
       "--traced-steps", "3-5", "--flight-folder", dir.path()});
  for (const auto& [task, code] : cluster.WaitAll(seconds(120))) {
    EXPECT_EQ(code, 0) << task << cluster.Logs();
  }
  std::vector<std::string> command = {Bin("cohort"), "trace"};
  for (const std::string rank : {"0", "1"}) {
    EXPECT_THAT(cluster.Stderr("worker:" + rank),
                HasSubstr("step trace: wrote " + dir / ("steps.worker_" + rank + ".json")));
    command.push_back(dir / ("steps.worker_" + rank + ".json"));
    command.push_back(dir / ("collectives.g1.rank" + rank + ".jsonl"));
  }
  command.insert(command.end(), {"--chrome", dir / "timeline.json"});
  cluster.Start("trace", command);
  ASSERT_EQ(cluster.Wait("trace", seconds(30)), 0) << cluster.Logs();
  EXPECT_THAT(cluster.Stdout("trace"),
              AllOf(HasSubstr("collectives, generation 1: 2 ranks, 2 records"),
                    HasSubstr("rank 0 (worker:0): 3 steps of "),
                    HasSubstr("rank 1 (worker:1): 3 steps of "), HasSubstr("collectives: "),
                    HasSubstr("during the backward passes of the host")));

  const json timeline = json::parse(OrThrow(ReadFile(FileSystem::Local(), dir / "timeline.json")));
  for (const int rank : {0, 1}) {
    std::vector<std::pair<double, double>> steps;
    int within = 0;
    int phases = 0;
    const auto each = [&](const auto& fn) {
      for (const json& event : timeline.at("traceEvents")) {
        if (event.at("pid") == rank && event.at("ph") == "X") {
          fn(event, event.at("ts").get<double>(), event.at("dur").get<double>());
        }
      }
    };
    each([&](const json& event, double begin, double length) {
      if (event.at("args").value("phase", "") == "step") {
        steps.emplace_back(begin, begin + length);
      }
      phases += event.at("name") == "forward 4" || event.at("name") == "backward 4" ? 1 : 0;
    });
    ASSERT_EQ(steps.size(), 3U);
    EXPECT_EQ(phases, 2);
    // A flight record's times are whole microseconds.
    each([&](const json& event, double begin, double length) {
      within += event.at("cat") == "AllReduce" && begin >= steps[1].first - 2 &&
                        begin + length <= steps[1].second + 2
                    ? 1
                    : 0;
    });
    EXPECT_GE(within, 2) << "gradients and loss of step 4, rank " << rank;
  }
}

TEST(StepTraces, AreRefusedWhereTheStepsAreNone) {
  ProcessCluster cluster;
  cluster.Start("job", {Bin("image_classifier"), "--step-trace", "x", "--traced-steps", "9-3"});
  EXPECT_EQ(cluster.Wait("job", seconds(30)), 2);
  EXPECT_THAT(cluster.Stderr("job"), HasSubstr("steps '9-3' [as 10-19]"));
}

}  // namespace
}  // namespace cohort::testing
