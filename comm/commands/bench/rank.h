// A rank's own process: makes its subject, tells who gives the orders that it is ready, and runs
// one block for each order until that side hangs up.

#pragma once

#include <cohort/core/status.h>

#include "options.h"
#include "subject.h"

namespace cohort::bench {

// Returns when all is done, or what went wrong.
Status RunRankProcess(const SubjectSpec& spec, const Options& options);

}  // namespace cohort::bench
