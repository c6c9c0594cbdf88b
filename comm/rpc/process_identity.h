// What a process tells of itself when it joins.

#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace cohort {

struct ProcessIdentity {
  std::string host;
  std::int64_t pid = 0;
  std::chrono::milliseconds uptime{0};  // 0 where /proc does not tell

  static ProcessIdentity OfThis();
};

// A random number, never 0: one life of one task.
std::uint64_t NewIncarnation();

}  // namespace cohort
