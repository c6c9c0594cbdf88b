#include "synchronous/cores.h"

#include <unistd.h>

#include <algorithm>

#include <cohort/core/thread_pool.h>

namespace cohort {

int CoresPerReplica(const ClusterConfig& config, int replicas) {
  const int machine = static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN));
  const int share = machine / std::max(1, config.local_size);
  return std::max(1, std::min(AvailableCores(), share) / replicas);
}

}  // namespace cohort
