// cuBLASLt and cuDNN, opened when the first GPU is: half a gigabyte that a machine without a GPU
// need not have.

#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <cudnn.h>

#include <cohort/core/status.h>
#include <cohort/device/stream.h>

#include <string>
#include <string_view>

#include "cuda/plans.h"

// cuDNN's calls for one convolution are deprecated for its graphs, which run the same kernels.
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

#define COHORT_CUBLASLT_CALLS(X)          \
  X(cublasLtCreate)                       \
  X(cublasLtDestroy)                      \
  X(cublasLtGetCudartVersion)             \
  X(cublasLtGetStatusName)                \
  X(cublasLtGetVersion)                   \
  X(cublasLtMatmul)                       \
  X(cublasLtMatmulAlgoGetHeuristic)       \
  X(cublasLtMatmulDescCreate)             \
  X(cublasLtMatmulDescDestroy)            \
  X(cublasLtMatmulDescSetAttribute)       \
  X(cublasLtMatmulPreferenceCreate)       \
  X(cublasLtMatmulPreferenceDestroy)      \
  X(cublasLtMatmulPreferenceSetAttribute) \
  X(cublasLtMatrixLayoutCreate)           \
  X(cublasLtMatrixLayoutDestroy)

#define COHORT_CUDNN_CALLS(X)                      \
  X(cudnnCreate)                                   \
  X(cudnnDestroy)                                  \
  X(cudnnSetStream)                                \
  X(cudnnGetCudartVersion)                         \
  X(cudnnGetErrorString)                           \
  X(cudnnGetVersion)                               \
  X(cudnnCreateTensorDescriptor)                   \
  X(cudnnSetTensor4dDescriptor)                    \
  X(cudnnDestroyTensorDescriptor)                  \
  X(cudnnCreateFilterDescriptor)                   \
  X(cudnnSetFilter4dDescriptor)                    \
  X(cudnnDestroyFilterDescriptor)                  \
  X(cudnnCreateActivationDescriptor)               \
  X(cudnnSetActivationDescriptor)                  \
  X(cudnnDestroyActivationDescriptor)              \
  X(cudnnCreateConvolutionDescriptor)              \
  X(cudnnSetConvolution2dDescriptor)               \
  X(cudnnSetConvolutionGroupCount)                 \
  X(cudnnSetConvolutionMathType)                   \
  X(cudnnDestroyConvolutionDescriptor)             \
  X(cudnnFindConvolutionForwardAlgorithmEx)        \
  X(cudnnFindConvolutionBackwardDataAlgorithmEx)   \
  X(cudnnFindConvolutionBackwardFilterAlgorithmEx) \
  X(cudnnGetConvolutionForwardAlgorithm_v7)        \
  X(cudnnGetConvolutionBackwardDataAlgorithm_v7)   \
  X(cudnnGetConvolutionBackwardFilterAlgorithm_v7) \
  X(cudnnConvolutionForward)                       \
  X(cudnnConvolutionBiasActivationForward)         \
  X(cudnnConvolutionBackwardData)                  \
  X(cudnnConvolutionBackwardFilter)                \
  X(cudnnBackendCreateDescriptor)                  \
  X(cudnnBackendDestroyDescriptor)                 \
  X(cudnnBackendSetAttribute)                      \
  X(cudnnBackendGetAttribute)                      \
  X(cudnnBackendFinalize)                          \
  X(cudnnBackendExecute)

namespace cohort::cuda {

// Their functions, under their own names.
struct LibraryCalls {
#define COHORT_DECLARE(name) decltype(&::name) name = nullptr;
  COHORT_CUBLASLT_CALLS(COHORT_DECLARE)
  COHORT_CUDNN_CALLS(COHORT_DECLARE)
#undef COHORT_DECLARE
};

// Once for the process. FailedPrecondition names the library that is missing or too old.
Result<const LibraryCalls*> LoadLibraries();

struct LibraryHandles {
  const LibraryCalls* calls = nullptr;
  cublasLtHandle_t cublas = nullptr;
  cudnnHandle_t cudnn = nullptr;        // made by the first convolution
  cudaStream_t cudnn_stream = nullptr;  // that cudnn puts work on
};

// OK, or Internal: `what: NAME`.
Status CublasStatus(const LibraryCalls& calls, cublasStatus_t status, std::string_view what);
Status CudnnStatus(const LibraryCalls& calls, cudnnStatus_t status, std::string_view what);

// The table's cuDNN, started at the first call, which puts its work on `stream` then.
cudnnHandle_t CudnnOn(Libraries& libraries, Stream& stream);

}  // namespace cohort::cuda
