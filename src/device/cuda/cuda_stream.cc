#include "cuda/cuda_stream.h"

#include <algorithm>
#include <exception>
#include <string>
#include <utility>

namespace cohort::cuda {
namespace {

// As the inline stream's: operations have deadlines of their own, far shorter.
constexpr std::chrono::minutes kWaitForTimeout{10};
// For work that is still running when its stream is destroyed.
constexpr std::chrono::seconds kSettleTimeout{30};
// Fates that are looked at beside the own; the oldest of more have been synchronized long ago.
constexpr std::size_t kMaxAwaited = 64;

// The texts of the CPU's table.
Status DataStatus(const DataError& e) {
  const std::string value = std::to_string(e.value);
  const std::string element = std::to_string(e.element);
  const std::string limit = std::to_string(e.limit);
  if (e.kind == static_cast<int>(DataErrorKind::kId)) {
    return InvalidArgument("id " + value + " of element " + element +
                           " is outside the embedding's " + limit + " rows [ids must be in [0, " +
                           limit + ")]");
  }
  return InvalidArgument("label " + value + " of example " + element + " is not one of " + limit +
                         " classes [labels must be in [0, " + limit + ")]");
}

}  // namespace

void Fate::Fail(Status status) {
  const std::lock_guard lock(mutex_);
  if (first_.ok()) {
    first_ = std::move(status);
  }
}

void Fate::Await(std::shared_ptr<const Fate> other) {
  const std::lock_guard lock(mutex_);
  if (other.get() == this || std::find(awaited_.begin(), awaited_.end(), other) != awaited_.end()) {
    return;
  }
  if (awaited_.size() == kMaxAwaited) {
    awaited_.erase(awaited_.begin());
  }
  awaited_.push_back(std::move(other));
}

Status Fate::Own() const {
  const std::lock_guard lock(mutex_);
  return first_;
}

Status Fate::status() const {
  std::vector<std::shared_ptr<const Fate>> awaited;
  {
    const std::lock_guard lock(mutex_);
    if (!first_.ok()) {
      return first_;
    }
    awaited = awaited_;
  }
  for (const auto& other : awaited) {
    COHORT_RETURN_IF_ERROR(other->Own());
  }
  return {};
}

Status Fate::Settle() {
  const Status settled = status();
  std::vector<std::shared_ptr<const Fate>> awaited;  // let go of without the lock
  const std::lock_guard lock(mutex_);
  if (first_.ok()) {
    first_ = settled;
  }
  awaited.swap(awaited_);
  return settled;
}

void CUDART_CB HostWork::Run(void* self) {
  auto& w = *static_cast<HostWork*>(self);
  const std::shared_ptr<Fate> fate = w.fate == nullptr ? w.state->fate() : w.fate;
  if (fate->status().ok() && !w.state->HasDataError()) {
    Status status;
    try {
      status = w.work();
    } catch (const StatusError& error) {
      status = error.status();
    } catch (const std::exception& error) {
      status = Internal(std::string("a function of the host on a stream threw: ") + error.what());
    } catch (...) {
      status = Internal("a function of the host on a stream threw something");
    }
    if (!status.ok()) {
      fate->Fail(std::move(status));
    }
  }
  w.ran.store(true, std::memory_order_release);
}

StreamState::StreamState(std::shared_ptr<Gpu> on) : gpu(std::move(on)) {
  slot_memory_ = gpu->pinned->Allocate(sizeof(DataError), "the error slot of a stream");
  slot_ = new (slot_memory_.get()) DataError{};
  UseGpu(gpu->ordinal);
  void* on_device = nullptr;
  Check(cudaHostGetDevicePointer(&on_device, slot_, 0), "mapping the error slot of a stream");
  device_slot = static_cast<DataError*>(on_device);
  Check(cudaStreamCreateWithFlags(&native, cudaStreamNonBlocking), "making a stream");
  gpu->streams->Add(native);
}

StreamState::~StreamState() {
  gpu->streams->Remove(native);
  UseGpu(gpu->ordinal);
  (void)cudaStreamDestroy(native);
  (void)cudaGetLastError();
}

std::shared_ptr<Fate> StreamState::fate() const {
  const std::lock_guard lock(mutex_);
  return fate_;
}

bool StreamState::HasDataError() const {
  return std::atomic_ref(slot_->kind).load(std::memory_order_acquire) != 0;
}

void StreamState::Harvest(Fate& fate) {
  const std::lock_guard lock(mutex_);
  // A kernel may be writing it now, and has not ended then: what it found is for a later call.
  if (std::atomic_ref(slot_->complete).load(std::memory_order_acquire) == 0) {
    return;
  }
  fate.Fail(DataStatus(*slot_));
  std::atomic_ref(slot_->complete).store(0, std::memory_order_release);
  std::atomic_ref(slot_->kind).store(0, std::memory_order_release);
}

void StreamState::Note(const char* what) {
  names_[noted_.fetch_add(1, std::memory_order_relaxed) % kNames].store(what,
                                                                        std::memory_order_relaxed);
}

Status StreamState::Describe(cudaError_t error, std::string_view what) const {
  std::string text = gpu->name + ": " + std::string(what);
  const std::size_t noted = noted_.load(std::memory_order_relaxed);
  const std::size_t count = std::min(noted, kNames);
  for (std::size_t i = 0; i < count; ++i) {
    const char* const name = names_[(noted - count + i) % kNames].load(std::memory_order_relaxed);
    text +=
        (i == 0 ? " (last put on the stream: " : ", ") + std::string(name == nullptr ? "?" : name);
  }
  return CudaStatus(error, text + (count == 0 ? "" : ")"));
}

std::shared_ptr<Fate> StreamState::ExchangeFate(std::shared_ptr<Fate> fate) {
  const std::lock_guard lock(mutex_);
  return std::exchange(fate_, std::move(fate));
}

CudaEvent::CudaEvent(std::shared_ptr<StreamState> state, cudaEvent_t event)
    : state_(std::move(state)), fate_(state_->fate()), capture_(state_->capture), event_(event) {}

CudaEvent::~CudaEvent() {
  if (event_ != nullptr) {
    state_->gpu->events->Give(event_);
  }
}

bool CudaEvent::done() const {
  if (event_ == nullptr) {
    return true;
  }
  UseGpu(state_->gpu->ordinal);
  const cudaError_t error = cudaEventQuery(event_);
  if (error == cudaErrorNotReady) {
    (void)cudaGetLastError();
    return false;
  }
  return true;
}

Status CudaEvent::Wait(Deadline deadline) {
  Require(capture_ == nullptr, "an event that is part of a graph is no event to wait for");
  if (event_ == nullptr) {
    return fate_->status();
  }
  UseGpu(state_->gpu->ordinal);
  const cudaError_t error = PollUntil(deadline, [&] { return cudaEventQuery(event_); });
  if (error == cudaErrorNotReady) {
    return DeadlineExceeded(state_->gpu->name + ": work before an event did not end in time");
  }
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    fate_->Fail(state_->Describe(error, "waiting for an event"));
  }
  state_->Harvest(*fate_);
  return fate_->status();
}

