// Gpu: one GPU as this process uses it: its memory, its streams, its events. All devices made for
// it share the one, so that its accounts are the process's.

#pragma once

#include <cuda_runtime_api.h>

#include <cohort/core/clock.h>
#include <cohort/core/status.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "cuda/block_cache.h"

namespace cohort::cuda {

// Makes a GPU the calling thread's. It stays so: to go back would start using the GPU of before,
// where that was only the default.
void UseGpu(int ordinal);

// Allows the calling thread, for a scope, calls that would break a capture on a stream, and that
// put nothing on one.
class OutsideCapture {
 public:
  OutsideCapture() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~OutsideCapture() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  OutsideCapture(const OutsideCapture&) = delete;
  OutsideCapture& operator=(const OutsideCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Events without times. Neither taking one back nor giving it out again calls CUDA.
// Thread rules: all methods from any thread.
class EventPool {
 public:
  explicit EventPool(int ordinal) : ordinal_(ordinal) {}
  ~EventPool();
  EventPool(const EventPool&) = delete;
  EventPool& operator=(const EventPool&) = delete;

  cudaEvent_t Take();  // throws StatusError
  void Give(cudaEvent_t event);

 private:
  const int ordinal_;
  std::mutex mutex_;
  std::vector<cudaEvent_t> idle_;
};

// The streams that the device's work is put on.
// Thread rules: all methods from any thread.
class StreamList {
 public:
  void Add(cudaStream_t stream);
  void Remove(cudaStream_t stream);
  // While a stream is captured nothing else can be recorded on it.
  void SetCaptured(cudaStream_t stream, bool captured);
  // Whether all work there is now has run at the deadline. Not while a stream is captured.
  bool Drain(EventPool& events, Deadline deadline);

 private:
  struct Entry {
    cudaStream_t stream;
    bool captured;
  };
  std::mutex mutex_;
  std::vector<Entry> streams_;
};

struct Gpu {
  explicit Gpu(int device);

  const int ordinal;
  const std::string name;  // "cuda:0"
  const std::shared_ptr<EventPool> events;
  const std::shared_ptr<StreamList> streams;
  const std::shared_ptr<BlockCache> memory;
  const std::shared_ptr<BlockCache> pinned;  // of the host

  // Whether its kernels may follow addresses of the other's memory; allows them to, at the first
  // call. Thread rules: any thread.
  bool Reaches(const Gpu& other);

  // The one of that number, made if this process does not use it yet.
  static std::shared_ptr<Gpu> Of(int ordinal);

 private:
  std::mutex mutex_;
  std::map<int, bool> reaches_;  // by ordinal; guarded by mutex_
};

// Pauses between the queries of a poll.
class PollPause {
 public:
  void Next();

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  std::chrono::microseconds slice_{0};
};

// Asks `query` until it says something else than cudaErrorNotReady, or the deadline has passed.
// Spins for what is about to end, then lets others run.
template <typename Query>
cudaError_t PollUntil(Deadline deadline, const Query& query) {
  PollPause pause;
  for (;;) {
    // Before the query: one is made after the deadline too.
    const bool last = std::chrono::steady_clock::now() >= deadline;
    const cudaError_t error = query();
    if (error != cudaErrorNotReady) {
      return error;
    }
    (void)cudaGetLastError();  // not an error
    if (last) {
      return cudaErrorNotReady;
    }
    pause.Next();
  }
}

}  // namespace cohort::cuda
