// Which strategy an environment gives, and which it refuses. Jobs of several processes: see
// tests/process/strategy_process_test.cc.
#include <cohort/strategies/strategy.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cohort {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

Environment TfConfig(const std::string& cluster, const std::string& type = "worker") {
  Environment environment;
  environment.Set("TF_CONFIG",
                  R"({"cluster":)" + cluster + R"(,"task":{"type":")" + type + R"(","index":0}})");
  return environment;
}

const char* const kTwoWorkers = R"({"worker":["a:1","b:1"]})";
const char* const kServers = R"({"chief":["a:1"],"worker":["b:1"],"ps":["c:1"]})";

Result<std::unique_ptr<Strategy>> From(std::string_view kind, Environment environment,
                                       int devices = 1) {
  StrategyOptions options;
  options.environment = std::move(environment);
  options.num_devices = devices;
  return Strategy::FromEnv(kind, options);
}

std::string Kind(Result<std::unique_ptr<Strategy>> strategy) {
  return strategy.ok() ? std::string((*strategy)->kind()) : strategy.status().ToString();
}

std::string Refusal(Result<std::unique_ptr<Strategy>> strategy) {
  return strategy.ok() ? "not refused" : strategy.status().ToString();
}

TEST(FromEnv, WithoutAClusterIsOneProcess) {
  EXPECT_EQ(Kind(From("", {})), "one_device");
  EXPECT_EQ(Kind(From("", {}, 2)), "mirrored");
  EXPECT_EQ(Kind(From("one_device", {})), "one_device");
  EXPECT_EQ(Kind(From("mirrored", {}, 3)), "mirrored");
  const auto strategy = OrThrow(From("mirrored", {}, 3));
  EXPECT_EQ(strategy->num_replicas_in_sync(), 3);
  EXPECT_EQ(strategy->num_local_replicas(), 3);
  EXPECT_TRUE(strategy->is_chief());
  EXPECT_TRUE(strategy->trains());
  EXPECT_TRUE(strategy->Serve().ok());
  EXPECT_TRUE(strategy->Barrier("alone").ok());
  EXPECT_TRUE(strategy->Shutdown().ok());
}

TEST(FromEnv, AClusterOfOneWorkerIsFine) {
  const auto strategy =
      OrThrow(From("multi_worker_mirrored", TfConfig(R"({"worker":["a:1"]})"), 2));
  EXPECT_EQ(strategy->kind(), "multi_worker_mirrored");
  EXPECT_EQ(strategy->num_replicas_in_sync(), 2);
  EXPECT_EQ(strategy->cluster().task.ToString(), "worker:0");
  EXPECT_EQ(strategy->cluster().source, "TF_CONFIG");
}

TEST(FromEnv, RefusesAClusterThatTheKindDoesNotTrainIn) {
  for (const std::string_view kind : {"one_device", "mirrored"}) {
    EXPECT_THAT(Refusal(From(kind, TfConfig(kTwoWorkers))),
                AllOf(HasSubstr("FailedPrecondition"), HasSubstr("worker:0 worker:1"),
                      HasSubstr("multi_worker_mirrored")));
  }
  EXPECT_THAT(Refusal(From("mirrored", TfConfig(kServers, "chief"))),
              AllOf(HasSubstr("FailedPrecondition"), HasSubstr("ps:0")));
  EXPECT_THAT(Refusal(From("multi_worker_mirrored", TfConfig(kServers, "chief"))),
              AllOf(HasSubstr("FailedPrecondition"), HasSubstr("ps:0"),
                    HasSubstr("use --strategy parameter_server")));
  EXPECT_THAT(Refusal(From("parameter_server", TfConfig(kTwoWorkers))),
              AllOf(HasSubstr("FailedPrecondition"), HasSubstr("ps tasks")));
}

TEST(FromEnv, NeverMakesAWorldOfOneOfAMissingCluster) {
  EXPECT_THAT(Refusal(From("multi_worker_mirrored", {})),
              AllOf(HasSubstr("FailedPrecondition"), HasSubstr("local describes no cluster")));
  EXPECT_THAT(Refusal(From("parameter_server", {})), HasSubstr("FailedPrecondition"));
}

TEST(FromEnv, AnEvaluatorIsAlone) {
  EXPECT_EQ(Kind(From("", TfConfig(kTwoWorkers, "evaluator"))), "one_device");
  EXPECT_THAT(Refusal(From("multi_worker_mirrored", TfConfig(kTwoWorkers, "evaluator"))),
              HasSubstr("FailedPrecondition"));
}