CudaStream::CudaStream(std::shared_ptr<Gpu> gpu)
    : state_(std::make_shared<StreamState>(std::move(gpu))) {}

CudaStream::~CudaStream() {
  const bool settled = Settle(*state_);
  Reap();
  if (!settled || !works_.empty()) {
    // Work that is stuck, or that a lost context never got to, may use these for ever.
    new std::shared_ptr<StreamState>(state_);
    for (std::unique_ptr<HostWork>& work : works_) {
      (void)work.release();
    }
  }
}

void CudaStream::Enqueue(std::function<Status()> work) {
  Reap();
  auto host = std::make_unique<HostWork>();
  host->state = state_.get();
  host->fate = state_->capture == nullptr ? state_->fate() : nullptr;
  host->work = std::move(work);
  UseGpu(state_->gpu->ordinal);
  const cudaError_t error = cudaLaunchHostFunc(state_->native, &HostWork::Run, host.get());
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    state_->Fail(state_->Describe(error, "putting a function of the host on a stream"));
    return;
  }
  if (state_->capture != nullptr) {
    state_->capture->works.push_back(std::move(host));
  } else {
    works_.push_back(std::move(host));
  }
}

std::shared_ptr<Event> CudaStream::Record() {
  Reap();
  UseGpu(state_->gpu->ordinal);
  cudaEvent_t event = nullptr;
  try {
    const OutsideCapture outside;
    event = state_->gpu->events->Take();
  } catch (const StatusError& error) {
    state_->Fail(error.status());
    return std::make_shared<CudaEvent>(state_, nullptr);
  }
  const cudaError_t error = cudaEventRecord(event, state_->native);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    state_->Fail(state_->Describe(error, "recording an event"));
    state_->gpu->events->Give(event);
    event = nullptr;
  }
  return std::make_shared<CudaEvent>(state_, event);
}

