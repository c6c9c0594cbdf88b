// A build without gRPC: whatever needs several processes says so, at once, and never trains alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cohort/rpc/coordination.h>
#include <cohort/strategies/strategy.h>

namespace cohort {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

template <typename T>
void ExpectNoRpc(const Result<T>& result, const std::string& what) {
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(result.status().message(),
              AllOf(HasSubstr(what), HasSubstr("built without gRPC [build with COHORT_RPC=ON]")));
}

Result<std::unique_ptr<Strategy>> From(TaskId task, std::vector<TaskId> tasks,
                                       std::string_view kind = "") {
  std::map<TaskId, std::string> addresses;
  for (const TaskId& each : tasks) {
    addresses[each] = "host:1";
  }
  StrategyOptions options;
  options.cluster =
      ClusterConfig{.cluster = ClusterSpec(addresses), .task = task, .source = "flags"};
  return Strategy::FromEnv(kind, options);
}

TEST(NoRpc, ClustersAreRefused) {
  const TaskId worker{TaskType::kWorker, 0};
  const TaskId other{TaskType::kWorker, 1};
  const TaskId server{TaskType::kPs, 0};
  ExpectNoRpc(From(worker, {worker, other}), "multi_worker_mirrored with 2 tasks");
  ExpectNoRpc(From(worker, {worker, server}), "parameter_server");
  ExpectNoRpc(From(server, {worker, other, server}, "multi_worker_mirrored"),
              "multi_worker_mirrored with 3 tasks");
}

TEST(NoRpc, NobodyCanBeMet) {
  const TaskId worker{TaskType::kWorker, 0};
  const ClusterSpec cluster({{worker, "localhost:1"}});
  ExpectNoRpc(CoordinationServer::Start("localhost:0", cluster), "the coordination service");
  ExpectNoRpc(CoordinationClient::Join("localhost:1", cluster, worker, true),
              "the coordination service");
}

}  // namespace
}  // namespace cohort
