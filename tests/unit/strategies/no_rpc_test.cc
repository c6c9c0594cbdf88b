// A build without gRPC: whatever needs several processes says so, at once, and never trains alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cohort/core/file_system.h>
#include <cohort/optim/optimizers.h>
#include <cohort/optim/parameter_set.h>
#include <cohort/rpc/coordination.h>
#include <cohort/rpc/versions.h>
#include <cohort/strategies/strategy.h>

#include "testing/temp_dir.h"

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

TEST(NoRpc, OneProcessTrainsAlone) {
  const TaskId worker{TaskType::kWorker, 0};
  const auto alone = OrThrow(From(worker, {worker}, "multi_worker_mirrored"));
  EXPECT_EQ(alone->num_replicas_in_sync(), 1);
  OrThrow(alone->Shutdown());
  const auto mirrored = OrThrow(Strategy::FromEnv("mirrored", {.num_devices = 3}));
  EXPECT_EQ(mirrored->num_replicas_in_sync(), 3);
  EXPECT_EQ(LinkedRpcVersions().grpc, "");
}

// The tables of one process, and their files, need no gRPC and no protobuf.
TEST(NoRpc, SparseTablesAreSavedAndRead) {
  const testing::TempDir folder;
  ParameterSet parameters;
  const int table = parameters.AddTable({.name = "users", .dim = 4, .buckets = 16});
  parameters.Build();
  const auto strategy = OrThrow(Strategy::FromEnv("one_device"));
  OrThrow(strategy->Bind(parameters, Sgd({.learning_rate = 0.5})));
  FileSystem& files = FileSystem::Local();
  OrThrow(strategy->SaveTable(table, files, folder / "rows"));
  OrThrow(strategy->LoadTable(table, files, {folder / "rows"}));
  OrThrow(strategy->SaveTable(table, files, folder / "again"));
  EXPECT_EQ(*ReadFile(files, folder / "again"), *ReadFile(files, folder / "rows"));
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
