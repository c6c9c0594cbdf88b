// Step traces (<cohort/device/step_trace.h>), as `cohort trace` reads them.

#pragma once

#include <cohort/core/status.h>

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace cohort::trace {

struct Span {
  std::string name;
  std::string category;  // "range", "kernel", "copy", "fill"
  std::string phase;     // "backward"; empty: of no range
  std::optional<std::int64_t> step;
  std::int64_t bytes = 0;
  std::int64_t begin_ns = 0;  // since 1970
  std::int64_t end_ns = 0;
};

struct StepTraceFile {
  std::string path;
  int rank = 0;
  std::string task;
  std::int64_t base_us = 0;  // since 1970, of the times in `events`
  std::uint64_t lost = 0;
  std::string note;
  std::vector<Span> spans;
  nlohmann::json events;  // as in the file
};

// By rank.
using StepTraces = std::map<int, StepTraceFile>;

// By its first bytes.
bool IsStepTrace(const std::string& text);
// InvalidArgument: not one, or of another version. DataLoss: it was cut.
Result<StepTraceFile> ParseStepTrace(const std::string& path, const std::string& text);

}  // namespace cohort::trace
