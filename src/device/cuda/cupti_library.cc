#include <cuda.h>

#include <string>

#include "cuda/cuda_device.h"
#include "cuda/cupti_source.h"
#include "cuda/gpus.h"
#include "cuda/shared_library.h"

namespace cohort {
namespace {

constexpr std::chrono::seconds kDrainTimeout{10};

Status DrainGpus() {
  const Deadline deadline = DeadlineAfter(kDrainTimeout);
  try {
    for (const std::shared_ptr<cuda::Gpu>& gpu : cuda::GpusInUse()) {
      cuda::UseGpu(gpu->ordinal);
      if (!gpu->streams->Drain(*gpu->events, deadline)) {
        return DeadlineExceeded(gpu->name +
                                " was still at work, or recording a graph, when the last step had "
                                "ended: what it did then is lost");
      }
    }
  } catch (const StatusError& error) {
    return error.status();
  }
  return {};
}

}  // namespace

namespace cuda {

Result<CuptiCalls> LoadCupti() {
  // Its records are those of the headers' version.
  const std::string name = "libcupti.so." + std::to_string(CUDA_VERSION / 1000);
  COHORT_ASSIGN_OR_RETURN(
      void* const library,
      OpenLibrary(name, "a trace of what GPUs do",
                  {COHORT_CUDA_LIBRARIES, COHORT_CUDA_LIBRARIES "/../extras/CUPTI/lib64"}));
  CuptiCalls calls;
#define COHORT_FIND(name_of_call) \
  COHORT_RETURN_IF_ERROR(FindCall(library, name, #name_of_call, calls.name_of_call));
  COHORT_CUPTI_CALLS(COHORT_FIND)
#undef COHORT_FIND
  return calls;
}

}  // namespace cuda

Result<std::unique_ptr<trace::ActivitySource>> trace::OpenActivitySource() {
  COHORT_RETURN_IF_ERROR(cuda::GpuCount().status());  // CUPTI would not say why
  COHORT_ASSIGN_OR_RETURN(const cuda::CuptiCalls calls, cuda::LoadCupti());
  return cuda::MakeCuptiSource(calls, DrainGpus);
}

}  // namespace cohort
