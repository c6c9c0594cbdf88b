// The GPUs of this process. no_cuda.cc where the build has no CUDA.

#pragma once

#include <cohort/device/device.h>

#include <memory>

namespace cohort::cuda {

// How many there are: at least 1, otherwise FailedPrecondition says what is missing.
Result<int> GpuCount();

// `ordinal` is one of them. `tf32`: its products and convolutions may round operands to TF32.
// FailedPrecondition: a library is missing, or this build has no code for that GPU.
Result<std::shared_ptr<Device>> OpenGpu(int ordinal, bool tf32);

}  // namespace cohort::cuda
