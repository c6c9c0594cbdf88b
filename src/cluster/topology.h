// Topology: which ranks of a launcher play which role, "chief=1,ps=2,worker=rest".

#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <cohort/cluster/cluster_spec.h>

namespace cohort {

// The task of each of `size` ranks: roles in the order written, indices counting from 0; `rest`
// (once) takes what the others leave. An empty text makes all of them workers. InvalidArgument with
// every mistake on its own line: unknown or repeated role, a bad count, more or fewer ranks than
// asked for, nobody who trains.
Result<std::vector<TaskId>> AssignRoles(std::string_view topology, int size);

// Why these tasks cannot be a job (more than one chief, none that trains); empty if they can.
std::string WhyNoJob(int chiefs, int workers, int servers);

}  // namespace cohort
