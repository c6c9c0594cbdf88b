// Flight records and step traces as one file of Chrome's trace format.

#pragma once

#include <nlohmann/json.hpp>

#include "flight_records.h"
#include "step_traces.h"

namespace cohort::trace {

// A process a rank; its threads are its groups of collectives, with a bar an operation from start
// to end, and what its step trace has. All on the wall clocks of the hosts, from the earliest event
// on.
nlohmann::json Timeline(const Groups& groups, StepTraces traces);

}  // namespace cohort::trace
