#include "cuda/cupti_source.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <string>
#include <utility>

namespace cohort::cuda {
namespace {

using trace::Activity;
using trace::ActivitySink;

// The calls are recorded for the ranges that they are made in.
constexpr std::array kKinds = {CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION,
                               CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL,
                               CUPTI_ACTIVITY_KIND_MEMCPY,
                               CUPTI_ACTIVITY_KIND_MEMCPY2,
                               CUPTI_ACTIVITY_KIND_MEMSET,
                               CUPTI_ACTIVITY_KIND_RUNTIME,
                               CUPTI_ACTIVITY_KIND_DRIVER};
constexpr std::array kNodeEvents = {CUPTI_CBID_RESOURCE_GRAPHNODE_CREATED,
                                    CUPTI_CBID_RESOURCE_GRAPHNODE_CLONED};
constexpr std::size_t kAlignment = ACTIVITY_RECORD_ALIGNMENT;

// What the callbacks find. Never destroyed: CUPTI has threads.
struct Port {
  std::atomic<int> out = 0;  // buffers that CUPTI has
  std::mutex mutex;          // guards the following; held while records are read
  CuptiCalls calls;
  ActivitySink* sink = nullptr;  // null: nobody listens
  bool reading = false;          // records are wanted
};
Port& ThePort() {
  static auto& port = *new Port;
  return port;
}

std::uint64_t SteadyNow() {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                        std::chrono::steady_clock::now().time_since_epoch())
                                        .count());
}

const char* PlaceName(std::uint8_t kind) {
  switch (kind) {
    case CUPTI_ACTIVITY_MEMORY_KIND_PAGEABLE:
      return "pageable host";
    case CUPTI_ACTIVITY_MEMORY_KIND_PINNED:
      return "host";
    case CUPTI_ACTIVITY_MEMORY_KIND_DEVICE:
    case CUPTI_ACTIVITY_MEMORY_KIND_ARRAY:
    case CUPTI_ACTIVITY_MEMORY_KIND_DEVICE_STATIC:
      return "device";
    case CUPTI_ACTIVITY_MEMORY_KIND_MANAGED:
    case CUPTI_ACTIVITY_MEMORY_KIND_MANAGED_STATIC:
      return "managed";
    default:
      return "elsewhere";
  }
}

// What kernels, copies and fills have in common.
template <typename Record>
Activity Common(const Record& record, Activity::Kind kind) {
  return {.kind = kind,
          .name = {},
          .device = record.deviceId,
          .stream = record.streamId,
          .correlation = record.correlationId,
          .graph_node = record.graphNodeId,
          .begin_ns = static_cast<std::int64_t>(record.start),
          .end_ns = static_cast<std::int64_t>(record.end)};
}

template <typename Record>
const Record& As(const CUpti_Activity& record) {
  return reinterpret_cast<const Record&>(record);
}

void Read(const CUpti_Activity& record, ActivitySink& sink) {
  const auto add_copy = [&](const auto& copy, const std::string& name) {
    Activity activity = Common(copy, Activity::Kind::kCopy);
    activity.name = name;
    activity.bytes = copy.bytes;
    sink.Add(activity);
  };
  switch (record.kind) {
    case CUPTI_ACTIVITY_KIND_KERNEL:
    case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
      // What newer ones have comes behind.
      const auto& kernel = As<CUpti_ActivityKernel9>(record);
      Activity activity = Common(kernel, Activity::Kind::kKernel);
      activity.name = kernel.name == nullptr ? "kernel" : kernel.name;
      sink.Add(activity);
      break;
    }
    case CUPTI_ACTIVITY_KIND_MEMCPY: {
      const auto& copy = As<CUpti_ActivityMemcpy5>(record);
      add_copy(copy, std::string(PlaceName(copy.srcKind)) + " to " + PlaceName(copy.dstKind));
      break;
    }
    case CUPTI_ACTIVITY_KIND_MEMCPY2: {
      const auto& copy = As<CUpti_ActivityMemcpyPtoP4>(record);
      add_copy(copy, "cuda:" + std::to_string(copy.srcDeviceId) +
                         " to cuda:" + std::to_string(copy.dstDeviceId));
      break;
    }
    case CUPTI_ACTIVITY_KIND_MEMSET: {
      const auto& fill = As<CUpti_ActivityMemset4>(record);
      Activity activity = Common(fill, Activity::Kind::kFill);
      activity.bytes = fill.bytes;
      sink.Add(activity);
      break;
    }
    case CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION: {
      const auto& call = As<CUpti_ActivityExternalCorrelation>(record);
      sink.Correlate(call.correlationId, call.externalId);
      break;
    }
    default:
      break;
  }
}

