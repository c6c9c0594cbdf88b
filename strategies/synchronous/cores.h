// How the cores of a host are shared among the replicas on it.

#pragma once

#include <cohort/cluster/cluster_spec.h>

namespace cohort {

// Cores for each of this process's `replicas`, at least 1: the process's share among the job's
// processes on this host, or, where the launcher has bound it to fewer cores, those.
int CoresPerReplica(const ClusterConfig& config, int replicas);

}  // namespace cohort
