// ps_program's saves where the chief cannot go back to them.

#pragma once

#include <string>

#include <cohort/strategies/strategy.h>

namespace cohort::testing {

// A save every ten steps, which is said ("saved step N") and kept nowhere. When a server is lost,
// what becomes of going back is, by `way`:
//   error: DataLoss.
//   throws: an exception, when the servers have been given all values, and no rows.
//   nothing: the step of the save, and the servers have been given nothing.
// InvalidArgument: another way.
Result<SavePlan> PlanWithoutAWayBack(const std::string& way, Strategy& strategy);

}  // namespace cohort::testing
