#include <cohort/device/report.h>

#include "cuda/cuda_device.h"

namespace cohort {

GpuReport InspectGpus() { return {}; }

namespace cuda {

Result<int> GpuCount() {
  return FailedPrecondition(
      "this build has no CUDA [configure with -DCOHORT_CUDA=ON where nvcc, cuBLAS and cuDNN are "
      "installed]");
}

Result<std::shared_ptr<Device>> OpenGpu(int /*ordinal*/, bool /*tf32*/) {
  return GpuCount().status();
}

}  // namespace cuda
}  // namespace cohort
