// Who is to blame for an operation that does not end.

#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <cohort/core/status.h>

#include "nccl/board.h"
#include "operation.h"

namespace cohort {

struct NcclOperation;

// What to make of an operation of `rank` that is not done after its timeout, given where the
// others are (nothing: they have not told). `name` gives a rank's.
Status StallVerdict(const NcclOperation& operation, int rank,
                    const std::vector<std::optional<Whereabouts>>& ranks,
                    const std::function<std::string(int rank)>& name);
// The ranks are in different operations.
Status MismatchOf(int a, const OperationRecord& ours, int b, const OperationRecord& theirs,
                  const std::function<std::string(int rank)>& name);

}  // namespace cohort
