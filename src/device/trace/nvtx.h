// NVTX: ranges for the profiler that this program was started under.

#pragma once

#include <cohort/device/range.h>

#include <cstdint>

namespace cohort::trace {

// Whether there is one.
bool Profiled();
// Of the calling thread.
void PushRange(Phase phase, std::int64_t number);
void PopRange();

}  // namespace cohort::trace
