#include <cohort/device/report.h>
#include <cuda_runtime_api.h>

#include <array>

#include "cuda/libraries.h"
#include "cuda/report_probe.h"

namespace cohort {
namespace {

std::string Text(cudaError_t error) {
  (void)cudaGetLastError();  // is no other call's
  return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
}

GpuReport::Gpu Inspect(int ordinal, int count) {
  GpuReport::Gpu gpu;
  cudaDeviceProp properties{};
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, ordinal);
      error != cudaSuccess) {
    gpu.error = Text(error);
    return gpu;
  }
  gpu.name = properties.name;
  gpu.memory = properties.totalGlobalMem;
  gpu.major = properties.major;
  gpu.minor = properties.minor;
  std::array<char, 32> bus{};
  if (cudaDeviceGetPCIBusId(bus.data(), static_cast<int>(bus.size()), ordinal) == cudaSuccess) {
    gpu.bus = bus.data();
  }
  for (int peer = 0; peer < count; ++peer) {
    int reaches = peer == ordinal ? 1 : 0;
    if (peer != ordinal && cudaDeviceCanAccessPeer(&reaches, ordinal, peer) != cudaSuccess) {
      reaches = 0;
    }
    gpu.peers.push_back(reaches != 0);
  }
  cudaError_t error = cudaSetDevice(ordinal);
  if (error == cudaSuccess) {
    cudaFuncAttributes attributes{};
    error = cudaFuncGetAttributes(&attributes, cuda::ReportProbe());
  }
  gpu.has_code = error == cudaSuccess;
  if (error != cudaSuccess && error != cudaErrorNoKernelImageForDevice &&
      error != cudaErrorUnsupportedPtxVersion) {
    gpu.error = Text(error);
  }
  (void)cudaGetLastError();
  return gpu;
}

}  // namespace

GpuReport InspectGpus() {
  GpuReport report;
  report.built = true;
  (void)cudaRuntimeGetVersion(&report.runtime);
  (void)cudaDriverGetVersion(&report.driver);

  int before = 0;
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    report.error = Text(error);
    count = 0;
  }
  const bool restore = count > 0 && cudaGetDevice(&before) == cudaSuccess;
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    report.gpus.push_back(Inspect(ordinal, count));
  }
  if (restore) {
    (void)cudaSetDevice(before);
  }

  report.cublas.built = CUBLAS_VERSION;
  report.cudnn.built = CUDNN_VERSION;
  const Result<const cuda::LibraryCalls*> calls = cuda::LoadLibraries();
  if (!calls.ok()) {
    report.cublas.error = calls.status().message();
    report.cudnn.error = calls.status().message();
    return report;
  }
  report.cublas.found = static_cast<int>((*calls)->cublasLtGetVersion());
  report.cublas.cuda = static_cast<int>((*calls)->cublasLtGetCudartVersion());
  report.cudnn.found = static_cast<int>((*calls)->cudnnGetVersion());
  report.cudnn.cuda = static_cast<int>((*calls)->cudnnGetCudartVersion());
  return report;
}

}  // namespace cohort
