#include <cohort/cluster/cluster_spec.h>

namespace cohort {
std::string_view TaskTypeName(TaskType type) {
  static constexpr std::string_view kNames[] = {"chief", "worker", "ps", "evaluator"};
  return kNames[static_cast<int>(type)];
}
}  // namespace cohort
