// Agreement: what must be equal on every process is compared before it is relied on.

#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <cohort/comm/communicator.h>
#include <cohort/core/status.h>

namespace cohort {

// Waits for an operation that has just been called.
Status Await(Communicator::Pending pending);

// What every rank says, by rank. All must call.
Result<std::vector<std::string>> GatherTexts(Communicator& communicator, std::string_view what,
                                             const std::string& mine);

// Are `lines` equal on all ranks? All must call. Where they are not, every rank gets the same
// FailedPrecondition: `what` differ, between which two ranks, and the first line in which they do.
// Cost: one all-gather of 16 bytes per rank; only on a difference the lines themselves.
Status Agree(Communicator& communicator, std::string_view what,
             const std::vector<std::string>& lines, std::string_view hint);

}  // namespace cohort
