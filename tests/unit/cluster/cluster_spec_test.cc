#include <cohort/cluster/cluster_spec.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cohort {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr TaskId kChief{TaskType::kChief, 0};
TaskId Worker(int index) { return {TaskType::kWorker, index}; }
TaskId Ps(int index) { return {TaskType::kPs, index}; }

TEST(TaskIdTest, PrintsAndParses) {
  for (const char* text : {"chief:0", "worker:2", "ps:11", "evaluator:0"}) {
    const auto task = TaskId::Parse(text);
    ASSERT_TRUE(task.ok()) << task.status().ToString();
    EXPECT_EQ(task->ToString(), text);
  }
}

TEST(TaskIdTest, RefusesOtherTexts) {
  for (const char* text : {"", "worker", "worker:", ":0", "worker:-1", "worker:1.0", "worker: 1",
                           "worker:1 ", "worker:0x1", "worker:99999999999", "Worker:1", "wrkr:1"}) {
    const auto task = TaskId::Parse(text);
    ASSERT_FALSE(task.ok()) << text;
    EXPECT_EQ(task.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(task.status().message(), HasSubstr("'" + std::string(text) + "'"));
  }
}

TEST(ClusterSpecTest, OrdersChiefWorkersServers) {
  const ClusterSpec spec(
      {{Ps(0), "p:1"}, {Worker(10), "k:1"}, {Worker(2), "c:1"}, {kChief, "a:1"}});
  EXPECT_THAT(spec.Tasks(), ElementsAre(kChief, Worker(2), Worker(10), Ps(0)));
  EXPECT_EQ(spec.Count(TaskType::kWorker), 2);
  EXPECT_EQ(spec.Count(TaskType::kEvaluator), 0);
  EXPECT_EQ(spec.Chief(), kChief);
  EXPECT_TRUE(spec.Contains(Worker(2)));
  EXPECT_FALSE(spec.Contains(Worker(0)));
  EXPECT_EQ(spec.Address(Worker(10)), "k:1");
  EXPECT_THROW((void)spec.Address(Worker(0)), ContractError);
}

TEST(ClusterSpecTest, TheChiefTrainsOnlyWithoutParameterServers) {
  const ClusterSpec sync({{kChief, "a:1"}, {Worker(0), "b:1"}});
  EXPECT_THAT(sync.TrainingTasks(), ElementsAre(kChief, Worker(0)));
  const ClusterSpec async({{kChief, "a:1"}, {Worker(0), "b:1"}, {Ps(0), "c:1"}});
  EXPECT_THAT(async.TrainingTasks(), ElementsAre(Worker(0)));
}

TEST(ClusterSpecTest, WithoutAChiefTheFirstWorkerIs) {
  EXPECT_EQ(ClusterSpec({{Worker(0), "a:1"}, {Worker(1), "b:1"}}).Chief(), Worker(0));
  EXPECT_EQ(ClusterSpec({{Worker(1), "a:1"}, {Ps(0), "b:1"}}).Chief(), Worker(1));
  EXPECT_EQ(ClusterSpec().Chief(), Worker(0));
}

TEST(ClusterSpecTest, JsonIsCanonical) {
  const ClusterSpec dense(
      {{Ps(0), "p:1"}, {Worker(1), "b:1"}, {Worker(0), "a:1"}, {kChief, "c:1"}});
  EXPECT_EQ(dense.ToJson(), R"({"chief":["c:1"],"worker":["a:1","b:1"],"ps":["p:1"]})");
  const ClusterSpec sparse({{Worker(1), "b:1"}, {Worker(10), "k:1"}});
  EXPECT_EQ(sparse.ToJson(), R"({"worker":{"1":"b:1","10":"k:1"}})");
  EXPECT_EQ(ClusterSpec().ToJson(), "{}");
  EXPECT_EQ(ClusterSpec({{Worker(0), "\"\xff"}}).ToJson(), "{\"worker\":[\"\\\"\xef\xbf\xbd\"]}");
}

TEST(ClusterSpecTest, FingerprintSeesEveryTaskAndAddress) {
  const ClusterSpec spec({{Worker(0), "a:1"}, {Worker(1), "b:1"}});
  EXPECT_EQ(spec.Fingerprint(), ClusterSpec(spec).Fingerprint());
  EXPECT_NE(spec.Fingerprint(), ClusterSpec({{Worker(0), "a:1"}}).Fingerprint());
  EXPECT_NE(spec.Fingerprint(),
            ClusterSpec({{Worker(0), "a:1"}, {Worker(1), "b:2"}}).Fingerprint());
  EXPECT_NE(spec.Fingerprint(),
            ClusterSpec({{Worker(0), "a:1"}, {Worker(2), "b:1"}}).Fingerprint());
  // Part of the wire: processes of different builds must compute the same. FNV-1a of "{}".
  EXPECT_EQ(ClusterSpec().Fingerprint(), 0x08f44b07b5901a25u);
}

}  // namespace
}  // namespace cohort
