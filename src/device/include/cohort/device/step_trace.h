// StepTrace: a timeline of some steps of this process: its ranges (range.h), and what its GPUs did
// meanwhile: kernels, copies and fills with their streams, bytes and the range that launched them.
//
//   const auto trace = StepTrace::Start({.path = "trace/steps.rank0.json"});
//   ... training: steps 10 to 19 are recorded, and written when step 19 has ended
//
// The file is Chrome's trace format, for ui.perfetto.dev; `cohort trace` sums it up, and merges it
// with other ranks' and with flight records. What GPUs do comes from CUPTI, whose library is opened
// by Start. Where it is missing or refuses, the log says why, and the file has the ranges alone.
//
// Memory: 64 bytes or so a record, of which there are max_records at most; the log and the file say
// how many were lost. Until the first step of the window nothing is recorded, and nothing is after
// the last. Kernels that are recorded run a little slower, each launch some microseconds.
//
// There is one StepTrace in a process at a time, since there is one CUPTI. Thread rules: Start,
// Finish and the destructor from one thread, while any others have ranges.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include <cohort/core/log.h>
#include <cohort/core/status.h>

namespace cohort {

struct StepTraceOptions {
  std::string path;  // replaced; its folder is made
  // Of ranges of Phase::kStep: those of Strategy::Step are the strategy's count, which goes on
  // where a checkpoint left it.
  std::int64_t first_step = 10;
  std::int64_t last_step = 19;
  // As flight records have them.
  int rank = 0;
  std::string task;
  std::size_t max_records = 1'000'000;
  Log log;
  // Called when the file has been written, by the thread that ended the last step.
  std::function<void()> written;
};

class StepTrace {
 public:
  // InvalidArgument: steps that are none. AlreadyExists: another one is on. The folder's errors.
  static Result<std::unique_ptr<StepTrace>> Start(StepTraceOptions options);
  // Finish; an error goes to the log.
  virtual ~StepTrace() = default;
  // Writes what there is, if the last step has not ended. OutOfRange: no step of the window was
  // run, and there is no file. Otherwise how the writing went, also where it is long over.
  virtual Status Finish() = 0;
};

}  // namespace cohort
