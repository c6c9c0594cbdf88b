// `cohort doctor`: the program on this machine, and what it makes of machines that are not here.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "findings.h"
#include "report.h"
#include "testing/process_cluster.h"
#include "testing/temp_dir.h"

namespace cohort::doctor {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Its standard output. It must end with 0, or with 1 where it tells of a problem.
std::string Doctor(const std::vector<std::string>& flags) {
  testing::ProcessCluster cluster;
  std::vector<std::string> argv = {COHORT_BIN_DIR "/cohort", "doctor"};
  argv.insert(argv.end(), flags.begin(), flags.end());
  cluster.Start("doctor", argv);
  const std::optional<int> code = cluster.Wait("doctor", std::chrono::minutes(1));
  const std::string out = cluster.Stdout("doctor");
  EXPECT_EQ(code, out.find("problem") == std::string::npos ? 0 : 1) << cluster.Logs();
  return out;
}

TEST(Doctor, TellsProgramsOfThisMachine) {
  const nlohmann::json json = nlohmann::json::parse(Doctor({"--json"}));
  EXPECT_EQ(json.at("build").at("COHORT_ARCH"), TEST_ARCH);
  EXPECT_EQ(json.at("build").at("COHORT_RPC"), TEST_RPC);
  EXPECT_GE(json.at("cpu").at("usable"), 1);
  EXPECT_GE(json.at("cpu").at("cores"), json.at("cpu").at("usable"));
  EXPECT_GE(json.at("cpu").at("numa_nodes"), 1);
  EXPECT_GT(json.at("memory").at("bytes"), json.at("memory").at("available"));
  EXPECT_EQ(json.at("dev_shm").at("bytes") > 0, std::filesystem::exists("/dev/shm"));
  EXPECT_EQ(json.at("grpc").is_string(), std::string(TEST_RPC) == "ON");
  EXPECT_EQ(json.at("protobuf").is_string(), std::string(TEST_RPC) == "ON");
  EXPECT_EQ(json.at("mpi").is_string(), TEST_MPI);
  EXPECT_EQ(json.at("cuda").is_object(), json.at("build").at("COHORT_CUDA") == "ON");
  EXPECT_EQ(json.at("gpus").empty(), json.at("no_gpus").is_string());
  bool problem = false;
  for (const nlohmann::json& finding : json.at("findings")) {
    problem |= finding.at("kind") == "problem";
    EXPECT_NE(finding.at("what"), "");
    EXPECT_NE(finding.at("remedy"), "");
  }
  EXPECT_EQ(json.at("ok"), !problem);
}

TEST(Doctor, TellsPeople) {
  EXPECT_THAT(Doctor({}), AllOf(HasSubstr("\nCPU  "), HasSubstr("\n/dev/shm  "),
                                HasSubstr("\nhuge pages  "), HasSubstr("\nGPUs  ")));
}

TEST(Doctor, ReadsAMachine) {
  const testing::TempDir root;
  const auto write = [&](const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root / path).parent_path());
    std::ofstream(root / path) << text;
  };
  write("proc/cpuinfo",
        "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t\t: fpu avx2 fma avx512f\n");
  write("proc/meminfo",
        "MemTotal:       1000 kB\nMemAvailable:    400 kB\nHugePages_Total:       3\n"
        "Hugepagesize:       2048 kB\n");
  write("proc/driver/nvidia/version", "NVRM");
  write("sys/fs/cgroup/cpu.max", "150000 100000\n");
  write("sys/fs/cgroup/memory.max", "512000\n");
  write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
  for (const char* const node : {"node0", "node1", "node12"}) {
    std::filesystem::create_directories(root / "sys/devices/system/node/" + node);
  }
  write("sys/devices/system/node/online", "0-1,12\n");
  const Machine machine = InspectMachine(root.path());
  EXPECT_EQ(machine.cpu, "Some CPU @ 3 GHz");
  EXPECT_THAT(machine.instructions, ElementsAre("avx2", "fma", "avx512f"));
  EXPECT_EQ(machine.quota, 1.5);
  EXPECT_EQ(machine.numa_nodes, 3);
  EXPECT_EQ(machine.memory, 1'024'000U);
  EXPECT_EQ(machine.available, 409'600U);
  EXPECT_EQ(machine.memory_limit, 512'000U);
  EXPECT_EQ(machine.huge_pages, 3U);
  EXPECT_EQ(machine.huge_page_bytes, std::uint64_t{2} << 20);
  EXPECT_EQ(machine.transparent, "madvise");
  EXPECT_EQ(machine.transparent_shared, "");
  EXPECT_EQ(machine.shm_size, 0U);
  EXPECT_TRUE(machine.nvidia_driver);

  const testing::TempDir nothing;
  const Machine unknown = InspectMachine(nothing.path());
  EXPECT_EQ(unknown.cpu, "");
  EXPECT_EQ(unknown.quota, 0);
  EXPECT_EQ(unknown.numa_nodes, 1);
  EXPECT_EQ(unknown.memory, 0U);
  EXPECT_FALSE(unknown.nvidia_driver);
}

TEST(Doctor, ReadsAContainerOfTheOldKind) {
  const testing::TempDir root;
  const auto write = [&](const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root / path).parent_path());
    std::ofstream(root / path) << text;
  };
  write("proc/meminfo", "MemTotal:       1000 kB\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "400000\n");
  write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  const Machine machine = InspectMachine(root.path());
  EXPECT_EQ(machine.quota, 4);
  EXPECT_EQ(machine.memory_limit, 0U);
  write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  EXPECT_EQ(InspectMachine(root.path()).quota, 0);
}

