// A step trace as a file: Chrome's trace format.
//
// One process, whose number is the rank. Its threads: 100 and on the host's, with ranges (category
// "range"); 1000 and on the GPUs' streams, with "kernel", "copy" and "fill". Activities of one
// stream that overlap, as those of a graph may, are on several threads. Times are microseconds
// since otherData.base_us, which is microseconds since 1970 by the wall clock when this was called:
// a double has no room for both.

#pragma once

#include <cohort/device/range.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "trace/activity.h"

namespace cohort::trace {

struct RangeRecord {
  std::uint64_t id = 0;
  Phase phase = Phase::kStep;
  std::int64_t number = 0;
  std::optional<std::int64_t> step;  // that it is a part of
  int thread = 0;
  std::int64_t begin_ns = 0;  // of the steady clock
  std::int64_t end_ns = 0;    // 0: it has not ended
};

struct ActivityRecord {
  Activity::Kind kind = Activity::Kind::kKernel;
  std::optional<Phase> recorded;  // of a graph's: the range that it was recorded in
  std::uint32_t name = 0;
  std::uint32_t device = 0;
  std::uint32_t stream = 0;
  std::int32_t range = -1;  // that launched it, in StepTraceData::ranges
  std::uint64_t graph_node = 0;
  std::uint64_t bytes = 0;
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
};

struct StepTraceData {
  int rank = 0;
  std::string task;
  std::int64_t first_step = 0;
  std::int64_t last_step = 0;
  std::string note;  // why there are no activities
  std::uint64_t lost = 0;
  std::vector<std::string> threads;
  std::vector<std::string> names;  // of kernels and copies
  std::vector<RangeRecord> ranges;
  std::vector<ActivityRecord> activities;
};

// Sorts the activities.
std::string TraceEvents(StepTraceData& data);

// "cohort::cuda::Map<float>" of a kernel's mangled name: without type and parameters. A name that
// is not mangled stays.
std::string KernelName(const std::string& mangled);

}  // namespace cohort::trace
