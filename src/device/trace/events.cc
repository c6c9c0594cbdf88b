#include "trace/events.h"

#include <cohort/core/json_text.h>
#include <cxxabi.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <tuple>
#include <utility>

namespace cohort::trace {
namespace {

constexpr int kFirstHostThread = 100;
constexpr int kFirstStream = 1000;

// Exact to the nanosecond, whatever the size.
std::string Microseconds(std::int64_t ns) {
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), "%s%lld.%03d", ns < 0 ? "-" : "",
                static_cast<long long>(std::abs(ns) / 1000), static_cast<int>(std::abs(ns) % 1000));
  return text.data();
}

class Writer {
 public:
  // Events go behind `header`.
  Writer(int rank, std::int64_t base_ns, std::string header)
      : rank_(rank), base_ns_(base_ns), text_(std::move(header)) {}

  void Name(const char* what, int thread, const std::string& name) {
    Put(Event(what, "M", thread).Put("args", JsonObject().Text("name", name).End()));
  }
  void Span(const std::string& name, std::string_view category, int thread, std::int64_t begin_ns,
            std::int64_t end_ns, const JsonObject& args) {
    Put(Event(name, "X", thread)
            .Text("cat", category)
            .Put("ts", Microseconds(begin_ns - base_ns_))
            .Put("dur", Microseconds(std::max<std::int64_t>(end_ns - begin_ns, 0)))
            .Put("args", args.End()));
  }
  std::string Take(const char* end) { return std::move(text_ += end); }

 private:
  JsonObject Event(std::string_view name, std::string_view kind, int thread) const {
    JsonObject event;
    event.Text("name", name).Text("ph", kind).Number("pid", rank_).Number("tid", thread);
    return event;
  }
  void Put(const JsonObject& event) {
    text_ += std::exchange(first_, false) ? "\n" : ",\n";
    text_ += event.End();
  }

  const int rank_;
  const std::int64_t base_ns_;
  std::string text_;
  bool first_ = true;
};

std::string RangeName(const RangeRecord& range) {
  return std::string(PhaseName(range.phase)) + " " + std::to_string(range.number);
}

void WriteRanges(const StepTraceData& data, std::int64_t now_ns, Writer& writer) {
  for (std::size_t t = 0; t < data.threads.size(); ++t) {
    writer.Name("thread_name", kFirstHostThread + static_cast<int>(t), data.threads[t]);
  }
  for (const RangeRecord& range : data.ranges) {
    JsonObject args;
    args.Text("phase", PhaseName(range.phase)).Number("number", range.number);
    if (range.step.has_value()) {
      args.Number("step", *range.step);
    }
    writer.Span(RangeName(range), "range", kFirstHostThread + range.thread, range.begin_ns,
                range.end_ns == 0 ? now_ns : range.end_ns, args);
  }
}

std::string ActivityName(const ActivityRecord& activity, const std::vector<std::string>& names) {
  switch (activity.kind) {
    case Activity::Kind::kKernel:
      return names[activity.name];
    case Activity::Kind::kCopy:
      return "copy " + names[activity.name];
    case Activity::Kind::kFill:
      break;
  }
  return "fill";
}

const char* CategoryOf(Activity::Kind kind) {
  return kind == Activity::Kind::kKernel ? "kernel"
         : kind == Activity::Kind::kCopy ? "copy"
                                         : "fill";
}

JsonObject ArgsOf(const ActivityRecord& activity, const StepTraceData& data) {
  JsonObject args;
  args.Number("device", activity.device).Number("stream", activity.stream);
  if (activity.kind != Activity::Kind::kKernel) {
    args.Number("bytes", activity.bytes);
  }
  if (activity.graph_node != 0) {
    args.Number("graph_node", activity.graph_node);
  }
  if (activity.range >= 0) {
    const RangeRecord& range = data.ranges[static_cast<std::size_t>(activity.range)];
    args.Text("range", RangeName(range))
        .Text("phase", PhaseName(activity.recorded.value_or(range.phase)));
    if (range.step.has_value()) {
      args.Number("step", *range.step);
    }
  } else if (activity.recorded.has_value()) {
    args.Text("phase", PhaseName(*activity.recorded));
  }
  return args;
}

