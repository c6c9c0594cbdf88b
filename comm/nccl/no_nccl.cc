// Where CUDA or NCCL was not found at configure time.
#include "nccl/nccl_api.h"

namespace cohort {

Result<std::shared_ptr<NcclApi>> LoadNccl() {
  return FailedPrecondition(
      "this build has no NCCL [install the CUDA toolkit and NCCL's header, and configure again]");
}

}  // namespace cohort
