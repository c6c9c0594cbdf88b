// What a process has in memory now, by /proc.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <string>

namespace cohort::testing {

// 0: there is no such process.
inline std::int64_t ResidentBytes(pid_t pid = ::getpid()) {
  std::ifstream statm("/proc/" + std::to_string(pid) + "/statm");
  std::int64_t all = 0;
  std::int64_t resident = 0;
  statm >> all >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

}  // namespace cohort::testing
