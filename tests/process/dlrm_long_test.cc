// dlrm learns nearly all that can be known of generated clicks: the long form of Examples.Dlrm.

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>

#include "process/training.h"
#include "testing/process_cluster.h"
#include "testing/temp_dir.h"

namespace cohort::testing {
namespace {

// A few minutes, in one process. README.md has ten million ids, and twice as many clicks; what it
// says there of workers and servers takes as long for each.
TEST(DlrmLong, ComesNearToTheBestPossible) {
  const TempDir dir;
  ProcessCluster cluster;
  cluster.Start("dlrm", {Bin("dlrm"), "--quiet", "--ids", "100000", "--examples", "4000000",
                         "--metrics-json", dir / "metrics.json"});
  ASSERT_EQ(cluster.Wait("dlrm", std::chrono::minutes(50)), 0) << cluster.Logs();
  std::ifstream file(dir / "metrics.json");
  const nlohmann::json metrics = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  ASSERT_TRUE(metrics.is_object());
  EXPECT_GE(metrics.value("of_bayes_excess", 0.0), 0.95) << metrics.dump();
}

}  // namespace
}  // namespace cohort::testing
