// Slurm's compressed lists.

#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <cohort/core/status.h>

namespace cohort {

// "n[001-003,7],gpu-[1-2]-[a,b],login" to host names, in the order of the list, leading zeros kept,
// repeats kept. At most 100,000 hosts.
Result<std::vector<std::string>> ExpandHostList(std::string_view text);

// "2(x3),1" to {2, 2, 2, 1}.
Result<std::vector<int>> ExpandTasksPerNode(std::string_view text);

}  // namespace cohort