// Two GPUs and all that they need.
Facts Sound() {
  Facts facts;
  facts.machine.cores = facts.machine.usable = 8;
  facts.machine.shm_size = std::uint64_t{16} << 30;
  facts.machine.nvidia_driver = true;
  facts.mpi = "Open MPI v4.1.4";
  facts.nccl = std::string("2.28.9");
  facts.gpus.built = true;
  facts.gpus.runtime = 13000;
  facts.gpus.driver = 13010;
  facts.gpus.cublas = {.built = 130100, .found = 130101, .cuda = 13000, .error = ""};
  facts.gpus.cudnn = {.built = 91900, .found = 91900, .cuda = 13000, .error = ""};
  const GpuReport::Gpu gpu{.name = "NVIDIA H100",
                           .bus = "0000:01:00.0",
                           .memory = std::uint64_t{80} << 30,
                           .major = 9,
                           .minor = 0,
                           .has_code = true,
                           .error = "",
                           .peers = {true, true}};
  facts.gpus.gpus = {gpu, gpu};
  return facts;
}

// "problem: WHAT [REMEDY]" of the only finding.
std::string Found(const Facts& facts) {
  const std::vector<Finding> findings = FindingsOf(facts);
  std::string text;
  for (const Finding& finding : findings) {
    text += (text.empty() ? "" : "\n") + std::string(finding.problem ? "problem: " : "advice: ") +
            finding.what + " [" + finding.remedy + "]";
  }
  return text;
}

TEST(Doctor, FindsNothingWhereAllFits) {
  EXPECT_EQ(Found(Sound()), "");
  EXPECT_EQ(NoGpus(Sound()), "");
  EXPECT_THAT(ToText(Sound(), {}),
              AllOf(HasSubstr("0: NVIDIA H100, 80.0 GiB, compute capability 9.0, 0000:01:00.0\n"),
                    HasSubstr(" 1: yes yes\n"), HasSubstr("nothing here stands in the way")));
  const nlohmann::json json = nlohmann::json::parse(ToJson(Sound(), {}));
  EXPECT_EQ(json["ok"], true);
  EXPECT_EQ(json["gpus"][1]["compute_capability"], "9.0");
  EXPECT_EQ(json["gpus"][1]["peers"], nlohmann::json({true, true}));
  EXPECT_EQ(json["cuda"]["driver"], "13.1");
  EXPECT_EQ(json["cuda"]["cublas"]["found"], "13.1.1");
  EXPECT_EQ(json["cuda"]["cudnn"]["built_with"], "9.19.0");
  EXPECT_EQ(json["cuda"]["nccl"], "2.28.9");
}

TEST(Doctor, NoGpuIsNoProblemAndSaysWhy) {
  Facts facts = Sound();
  facts.gpus.gpus.clear();
  facts.gpus.driver = 0;
  facts.gpus.error = "no CUDA-capable device is detected (cudaErrorNoDevice)";
  facts.gpus.cudnn = {.built = 91900, .found = 0, .cuda = 0, .error = "a GPU needs libcudnn.so.9"};
  facts.machine.nvidia_driver = false;
  EXPECT_EQ(Found(facts), "");
  EXPECT_EQ(NoGpus(facts), "none: this machine has no NVIDIA driver");
  facts.gpus.driver = 13000;
  EXPECT_EQ(Found(facts), "");
  EXPECT_THAT(NoGpus(facts), HasSubstr("cudaErrorNoDevice"));
  facts.gpus = {};
  EXPECT_THAT(NoGpus(facts), HasSubstr("it has no CUDA"));
  EXPECT_EQ(Found(facts), "");
  facts.machine.nvidia_driver = true;
  EXPECT_THAT(Found(facts), AllOf(HasSubstr("advice: "), HasSubstr("-DCOHORT_CUDA=ON")));
}

