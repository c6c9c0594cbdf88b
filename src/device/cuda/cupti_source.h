// CUPTI behind trace::ActivitySource.
//
// Its callbacks have no argument of ours, so that there is one source in a process at a time.
// Buffers are of kBufferBytes, kBuffers at most of them out at once: what finds none is dropped by
// CUPTI and counted. One that comes back after Stop is freed unread, its records are counted where
// there is a sink. Times are the steady clock's, which CUPTI is given.

#pragma once

#include <cuda_runtime_api.h>
#include <cupti.h>

#include <cohort/core/status.h>

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>

#include "trace/activity.h"

#define COHORT_CUPTI_CALLS(X)               \
  X(cuptiActivityDisable)                   \
  X(cuptiActivityEnable)                    \
  X(cuptiActivityFlushAll)                  \
  X(cuptiActivityGetNextRecord)             \
  X(cuptiActivityGetNumDroppedRecords)      \
  X(cuptiActivityPopExternalCorrelationId)  \
  X(cuptiActivityPushExternalCorrelationId) \
  X(cuptiActivityRegisterCallbacks)         \
  X(cuptiActivityRegisterTimestampCallback) \
  X(cuptiEnableCallback)                    \
  X(cuptiGetGraphNodeId)                    \
  X(cuptiGetResultString)                   \
  X(cuptiSubscribe)                         \
  X(cuptiUnsubscribe)

namespace cohort::cuda {

// Its functions, under their own names.
struct CuptiCalls {
#define COHORT_DECLARE(name) decltype(&::name) name = nullptr;
  COHORT_CUPTI_CALLS(COHORT_DECLARE)
#undef COHORT_DECLARE
};

constexpr std::size_t kBufferBytes = std::size_t{4} << 20;
constexpr int kBuffers = 16;

// The library's. FailedPrecondition says what is missing.
Result<CuptiCalls> LoadCupti();

// `drain` waits until the GPUs have done what this process gave them; called by Stop.
std::unique_ptr<trace::ActivitySource> MakeCuptiSource(const CuptiCalls& calls,
                                                       std::function<Status()> drain);

}  // namespace cohort::cuda