void CUPTIAPI BufferRequested(std::uint8_t** buffer, std::size_t* size, std::size_t* records) {
  Port& port = ThePort();
  *buffer = nullptr;
  *size = 0;
  *records = 0;  // as many as fit
  if (++port.out <= kBuffers) {
    *buffer = static_cast<std::uint8_t*>(std::aligned_alloc(kAlignment, kBufferBytes));
  }
  if (*buffer == nullptr) {
    --port.out;
  } else {
    *size = kBufferBytes;
  }
}

void CUPTIAPI BufferCompleted(CUcontext context, std::uint32_t stream, std::uint8_t* buffer,
                              std::size_t /*size*/, std::size_t valid) {
  Port& port = ThePort();
  const std::lock_guard lock(port.mutex);
  if (port.sink != nullptr && port.reading) {
    CUpti_Activity* record = nullptr;
    CUptiResult result = CUPTI_SUCCESS;
    while (valid > 0 && (result = port.calls.cuptiActivityGetNextRecord(buffer, valid, &record)) ==
                            CUPTI_SUCCESS) {
      Read(*record, *port.sink);
    }
    if (valid > 0 && result != CUPTI_ERROR_MAX_LIMIT_REACHED) {  // not the buffer's end
      port.sink->Lost(1);
    }
    std::size_t dropped = 0;
    if (port.calls.cuptiActivityGetNumDroppedRecords(context, stream, &dropped) == CUPTI_SUCCESS &&
        dropped > 0) {
      port.sink->Lost(dropped);
    }
  }
  std::free(buffer);
  --port.out;
}

void CUPTIAPI Called(void* /*user*/, CUpti_CallbackDomain domain, CUpti_CallbackId id,
                     const void* data) {
  if (domain != CUPTI_CB_DOMAIN_RESOURCE) {
    return;
  }
  const auto* const graph = static_cast<const CUpti_GraphData*>(
      static_cast<const CUpti_ResourceData*>(data)->resourceDescriptor);
  Port& port = ThePort();
  const std::lock_guard lock(port.mutex);
  std::uint64_t node = 0;
  if (port.sink == nullptr || port.calls.cuptiGetGraphNodeId(graph->node, &node) != CUPTI_SUCCESS) {
    return;
  }
  if (id == CUPTI_CBID_RESOURCE_GRAPHNODE_CREATED) {
    port.sink->NodeMade(node);
    return;
  }
  std::uint64_t from = 0;
  if (port.calls.cuptiGetGraphNodeId(graph->originalNode, &from) == CUPTI_SUCCESS) {
    port.sink->NodeCloned(from, node);
  }
}

class CuptiSource final : public trace::ActivitySource {
 public:
  CuptiSource(const CuptiCalls& calls, std::function<Status()> drain)
      : calls_(calls), drain_(std::move(drain)) {}
  CuptiSource(const CuptiSource&) = delete;
  CuptiSource& operator=(const CuptiSource&) = delete;

  ~CuptiSource() override {
    Disable();
    if (subscribed_) {
      (void)calls_.cuptiUnsubscribe(subscriber_);
    }
    Port& port = ThePort();
    const std::lock_guard lock(port.mutex);
    port.sink = nullptr;
    port.reading = false;
  }

