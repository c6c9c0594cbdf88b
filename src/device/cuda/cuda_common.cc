#include "cuda/cuda_common.h"

#include <string>

namespace cohort::cuda {
namespace {

// Errors after which no call on the device succeeds in this process.
bool Lost(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContextIsDestroyed:
    case cudaErrorDeviceUninitialized:
    case cudaErrorDevicesUnavailable:
    case cudaErrorExternalDevice:
    case cudaErrorCudartUnloading:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

}  // namespace

Status CudaStatus(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) {
    return {};
  }
  const std::string reason =
      std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
  if (error == cudaErrorMemoryAllocation) {
    return ResourceExhausted(std::string(what) + ": " + reason);
  }
  if (Lost(error)) {
    return Unavailable(std::string(what) + ": the GPU's context is lost: " + reason +
                       " [end this process; compute-sanitizer finds the kernel]");
  }
  return Internal(std::string(what) + ": " + reason);
}

void Check(cudaError_t error, std::string_view what) {
  if (error != cudaSuccess) {
    (void)cudaGetLastError();  // it is told; the next launch's is its own
    throw StatusError(CudaStatus(error, what));
  }
}

}  // namespace cohort::cuda
