// Ranks as threads of one process.

#pragma once

#include <memory>
#include <vector>

#include <cohort/comm/communicator.h>

namespace cohort {

// One communicator for each of `size` ranks; give each to its thread. Split and Abort work as
// everywhere.
std::vector<std::unique_ptr<Communicator>> MakeLocalCommunicators(
    int size, const CommunicatorOptions& options = {});

}  // namespace cohort
