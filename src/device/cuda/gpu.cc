#include "cuda/gpu.h"

#include <algorithm>
#include <map>
#include <thread>
#include <utility>

#include "cuda/byte_count.h"
#include "cuda/cuda_common.h"
#include "cuda/gpus.h"

namespace cohort::cuda {
namespace {

// How long work may take before its memory is used again: where there is other memory, and where
// there is none.
constexpr std::chrono::milliseconds kLook{1};
constexpr std::chrono::minutes kPatience{1};

// The device's memory, or page-locked memory of the host, which every GPU of the process reaches.
class GpuSource final : public BlockSource {
 public:
  GpuSource(int ordinal, bool pinned, std::string name, std::shared_ptr<EventPool> events,
            std::shared_ptr<StreamList> streams)
      : ordinal_(ordinal),
        pinned_(pinned),
        name_(std::move(name)),
        events_(std::move(events)),
        streams_(std::move(streams)) {}

  std::byte* Take(std::size_t bytes) override {
    UseGpu(ordinal_);
    const OutsideCapture outside;
    void* block = nullptr;
    const cudaError_t error =
        pinned_ ? cudaHostAlloc(&block, bytes, cudaHostAllocPortable | cudaHostAllocMapped)
                : cudaMalloc(&block, bytes);
    if (error == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();
      return nullptr;
    }
    Check(error, "allocating " + name_);
    return static_cast<std::byte*>(block);
  }
  void Return(std::byte* block) noexcept override {
    UseGpu(ordinal_);
    const OutsideCapture outside;
    // Fails only where there is nothing left to free: the context is lost, or the process ends.
    (void)(pinned_ ? cudaFreeHost(block) : cudaFree(block));
    (void)cudaGetLastError();
  }
  bool Drain(bool patiently) override {
    UseGpu(ordinal_);
    return streams_->Drain(*events_,
                           DeadlineAfter(patiently ? Duration(kPatience) : Duration(kLook)));
  }
  std::string Left() override {
    UseGpu(ordinal_);
    std::size_t left = 0;
    std::size_t total = 0;
    if (pinned_ || cudaMemGetInfo(&left, &total) != cudaSuccess) {
      (void)cudaGetLastError();
      return "";
    }
    return ByteCount(left) + " of " + ByteCount(total);
  }

 private:
  const int ordinal_;
  const bool pinned_;
  const std::string name_;  // of the memory
  const std::shared_ptr<EventPool> events_;
  const std::shared_ptr<StreamList> streams_;
};

std::shared_ptr<BlockCache> MakeCache(int ordinal, bool pinned, const std::string& name,
                                      const std::shared_ptr<EventPool>& events,
                                      const std::shared_ptr<StreamList>& streams) {
  return std::make_shared<BlockCache>(
      name, std::make_unique<GpuSource>(ordinal, pinned, name, events, streams));
}

}  // namespace

void UseGpu(int ordinal) {
  int current = -1;
  if (cudaGetDevice(&current) != cudaSuccess || current != ordinal) {
    // An error shows in the call that this is for.
    (void)cudaSetDevice(ordinal);
  }
}

EventPool::~EventPool() {
  UseGpu(ordinal_);
  for (const cudaEvent_t event : idle_) {
    (void)cudaEventDestroy(event);
  }
  (void)cudaGetLastError();
}

cudaEvent_t EventPool::Take() {
  {
    const std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      const cudaEvent_t event = idle_.back();
      idle_.pop_back();
      return event;
    }
  }
  UseGpu(ordinal_);
  cudaEvent_t event = nullptr;
  Check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event");
  return event;
}

void EventPool::Give(cudaEvent_t event) {
  const std::lock_guard lock(mutex_);
  idle_.push_back(event);
}

void StreamList::Add(cudaStream_t stream) {
  const std::lock_guard lock(mutex_);
  streams_.push_back({stream, false});
}

void StreamList::Remove(cudaStream_t stream) {
  const std::lock_guard lock(mutex_);
  std::erase_if(streams_, [&](const Entry& e) { return e.stream == stream; });
}