TEST(Doctor, FindsADriverThatIsTooOld) {
  Facts facts = Sound();
  facts.gpus.driver = 12080;
  EXPECT_EQ(Found(facts),
            "problem: the NVIDIA driver can do CUDA 12.8, this build needs 13.0 [update the "
            "driver, or build with CUDA 12]");
  // Of one major version every driver runs every runtime.
  facts.gpus.driver = 13000;
  facts.gpus.runtime = 13010;
  EXPECT_EQ(Found(facts), "");
  facts.gpus.driver = 0;
  facts.gpus.gpus.clear();
  EXPECT_THAT(Found(facts), AllOf(HasSubstr("problem: "), HasSubstr("libcuda.so.1")));
}

TEST(Doctor, FindsAGpuThatThisBuildIsNotFor) {
  Facts facts = Sound();
  facts.gpus.gpus[1].has_code = false;
  facts.gpus.gpus[1].major = 8;
  facts.gpus.gpus[1].minor = 6;
  EXPECT_EQ(Found(facts),
            "problem: GPU 1 (NVIDIA H100, compute capability 8.6): this build has no code for it "
            "[build with -DCOHORT_CUDA_ARCH=86]");
  EXPECT_THAT(ToText(facts, {}), HasSubstr("not for this build"));
  facts.gpus.gpus[1].error = "out of memory (cudaErrorMemoryAllocation)";
  EXPECT_THAT(Found(facts), AllOf(HasSubstr("problem: GPU 1"), HasSubstr("cannot be used: out")));
}

TEST(Doctor, FindsLibrariesThatAreMissingOrOfAnotherCuda) {
  Facts facts = Sound();
  facts.gpus.cudnn.cuda = 12090;
  EXPECT_THAT(Found(facts),
              HasSubstr("problem: cuDNN 9.19.0 is for CUDA 12, this build is for CUDA 13"));
  facts.gpus.cudnn = {.built = 91900, .found = 90501, .cuda = 13000, .error = ""};
  EXPECT_THAT(Found(facts), HasSubstr("problem: cuDNN 9.5.1 is older than 9.19.0"));
  facts = Sound();
  facts.gpus.cublas = {.built = 130100, .found = 0, .cuda = 0, .error = "a GPU needs libcublasLt"};
  facts.gpus.cudnn = {.built = 91900, .found = 0, .cuda = 0, .error = "a GPU needs libcublasLt"};
  EXPECT_THAT(FindingsOf(facts), ::testing::SizeIs(1)) << "one error is told once";
  EXPECT_THAT(Found(facts), HasSubstr("problem: a GPU needs libcublasLt"));
  facts = Sound();
  facts.nccl = FailedPrecondition("no libnccl.so.2");
  EXPECT_THAT(Found(facts), HasSubstr("problem: GPUs reduce gradients with NCCL: no libnccl.so.2"));
  facts.gpus.gpus.pop_back();
  facts.gpus.gpus[0].peers.pop_back();
  EXPECT_EQ(Found(facts), "") << "one GPU reduces nothing";
}

TEST(Doctor, AdvisesOnWhatIsSlowOrTight) {
  Facts facts = Sound();
  facts.gpus.gpus[0].peers = {true, false};
  EXPECT_THAT(Found(facts), AllOf(HasSubstr("advice: "), HasSubstr("(0 and 1)")));
  facts = Sound();
  facts.machine.shm_size = std::uint64_t{64} << 20;
  EXPECT_THAT(Found(facts),
              AllOf(HasSubstr("advice: /dev/shm has 64.0 MiB"), HasSubstr("--shm-size")));
  facts.machine.shm_size = 0;
  EXPECT_THAT(Found(facts), HasSubstr("advice: there is no /dev/shm"));
  facts.mpi = "";
  facts.gpus.gpus.clear();
  EXPECT_THAT(FindingsOf(facts), IsEmpty()) << "nobody would use it";
  facts = Sound();
  facts.machine.quota = 2.5;
  EXPECT_THAT(Found(facts), AllOf(HasSubstr("advice: 8 cores are usable"), HasSubstr("of 2.5"),
                                  HasSubstr("to 2")));
  facts.machine.quota = 8;
  EXPECT_EQ(Found(facts), "");
}

}  // namespace
}  // namespace cohort::doctor
