// The machine that this process runs on, without GPUs.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cohort::doctor {

struct Machine {
  std::string kernel;                     // "Linux 6.1.0-18-amd64"
  std::string cpu;                        // "AMD EPYC 9R14"; empty where the machine does not say
  int cores = 0;                          // that are on
  int usable = 0;                         // of these, by this process
  double quota = 0;                       // of a container, in cores; 0: none
  std::vector<std::string> instructions;  // "avx2", of those that matter to training
  int numa_nodes = 1;

  std::uint64_t memory = 0;  // bytes
  std::uint64_t available = 0;
  std::uint64_t memory_limit = 0;  // of a container; 0: none
  std::uint64_t shm_size = 0;      // of /dev/shm; 0: there is none
  std::uint64_t shm_free = 0;
  std::uint64_t huge_pages = 0;  // that are set aside
  std::uint64_t huge_page_bytes = 0;
  std::string transparent;         // of memory: "always", "madvise", "never"; empty: not told
  std::string transparent_shared;  // of shared memory

  bool nvidia_driver = false;  // the kernel has one
};

// `root` is in front of every path that is read ("" but in tests).
Machine InspectMachine(const std::string& root = "");

}  // namespace cohort::doctor
