// What TF_CONFIG may say, and what is said of what it may not: one row a case.

#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cohort/cluster/resolve.h>

namespace cohort {
namespace {

using Variables = std::map<std::string, std::string, std::less<>>;

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

ClusterReport Inspect(const std::string& tf_config) {
  return InspectCluster({}, Environment(Variables{{"TF_CONFIG", tf_config}}));
}

std::string WithTask(const std::string& cluster, const std::string& type,
                     const std::string& index) {
  return R"({"cluster":)" + cluster + R"(,"task":{"type":)" + type + R"(,"index":)" + index + "}}";
}

const char kTwoWorkers[] = R"({"worker":["a:1","b:2"]})";

struct Accepted {
  const char* name;
  std::string text;
  const char* task;
  const char* cluster;
  const char* warning = nullptr;
};

TEST(TfConfigTest, Accepts) {
  const Accepted cases[] = {
      {"empty object", "{}", "worker:0", "{}"},
      {"empty object with spaces", " {\n} ", "worker:0", "{}"},
      {"worker 0 alone", R"({"task":{"type":"worker","index":0}})", "worker:0", "{}"},
      {"dense", WithTask(kTwoWorkers, R"("worker")", "1"), "worker:1", kTwoWorkers},
      {"numeric string index", WithTask(kTwoWorkers, R"("worker")", R"("1")"), "worker:1",
       kTwoWorkers},
      {"TFJob of two",
       R"({"cluster":{"ps":["J-ps-0.ns2.svc.tf.training.org:2222"],)"
       R"("worker":["J-worker-0.ns2.svc.tf.training.org:2222"]},)"
       R"("task":{"type":"worker","index":0},"environment":"cloud"})",
       "worker:0",
       R"({"worker":["J-worker-0.ns2.svc.tf.training.org:2222"],)"
       R"("ps":["J-ps-0.ns2.svc.tf.training.org:2222"]})"},
      {"TFJob with dynamic workers, on a worker",
       R"({"cluster":{"ps":["p:1","q:1"],"worker":{"3":"w:1"}},"task":{"type":"worker","index":3}})",
       "worker:3", R"({"worker":{"3":"w:1"},"ps":["p:1","q:1"]})"},
      {"legacy sparseCluster",
       R"({"sparseCluster":{"worker":{"0":"w:1"}},"task":{"type":"worker","index":0}})", "worker:0",
       R"({"worker":["w:1"]})", "sparseCluster: is an old name"},
      {"sparse with a gap", WithTask(R"({"worker":{"0":"a:1","2":"c:1"}})", R"("worker")", "2"),
       "worker:2", R"({"worker":{"0":"a:1","2":"c:1"}})"},
      {"sparse without 0", WithTask(R"({"worker":{"1":"a:1"}})", R"("worker")", "1"), "worker:1",
       R"({"worker":{"1":"a:1"}})"},
      {"master is the chief",
       WithTask(R"({"master":["a:1"],"worker":["b:1"]})", R"("master")", "0"), "chief:0",
       R"({"chief":["a:1"],"worker":["b:1"]})"},
      {"evaluator in the cluster",
       WithTask(R"({"worker":["a:1"],"evaluator":["e:1"]})", R"("worker")", "0"), "worker:0",
       R"({"worker":["a:1"]})"},
      {"evaluator outside", WithTask(R"({"worker":["a:1"]})", R"("evaluator")", "0"), "evaluator:0",
       R"({"worker":["a:1"]})"},
      {"empty job", WithTask(R"({"worker":["a:1"],"ps":[]})", R"("worker")", "0"), "worker:0",
       R"({"worker":["a:1"]})", "cluster.ps: has no tasks, dropped"},
      {"IPv6", WithTask(R"({"worker":["[::1]:1","[::2]:1"]})", R"("worker")", "0"), "worker:0",
       R"({"worker":["[::1]:1","[::2]:1"]})"},
      {"scheme", WithTask(R"({"worker":["grpc://a:1"]})", R"("worker")", "0"), "worker:0",
       R"({"worker":["a:1"]})", "cluster.worker[0]: 'grpc://a:1': the scheme is ignored"},
      {"port 0 for itself", WithTask(R"({"worker":["a:1","b:0"]})", R"("worker")", "1"), "worker:1",
       R"({"worker":["a:1","b:0"]})"},
      {"keys of TensorFlow",
       R"({"cluster":{"worker":["a:1"]},"task":{"type":"worker","index":0,"trial":"1","cloud":"x"},)"
       R"("rpc_layer":"grpc","session_master":"","eval_session_master":"","environment":"cloud",)"
       R"("service":{},"model_dir":"/x","job":{}})",
       "worker:0", R"({"worker":["a:1"]})"},
      {"another rpc layer",
       R"({"cluster":{"worker":["a:1"]},"task":{"type":"worker","index":0},"rpc_layer":"grpc+gdr"})",
       "worker:0", R"({"worker":["a:1"]})", "rpc_layer"},
      {"unknown key",
       R"({"cluster":{"worker":["a:1"]},"task":{"type":"worker","index":0},"taks":1})", "worker:0",
       R"({"worker":["a:1"]})", "taks: unknown key, ignored [did you mean 'task'?]"},
  };
  for (const Accepted& row : cases) {
    SCOPED_TRACE(row.name);
    const ClusterReport report = Inspect(row.text);
    EXPECT_THAT(report.errors, IsEmpty());
    ASSERT_TRUE(report.config.has_value());
    EXPECT_EQ(report.config->task.ToString(), row.task);
    EXPECT_EQ(report.config->cluster.ToJson(), row.cluster);
    EXPECT_EQ(report.config->source, report.config->cluster.empty() ? "local" : "TF_CONFIG");
    if (row.warning == nullptr) {
      EXPECT_THAT(report.warnings, IsEmpty());
    } else {
      EXPECT_THAT(report.warnings, ElementsAre(HasSubstr(row.warning)));
    }
  }
}

struct Refused {
  const char* name;
  std::string text;
  std::vector<std::string> errors;  // one each, and no others
};

TEST(TfConfigTest, Refuses) {
  const Refused cases[] = {
      {"empty", "", {"TF_CONFIG is set but empty"}},
      {"blank", " \n", {"TF_CONFIG is set but empty"}},
      {"no JSON", "worker", {"TF_CONFIG: line 1, column 1: "}},
      {"trailing comma", R"({"cluster":{"worker":["a:1",]}})", {"line 1, column 29: "}},
      {"comment", "{\n  // mine\n}", {"line 2, column 3: "}},
      {"cut off", R"({"cluster":)", {"line 1, column 12: "}},
      {"two documents", "{} {}", {"line 1, column 4: "}},
      {"NaN", R"({"task":NaN})", {"line 1, column 9: "}},
      {"a list", "[]", {"must be an object"}},
      {"duplicate keys",
       R"({"cluster":{"worker":["a:1"],"worker":["b:1"]},"task":{"type":"worker","index":0}})",
       {"cluster.worker: this key appears twice"}},
      {"index with spaces",
       WithTask(kTwoWorkers, R"("worker")", R"(" 1 ")"),
       {R"(task.index: must be a whole number from 0, not the string " 1 ")"}},
      {"index 1.0 as string", WithTask(kTwoWorkers, R"("worker")", R"("1.0")"), {"task.index"}},
      {"index 0x1", WithTask(kTwoWorkers, R"("worker")", R"("0x1")"), {"task.index"}},
      {"index 1.9",
       WithTask(kTwoWorkers, R"("worker")", "1.9"),
       {"task.index: must be a whole number from 0, not the number 1.9"}},
      {"index 1.0", WithTask(kTwoWorkers, R"("worker")", "1.0"), {"task.index"}},
      {"index true", WithTask(kTwoWorkers, R"("worker")", "true"), {"task.index"}},
      {"index -1", WithTask(kTwoWorkers, R"("worker")", "-1"), {"task.index"}},
      {"index null", WithTask(kTwoWorkers, R"("worker")", "null"), {"task.index"}},
      {"index huge", WithTask(kTwoWorkers, R"("worker")", "18446744073709551615"), {"task.index"}},
      {"index missing",
       R"({"cluster":{"worker":["a:1"]},"task":{"type":"worker"}})",
       {"task.index: is missing"}},
      {"index is the count",
       WithTask(kTwoWorkers, R"("worker")", "2"),
       {"worker:2 is not in the cluster: the indices of worker are 0 to 1 "
        "[worker:0 is a:1, worker:1 is b:2]"}},
      {"task missing",
       R"({"cluster":{"worker":["a:1"]}})",
       {"task: is missing, and no launcher gives a rank"}},
      {"task no object", R"({"cluster":{"worker":["a:1"]},"task":3})", {"task: must be an object"}},
      {"task type missing",
       R"({"cluster":{"worker":["a:1"]},"task":{"index":0}})",
       {"task.type: is missing"}},
      {"task type no string", WithTask(kTwoWorkers, "7", "0"), {"task.type: must be a string"}},
      {"cluster missing, not worker 0",
       R"({"task":{"type":"worker","index":1}})",
       {"the task is worker:1, but there is no cluster"}},
      {"cluster missing, chief",
       R"({"task":{"type":"chief","index":0}})",
       {"the task is chief:0, but there is no cluster"}},
      {"unknown job",
       WithTask(R"({"trainer":["a:1"],"worker":["b:1"]})", R"("worker")", "0"),
       {"cluster.trainer: unknown role 'trainer' [did you mean 'worker'?"}},
      {"unknown task type",
       WithTask(kTwoWorkers, R"("wroker")", "0"),
       {"task.type: unknown role 'wroker' [did you mean 'worker'?"}},
      {"capitalised",
       WithTask(R"({"Worker":["a:1"]})", R"("Worker")", "0"),
       {"cluster.Worker: unknown role 'Worker' [did you mean 'worker'? names are in lower case]",
        "task.type: unknown role 'Worker'"}},
      {"chief and master",
       WithTask(R"({"chief":["a:1"],"master":["b:1"],"worker":["c:1"]})", R"("worker")", "0"),
       {"cluster: has both a chief and a master"}},
      {"two chiefs", WithTask(R"({"chief":["a:1","b:1"]})", R"("chief")", "0"), {"2 chiefs"}},
      {"a chief that is not 0",
       WithTask(R"({"chief":{"1":"a:1"}})", R"("chief")", "1"),
       {"the chief's index must be 0"}},
      {"sparse without oneself",
       WithTask(R"({"worker":{"1":"a:1","4":"b:1"}})", R"("worker")", "2"),
       {"worker:2 is not in the cluster: the indices of worker are 1, 4"}},
      {"sparse keys 01 and 1",
       WithTask(R"({"worker":{"0":"c:1","01":"a:1","1":"b:1"}})", R"("worker")", "0"),
       {"index 1 appears twice"}},
      {"sparse key no number",
       WithTask(R"({"worker":{"0":"a:1","x":"b:1"}})", R"("worker")", "0"),
       {"cluster.worker.x: the key must be an index from 0"}},
      {"sparse key negative",
       WithTask(R"({"worker":{"0":"a:1","-1":"b:1"}})", R"("worker")", "0"),
       {R"(cluster.worker["-1"]: the key must be an index from 0)"}},
      {"own job empty",
       WithTask(R"({"worker":["a:1"],"ps":[]})", R"("ps")", "0"),
       {"the task is ps:0, but the cluster has no ps [it has worker:0]"}},
      {"no port",
       WithTask(R"({"worker":["a"]})", R"("worker")", "0"),
       {"cluster.worker[0]: 'a' has no port"}},
      {"port 0 of another",
       WithTask(R"({"worker":["a:1","b:0"]})", R"("worker")", "0"),
       {"worker:1 has port 0"}},
      {"port too large",
       WithTask(R"({"worker":["a:65536"]})", R"("worker")", "0"),
       {"the port must be a number from 1 to 65535"}},
      {"bare IPv6",
       WithTask(R"({"worker":["::1:2222"]})", R"("worker")", "0"),
       {"an IPv6 address needs brackets"}},
      {"spaces", WithTask(R"({"worker":[" a:1"]})", R"("worker")", "0"), {"has spaces"}},
      {"address no string",
       WithTask(R"({"worker":[2222]})", R"("worker")", "0"),
       {"cluster.worker[0]: must be a string"}},
      {"job no list",
       WithTask(R"({"worker":"a:1"})", R"("worker")", "0"),
       {"cluster.worker: must be a list of addresses", "the task is worker:0, but"}},
      {"cluster no object",
       R"({"cluster":["a:1"],"task":{"type":"worker","index":0}})",
       {"cluster: must be an object", "the task is worker:0, but"}},
      {"same address twice",
       WithTask(R"({"worker":["A:1"],"ps":["a:1"]})", R"("worker")", "0"),
       {"cluster.ps[0]: a:1 is also the address of cluster.worker[0]"}},
      {"same IPv6 address twice",
       WithTask(R"({"worker":["[::1]:1","[0::1]:1"]})", R"("worker")", "0"),
       {"cluster.worker[1]: [::1]:1 is also the address of cluster.worker[0]"}},
      {"only parameter servers", WithTask(R"({"ps":["a:1"]})", R"("ps")", "0"), {"nobody trains"}},
      {"chief and ps only",
       WithTask(R"({"chief":["b:1"],"ps":["a:1"]})", R"("ps")", "0"),
       {"nobody trains"}},
      {"both clusters",
       R"({"cluster":{"worker":["a:1"]},"sparseCluster":{},"task":{"type":"worker","index":0}})",
       {"sparseCluster: stands beside cluster"}},
  };
  for (const Refused& row : cases) {
    SCOPED_TRACE(row.name);
    const ClusterReport report = Inspect(row.text);
    EXPECT_FALSE(report.config.has_value());
    ASSERT_EQ(report.errors.size(), row.errors.size()) << ::testing::PrintToString(report.errors);
    for (std::size_t i = 0; i < row.errors.size(); ++i) {
      EXPECT_THAT(report.errors[i], AllOf(HasSubstr("TF_CONFIG"), HasSubstr(row.errors[i])));
    }
  }
}

TEST(TfConfigTest, SyntaxErrorsShowTheLineWithACaret) {
  const ClusterReport report = Inspect("{\n  \"task\": {,}\n}");
  ASSERT_EQ(report.errors.size(), 1u);
  EXPECT_THAT(report.errors[0], HasSubstr("line 2, column 12: "));
  EXPECT_THAT(report.errors[0], HasSubstr("\n      \"task\": {,}\n               ^"));
}

TEST(TfConfigTest, AllMistakesAtOnce) {
  const ClusterReport report = Inspect(
      R"({"cluster":{"worker":["a","b:99999"," c:1"],"wroker":[]},"task":{"type":"x","index":-3}})");
  EXPECT_EQ(report.errors.size(), 6u) << ::testing::PrintToString(report.errors);
  const auto result = ResolveCluster(
      {}, Environment(Variables{{"TF_CONFIG", R"({"cluster":{"worker":["a","b"]}})"}}));
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(ExitCode(result.status()), 2);
  EXPECT_THAT(result.status().message(),
              AllOf(HasSubstr("3 mistakes"), HasSubstr("\n  TF_CONFIG: cluster.worker[0]"),
                    HasSubstr("\n  TF_CONFIG: cluster.worker[1]")));
}

TEST(TfConfigTest, ProcessesOfOneHostAreCounted) {
  const ClusterReport report =
      Inspect(WithTask(R"({"chief":["h:1"],"worker":["i:1","H:2","h:3"]})", R"("worker")", "2"));
  ASSERT_TRUE(report.config.has_value());
  EXPECT_EQ(report.config->local_rank, 2);
  EXPECT_EQ(report.config->local_size, 3);
}

TEST(TfConfigTest, EveryProcessOfAJobSeesTheSameFingerprint) {
  const auto one = Inspect(WithTask(kTwoWorkers, R"("worker")", "0"));
  const auto two =
      Inspect(WithTask(R"({"worker":{"1":"b:2","0":"a:1"}})", R"("worker")", R"("1")"));
  EXPECT_EQ(one.config->cluster, two.config->cluster);
  EXPECT_EQ(one.config->cluster.Fingerprint(), two.config->cluster.Fingerprint());
  EXPECT_TRUE(one.config->is_chief());
  EXPECT_FALSE(two.config->is_chief());
}

// Random damage to a good text: never a crash, and a configuration exactly if there is no error.
TEST(TfConfigTest, SurvivesDamagedText) {
  const std::string good =
      R"({"cluster":{"chief":["c:1"],"worker":["a:1","[::1]:2"],"ps":{"0":"p:1","5":"q:1"}},)"
      R"("task":{"type":"worker","index":"1"},"environment":"cloud"})";
  const std::string pieces[] = {
      "{",    "}",  "[",     "]",    ",",           ":",       "\"",   "\\u0000",
      "null", "-1", "1e999", "\xff", "\"worker\":", "{\"0\":", "true", "99999999999999999999"};
  std::mt19937 random(20201);  // NOLINT(bugprone-random-generator-seed): the same damage each run
  int accepted = 0;
  for (int round = 0; round < 5000; ++round) {
    std::string text = good;
    const int changes = 1 + static_cast<int>(random() % 4);
    for (int i = 0; i < changes; ++i) {
      const std::size_t at = random() % (text.size() + 1);
      switch (random() % 4) {
        case 0:
          text.erase(at, random() % 8);
          break;
        case 1:
          text.insert(at, pieces[random() % std::size(pieces)]);
          break;
        case 2:
          text.resize(at);
          break;
        default:
          if (at < text.size()) {
            text[at] = static_cast<char>(random());
          }
      }
    }
    const ClusterReport report = Inspect(text);
    ASSERT_EQ(report.config.has_value(), report.errors.empty()) << text;
    accepted += report.config.has_value() ? 1 : 0;
  }
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, 2500);
}

}  // namespace
}  // namespace cohort
