#include "timeline.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

namespace cohort::trace {
namespace {

using Json = nlohmann::json;

std::int64_t Earliest(const Groups& groups, const StepTraces& traces) {
  std::int64_t earliest = std::numeric_limits<std::int64_t>::max();
  for (const auto& [rank, trace] : traces) {
    earliest = std::min(earliest, trace.base_us);
  }
  for (const auto& [key, ranks] : groups) {
    for (const auto& [rank, record] : ranks) {
      for (const Operation& o : record.operations) {
        earliest = o.begun() ? std::min(earliest, o.started_us) : earliest;
      }
    }
  }
  return earliest;
}

void AddRecord(const FlightRecord& record, const std::string& thread, int tid, std::int64_t base_us,
               Json& events) {
  events.push_back({{"name", "process_name"},
                    {"ph", "M"},
                    {"pid", record.rank},
                    {"args", {{"name", RankName(record.rank, record.task)}}}});
  events.push_back({{"name", "thread_name"},
                    {"ph", "M"},
                    {"pid", record.rank},
                    {"tid", tid},
                    {"args", {{"name", thread}}}});
  for (const Operation& o : record.operations) {
    if (!o.begun()) {
      continue;
    }
    events.push_back({{"name", o.name.empty() ? o.op : o.name},
                      {"cat", o.op},
                      {"ph", "X"},
                      {"pid", record.rank},
                      {"tid", tid},
                      {"ts", o.started_us - base_us},
                      {"dur", std::max<std::int64_t>(record.EndOf(o) - o.started_us, 0)},
                      {"args",
                       {{"op", o.op},
                        {"sequence", o.sequence},
                        {"bytes", o.bytes},
                        {"algorithm", o.algorithm},
                        {"state", o.state},
                        {"queued_us", o.queued_us}}}});
  }
}

}  // namespace

Json Timeline(const Groups& groups, StepTraces traces) {
  const std::int64_t base_us = Earliest(groups, traces);
  Json events = Json::array();
  int tid = 0;
  for (const auto& [key, ranks] : groups) {
    for (const auto& [rank, record] : ranks) {
      AddRecord(record, fmt::format("{} generation {}", key.first, key.second), tid, base_us,
                events);
    }
    ++tid;
  }
  for (auto& [rank, trace] : traces) {
    for (Json& event : trace.events) {
      if (event.contains("ts")) {
        event["ts"] = event["ts"].get<double>() + static_cast<double>(trace.base_us - base_us);
      }
      events.push_back(std::move(event));
    }
  }
  return {{"traceEvents", std::move(events)}, {"displayTimeUnit", "ms"}};
}

}  // namespace cohort::trace
