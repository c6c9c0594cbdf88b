// Two descriptions of one cluster, compared.

#pragma once

#include <string>

namespace cohort {

// The first field in which two ClusterSpec::ToJson() texts differ, said of the one that `here`
// holds and of `there`: `cluster.worker[1] is "b:1" at worker:1 and "a:1" at chief:0`. Texts that
// are no such JSON are shown whole. Empty if both are equal.
std::string FirstClusterDifference(const std::string& mine, const std::string& my_name,
                                   const std::string& theirs, const std::string& their_name);

}  // namespace cohort
