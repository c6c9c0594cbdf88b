#pragma once

#include <cuda_runtime_api.h>

#include <limits>

#include "cuda/gpu.h"

namespace cohort::cuda {

// Times what is put on a stream. Not while a graph is recorded.
class Stopwatch {
 public:
  static constexpr float kNever = std::numeric_limits<float>::infinity();

  Stopwatch() = default;
  ~Stopwatch() {
    for (const cudaEvent_t event : {begin_, end_}) {
      if (event != nullptr) {
        (void)cudaEventDestroy(event);
      }
    }
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

  // Milliseconds that what `feed` puts on the stream takes; kNever if `feed` returns false, or it
  // does not end.
  template <typename Feed>
  float Time(cudaStream_t stream, const Feed& feed) {
    constexpr std::chrono::seconds kTimeout{20};
    if ((begin_ == nullptr && cudaEventCreate(&begin_) != cudaSuccess) ||
        (end_ == nullptr && cudaEventCreate(&end_) != cudaSuccess) ||
        cudaEventRecord(begin_, stream) != cudaSuccess || !feed() ||
        cudaEventRecord(end_, stream) != cudaSuccess ||
        PollUntil(DeadlineAfter(kTimeout), [&] { return cudaEventQuery(end_); }) != cudaSuccess) {
      (void)cudaGetLastError();
      return kNever;
    }
    float milliseconds = kNever;
    return cudaEventElapsedTime(&milliseconds, begin_, end_) == cudaSuccess ? milliseconds : kNever;
  }

 private:
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

}  // namespace cohort::cuda
