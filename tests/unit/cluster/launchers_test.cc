// Environments as launchers set them. Those of Open MPI are recorded from mpirun 4.1.4; the others
// follow the launchers' documentation.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cohort/cluster/resolve.h>

namespace cohort {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Variables = std::map<std::string, std::string, std::less<>>;

Variables operator+(Variables a, const Variables& b) {
  for (const auto& [name, value] : b) {
    a[name] = value;
  }
  return a;
}

ClusterReport Inspect(const Variables& variables, const std::string& topology = "") {
  ClusterFlags flags;
  flags.topology = topology;
  return InspectCluster(flags, Environment(variables));
}

// mpirun -n 2, the second process.
const Variables kOpenMpi = {{"OMPI_APP_CTX_NUM_PROCS", "2"},
                            {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                            {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                            {"OMPI_COMM_WORLD_NODE_RANK", "1"},
                            {"OMPI_COMM_WORLD_RANK", "1"},
                            {"OMPI_COMM_WORLD_SIZE", "2"},
                            {"OMPI_FIRST_RANKS", "0"},
                            {"OMPI_MCA_orte_app_num", "0"},
                            {"OMPI_MCA_orte_ess_num_procs", "2"},
                            {"OMPI_NUM_APP_CTX", "1"},
                            {"OMPI_UNIVERSE_SIZE", "2"},
                            {"PMIX_HOSTNAME", "vm"},
                            {"PMIX_NAMESPACE", "1081278465"},
                            {"PMIX_RANK", "1"}};
// mpirun -n 1 : -n 2, the last process. OMPI_FIRST_RANKS is wrong, and not used.
const Variables kOpenMpiMpmd = {
    {"OMPI_APP_CTX_NUM_PROCS", "1 2"},   {"OMPI_COMM_WORLD_LOCAL_RANK", "2"},
    {"OMPI_COMM_WORLD_LOCAL_SIZE", "3"}, {"OMPI_COMM_WORLD_NODE_RANK", "2"},
    {"OMPI_COMM_WORLD_RANK", "2"},       {"OMPI_COMM_WORLD_SIZE", "3"},
    {"OMPI_FIRST_RANKS", "0 0"},         {"OMPI_MCA_orte_app_num", "1"},
    {"OMPI_NUM_APP_CTX", "2"},           {"PMIX_RANK", "2"}};
const Variables kHydra = {{"PMI_RANK", "2"},
                          {"PMI_SIZE", "4"},
                          {"MPI_LOCALRANKID", "0"},
                          {"MPI_LOCALNRANKS", "2"},
                          {"HYDI_CONTROL_FD", "9"}};
const Variables kTorchrun = {{"RANK", "3"},
                             {"WORLD_SIZE", "4"},
                             {"LOCAL_RANK", "1"},
                             {"LOCAL_WORLD_SIZE", "2"},
                             {"GROUP_RANK", "1"},
                             {"ROLE_RANK", "3"},
                             {"ROLE_WORLD_SIZE", "4"},
                             {"MASTER_ADDR", "node0"},
                             {"MASTER_PORT", "29500"},
                             {"TORCHELASTIC_RESTART_COUNT", "0"},
                             {"TORCHELASTIC_RUN_ID", "none"}};
const Variables kPet = {{"PET_NNODES", "2"},
                        {"PET_NPROC_PER_NODE", "1"},
                        {"PET_NODE_RANK", "1"},
                        {"PET_MASTER_ADDR", "job-node-0-0.job"},
                        {"PET_MASTER_PORT", "29500"}};
const Variables kSlurm = {{"SLURM_PROCID", "2"},
                          {"SLURM_STEP_NUM_TASKS", "3"},
                          {"SLURM_LOCALID", "0"},
                          {"SLURM_NODEID", "1"},
                          {"SLURM_JOB_ID", "4711"},
                          {"SLURM_STEP_ID", "0"},
                          {"SLURM_STEP_NODELIST", "n[009-010]"},
                          {"SLURM_STEP_TASKS_PER_NODE", "2,1"}};
const Variables kSageMaker = {
    {"SM_HOSTS", R"(["algo-2","algo-1"])"}, {"SM_CURRENT_HOST", "algo-2"}, {"SM_NUM_GPUS", "0"}};

struct Found {
  const char* name;
  Variables variables;
  std::string topology;
  const char* source;
  const char* task;
  const char* cluster;
  const char* rendezvous;
  int local_rank, local_size;
  bool mpi;
};

TEST(LaunchersTest, AreUnderstood) {
  const Found cases[] = {
      {"mpirun", kOpenMpi, "", "Open MPI", "worker:1", R"({"worker":["host:0","host:0"]})", "", 1,
       2, true},
      {"mpirun MPMD", kOpenMpiMpmd, "chief=1,worker=rest", "Open MPI", "worker:1",
       R"({"chief":["host:0"],"worker":["host:0","host:0"]})", "", 2, 3, true},
      {"mpirun, servers first", kOpenMpiMpmd, "ps=1,worker=rest", "Open MPI", "worker:1",
       R"({"worker":["host:0","host:0"],"ps":["host:0"]})", "", 2, 3, true},
      {"hydra", kHydra, "chief=1,ps=1,worker=rest", "PMI", "worker:0",
       R"({"chief":["host:0"],"worker":["host:0","host:0"],"ps":["host:0"]})", "", 0, 2, true},
      {"mvapich",
       {{"MV2_COMM_WORLD_RANK", "0"}, {"MV2_COMM_WORLD_SIZE", "1"}},
       "",
       "MVAPICH2",
       "worker:0",
       R"({"worker":["host:0"]})",
       "",
       0,
       1,
       true},
      {"torchrun", kTorchrun, "", "torchrun", "worker:3",
       R"({"worker":["host:0","host:0","host:0","host:0"]})", "node0:29500", 1, 2, false},
      {"torchrun whose agent listens",
       kTorchrun + Variables{{"TORCHELASTIC_USE_AGENT_STORE", "True"}}, "", "torchrun", "worker:3",
       R"({"worker":["host:0","host:0","host:0","host:0"]})", "node0:29501", 1, 2, false},
      {"by hand",
       {{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "::1"}, {"MASTER_PORT", "5"}},
       "",
       "torchrun",
       "worker:0",
       R"({"worker":["host:0","host:0"]})",
       "[::1]:5",
       0,
       1,
       false},
      {"Kubeflow", kPet, "chief=1,worker=rest", "PET_*", "worker:0",
       R"({"chief":["host:0"],"worker":["host:0"]})", "job-node-0-0.job:29500", 0, 1, false},
      {"srun", kSlurm, "", "Slurm", "worker:2", R"({"worker":["n009:0","n009:0","n010:0"]})",
       "n009:14711", 0, 1, false},
      {"srun, servers first", kSlurm, "ps=2,worker=rest", "Slurm", "worker:0",
       R"({"worker":["n010:0"],"ps":["n009:0","n009:0"]})", "n010:14711", 0, 1, false},
      {"srun with a reserved port", kSlurm + Variables{{"SLURM_STEP_RESV_PORTS", "12000-12003"}},
       "", "Slurm", "worker:2", R"({"worker":["n009:0","n009:0","n010:0"]})", "n009:12000", 0, 1,
       false},
      {"srun --distribution=cyclic",
       kSlurm + Variables{{"SLURM_DISTRIBUTION", "cyclic"},
                          {"SLURM_NODEID", "0"},
                          {"SLURM_LOCALID", "1"}},
       "", "Slurm", "worker:2", R"({"worker":["n009:0","n010:0","n009:0"]})", "n009:14711", 1, 2,
       false},
      {"srun --mpi=pmix", kSlurm + Variables{{"PMIX_RANK", "2"}}, "", "Slurm", "worker:2",
       R"({"worker":["n009:0","n009:0","n010:0"]})", "n009:14711", 0, 1, true},
      {"SageMaker", kSageMaker, "", "SageMaker", "worker:1",
       R"({"worker":["algo-1:2223","algo-2:2223"]})", "", 0, 1, false},
      {"torchrun in a Slurm step describes other processes than the step", kSlurm + kTorchrun, "",
       "torchrun", "worker:3", R"({"worker":["host:0","host:0","host:0","host:0"]})", "node0:29500",
       1, 2, false},
      {"mpirun in a Slurm step too", kSlurm + kOpenMpi, "", "Open MPI", "worker:1",
       R"({"worker":["host:0","host:0"]})", "", 1, 2, true},
  };
  for (const Found& row : cases) {
    SCOPED_TRACE(row.name);
    const ClusterReport report = Inspect(row.variables, row.topology);
    EXPECT_THAT(report.errors, IsEmpty());
    ASSERT_TRUE(report.config.has_value());
    EXPECT_EQ(report.config->source, row.source);
    EXPECT_EQ(report.config->task.ToString(), row.task);
    EXPECT_EQ(report.config->cluster.ToJson(), row.cluster);
    EXPECT_EQ(report.config->rendezvous, row.rendezvous);
    EXPECT_EQ(report.config->local_rank, row.local_rank);
    EXPECT_EQ(report.config->local_size, row.local_size);
    EXPECT_EQ(report.config->mpi, row.mpi);
  }
}

struct Broken {
  const char* name;
  Variables variables;
  std::string topology;
  std::vector<std::string> errors;
};

TEST(LaunchersTest, MistakesAreErrors) {
  const Broken cases[] = {
      {"rank no number",
       {{"OMPI_COMM_WORLD_RANK", "x"}, {"OMPI_COMM_WORLD_SIZE", "2"}},
       "",
       {"OMPI_COMM_WORLD_RANK='x' is no number"}},
      {"size missing",
       {{"OMPI_COMM_WORLD_RANK", "0"}},
       "",
       {"Open MPI: OMPI_COMM_WORLD_SIZE is not set"}},
      {"rank not below size",
       {{"PMI_RANK", "2"}, {"PMI_SIZE", "2"}},
       "",
       {"PMI: PMI_RANK=2 is not below PMI_SIZE=2"}},
      {"size 0", {{"PMI_RANK", "0"}, {"PMI_SIZE", "0"}}, "", {"is not below PMI_SIZE=0"}},
      {"two variables wrong",
       {{"PMI_RANK", ""}, {"PMI_SIZE", "-2"}},
       "",
       {"PMI_RANK='' is no number", "PMI_SIZE='-2' is no number"}},
      {"local rank does not fit",
       kOpenMpi + Variables{{"OMPI_COMM_WORLD_LOCAL_RANK", "2"}},
       "",
       {"do not fit a job of 2"}},
      {"PMIx without a size", {{"PMIX_RANK", "1"}}, "", {"PMIX_RANK is set, but"}},
      {"torchrun without address",
       {{"RANK", "0"}, {"WORLD_SIZE", "2"}},
       "",
       {"torchrun: MASTER_ADDR or MASTER_PORT is not set"}},
      {"torchrun without size",
       {{"RANK", "0"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "1"}},
       "",
       {"torchrun: WORLD_SIZE is not set"}},
      {"torchrun with a bad port",
       kTorchrun + Variables{{"MASTER_PORT", "70000"}},
       "",
       {"MASTER_PORT='70000' is no number from 0 to 65535", "MASTER_ADDR or MASTER_PORT"}},
      {"torchrun with a bad host",
       kTorchrun + Variables{{"MASTER_ADDR", "a b"}},
       "",
       {"has spaces"}},
      {"torchrun, chief not rank 0",
       kTorchrun,
       "ps=1,worker=rest",
       {"rank 0 is ps:0, but torchrun tells the host of rank 0 only"}},
      {"elastic PET_NNODES", kPet + Variables{{"PET_NNODES", "1:4"}}, "", {"PET_NNODES='1:4'"}},
      {"PET without address",
       {{"PET_NNODES", "2"}, {"PET_NODE_RANK", "0"}},
       "",
       {"PET_MASTER_ADDR or PET_MASTER_PORT is not set"}},
      {"Slurm list broken",
       kSlurm + Variables{{"SLURM_STEP_NODELIST", "n[1-"}},
       "",
       {"SLURM_STEP_NODELIST: unbalanced brackets"}},
      {"Slurm counts broken",
       kSlurm + Variables{{"SLURM_STEP_TASKS_PER_NODE", "2(x"}},
       "",
       {"SLURM_STEP_TASKS_PER_NODE"}},
      {"Slurm counts differ",
       kSlurm + Variables{{"SLURM_STEP_TASKS_PER_NODE", "1,1"}},
       "",
       {"names 2 nodes, SLURM_STEP_TASKS_PER_NODE 2 nodes with 2 tasks, SLURM_STEP_NUM_TASKS 3"}},
      {"Slurm placed differently",
       kSlurm + Variables{{"SLURM_NODEID", "0"}},
       "",
       {"rank 2 runs as task 0 of node 0, which is neither block nor cyclic"}},
      {"Slurm without hosts",
       {{"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "2"}},
       "",
       {"SLURM_STEP_NODELIST is not set"}},
      {"SageMaker stranger",
       kSageMaker + Variables{{"SM_CURRENT_HOST", "algo-3"}},
       "",
       {"SM_CURRENT_HOST='algo-3' is not in SM_HOSTS"}},
      {"SageMaker no list",
       kSageMaker + Variables{{"SM_HOSTS", "algo-1"}},
       "",
       {"SM_HOSTS: line 1, column 1"}},
      {"SageMaker repeats",
       kSageMaker + Variables{{"SM_HOSTS", R"(["algo-2","algo-2"])"}},
       "",
       {"no list of distinct host names"}},
      {"unsupported launcher",
       {{"HOROVOD_SIZE", "4"}, {"HOROVOD_RANK", "1"}},
       "",
       {"HOROVOD_SIZE=4 is set, but its launcher is not supported"}},
      {"topology", kOpenMpi, "chief=1,ps=1,wroker=rest", {"--topology chief=1,ps=1,wroker=rest: "}},
      {"two launchers disagree",
       kPet + kOpenMpi + Variables{{"PET_NODE_RANK", "0"}},
       "",
       {"PET_* (PET_NODE_RANK and PET_NNODES) says rank 0 of 2, but Open MPI (OMPI_COMM_WORLD_RANK "
        "and OMPI_COMM_WORLD_SIZE) says rank 1 of 2"}},
      {"RANK by hand in a Slurm step",
       kSlurm +
           Variables{
               {"RANK", "0"}, {"WORLD_SIZE", "3"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "1"}},
       "",
       {"torchrun (RANK and WORLD_SIZE) says rank 0 of 3, but Slurm"}},
  };
  for (const Broken& row : cases) {
    SCOPED_TRACE(row.name);
    const ClusterReport report = Inspect(row.variables, row.topology);
    EXPECT_FALSE(report.config.has_value());
    ASSERT_EQ(report.errors.size(), row.errors.size()) << ::testing::PrintToString(report.errors);
    for (std::size_t i = 0; i < row.errors.size(); ++i) {
      EXPECT_THAT(report.errors[i], HasSubstr(row.errors[i]));
    }
  }
}

TEST(LaunchersTest, RanksOfOneJobSeeTheSameCluster) {
  std::uint64_t first = 0;
  for (int rank = 0; rank < 3; ++rank) {
    const ClusterReport report = Inspect({{"SLURM_PROCID", std::to_string(rank)},
                                          {"SLURM_STEP_NUM_TASKS", "3"},
                                          {"SLURM_STEP_NODELIST", "n[009-010]"},
                                          {"SLURM_STEP_TASKS_PER_NODE", "2,1"}},
                                         "chief=1,ps=1,worker=rest");
    ASSERT_TRUE(report.config.has_value()) << ::testing::PrintToString(report.errors);
    first = rank == 0 ? report.config->cluster.Fingerprint() : first;
    EXPECT_EQ(report.config->cluster.Fingerprint(), first);
    EXPECT_EQ(report.config->rendezvous, "n009:10000");
  }
}

TEST(LaunchersTest, ABatchScriptOutsideOfAStepIsWarned) {
  const ClusterReport report =
      Inspect({{"SLURM_JOB_ID", "1"}, {"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "4"}});
  ASSERT_TRUE(report.config.has_value());
  EXPECT_EQ(report.config->source, "local");
  EXPECT_THAT(report.warnings, ElementsAre(HasSubstr("start with srun")));
}

TEST(LaunchersTest, RankAloneIsAnybodysVariable) {
  const ClusterReport report = Inspect({{"RANK", "captain"}});
  ASSERT_TRUE(report.config.has_value());
  EXPECT_EQ(report.config->source, "local");
}

}  // namespace
}  // namespace cohort
