// Which source wins, and what happens when two disagree.

#include <cohort/cluster/resolve.h>

#include <algorithm>
#include <fstream>
#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/temp_dir.h"

namespace cohort {
namespace {

using Variables = std::map<std::string, std::string, std::less<>>;

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const char kTfConfig[] =
    R"({"cluster":{"worker":["tf:1","tf:2"]},"task":{"type":"worker","index":1}})";
const char kCohortConfig[] =
    R"({"cluster":{"worker":["co:1","co:2"]},"task":{"type":"worker","index":1},"rendezvous":"co:9"})";
const char kNoTask[] = R"({"cluster":{"chief":["a:1"],"worker":["b:1"],"ps":["c:1"]}})";

Environment Everything() {
  return Environment(Variables{{"COHORT_CONFIG", kCohortConfig},
                               {"TF_CONFIG", kTfConfig},
                               {"RANK", "1"},
                               {"WORLD_SIZE", "2"},
                               {"MASTER_ADDR", "torch"},
                               {"MASTER_PORT", "1"},
                               {"PET_NODE_RANK", "1"},
                               {"PET_NNODES", "2"},
                               {"PET_MASTER_ADDR", "pet"},
                               {"PET_MASTER_PORT", "1"},
                               {"PMI_RANK", "1"},
                               {"PMI_SIZE", "2"},
                               {"SLURM_PROCID", "1"},
                               {"SLURM_STEP_NUM_TASKS", "2"},
                               {"SLURM_STEP_NODELIST", "s1,s2"},
                               {"SLURM_STEP_TASKS_PER_NODE", "1(x2)"},
                               {"SM_HOSTS", R"(["m1","m2"])"},
                               {"SM_CURRENT_HOST", "m2"}});
}

Environment Without(const Environment& env, const std::vector<std::string>& prefixes) {
  Environment result;
  for (const auto& [name, value] : env.variables()) {
    const bool drop = std::any_of(prefixes.begin(), prefixes.end(),
                                  [&, n = name](const std::string& p) { return n.starts_with(p); });
    if (!drop) {
      result.Set(name, value);
    }
  }
  return result;
}

TEST(ResolveTest, TheFirstSourceWinsWhereAllAgree) {
  ClusterFlags flags;
  flags.cluster_spec = R"({"worker":["flag:1","flag:2"]})";
  flags.role = "worker";
  flags.index = 1;
  Environment env = Everything();
  EXPECT_EQ(InspectCluster(flags, env).config->source, "flags");
  EXPECT_EQ(InspectCluster(flags, env).config->cluster.Address({TaskType::kWorker, 1}), "flag:2");

  const std::pair<std::vector<std::string>, const char*> order[] = {
      {{}, "COHORT_CONFIG"},       {{"COHORT_CONFIG"}, "TF_CONFIG"},
      {{"TF_CONFIG"}, "torchrun"}, {{"RANK", "WORLD_SIZE", "MASTER_"}, "PET_*"},
      {{"PET_"}, "PMI"},           {{"PMI_"}, "Slurm"},
      {{"SLURM_"}, "SageMaker"},   {{"SM_"}, "local"}};
  for (const auto& [drop, winner] : order) {
    env = Without(env, drop);
    const ClusterReport report = InspectCluster({}, env);
    ASSERT_TRUE(report.config.has_value()) << ::testing::PrintToString(report.errors);
    EXPECT_EQ(report.config->source, winner);
    EXPECT_EQ(report.config->task, (TaskId{TaskType::kWorker, env.variables().empty() ? 0 : 1}));
  }
}

TEST(ResolveTest, NothingIsALocalJob) {
  const ClusterReport report = InspectCluster({}, Environment());
  ASSERT_TRUE(report.config.has_value());
  EXPECT_TRUE(report.config->cluster.empty());
  EXPECT_TRUE(report.config->is_chief());
  EXPECT_EQ(report.config->source, "local");
  EXPECT_THAT(report.notes, ElementsAre(HasSubstr("a local job of one process")));
}

TEST(ResolveTest, CohortConfigMayNameTheRendezvousAndIsStrict) {
  EXPECT_EQ(InspectCluster({}, Environment(Variables{{"COHORT_CONFIG", kCohortConfig}}))
                .config->rendezvous,
            "co:9");
  const ClusterReport report = InspectCluster(
      {}, Environment(Variables{{"COHORT_CONFIG", R"({"cluster":{"worker":["a:1"]},"taks":{},
          "rendezvous":"a"})"}}));
  EXPECT_THAT(report.errors,
              ElementsAre(HasSubstr("taks: unknown key [did you mean 'task'?]"),
                          HasSubstr("rendezvous: 'a' has no port"), HasSubstr("task: is missing")));
}

TEST(ResolveTest, SourcesThatDisagreeAreAnErrorNamingBoth) {
  const std::tuple<const char*, Environment, std::vector<std::string>> cases[] = {
      {"rank",
       Environment(Variables{{"TF_CONFIG", kTfConfig}, {"PMI_RANK", "0"}, {"PMI_SIZE", "2"}}),
       {"TF_CONFIG says worker:1, which is rank 1 of 2, but PMI (PMI_RANK and PMI_SIZE) says rank "
        "0 of 2"}},
      {"size",
       Environment(Variables{{"TF_CONFIG", kTfConfig}, {"PMI_RANK", "1"}, {"PMI_SIZE", "3"}}),
       {"TF_CONFIG says worker:1, which is rank 1 of 2, but PMI (PMI_RANK and PMI_SIZE) says rank "
        "1 of 3"}},
      {"two texts, task",
       Environment(
           {{"TF_CONFIG", kTfConfig},
            {"COHORT_CONFIG",
             R"({"cluster":{"worker":["a:1","b:1"]},"task":{"type":"worker","index":0}})"}}),
       {"COHORT_CONFIG says worker:0, but TF_CONFIG says worker:1"}},
      {"two texts, size",
       Environment(Variables{{"TF_CONFIG", kTfConfig},
                             {"COHORT_CONFIG", R"({"cluster":{"worker":["a:1","b:1","c:1"]},
                       "task":{"type":"worker","index":1}})"}}),
       {"COHORT_CONFIG names 3 tasks, but TF_CONFIG names 2"}},
      {"the winner is good, the loser is not",
       Environment(Variables{{"COHORT_CONFIG", kCohortConfig}, {"TF_CONFIG", ""}}),
       {"TF_CONFIG is set but empty"}},
      {"task without cluster, launcher with another rank",
       Environment(Variables{{"TF_CONFIG", R"({"task":{"type":"worker","index":0}})"},
                             {"PMI_RANK", "1"},
                             {"PMI_SIZE", "2"}}),
       {"TF_CONFIG says worker:0, but rank 1 of 2 of PMI is worker:1"}},
  };
  for (const auto& [name, env, errors] : cases) {
    SCOPED_TRACE(name);
    const ClusterReport report = InspectCluster({}, env);
    EXPECT_FALSE(report.config.has_value());
    ASSERT_EQ(report.errors.size(), errors.size()) << ::testing::PrintToString(report.errors);
    EXPECT_THAT(report.errors[0], HasSubstr(errors[0]));
  }
}

TEST(ResolveTest, AnInteractiveSlurmShellSaysNothingAboutTheCluster) {
  const ClusterReport report =
      InspectCluster({}, Environment(Variables{{"TF_CONFIG", kTfConfig},
                                               {"SLURM_PROCID", "0"},
                                               {"SLURM_STEP_NUM_TASKS", "1"},
                                               {"SLURM_STEP_NODELIST", "n1"},
                                               {"SLURM_STEP_TASKS_PER_NODE", "1"}}));
  EXPECT_THAT(report.errors, IsEmpty());
}

TEST(ResolveTest, ALaunchersRankSuppliesTheMissingTask) {
  const auto task_of = [](int rank, const std::string& topology) {
    ClusterFlags flags;
    flags.topology = topology;
    const ClusterReport report =
        InspectCluster(flags, Environment(Variables{{"TF_CONFIG", kNoTask},
                                                    {"OMPI_COMM_WORLD_RANK", std::to_string(rank)},
                                                    {"OMPI_COMM_WORLD_SIZE", "3"}}));
    return report.config ? report.config->task.ToString() : report.errors.front();
  };
  EXPECT_EQ(task_of(0, ""), "chief:0");
  EXPECT_EQ(task_of(1, ""), "worker:0");
  EXPECT_EQ(task_of(2, ""), "ps:0");
  EXPECT_EQ(task_of(1, "chief=1,ps=1,worker=rest"), "ps:0");
  EXPECT_THAT(task_of(1, "chief=1,worker=rest"), HasSubstr("does not fit the tasks"));

  const ClusterReport wrong = InspectCluster(
      {}, Environment(Variables{{"TF_CONFIG", kNoTask}, {"PMI_RANK", "1"}, {"PMI_SIZE", "2"}}));
  EXPECT_THAT(wrong.errors, ElementsAre(HasSubstr("TF_CONFIG names 3 tasks, but PMI")));
}

struct FlagCase {
  const char* name;
  ClusterFlags flags;
  const char* tf_config;
  std::string task;  // or
  std::string error;
};

TEST(ResolveTest, Flags) {
  const std::string spec = R"({"chief":["a:1"],"worker":["b:1","c:1"]})";
  const std::string whole =
      R"({"cluster":{"worker":["b:1","c:1"]},"task":{"type":"worker","index":1}})";
  const FlagCase cases[] = {
      {"all", {spec, "worker", 1, ""}, nullptr, "worker:1", ""},
      {"the only one of its role needs no index", {spec, "chief", {}, ""}, nullptr, "chief:0", ""},
      {"master", {spec, "master", 0, ""}, nullptr, "chief:0", ""},
      {"evaluator", {spec, "evaluator", {}, ""}, nullptr, "evaluator:0", ""},
      {"a whole configuration", {whole, "", {}, ""}, nullptr, "worker:1", ""},
      {"a whole configuration, agreeing", {whole, "worker", {}, ""}, nullptr, "worker:1", ""},
      {"cluster from TF_CONFIG", {"", "ps", 0, ""}, kNoTask, "ps:0", ""},
      {"local", {"", "worker", 0, ""}, nullptr, "worker:0", ""},
      {"index missing", {spec, "worker", {}, ""}, nullptr, "", "--role worker needs --index"},
      {"role missing", {spec, "", 1, ""}, nullptr, "", "--index is given without --role"},
      {"both missing", {spec, "", {}, ""}, nullptr, "", "[add --role and --index]"},
      {"index negative", {spec, "worker", -1, ""}, nullptr, "", "--index -1 is below 0"},
      {"index too large", {spec, "worker", 2, ""}, nullptr, "", "the indices of worker are 0 to 1"},
      {"role unknown", {spec, "wroker", 0, ""}, nullptr, "", "--role: unknown role 'wroker'"},
      {"disagrees",
       {whole, "worker", 0, ""},
       nullptr,
       "",
       "--role and --index say worker:0, but --cluster-spec says worker:1"},
      {"disagrees with TF_CONFIG",
       {"", "worker", 0, ""},
       kTfConfig,
       "",
       "but TF_CONFIG says worker:1"},
      {"no such file", {"/no/such/file", "worker", 0, ""}, nullptr, "", "/no/such/file"},
      {"names no tasks", {"{}", "worker", 0, ""}, nullptr, "", "--cluster-spec: names no tasks"},
      {"no cluster", {"", "chief", 0, ""}, nullptr, "", "--role chief is given without a cluster"},
      {"topology, alone",
       {"", "", {}, "chief=1,ps=2,worker=rest"},
       nullptr,
       "",
       "asks for at least 3 processes, there is 1"},
  };
  for (const FlagCase& row : cases) {
    SCOPED_TRACE(row.name);
    Environment env;
    if (row.tf_config != nullptr) {
      env.Set("TF_CONFIG", row.tf_config);
    }
    const ClusterReport report = InspectCluster(row.flags, env);
    if (row.error.empty()) {
      ASSERT_TRUE(report.config.has_value()) << ::testing::PrintToString(report.errors);
      EXPECT_EQ(report.config->task.ToString(), row.task);
    } else {
      EXPECT_FALSE(report.config.has_value());
      EXPECT_THAT(report.errors, ElementsAre(HasSubstr(row.error)));
    }
  }
}

TEST(ResolveTest, ARoleUnderMpirunMustBeThatOfItsRank) {
  ClusterFlags flags;
  flags.role = "ps";
  const Environment env({{"OMPI_COMM_WORLD_RANK", "1"}, {"OMPI_COMM_WORLD_SIZE", "3"}});
  EXPECT_THAT(
      InspectCluster(flags, env).errors,
      ElementsAre(HasSubstr("--role ps is given, but rank 1 of 3 of Open MPI is worker:1")));
  flags.topology = "chief=1,ps=1,worker=rest";
  EXPECT_EQ(InspectCluster(flags, env).config->task.ToString(), "ps:0");
}

TEST(ResolveTest, TheClusterSpecMayBeAFile) {
  testing::TempDir dir;
  std::ofstream(dir / "cluster.json") << R"({"worker": ["a:1", "b:1"]})";
  ClusterFlags flags;
  flags.cluster_spec = dir / "cluster.json";
  flags.role = "worker";
  flags.index = 1;
  EXPECT_EQ(InspectCluster(flags, Environment()).config->cluster.ToJson(),
            R"({"worker":["a:1","b:1"]})");
}

TEST(ResolveTest, WarningsAndNotesGoToTheLog) {
  std::vector<std::string> lines;
  const Log log([&](LogLevel level, std::string_view message) {
    lines.push_back((level == LogLevel::kWarning ? "W " : "I ") + std::string(message));
  });
  const auto config = ResolveCluster(
      {}, Environment(Variables{{"TF_CONFIG", R"({"cluster":{"worker":[]}})"}}), log);
  ASSERT_TRUE(config.ok());
  EXPECT_THAT(lines, ElementsAre(HasSubstr("W TF_CONFIG: cluster.worker: has no tasks, dropped"),
                                 HasSubstr("I no cluster is configured")));
}

TEST(ResolveTest, LauncherVariablesAreKnown) {
  const Environment env = Everything();
  for (const auto& [name, value] : env.variables()) {
    EXPECT_TRUE(IsLauncherVariable(name)) << name;
  }
  for (const char* name : {"PATH", "OMPI_ALLOW_RUN_AS_ROOT", "SM_MODEL_DIR", "OMP_NUM_THREADS"}) {
    EXPECT_FALSE(IsLauncherVariable(name)) << name;
  }
}

}  // namespace
}  // namespace cohort