  Status Watch(ActivitySink& sink) override {
    {
      Port& port = ThePort();
      const std::lock_guard lock(port.mutex);
      port.calls = calls_;
      port.sink = &sink;
    }
    CUptiResult result = calls_.cuptiSubscribe(&subscriber_, &Called, nullptr);
    subscribed_ = result == CUPTI_SUCCESS;
    for (std::size_t i = 0; i < kNodeEvents.size() && result == CUPTI_SUCCESS; ++i) {
      result = calls_.cuptiEnableCallback(1, subscriber_, CUPTI_CB_DOMAIN_RESOURCE, kNodeEvents[i]);
    }
    if (result != CUPTI_SUCCESS) {
      return FailedPrecondition(
          "CUPTI refuses to tell of graphs: " + Text(result) +
          "; kernels of a graph are those of its replay, and not of the passes recorded in it [no "
          "other profiler in this process]");
    }
    return {};
  }

  Status Start() override {
    CUptiResult result = CUPTI_SUCCESS;
    const auto check = [&](CUptiResult called, const char* what) {
      if (result == CUPTI_SUCCESS && called != CUPTI_SUCCESS) {
        result = called;
        failed_ = what;
      }
      return result == CUPTI_SUCCESS;
    };
    {
      Port& port = ThePort();
      const std::lock_guard lock(port.mutex);
      port.reading = true;
    }
    // Both before anything is enabled.
    check(calls_.cuptiActivityRegisterTimestampCallback(&SteadyNow), "the clock");
    check(calls_.cuptiActivityRegisterCallbacks(&BufferRequested, &BufferCompleted), "buffers");
    for (const CUpti_ActivityKind kind : kKinds) {
      if (result == CUPTI_SUCCESS && check(calls_.cuptiActivityEnable(kind), "a kind of record")) {
        ++enabled_;
      }
    }
    if (result != CUPTI_SUCCESS) {
      Disable();
      return FailedPrecondition(
          "CUPTI refuses " + std::string(failed_) + ": " + Text(result) +
          " [a driver that is as new as CUDA; no other profiler in this process; root, or "
          "NVreg_RestrictProfilingToAdminUsers=0]");
    }
    return {};
  }

  Status Stop() override {
    const Status drained = drain_();
    Disable();
    const CUptiResult result = calls_.cuptiActivityFlushAll(
        drained.ok() ? 0 : static_cast<std::uint32_t>(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED));
    Port& port = ThePort();
    const std::lock_guard lock(port.mutex);
    port.reading = false;
    if (result != CUPTI_SUCCESS) {
      return Internal("CUPTI keeps its last records: " + Text(result));
    }
    return drained;
  }

  void Push(std::uint64_t range) override {
    (void)calls_.cuptiActivityPushExternalCorrelationId(CUPTI_EXTERNAL_CORRELATION_KIND_CUSTOM0,
                                                        range);
  }
  void Pop() override {
    (void)calls_.cuptiActivityPopExternalCorrelationId(CUPTI_EXTERNAL_CORRELATION_KIND_CUSTOM0,
                                                       nullptr);
  }

 private:
  void Disable() {
    while (enabled_ > 0) {
      (void)calls_.cuptiActivityDisable(kKinds[--enabled_]);
    }
  }
  std::string Text(CUptiResult result) const {
    const char* text = nullptr;
    if (calls_.cuptiGetResultString(result, &text) != CUPTI_SUCCESS || text == nullptr) {
      return "error " + std::to_string(static_cast<int>(result));
    }
    return text;
  }

  const CuptiCalls calls_;
  const std::function<Status()> drain_;
  CUpti_SubscriberHandle subscriber_ = nullptr;
  bool subscribed_ = false;
  std::size_t enabled_ = 0;  // of kKinds
  const char* failed_ = "";
};

}  // namespace

std::unique_ptr<trace::ActivitySource> MakeCuptiSource(const CuptiCalls& calls,
                                                       std::function<Status()> drain) {
  return std::make_unique<CuptiSource>(calls, std::move(drain));
}

}  // namespace cohort::cuda
