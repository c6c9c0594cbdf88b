// Where CUDA or CUPTI's headers were not found at configure time.
#include "trace/activity.h"

namespace cohort::trace {

Result<std::unique_ptr<ActivitySource>> OpenActivitySource() {
  return FailedPrecondition(
      "this build has no CUPTI [install the CUDA toolkit with CUPTI's headers, and configure "
      "again]");
}

}  // namespace cohort::trace
