#include "cuda/cuda_device.h"

#include <exception>
#include <string>
#include <utility>

#include "cuda/cuda_graph.h"
#include "cuda/cuda_kernels.h"
#include "cuda/cuda_stream.h"
#include "cuda/gpu.h"
#include "cuda/layout.h"
#include "cuda/libraries.h"

namespace cohort::cuda {
namespace {

class CudaDevice final : public Device, public std::enable_shared_from_this<CudaDevice> {
 public:
  CudaDevice(std::shared_ptr<Gpu> gpu, bool tf32)
      : gpu_(std::move(gpu)), tf32_(tf32), name_(gpu_->name + (tf32 ? "+tf32" : "")) {}

  const std::string& name() const override { return name_; }
  MemorySpace memory_space() const override { return MemorySpace::kDevice; }
  std::unique_ptr<Stream> MakeStream() override { return std::make_unique<CudaStream>(gpu_); }
  std::unique_ptr<Kernels> MakeKernels(int /*threads*/) override {
    return MakeCudaKernels(shared_from_this(), gpu_->ordinal, tf32_);
  }

  std::shared_ptr<std::byte> Allocate(std::size_t bytes, std::string_view what) override {
    return Keeping(gpu_->memory->Allocate(bytes, what));
  }
  std::shared_ptr<std::byte> AllocateHost(std::size_t bytes, std::string_view what) override {
    return Keeping(gpu_->pinned->Allocate(bytes, what));
  }
  bool PageLocked(const std::byte* address) const override {
    cudaPointerAttributes attributes{};
    if (cudaPointerGetAttributes(&attributes, address) != cudaSuccess) {
      (void)cudaGetLastError();
      return false;
    }
    return attributes.type == cudaMemoryTypeHost;
  }

  void Copy(Stream& stream, const std::byte* from, std::byte* to, std::size_t bytes) override {
    StreamState& state = *AsCuda(stream).state();
    Require(state.gpu == gpu_, "a device copies on its own streams");
    if (bytes == 0) {
      return;
    }
    UseGpu(gpu_->ordinal);
    // Launched reports its error.
    (void)cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, state.native);
    Launched(stream, "a copy");
  }

  bool Reaches(const Device& other) const override {
    const auto* const gpu = dynamic_cast<const CudaDevice*>(&other);
    return gpu != nullptr && gpu_->Reaches(*gpu->gpu_);
  }

  std::unique_ptr<Graph> Capture(Stream& stream, const std::function<void()>& feed) override {
    Require(AsCuda(stream).state()->gpu == gpu_, "a device captures its own streams");
    return CaptureGraph(AsCuda(stream).state(), feed);
  }
  std::vector<std::unique_ptr<Graph>> CaptureParts(
      Stream& stream, const std::function<void(const Cut& cut)>& feed) override {
    Require(AsCuda(stream).state()->gpu == gpu_, "a device captures its own streams");
    return CaptureGraphs(AsCuda(stream).state(), feed);
  }

 private:
  // The block, and this device with it.
  std::shared_ptr<std::byte> Keeping(std::shared_ptr<std::byte> block) {
    std::byte* const address = block.get();
    return {address, [device = shared_from_this(), block = std::move(block)](std::byte*) {}};
  }

  const std::shared_ptr<Gpu> gpu_;
  const bool tf32_;
  const std::string name_;
};

// Why there is no GPU.
Status NoGpu(cudaError_t error) {
  const std::string reason =
      std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
  switch (error) {
    case cudaErrorNoDevice:
      return FailedPrecondition("there is no GPU here: " + reason +
                                " [nvidia-smi -L; CUDA_VISIBLE_DEVICES hides GPUs]");
    case cudaErrorInsufficientDriver:
    case cudaErrorStubLibrary:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
      return FailedPrecondition("there is no driver for CUDA " +
                                std::to_string(CUDART_VERSION / 1000) + "." +
                                std::to_string(CUDART_VERSION % 1000 / 10) + " here: " + reason +
                                " [install NVIDIA's driver, or a newer one]");
    default:
      return FailedPrecondition("the GPUs can't be used: " + reason + " [nvidia-smi]");
  }
}

// This build's kernels run on the GPU.
Status CheckCode(int ordinal) {
  UseGpu(ordinal);
  const cudaError_t error = FindKernels();
  if (error == cudaSuccess) {
    return {};
  }
  (void)cudaGetLastError();
  if (error != cudaErrorNoKernelImageForDevice && error != cudaErrorInvalidDeviceFunction) {
    return CudaStatus(error, "starting on GPU " + std::to_string(ordinal));
  }
  int major = 0;
  int minor = 0;
  (void)cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal);
  (void)cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal);
  const std::string capability = std::to_string(major) + std::to_string(minor);
  return FailedPrecondition("this build has no code for compute capability " +
                            std::to_string(major) + "." + std::to_string(minor) +
                            " [configure with -DCOHORT_CUDA_ARCH=" + capability + "]");
}

}  // namespace

Result<int> GpuCount() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    return NoGpu(error);
  }
  if (count == 0) {
    return NoGpu(cudaErrorNoDevice);
  }
  return count;
}

Result<std::shared_ptr<Device>> OpenGpu(int ordinal, bool tf32) {
  COHORT_RETURN_IF_ERROR(CheckCode(ordinal));
  COHORT_RETURN_IF_ERROR(LoadLibraries().status());
  return std::make_shared<CudaDevice>(Gpu::Of(ordinal), tf32);
}

}  // namespace cohort::cuda
