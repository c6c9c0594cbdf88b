// What there is of GPUs on this machine, and of what using them takes, for people to read.
//
// Any thread. May take seconds: drivers and libraries are loaded.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cohort {

struct GpuReport {
  struct Gpu {
    std::string name;  // "NVIDIA H100 80GB HBM3"
    std::string bus;   // its PCI address
    std::uint64_t memory = 0;
    int major = 0;  // compute capability
    int minor = 0;
    bool has_code = false;    // this build has kernels that it runs
    std::string error;        // why that could not be found out
    std::vector<bool> peers;  // by number: does it reach that one's memory
  };
  struct Library {
    int built = 0;      // version of the headers that this was built with
    int found = 0;      // of what is loaded; 0: nothing
    int cuda = 0;       // that it was made for, as `runtime`
    std::string error;  // why nothing is loaded
  };

  bool built = false;  // this build is for GPUs
  int runtime = 0;     // CUDA of this build: 12040 is 12.4
  int driver = 0;      // the newest CUDA that the driver can; 0: there is no driver
  std::string error;   // why no GPU can be used, in CUDA's words
  std::vector<Gpu> gpus;
  Library cublas;  // cuBLASLt; 120402 is 12.4.2
  Library cudnn;   // 91900 is 9.19.0
};

GpuReport InspectGpus();

}  // namespace cohort
