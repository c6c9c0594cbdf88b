// cohort config check, as a person or a script sees it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "testing/process_cluster.h"

namespace cohort::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;
using namespace std::chrono_literals;

struct Output {
  int code;
  std::string out, err;
};

Output Check(std::vector<std::string> arguments, const Variables& env = {}) {
  ProcessCluster cluster;
  std::vector<std::string> argv = {COHORT_BIN_DIR "/cohort", "config", "check"};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  cluster.Start("check", argv, env);
  const int code = cluster.Wait("check", 30s).value_or(-1);
  return {code, cluster.Stdout("check"), cluster.Stderr("check")};
}

const char kGood[] = R"({"cluster":{"chief":["a:1"],"worker":["b:1"],"ps":["c:1"]},)"
                     R"("task":{"type":"worker","index":0}})";

TEST(ConfigCheckTest, PrintsTheTable) {
  const Output output = Check({}, {{"TF_CONFIG", kGood}});
  EXPECT_EQ(output.code, 0);
  EXPECT_EQ(output.err, "");
  EXPECT_EQ(output.out,
            "source      TF_CONFIG\n"
            "task        worker:0, process 0 of 1 on this host\n"
            "rendezvous  a:1\n"
            "\n"
            "  TASK          ROLE       ADDRESS\n"
            "  chief:0       chief      a:1  (chief)\n"
            "* worker:0      worker     b:1  (this process)\n"
            "  ps:0          ps         c:1\n");
}

TEST(ConfigCheckTest, PrintsJson) {
  const Output output = Check({"--json"}, {{"TF_CONFIG", kGood}});
  EXPECT_EQ(output.code, 0);
  const auto json = nlohmann::json::parse(output.out);
  EXPECT_EQ(json["ok"], true);
  EXPECT_EQ(json["source"], "TF_CONFIG");
  EXPECT_EQ(json["task"], (nlohmann::json{{"type", "worker"}, {"index", 0}}));
  EXPECT_EQ(json["chief"], "chief:0");
  EXPECT_EQ(json["tasks"].size(), 3u);
  EXPECT_EQ(json["tasks"][1]["self"], true);
  EXPECT_EQ(json["cluster"], nlohmann::json::parse(kGood)["cluster"]);
}

TEST(ConfigCheckTest, PrintsEveryMistakeAndExitsWith2) {
  const Variables env = {
      {"TF_CONFIG",
       R"({"cluster":{"worker":["a"],"wroker":[]},"task":{"type":"worker","index":0}})"}};
  const Output text = Check({}, env);
  EXPECT_EQ(text.code, 2);
  EXPECT_EQ(text.out, "");
  EXPECT_THAT(text.err, HasSubstr("error: TF_CONFIG: cluster.worker[0]: 'a' has no port"));
  EXPECT_THAT(text.err, HasSubstr("error: TF_CONFIG: cluster.wroker: unknown role"));
  EXPECT_THAT(text.err, HasSubstr("2 mistakes"));

  const Output output = Check({"--json"}, env);
  EXPECT_EQ(output.code, 2);
  const auto json = nlohmann::json::parse(output.out);
  EXPECT_EQ(json["ok"], false);
  EXPECT_EQ(json["errors"].size(), 2u);
}

TEST(ConfigCheckTest, UsageErrorsExitWith2AlsoAsJson) {
  EXPECT_EQ(Check({"--no-such"}).code, 2);
  const Output output = Check({"--json", "--index", "x"});
  EXPECT_EQ(output.code, 2);
  EXPECT_EQ(nlohmann::json::parse(output.out)["ok"], false);
  EXPECT_EQ(Check({"--help"}).code, 0);
}

TEST(ConfigCheckTest, TakesFlags) {
  const Output output =
      Check({"--cluster-spec", R"({"worker":["a:1","b:1"]})", "--role", "worker", "--index", "1"});
  EXPECT_EQ(output.code, 0);
  EXPECT_THAT(output.out, StartsWith("source      flags\ntask        worker:1,"));
}

TEST(ConfigCheckTest, UnderMpirunEachProcessSeesItsRole) {
  ProcessCluster cluster;
  const std::vector<std::string> check = {
      COHORT_BIN_DIR "/cohort",  "config", "check", "--json", "--topology",
      "chief=1,ps=1,worker=rest"};
  std::vector<std::string> argv = {"mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "3"};
  argv.insert(argv.end(), check.begin(), check.end());
  cluster.Start("mpirun", argv);
  ASSERT_EQ(cluster.Wait("mpirun", 60s), 0);
  const std::string out = cluster.Stdout("mpirun");
  for (const char* type : {"chief", "ps", "worker"}) {
    EXPECT_THAT(out, HasSubstr("\"type\": \"" + std::string(type) + "\""));
  }
  EXPECT_THAT(out, HasSubstr(R"("source": "Open MPI")"));
}

}  // namespace
}  // namespace cohort::testing
