#include "cuda/libraries.h"

#include <algorithm>
#include <utility>

#include "cuda/cuda_common.h"
#include "cuda/gpu.h"
#include "cuda/shared_library.h"

namespace cohort::cuda {
namespace {

const std::string kCublasLt = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
const std::string kCudnn = "libcudnn.so." + std::to_string(CUDNN_MAJOR);

Result<LibraryCalls> Load() {
  LibraryCalls calls;
  COHORT_ASSIGN_OR_RETURN(void* const cublas,
                          OpenLibrary(kCublasLt, "a GPU", {COHORT_CUDA_LIBRARIES}));
  COHORT_ASSIGN_OR_RETURN(void* const cudnn, OpenLibrary(kCudnn, "a GPU", {COHORT_CUDA_LIBRARIES}));
#define COHORT_FIND_CUBLAS(name) \
  COHORT_RETURN_IF_ERROR(FindCall(cublas, kCublasLt, #name, calls.name));
#define COHORT_FIND_CUDNN(name) COHORT_RETURN_IF_ERROR(FindCall(cudnn, kCudnn, #name, calls.name));
  COHORT_CUBLASLT_CALLS(COHORT_FIND_CUBLAS)
  COHORT_CUDNN_CALLS(COHORT_FIND_CUDNN)
#undef COHORT_FIND_CUBLAS
#undef COHORT_FIND_CUDNN
  return calls;
}

int CapabilityOf(int ordinal) {
  int major = 0;
  int minor = 0;
  Check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal),
        "the GPU's compute capability");
  Check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal),
        "the GPU's compute capability");
  return 10 * major + minor;
}

}  // namespace

Result<const LibraryCalls*> LoadLibraries() {
  static const Result<LibraryCalls> calls = Load();
  if (!calls.ok()) {
    return calls.status();
  }
  return &calls.value();
}

Status CublasStatus(const LibraryCalls& calls, cublasStatus_t status, std::string_view what) {
  if (status == CUBLAS_STATUS_SUCCESS) {
    return {};
  }
  return Internal(std::string(what) + ": " + calls.cublasLtGetStatusName(status));
}

Status CudnnStatus(const LibraryCalls& calls, cudnnStatus_t status, std::string_view what) {
  if (status == CUDNN_STATUS_SUCCESS) {
    return {};
  }
  return Internal(std::string(what) + ": " + calls.cudnnGetErrorString(status));
}

cudnnHandle_t CudnnOn(Libraries& libraries, Stream& stream) {
  LibraryHandles& handles = libraries.handles();
  const LibraryCalls& calls = *handles.calls;
  if (handles.cudnn == nullptr) {
    UseGpu(libraries.ordinal());
    const OutsideCapture outside;
    OrThrow(CudnnStatus(calls, calls.cudnnCreate(&handles.cudnn), "starting cuDNN"));
  }
  const cudaStream_t native = Native(stream);
  if (handles.cudnn_stream != native) {
    OrThrow(CudnnStatus(calls, calls.cudnnSetStream(handles.cudnn, native), "cuDNN's stream"));
    handles.cudnn_stream = native;
  }
  return handles.cudnn;
}

void RequireTypeOf(const Libraries& libraries, DType type) {
  if (type == DType::kBFloat16 && libraries.compute_capability() < 80) {
    throw StatusError(FailedPrecondition(libraries.device().name() +
                                         ": bfloat16 on a GPU of compute capability " +
                                         std::to_string(libraries.compute_capability() / 10) + "." +
                                         std::to_string(libraries.compute_capability() % 10) +
                                         " [8.0 or later; mixed_float16 or float32 on this one]"));
  }
}

Libraries::Libraries(std::shared_ptr<Device> device, int ordinal, bool tf32)
    : device_(std::move(device)),
      ordinal_(ordinal),
      tf32_(tf32),
      compute_capability_(CapabilityOf(ordinal)),
      handles_(std::make_unique<LibraryHandles>()) {
  handles_->calls = OrThrow(LoadLibraries());
  const LibraryCalls& calls = *handles_->calls;
  UseGpu(ordinal);
  OrThrow(CublasStatus(calls, calls.cublasLtCreate(&handles_->cublas), "starting cuBLASLt"));
}

Libraries::~Libraries() {
  UseGpu(ordinal_);
  if (handles_->cudnn != nullptr) {
    (void)handles_->calls->cudnnDestroy(handles_->cudnn);
  }
  (void)handles_->calls->cublasLtDestroy(handles_->cublas);
  (void)cudaGetLastError();
}

std::byte* Libraries::Scratch(std::size_t bytes) {
  if (scratch_.empty() || bytes > scratch_bytes_) {
    const std::size_t size = std::max({bytes, 2 * scratch_bytes_, kLeastScratch});
    scratch_.push_back(device_->Allocate(size, "scratch memory of products and convolutions"));
    scratch_bytes_ = size;
  }
  return scratch_.back().get();
}

}  // namespace cohort::cuda
