// Range: what a thread does from here to there, for those who watch: a profiler that knows NVTX
// (nsys, ncu), and a step trace (step_trace.h).
//
//   const Range range(Phase::kStep, step);
//
// Where nobody watches it costs a few loads. The ranges of a thread nest: one that ends takes with
// it those that began behind it on its thread and are still open. Destroyed on another thread, it
// ends with the range around it.
//
// Thread rules: used by one thread. Never throws, and blocks only where it is the end of a step
// trace's last step.

#pragma once

#include <cstdint>
#include <string_view>

namespace cohort {

enum class Phase : std::uint8_t {
  kStep,      // the number: of the step
  kForward,   // of the step
  kBackward,  // of the step
  kReplay,    // of a graph that holds a step's passes; of the step
  kReduce,    // a bucket of gradients is sent on its way; of the bucket
  kWait,      // for a bucket; of the bucket
  kUpdate,    // of parameters; of the step
};
// "step", "forward", ...
std::string_view PhaseName(Phase phase);

class Range {
 public:
  Range(Phase phase, std::int64_t number);
  ~Range() { End(); }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

  void End();

 private:
  std::uint64_t id_ = 0;  // 0: nobody watched, or it has ended
};

}  // namespace cohort
