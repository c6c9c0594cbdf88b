// CudaStream and CudaEvent: a queue of a GPU, and points in it. See <cohort/device/stream.h>.
//
// Work of the device that was put on a stream before it failed runs all the same; host functions do
// not. An error of CUDA's own fails the stream it shows on, with the names of what was put there
// last.
//
// Thread rules: as Stream and Event. Host functions run on a thread of the driver's, and are
// destroyed by the thread that feeds the stream: what they hold may call CUDA in its destructor,
// they themselves may not.

#pragma once

#include <cuda_runtime_api.h>

#include <cohort/device/device.h>
#include <cohort/device/stream.h>

#include <array>
#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda/cuda_common.h"
#include "cuda/gpu.h"

namespace cohort::cuda {

// What became of the work between two calls of Synchronize: the first error. An event has its
// stream's, a stream that waits for an event looks at the event's too.
// Thread rules: all methods from any thread.
class Fate {
 public:
  void Fail(Status status);
  void Await(std::shared_ptr<const Fate> other);
  // The first error here, or else of what was awaited.
  Status status() const;
  // The same once the stream has run dry; kept for events of before. Nothing is awaited any more:
  // two fates that await each other would keep each other for good.
  Status Settle();

 private:
  Status Own() const;

  mutable std::mutex mutex_;
  Status first_;
  std::vector<std::shared_ptr<const Fate>> awaited_;
};

class StreamState;

// A function of the host on a stream, once or, in a graph, at each replay.
struct HostWork {
  StreamState* state = nullptr;
  std::shared_ptr<Fate> fate;  // null in a graph: the one at that time
  std::function<Status()> work;
  std::atomic<bool> ran{false};

  static void CUDART_CB Run(void* self);
};

// What is recorded for one graph.
struct Capture {
  bool open = true;
  std::vector<std::unique_ptr<HostWork>> works;
  std::vector<std::shared_ptr<StreamState>> streams;  // that take part
};

// What a stream, its events and its host functions share.
class StreamState {
 public:
  explicit StreamState(std::shared_ptr<Gpu> gpu);
  ~StreamState();

  const std::shared_ptr<Gpu> gpu;
  cudaStream_t native = nullptr;
  DataError* device_slot = nullptr;
  // Not null while what the stream is fed is recorded. For the feeding thread.
  std::shared_ptr<Capture> capture;

  std::shared_ptr<Fate> fate() const;
  void Fail(Status status) { fate()->Fail(std::move(status)); }
  // Puts the error that kernels left in the slot, if any, into `fate`.
  void Harvest(Fate& fate);
  bool HasDataError() const;
  void Note(const char* what);
  // A status for `error`, with what was put on the stream last.
  Status Describe(cudaError_t error, std::string_view what) const;
  // From here on work has another fate; the one it had.
  std::shared_ptr<Fate> ExchangeFate(std::shared_ptr<Fate> fate);

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<Fate> fate_ = std::make_shared<Fate>();
  std::shared_ptr<std::byte> slot_memory_;
  DataError* slot_ = nullptr;

  static constexpr std::size_t kNames = 4;
  std::array<std::atomic<const char*>, kNames> names_{};
  std::atomic<std::size_t> noted_{0};
};

class CudaEvent final : public Event {
 public:
  CudaEvent(std::shared_ptr<StreamState> state, cudaEvent_t event);
  ~CudaEvent() override;
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  bool done() const override;
  Status Wait(Deadline deadline) override;

  cudaEvent_t native() const { return event_; }
  const std::shared_ptr<Fate>& fate() const { return fate_; }
  const std::shared_ptr<Capture>& capture() const { return capture_; }

 private:
  Status Outcome(cudaError_t error) const;

  const std::shared_ptr<StreamState> state_;
  const std::shared_ptr<Fate> fate_;
  const std::shared_ptr<Capture> capture_;  // not null: it is a point of a graph
  const cudaEvent_t event_;                 // null: could not be recorded, and the fate says why
};

class CudaStream final : public Stream {
 public:
  explicit CudaStream(std::shared_ptr<Gpu> gpu);
  ~CudaStream() override;
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  void Enqueue(std::function<Status()> work) override;
  std::shared_ptr<Event> Record() override;
  void WaitFor(std::shared_ptr<Event> event) override;
  Status Synchronize(Deadline deadline) override;

  const std::shared_ptr<StreamState>& state() const { return state_; }

 private:
  // Destroys the host functions that have run.
  void Reap();

  const std::shared_ptr<StreamState> state_;
  std::deque<std::unique_ptr<HostWork>> works_;
};

// A CudaStream, or ContractError.
CudaStream& AsCuda(Stream& stream);

// Waits for a stream's end before what its work uses is destroyed. False: it did not come in time,
// and that must never be destroyed.
bool Settle(StreamState& state);

}  // namespace cohort::cuda