void StreamList::SetCaptured(cudaStream_t stream, bool captured) {
  const std::lock_guard lock(mutex_);
  for (Entry& e : streams_) {
    e.captured = e.stream == stream ? captured : e.captured;
  }
}

bool StreamList::Drain(EventPool& events, Deadline deadline) {
  std::vector<cudaEvent_t> ends;
  bool captured = false;
  cudaError_t error = cudaSuccess;
  {
    const std::lock_guard lock(mutex_);
    captured =
        std::any_of(streams_.begin(), streams_.end(), [](const Entry& e) { return e.captured; });
    for (std::size_t i = 0; i < streams_.size() && !captured && error == cudaSuccess; ++i) {
      ends.push_back(events.Take());
      error = cudaEventRecord(ends.back(), streams_[i].stream);
    }
  }
  for (const cudaEvent_t end : ends) {
    if (error == cudaSuccess) {
      error = PollUntil(deadline, [&] { return cudaEventQuery(end); });
    }
    events.Give(end);
  }
  if (error != cudaErrorNotReady) {
    Check(error, "waiting for work before memory is used again");
  }
  return error == cudaSuccess && !captured;
}

void PollPause::Next() {
  constexpr std::chrono::microseconds kSpin{50};
  constexpr std::chrono::microseconds kLongest{100};
  if (slice_.count() == 0) {
    if (std::chrono::steady_clock::now() - begin_ < kSpin) {
      return;
    }
    slice_ = std::chrono::microseconds{1};
    std::this_thread::yield();
    return;
  }
  std::this_thread::sleep_for(slice_);
  slice_ = std::min(2 * slice_, kLongest);
}

Gpu::Gpu(int device)
    : ordinal(device),
      name("cuda:" + std::to_string(device)),
      events(std::make_shared<EventPool>(device)),
      streams(std::make_shared<StreamList>()),
      memory(MakeCache(device, false, "memory of " + name, events, streams)),
      pinned(MakeCache(device, true, "page-locked memory for " + name, events, streams)) {}

bool Gpu::Reaches(const Gpu& other) {
  if (other.ordinal == ordinal) {
    return true;
  }
  const std::lock_guard lock(mutex_);
  const auto [known, first] = reaches_.try_emplace(other.ordinal, false);
  if (first) {
    UseGpu(ordinal);
    const OutsideCapture outside;
    int can = 0;
    if (cudaDeviceCanAccessPeer(&can, ordinal, other.ordinal) == cudaSuccess && can != 0) {
      const cudaError_t error = cudaDeviceEnablePeerAccess(other.ordinal, 0);
      known->second = error == cudaSuccess || error == cudaErrorPeerAccessAlreadyEnabled;
    }
    (void)cudaGetLastError();  // where it does not, memory is copied
  }
  return known->second;
}

namespace {

// Never destroyed: devices may outlive what main leaves behind.
struct GpuTable {
  std::mutex mutex;
  std::map<int, std::weak_ptr<Gpu>> gpus;
};
GpuTable& InUse() {
  static auto& in_use = *new GpuTable;
  return in_use;
}

}  // namespace

std::shared_ptr<Gpu> Gpu::Of(int ordinal) {
  GpuTable& in_use = InUse();
  const std::lock_guard lock(in_use.mutex);
  std::shared_ptr<Gpu> gpu = in_use.gpus[ordinal].lock();
  if (gpu == nullptr) {
    gpu = std::make_shared<Gpu>(ordinal);
    in_use.gpus[ordinal] = gpu;
  }
  return gpu;
}

std::vector<std::shared_ptr<Gpu>> GpusInUse() {
  GpuTable& in_use = InUse();
  const std::lock_guard lock(in_use.mutex);
  std::vector<std::shared_ptr<Gpu>> all;
  for (const auto& [ordinal, weak] : in_use.gpus) {
    if (std::shared_ptr<Gpu> gpu = weak.lock(); gpu != nullptr) {
      all.push_back(std::move(gpu));
    }
  }
  return all;
}

}  // namespace cohort::cuda