void WriteActivities(const StepTraceData& data, Writer& writer) {
  std::vector<std::string> names;
  names.reserve(data.names.size());
  std::ranges::transform(data.names, std::back_inserter(names), KernelName);
  std::map<std::tuple<std::uint32_t, std::uint32_t>, std::vector<std::pair<int, std::int64_t>>>
      lanes;  // by stream: threads, and when the last activity of each ends
  int threads = 0;
  for (const ActivityRecord& activity : data.activities) {
    auto& mine = lanes[{activity.device, activity.stream}];
    auto lane = std::ranges::find_if(
        mine, [&](const auto& thread) { return thread.second <= activity.begin_ns; });
    if (lane == mine.end()) {
      mine.emplace_back(kFirstStream + threads++, 0);
      lane = std::prev(mine.end());
      writer.Name("thread_name", lane->first,
                  "cuda:" + std::to_string(activity.device) + " stream " +
                      std::to_string(activity.stream) +
                      (mine.size() == 1 ? "" : " (" + std::to_string(mine.size()) + ")"));
    }
    lane->second = activity.end_ns;
    writer.Span(ActivityName(activity, names), CategoryOf(activity.kind), lane->first,
                activity.begin_ns, activity.end_ns, ArgsOf(activity, data));
  }
}

}  // namespace

std::string KernelName(const std::string& mangled) {
  if (!mangled.starts_with("_Z")) {  // "a" would be signed char
    return mangled;
  }
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> text(
      abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status), &std::free);
  if (status != 0 || text == nullptr) {
    return mangled;
  }
  std::string name = text.get();
  int depth = 0;
  for (std::size_t i = 0; i < name.size(); ++i) {
    if (name[i] == '(' && depth == 0 && name.compare(i, 11, "(anonymous ") != 0) {
      name.resize(i);  // its parameters
      break;
    }
    depth += name[i] == '<' || name[i] == '(' || name[i] == '{' ? 1 : 0;
    depth -= name[i] == '>' || name[i] == ')' || name[i] == '}' ? 1 : 0;
  }
  return name.starts_with("void ") ? name.substr(5) : name;
}

std::string TraceEvents(StepTraceData& data) {
  using std::chrono::duration_cast;
  using std::chrono::microseconds;
  using std::chrono::nanoseconds;
  std::ranges::stable_sort(data.activities, {}, &ActivityRecord::begin_ns);
  const auto wall = std::chrono::system_clock::now().time_since_epoch();
  const std::int64_t now_ns =
      duration_cast<nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
  std::int64_t base_ns = now_ns;
  for (const RangeRecord& range : data.ranges) {
    base_ns = std::min(base_ns, range.begin_ns);
  }
  for (const ActivityRecord& activity : data.activities) {
    base_ns = std::min(base_ns, activity.begin_ns);
  }
  // So that the base is a whole number of microseconds since 1970.
  const std::int64_t age_ns = now_ns - base_ns;
  const std::int64_t base_us =
      (duration_cast<nanoseconds>(wall).count() - age_ns) / std::int64_t{1000};
  base_ns -= (duration_cast<nanoseconds>(wall).count() - age_ns) % std::int64_t{1000};

  const std::string header = JsonObject()
                                 .Number("cohort_step_trace", 1)
                                 .Number("rank", data.rank)
                                 .Text("task", data.task)
                                 .Number("base_us", base_us)
                                 .Number("first_step", data.first_step)
                                 .Number("last_step", data.last_step)
                                 .Number("lost", data.lost)
                                 .Text("note", data.note)
                                 .End();
  Writer writer(
      data.rank, base_ns,
      "{\"displayTimeUnit\": \"ms\",\n\"otherData\": " + header + ",\n\"traceEvents\": [");
  const std::string rank = "rank " + std::to_string(data.rank);
  writer.Name("process_name", 0,
              data.task.empty() || data.task == rank ? rank : rank + " (" + data.task + ")");
  WriteRanges(data, now_ns, writer);
  WriteActivities(data, writer);
  return writer.Take("]}\n");
}

}  // namespace cohort::trace
