// Numbers of tasks, which stand in the addresses by which a proxy knows who connects to it
// (process/through_proxy.cc).

#pragma once

#include <cstdlib>
#include <string>

namespace cohort::testing {

// 1 to 254, and 0 for what is no task; of which there are at most 100 of a type.
inline int NumberOf(const std::string& task) {
  const std::size_t colon = task.find(':');
  const int index = colon == std::string::npos ? 0 : std::atoi(task.c_str() + colon + 1);
  const std::string type = task.substr(0, colon);
  if (index < 0 || index >= 100) {
    return 0;
  }
  return type == "chief" ? 1 : type == "worker" ? 2 + index : type == "ps" ? 128 + index : 0;
}

}  // namespace cohort::testing