void CudaStream::WaitFor(std::shared_ptr<Event> event) {
  Require(event != nullptr, "WaitFor needs an event");
  Reap();
  const auto* const other = dynamic_cast<const CudaEvent*>(event.get());
  if (other == nullptr) {
    Require(state_->capture == nullptr, "a graph can't wait for an event that is not CUDA's");
    if (Status status = event->Wait(DeadlineAfter(kWaitForTimeout)); !status.ok()) {
      state_->Fail(std::move(status));
    }
    return;
  }
  const std::shared_ptr<Capture>& capture = other->capture();
  Require(capture == nullptr || capture->open, "a point of a graph can't be waited for outside it");
  state_->fate()->Await(other->fate());
  if (other->native() == nullptr) {
    return;
  }
  if (capture != nullptr && state_->capture == nullptr) {
    // Waiting for work that is being recorded, this stream is recorded too from here on.
    state_->capture = capture;
    state_->gpu->streams->SetCaptured(state_->native, true);
    capture->streams.push_back(state_);
  }
  UseGpu(state_->gpu->ordinal);
  const cudaError_t error = cudaStreamWaitEvent(state_->native, other->native(), 0);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    state_->Fail(state_->Describe(error, "waiting for an event of another stream"));
  }
}

Status CudaStream::Synchronize(Deadline deadline) {
  Require(state_->capture == nullptr, "what feeds a graph may not block on the stream");
  UseGpu(state_->gpu->ordinal);
  const cudaError_t error = PollUntil(deadline, [&] { return cudaStreamQuery(state_->native); });
  if (error == cudaErrorNotReady) {
    return DeadlineExceeded(
        state_->Describe(cudaErrorNotReady, "the stream's work did not end in time").message());
  }
  const std::shared_ptr<Fate> fate = state_->fate();
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    fate->Fail(state_->Describe(error, "work on a stream"));
  }
  state_->Harvest(*fate);
  Reap();
  return state_->ExchangeFate(std::make_shared<Fate>())->Settle();
}

void CudaStream::Reap() {
  std::vector<std::unique_ptr<HostWork>> ran;
  while (!works_.empty() && works_.front()->ran.load(std::memory_order_acquire)) {
    ran.push_back(std::move(works_.front()));
    works_.pop_front();
  }
}

CudaStream& AsCuda(Stream& stream) {
  auto* const cuda = dynamic_cast<CudaStream*>(&stream);
  Require(cuda != nullptr, "a GPU's table and device take a stream that its device made");
  return *cuda;
}

bool Settle(StreamState& state) {
  UseGpu(state.gpu->ordinal);
  const cudaError_t error =
      PollUntil(DeadlineAfter(kSettleTimeout), [&] { return cudaStreamQuery(state.native); });
  (void)cudaGetLastError();
  return error != cudaErrorNotReady;
}

cudaStream_t Native(Stream& stream) {
  const StreamState& state = *AsCuda(stream).state();
  UseGpu(state.gpu->ordinal);
  return state.native;
}

void Launched(Stream& stream, const char* what) {
  StreamState& state = *AsCuda(stream).state();
  state.Note(what);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    state.Fail(state.Describe(error, std::string("launching ") + what));
  }
}

void Fail(Stream& stream, Status status) { AsCuda(stream).state()->Fail(std::move(status)); }

bool Capturing(Stream& stream) { return AsCuda(stream).state()->capture != nullptr; }

DataError* ErrorSlot(Stream& stream) { return AsCuda(stream).state()->device_slot; }

}  // namespace cohort::cuda
