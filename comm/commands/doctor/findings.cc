#include "findings.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace cohort::doctor {
namespace {

// What a container has where nobody asked for more is a sixteenth of this.
constexpr std::uint64_t kEnoughShm = std::uint64_t{1} << 30;

class Findings {
 public:
  void Problem(std::string what, std::string remedy) {
    all_.push_back({true, std::move(what), std::move(remedy)});
  }
  void Advice(std::string what, std::string remedy) {
    all_.push_back({false, std::move(what), std::move(remedy)});
  }
  std::vector<Finding> Take() { return std::move(all_); }

 private:
  std::vector<Finding> all_;
};

int Major(int cuda) { return cuda / 1000; }

// cuBLAS and cuDNN, where there is a GPU to use them.
void LookAtLibrary(const char* name, const GpuReport::Library& library, std::string (*version)(int),
                   int runtime, Findings& findings) {
  if (library.cuda != 0 && Major(library.cuda) != Major(runtime)) {
    findings.Problem(fmt::format("{} {} is for CUDA {}, this build is for CUDA {}", name,
                                 version(library.found), Major(library.cuda), Major(runtime)),
                     fmt::format("install the {} for CUDA {}", name, Major(runtime)));
  } else if (library.found != 0 && library.found < library.built) {
    findings.Problem(fmt::format("{} {} is older than {}, whose headers this was built with", name,
                                 version(library.found), version(library.built)),
                     fmt::format("install {} {} or later, or build on this machine", name,
                                 version(library.built)));
  }
}

void LookAtGpus(const Facts& facts, Findings& findings) {
  const GpuReport& report = facts.gpus;
  if (!report.built) {
    if (facts.machine.nvidia_driver) {
      findings.Advice("this machine has an NVIDIA driver, and this build no CUDA",
                      "build where CUDA 12 or later is installed, with -DCOHORT_CUDA=ON");
    }
    return;
  }
  if (report.driver != 0 && Major(report.driver) < Major(report.runtime)) {
    findings.Problem(fmt::format("the NVIDIA driver can do CUDA {}, this build needs {}.0",
                                 CudaVersion(report.driver), Major(report.runtime)),
                     fmt::format("update the driver, or build with CUDA {}", Major(report.driver)));
  } else if (report.driver == 0 && facts.machine.nvidia_driver) {
    findings.Problem(
        "the kernel has an NVIDIA driver, but libcuda.so.1 cannot be used: " + report.error,
        "install the driver's libraries of the same version; in a container, start it "
        "with --gpus all");
  }
  for (std::size_t g = 0; g < report.gpus.size(); ++g) {
    const GpuReport::Gpu& gpu = report.gpus[g];
    const std::string name =
        fmt::format("GPU {} ({}, compute capability {}.{})", g, gpu.name, gpu.major, gpu.minor);
    if (!gpu.error.empty()) {
      findings.Problem(name + " cannot be used: " + gpu.error,
                       "see what nvidia-smi says of it, and whether another process has it alone");
    } else if (!gpu.has_code) {
      findings.Problem(name + ": this build has no code for it",
                       fmt::format("build with -DCOHORT_CUDA_ARCH={}{}", gpu.major, gpu.minor));
    }
  }
  std::string apart;
  for (std::size_t g = 0; g < report.gpus.size(); ++g) {
    for (std::size_t p = g + 1; p < report.gpus[g].peers.size(); ++p) {
      if (!report.gpus[g].peers[p]) {
        apart += fmt::format("{}{} and {}", apart.empty() ? "" : ", ", g, p);
      }
    }
  }
  if (!apart.empty()) {
    findings.Advice("GPUs do not reach each other's memory (" + apart +
                        "): what they exchange goes through the host's",
                    "look at nvidia-smi topo -p2p r; virtual machines and IOMMUs often forbid it");
  }
  if (report.gpus.empty()) {
    return;
  }
  for (const std::string& error : {report.cublas.error, report.cudnn.error}) {
    if (!error.empty()) {
      findings.Problem(error, "both cuBLAS and cuDNN must be where the loader finds them");
      if (report.cublas.error == report.cudnn.error) {
        break;
      }
    }
  }
  LookAtLibrary("cuBLAS", report.cublas, CublasVersion, report.runtime, findings);
  LookAtLibrary("cuDNN", report.cudnn, CudnnVersion, report.runtime, findings);
  if (report.gpus.size() > 1 && !facts.nccl.ok()) {
    findings.Problem("GPUs reduce gradients with NCCL: " + facts.nccl.status().message(),
                     "install libnccl2");
  }
}

void LookAtMachine(const Facts& facts, Findings& findings) {
  const Machine& machine = facts.machine;
  if (machine.quota > 0 && std::ceil(machine.quota) < machine.usable) {
    findings.Advice(
        fmt::format("{} cores are usable, but the container may use the time of {:.4g}: cohort "
                    "starts a thread for each core",
                    machine.usable, machine.quota),
        fmt::format("give the container whole cores (--cpuset-cpus), or set "
                    "StrategyOptions.intra_op_threads (--threads) to {:.0f}",
                    std::max(1.0, std::floor(machine.quota))));
  }
  const bool others = !facts.mpi.empty() || facts.gpus.gpus.size() > 1;
  if (others && machine.shm_size < kEnoughShm) {
    findings.Advice(
        machine.shm_size == 0
            ? std::string("there is no /dev/shm, where MPI and NCCL put what processes share")
            : "/dev/shm has " + Bytes(machine.shm_size) +
                  ", where MPI and NCCL put what processes share: with many processes, or large "
                  "messages, they fail (cohort's own shared memory is not there)",
        "in a container: --shm-size=1g or --ipc=host");
  }
}

}  // namespace

std::vector<Finding> FindingsOf(const Facts& facts) {
  Findings findings;
  LookAtGpus(facts, findings);
  LookAtMachine(facts, findings);
  return findings.Take();
}

std::string NoGpus(const Facts& facts) {
  const GpuReport& report = facts.gpus;
  if (!report.gpus.empty()) {
    return "";
  }
  if (!report.built) {
    return "none that this build could use: it has no CUDA";
  }
  if (report.driver == 0) {
    return "none: this machine has no NVIDIA driver";
  }
  return "none: " + (report.error.empty() ? std::string("the driver shows none") : report.error);
}

std::string CudaVersion(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

std::string CublasVersion(int version) {
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

// Before 9 there was one digit less.
std::string CudnnVersion(int version) {
  const int major = version >= 90000 ? 10000 : 1000;
  return fmt::format("{}.{}.{}", version / major, version % major / 100, version % 100);
}

std::string Bytes(std::uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1024 && unit + 1 < kUnits.size(); ++unit) {
    value /= 1024;
  }
  return fmt::format("{:.{}f} {}", value, unit == 0 ? 0 : 1, kUnits[unit]);
}

}  // namespace cohort::doctor
