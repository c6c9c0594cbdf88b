// RunRanks: the ranks of a group as threads of one test.
#pragma once

#include <cohort/core/status.h>

#include <chrono>
#include <functional>
#include <vector>

namespace cohort::testing {

// Runs fn(rank) for every rank of [0, ranks), each on a thread of its own, and returns their
// statuses. An exception becomes an Internal status. When some have not returned at `limit`, the
// test program ends with a line that names them: a hung thread cannot be stopped.
std::vector<Status> RunRanks(int ranks, const std::function<Status(int rank)>& fn,
                             std::chrono::seconds limit = std::chrono::seconds(60));

// All of them OK; a gtest failure for each that is not.
void ExpectAllOk(const std::vector<Status>& statuses);

}  // namespace cohort::testing
