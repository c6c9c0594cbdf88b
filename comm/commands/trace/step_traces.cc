#include "step_traces.h"

#include <cmath>
#include <utility>

namespace cohort::trace {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kKey = "\"cohort_step_trace\"";
constexpr std::size_t kKeyWithin = 500;

std::int64_t Nanoseconds(const Json& microseconds) {
  return std::llround(microseconds.get<double>() * 1e3);
}

Span SpanOf(const Json& event, std::int64_t base_us) {
  const Json& args = event.at("args");
  Span span{.name = event.at("name"),
            .category = event.at("cat"),
            .phase = args.value("phase", ""),
            .step = std::nullopt,
            .bytes = args.value("bytes", std::int64_t{0}),
            .begin_ns = base_us * 1000 + Nanoseconds(event.at("ts"))};
  span.end_ns = span.begin_ns + Nanoseconds(event.at("dur"));
  if (args.contains("step")) {
    span.step = args.at("step").get<std::int64_t>();
  }
  return span;
}

}  // namespace

bool IsStepTrace(const std::string& text) { return text.find(kKey) < kKeyWithin; }

Result<StepTraceFile> ParseStepTrace(const std::string& path, const std::string& text) {
  Json object = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (object.is_discarded()) {
    return DataLoss(path + " was cut, or is no JSON [copy it again]");
  }
  StepTraceFile file;
  file.path = path;
  try {
    const Json& header = object.at("otherData");
    if (header.at("cohort_step_trace") != 1) {
      return InvalidArgument(path + ": a step trace of version " +
                             header.at("cohort_step_trace").dump() +
                             ", and this program reads version 1");
    }
    file.rank = header.at("rank");
    file.task = header.at("task");
    file.base_us = header.at("base_us");
    file.lost = header.at("lost");
    file.note = header.at("note");
    for (const Json& event : object.at("traceEvents")) {
      if (event.at("ph") == "X") {
        file.spans.push_back(SpanOf(event, file.base_us));
      }
    }
    file.events = std::move(object.at("traceEvents"));
  } catch (const Json::exception& error) {
    return InvalidArgument(path + " is no step trace: " + error.what());
  }
  return file;
}

}  // namespace cohort::trace
