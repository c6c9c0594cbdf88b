// dlrm learns nearly all that can be known of generated clicks, of ten million ids, however it is
// run: the long form of Examples.Dlrm, and the figures of README.md.

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "process/training.h"
#include "testing/process_cluster.h"
#include "testing/temp_dir.h"

namespace cohort::testing {
namespace {

struct Way {
  std::string name;
  std::vector<std::string> launcher;  // empty: one process
  std::string strategy;               // that the job finds its own
};
void PrintTo(const Way& of, std::ostream* out) { *out << of.name; }

class DlrmLong : public ::testing::TestWithParam<Way> {};

// Minutes. README.md has 97.1, 97.2 and 97.3 %.
TEST_P(DlrmLong, ComesNearToTheBestPossible) {
  const TempDir dir;
  std::vector<std::string> argv = GetParam().launcher;
  argv.insert(argv.end(), {Bin("dlrm"), "--quiet", "--examples", "8000000", "--metrics-json",
                           dir / "metrics.json"});
  ProcessCluster cluster;
  cluster.Start("dlrm", argv);
  ASSERT_EQ(cluster.Wait("dlrm", std::chrono::minutes(50)), 0) << cluster.Logs();
  std::ifstream file(dir / "metrics.json");
  const nlohmann::json metrics = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  ASSERT_TRUE(metrics.is_object());
  EXPECT_GE(metrics.value("of_bayes_excess", 0.0), 0.97) << metrics.dump();
  if (!GetParam().strategy.empty()) {
    EXPECT_EQ(metrics.value("strategy", ""), GetParam().strategy);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Run, DlrmLong,
    ::testing::Values(
        Way{"InOneProcess", {}, ""},
        Way{"InStepWithTablesOnServers", Launch({"-n", "2", "--ps", "2"}), "multi_worker_mirrored"},
        Way{"Asynchronously", Launch({"-n", "2", "--ps", "2", "--chief"}), "parameter_server"}),
    [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace cohort::testing
