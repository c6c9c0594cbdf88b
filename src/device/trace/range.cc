#include <cohort/device/range.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <utility>

#include "trace/nvtx.h"
#include "trace/recorder.h"

namespace cohort {
namespace {

struct OpenRange {
  std::uint64_t id = 0;
  Phase phase = Phase::kStep;
  bool pushed = false;                        // to NVTX
  std::shared_ptr<trace::Recorder> recorder;  // that has it; owners: the trace and who calls it
  bool told = false;                          // the recorder's source
};

// As NVTX's and CUPTI's own.
thread_local std::vector<OpenRange> open_ranges;
std::atomic<std::uint64_t> last_id = 0;

// The process's recorder. Never destroyed: threads may have ranges until the end.
struct InUse {
  std::atomic<bool> any = false;
  std::mutex mutex;
  std::shared_ptr<trace::Recorder> recorder;
};
InUse& Using() {
  static auto& in_use = *new InUse;
  return in_use;
}

std::shared_ptr<trace::Recorder> Current() {
  InUse& in_use = Using();
  if (!in_use.any.load(std::memory_order_relaxed)) {
    return nullptr;
  }
  const std::lock_guard lock(in_use.mutex);
  return in_use.recorder;
}

// The first of the calling thread's ranges from behind that is over is the last one.
void EndLast() {
  const OpenRange range = std::move(open_ranges.back());
  open_ranges.pop_back();
  if (range.pushed) {
    trace::PopRange();
  }
  if (range.recorder != nullptr) {
    range.recorder->End(range.id, range.told);
  }
}

}  // namespace

std::string_view PhaseName(Phase phase) {
  switch (phase) {
    case Phase::kStep:
      return "step";
    case Phase::kForward:
      return "forward";
    case Phase::kBackward:
      return "backward";
    case Phase::kReplay:
      return "replay";
    case Phase::kReduce:
      return "reduce bucket";
    case Phase::kWait:
      return "wait for bucket";
    case Phase::kUpdate:
      return "update";
  }
  return "unknown";
}

Range::Range(Phase phase, std::int64_t number) {
  const bool profiled = trace::Profiled();
  std::shared_ptr<trace::Recorder> recorder = Current();
  if (!profiled && recorder == nullptr) {
    return;
  }
  try {
    const std::uint64_t around = open_ranges.empty() ? 0 : open_ranges.back().id;
    OpenRange& range = open_ranges.emplace_back(OpenRange{.id = ++last_id, .phase = phase});
    id_ = range.id;
    if (profiled) {
      trace::PushRange(phase, number);
      range.pushed = true;
    }
    if (recorder != nullptr) {
      range.recorder = std::move(recorder);
      range.told = range.recorder->Begin(id_, phase, number, around);
    }
  } catch (const std::exception&) {  // no memory: it is not recorded
  }
}

void Range::End() {
  const std::uint64_t id = std::exchange(id_, 0);
  if (id == 0 || std::ranges::find(open_ranges, id, &OpenRange::id) == open_ranges.end()) {
    return;
  }
  while (open_ranges.back().id != id) {
    EndLast();
  }
  EndLast();
}

namespace trace {

std::optional<Phase> PhaseHere() {
  return open_ranges.empty() ? std::nullopt : std::optional(open_ranges.back().phase);
}

Status UseRecorder(std::shared_ptr<Recorder> recorder) {
  InUse& in_use = Using();
  const std::lock_guard lock(in_use.mutex);
  if (recorder != nullptr && in_use.recorder != nullptr) {
    return AlreadyExists("a step trace in a process that has one [one at a time]");
  }
  in_use.recorder = std::move(recorder);
  in_use.any.store(in_use.recorder != nullptr, std::memory_order_relaxed);
  return {};
}

}  // namespace trace
}  // namespace cohort
