// What a step trace comes to: time by kernel, and how much of what is not computation was hidden
// behind it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "flight_records.h"
#include "step_traces.h"

namespace cohort::trace {

// How long spans of a kind were, and how much of that passed while others were under way. Spans
// that overlap each other count once.
struct Overlap {
  std::int64_t count = 0;
  std::int64_t bytes = 0;
  std::int64_t ns = 0;
  std::int64_t hidden_ns = 0;
  double share() const {
    return ns == 0 ? 0 : static_cast<double>(hidden_ns) / static_cast<double>(ns);
  }
};

struct KernelTime {
  std::string name;
  std::int64_t calls = 0;
  std::int64_t ns = 0;
};

struct Summary {
  std::vector<std::int64_t> steps_ns;  // of each step
  std::vector<KernelTime> kernels;     // those of NCCL too; the longest first
  std::int64_t kernels_ns = 0;         // their sum
  std::int64_t busy_ns = 0;            // of the steps, while any of them ran
  std::int64_t window_ns = 0;  // the steps, from the first one's begin to the last one's end
  Overlap copies;              // behind kernels that are not NCCL's
  // NCCL's kernels behind other kernels.
  Overlap nccl;
  // Flight records' operations during the steps, behind kernels, and behind backward passes.
  Overlap operations;
  Overlap operations_in_backward;
};

// `groups`: those of its rank count.
Summary Summarize(const StepTraceFile& trace, const Groups& groups);
// As a table of at most `most` kernels, for people.
std::string SummaryText(const StepTraceFile& trace, const Summary& summary, std::size_t most);

}  // namespace cohort::trace
