// Programs of a build without gRPC: alone they train, as part of a cluster they refuse.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/process_cluster.h"

namespace cohort::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string Bin(const std::string& program) { return COHORT_BIN_DIR "/" + program; }

struct Ended {
  std::optional<int> code;  // nothing: it did not end
  std::string out;
  std::string err;
};
Ended RunOnce(const std::vector<std::string>& argv, Variables environment = {}) {
  ProcessCluster cluster;
  environment["OMP_NUM_THREADS"] = "1";
  cluster.Start("program", argv, environment);
  const std::optional<int> code = cluster.Wait("program", std::chrono::minutes(1));
  return {code, cluster.Stdout("program"), cluster.Stderr("program")};
}

TEST(NoRpcPrograms, TrainAlone) {
  const Ended fit = RunOnce({Bin("fit")});
  EXPECT_EQ(fit.code, 0) << fit.err;
  EXPECT_THAT(fit.out, HasSubstr("after 189 steps"));
  const Ended mirrored = RunOnce({Bin("image_classifier"), "--strategy", "mirrored", "--devices",
                                  "2", "--model", "mlp", "--global-batch", "200", "--quiet"});
  EXPECT_EQ(mirrored.code, 0) << mirrored.err;
}

TEST(NoRpcPrograms, RefuseAClusterByName) {
  const std::string tf_config =
      R"({"cluster":{"worker":["localhost:1","localhost:2"]},"task":{"type":"worker","index":0}})";
  const Ended fit = RunOnce({Bin("fit")}, {{"TF_CONFIG", tf_config}});
  EXPECT_EQ(fit.code, 2);
  EXPECT_THAT(fit.err, AllOf(HasSubstr("multi_worker_mirrored with 2 tasks"),
                             HasSubstr("built without gRPC [build with COHORT_RPC=ON]")));
  const Ended bench = RunOnce({Bin("cohort"), "bench", "ps"});
  EXPECT_EQ(bench.code, 2);
  EXPECT_THAT(bench.err, HasSubstr("cohort bench ps: built without gRPC"));
  const Ended serve = RunOnce({Bin("cohort"), "data", "serve"});
  EXPECT_EQ(serve.code, 2);
  EXPECT_THAT(serve.err, HasSubstr("the data service: built without gRPC"));
}

}  // namespace
}  // namespace cohort::testing
