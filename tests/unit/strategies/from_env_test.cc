// Which strategy an environment gives, and which it refuses. Jobs of several processes: see
// tests/process/strategy_process_test.cc.
#include <cohort/strategies/strategy.h>

#include <chrono>

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

// The names of tf.distribute's CommunicationOptions, and what may be meant by a word that is none.
TEST(FromEnv, OptionsOfCommunicationAreChecked) {
  const auto with = [](const CommunicationOptions& communication) {
    StrategyOptions options;
    options.environment.emplace();
    options.communication = communication;
    return Refusal(Strategy::FromEnv("mirrored", options));
  };
  EXPECT_EQ(with({.implementation = "ring",
                  .bytes_per_pack = 1 << 20,
                  .timeout = std::chrono::seconds(3),
                  .transport = "tcp"}),
            "not refused");
  EXPECT_THAT(with({.bytes_per_pack = -1}),
              AllOf(HasSubstr("InvalidArgument"), HasSubstr("and -1 bytes")));
  EXPECT_THAT(with({.timeout = std::chrono::milliseconds(0)}),
              AllOf(HasSubstr("InvalidArgument"), HasSubstr("communication.timeout is 0 ms")));
  EXPECT_EQ(with({.bind_host = "::1"}), "not refused");
  for (const char* const host : {"10.0.0.3:80", "[::1]:80"}) {
    EXPECT_THAT(with({.bind_host = host}),
                AllOf(HasSubstr("InvalidArgument"),
                      HasSubstr("communication.bind_host is '" + std::string(host)),
                      HasSubstr("without a port")));
  }
  EXPECT_THAT(with({.transport = "ring"}),
              AllOf(HasSubstr("InvalidArgument"), HasSubstr("communication.transport is 'ring'"),
                    HasSubstr("auto, shm or tcp"), HasSubstr("communication.implementation")));
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

const char* const kLedByAWorker = R"({"worker":["a:1","b:1"],"ps":["c:1"]})";

ParameterSet ModelWith(int tables) {
  ParameterSet model;
  model.Add("dense", {2}, nullptr);
  for (int t = 0; t < tables; ++t) {
    model.AddTable({.name = "table" + std::to_string(t), .dim = 2});
  }
  return model;
}

// What is made of a model with `tables` sparse tables.
std::string KindWith(int tables, const char* cluster, const StrategyOptions& given = {},
                     const std::string& task = "worker", std::string_view kind = {}) {
  StrategyOptions options = given;
  options.environment = cluster == nullptr ? Environment() : TfConfig(cluster, task);
  const Result<std::string> made = Strategy::KindFromEnv(ModelWith(tables), kind, options);
  return made.ok() ? *made : made.status().ToString();
}

TEST(FromEnv, TrainsAModelWithTablesInStepWhereServersCanHoldThem) {
  for (const char* const task : {"worker", "ps"}) {
    EXPECT_EQ(KindWith(1, kLedByAWorker, {}, task), "multi_worker_mirrored") << task;
    EXPECT_EQ(KindWith(0, kLedByAWorker, {}, task), "parameter_server") << task;
  }
  EXPECT_EQ(KindWith(2, kServers), "parameter_server") << "hybrid has no chief task";
  EXPECT_EQ(KindWith(2, kServers, {}, "ps"), "parameter_server");
  EXPECT_EQ(KindWith(2, kTwoWorkers), "multi_worker_mirrored");
  EXPECT_EQ(KindWith(2, kLedByAWorker, {}, "evaluator"), "one_device");
  EXPECT_EQ(KindWith(2, nullptr), "one_device");
}

TEST(FromEnv, TakesAnotherConsistencyOrKindThatIsAskedFor) {
  for (const char* const text : {"async", "ssp:2", "sync", "sync:1"}) {
    EXPECT_EQ(KindWith(2, kLedByAWorker, {.consistency = OrThrow(Consistency::Parse(text))}),
              "parameter_server")
        << text;
  }
  const StrategyOptions hybrid{.consistency = OrThrow(Consistency::Parse("hybrid"))};
  EXPECT_EQ(KindWith(2, kLedByAWorker, hybrid), "multi_worker_mirrored");
  EXPECT_THAT(KindWith(2, kServers, hybrid), HasSubstr("start no chief"));
  EXPECT_EQ(KindWith(2, kLedByAWorker, {}, "worker", "parameter_server"), "parameter_server");
  EXPECT_EQ(KindWith(2, kLedByAWorker, {}, "worker", "multi_worker_mirrored"),
            "multi_worker_mirrored");
  EXPECT_THAT(KindWith(2, kLedByAWorker, {}, "worker", "mirrored"),
              AllOf(HasSubstr("FailedPrecondition"), HasSubstr("ps:0")));
}

// What a process says of the consistency, where an option ends it before it meets the others.
std::string SaidOf(const ParameterSet* model, const char* cluster, const std::string& task,
                   StrategyOptions options = {}) {
  std::string said;
  options.log = Log([&said](LogLevel, std::string_view line) {
    if (line.starts_with("consistency ")) {
      said += std::string(line) + "\n";
    }
  });
  options.environment = TfConfig(cluster, task);
  options.virtual_shards = 3;  // of no strategy
  const Result<std::unique_ptr<Strategy>> made =
      model == nullptr ? Strategy::FromEnv({}, options) : Strategy::FromEnv(*model, {}, options);
  EXPECT_FALSE(made.ok());
  return said;
}

TEST(FromEnv, TheChiefSaysWhichConsistencyItChoseAndWhy) {
  const ParameterSet sparse = ModelWith(2);
  const ParameterSet dense = ModelWith(0);
  EXPECT_EQ(SaidOf(&sparse, kLedByAWorker, "worker"),
            "consistency hybrid: the model has 2 sparse table(s), which ps tasks hold, and no "
            "chief task leads the job\n");
  EXPECT_EQ(SaidOf(&sparse, kServers, "chief"),
            "consistency async: hybrid, for the model's 2 sparse table(s), is led by worker:0, and "
            "the cluster has chief:0\n");
  EXPECT_EQ(SaidOf(&dense, kLedByAWorker, "worker"),
            "consistency async: the model has no sparse tables\n");
  EXPECT_EQ(SaidOf(nullptr, kLedByAWorker, "worker"),
            "consistency async: Strategy::FromEnv was not given the model\n");
  EXPECT_EQ(SaidOf(&sparse, kLedByAWorker, "ps"), "");
  EXPECT_EQ(SaidOf(&sparse, kServers, "worker"), "");
  EXPECT_EQ(SaidOf(&sparse, kTwoWorkers, "worker"), "");
  EXPECT_EQ(SaidOf(&sparse, kLedByAWorker, "worker",
                   {.consistency = OrThrow(Consistency::Parse("async"))}),
            "");
}

// What only servers of variables have is refused under the consistency that was chosen, too.
TEST(FromEnv, AnOptionOfServersIsRefusedWhereHybridWasChosen) {
  StrategyOptions options;
  options.environment = TfConfig(kLedByAWorker);
  options.start = OrThrow(StartPolicy::Parse("quorum:1"));
  EXPECT_THAT(Refusal(Strategy::FromEnv(ModelWith(1), {}, options)),
              AllOf(HasSubstr("start quorum:1 under multi_worker_mirrored"),
                    HasSubstr("use parameter_server")));
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
