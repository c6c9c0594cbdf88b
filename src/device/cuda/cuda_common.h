// What the files of this folder share: CUDA's errors as statuses, a stream's native handle, and
// errors that depend on data.

#pragma once

#include <cuda_runtime_api.h>

#include <cohort/core/status.h>
#include <cohort/device/stream.h>

#include <string_view>

namespace cohort::cuda {

// OK for cudaSuccess; otherwise `what: text (cudaErrorName)` as ResourceExhausted (out of memory),
// Unavailable (the device or its context is lost: it stays so), or Internal.
Status CudaStatus(cudaError_t error, std::string_view what);
// Throws StatusError of that.
void Check(cudaError_t error, std::string_view what);

// The handle of a CudaStream, whose device becomes the calling thread's. ContractError for another
// kind of stream.
cudaStream_t Native(Stream& stream);

// After each launch: notes `what` (a literal) as the stream's latest work, for error texts, and
// fails the stream if the launch failed. Never throws for an error of CUDA.
void Launched(Stream& stream, const char* what);

// Fails the stream with `status`, as a host function that returns it would.
void Fail(Stream& stream, Status status);

// Whether what `stream` is fed now is recorded for a Graph instead of run.
bool Capturing(Stream& stream);

// An error that only the device sees. The first one on a stream is kept, in memory that both sides
// reach; CudaStream makes of it the status that the CPU's table gives.
enum class DataErrorKind : int { kNone, kId, kLabel };

struct DataError {
  int kind = 0;
  int complete = 0;  // the fields below are written
  long long element = 0;
  long long value = 0;
  long long limit = 0;
};

// For kernels on `stream`: the device's address of its slot. Constant for the stream's life.
DataError* ErrorSlot(Stream& stream);

#if defined(__CUDACC__)
// `value` of element `element` is not in [0, limit). Call it from any thread that finds one, and go
// on with zeros.
__device__ inline void ReportDataError(DataError* slot, DataErrorKind kind, long long element,
                                       long long value, long long limit) {
  if (atomicCAS(&slot->kind, 0, static_cast<int>(kind)) == 0) {
    slot->element = element;
    slot->value = value;
    slot->limit = limit;
    __threadfence_system();
    *static_cast<volatile int*>(&slot->complete) = 1;
  }
}
#endif

}  // namespace cohort::cuda
