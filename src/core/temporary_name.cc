#include <cohort/core/temporary_name.h>

#include <unistd.h>

#include <random>

namespace cohort {

std::string TemporaryName(const std::string& path) {
  std::random_device device;  // processes in containers may well have equal ids
  return path + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(device());
}

}  // namespace cohort