TEST(FromEnv, NamesWhatItDoesNotKnow) {
  EXPECT_THAT(Refusal(From("mirorred", {})),
              AllOf(HasSubstr("InvalidArgument"), HasSubstr("'mirorred'"), HasSubstr("mirrored")));
  EXPECT_THAT(Refusal(From("one_device", {}, 2)), HasSubstr("use mirrored"));
  EXPECT_THAT(Refusal(From("mirrored", {}, 0)), HasSubstr("num_devices is 0"));
  EXPECT_THAT(Refusal(From("", TfConfig("}"))), HasSubstr("TF_CONFIG"));
}

TEST(FromEnv, OptionsOfParameterServersAreRefusedWhereThereAreNone) {
  const auto with = [](const std::function<void(StrategyOptions&)>& set) {
    StrategyOptions options;
    set(options);
    return Refusal(Strategy::FromEnv("one_device", options));
  };
  EXPECT_THAT(with([](auto& o) { o.partitioner = OrThrow(Partitioner::Parse("fixed:2")); }),
              AllOf(HasSubstr("InvalidArgument"), HasSubstr("partitioner fixed:2 under one_device"),
                    HasSubstr("use parameter_server")));
  EXPECT_THAT(with([](auto& o) { o.start = OrThrow(StartPolicy::Parse("quorum:2")); }),
              HasSubstr("start quorum:2 under one_device"));
  EXPECT_THAT(with([](auto& o) { o.server_wire.push = DType::kUInt8; }),
              HasSubstr("server_wire under one_device"));
  EXPECT_THAT(with([](auto& o) { o.server_loss = ServerLoss::kPartial; }),
              HasSubstr("server_loss kPartial under one_device"));
  EXPECT_THAT(with([](auto& o) { o.consistency = OrThrow(Consistency::Parse("sync")); }),
              HasSubstr("consistency sync under one_device"));
}

TEST(FromEnv, HybridNeedsServersAndNoChief) {
  const auto refusal = [](std::string_view kind, const char* cluster, const char* task) {
    StrategyOptions options;
    options.consistency = OrThrow(Consistency::Parse("hybrid"));
    options.environment = TfConfig(cluster, task);
    return Refusal(Strategy::FromEnv(kind, options));
  };
  EXPECT_THAT(refusal("parameter_server", kServers, "chief"),
              AllOf(HasSubstr("FailedPrecondition"), HasSubstr("led by worker:0"),
                    HasSubstr("start no chief")));
  EXPECT_THAT(refusal("multi_worker_mirrored", kTwoWorkers, "worker"),
              AllOf(HasSubstr("FailedPrecondition"), HasSubstr("needs ps tasks")));
  EXPECT_THAT(refusal("one_device", kTwoWorkers, "evaluator"),
              AllOf(HasSubstr("InvalidArgument"), HasSubstr("hybrid under one_device")));
}

TEST(FromEnv, LooksAtThisProcessWhereNothingIsSaid) {
  ASSERT_EQ(::setenv("TF_CONFIG", TfConfig(kTwoWorkers).Get("TF_CONFIG")->c_str(), 1), 0);
  EXPECT_THAT(Refusal(Strategy::FromEnv("one_device")), HasSubstr("2 task(s)"));
  ::unsetenv("TF_CONFIG");
  EXPECT_EQ(Kind(Strategy::FromEnv("one_device")), "one_device");
}

TEST(StartPolicy, TextAndBack) {
  for (const char* text : {"all", "quorum:3", "elastic"}) {
    EXPECT_EQ(OrThrow(StartPolicy::Parse(text)).ToString(), text);
  }
  for (const char* text : {"", "any", "quorum", "quorum:", "quorum:0", "quorum:-1", "quorum:2x"}) {
    EXPECT_EQ(StartPolicy::Parse(text).status().code(), StatusCode::kInvalidArgument) << text;
  }
  EXPECT_EQ(OrThrow(StartPolicy::Parse("all")).Least(4), 4);
  EXPECT_EQ(OrThrow(StartPolicy::Parse("quorum:3")).Least(4), 3);
  EXPECT_EQ(OrThrow(StartPolicy::Parse("elastic")).Least(4), 0);
}

TEST(FromEnv, TakesAClusterThatTheProgramHasResolved) {
  StrategyOptions options;
  options.environment = TfConfig(kTwoWorkers);
  options.cluster = ClusterConfig{};
  EXPECT_EQ(Kind(Strategy::FromEnv("", options)), "one_device");
}

}  // namespace
}  // namespace cohort
