#include "summary.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <utility>

namespace cohort::trace {
namespace {

struct Interval {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};
using Intervals = std::vector<Interval>;

// In order, and apart from each other.
Intervals Union(Intervals intervals) {
  std::ranges::sort(intervals, {}, &Interval::begin);
  Intervals merged;
  for (const Interval& interval : intervals) {
    if (!merged.empty() && interval.begin <= merged.back().end) {
      merged.back().end = std::max(merged.back().end, interval.end);
    } else if (interval.end > interval.begin) {
      merged.push_back(interval);
    }
  }
  return merged;
}

std::int64_t Length(const Intervals& intervals) {
  std::int64_t length = 0;
  for (const Interval& interval : intervals) {
    length += interval.end - interval.begin;
  }
  return length;
}

// Of two unions.
std::int64_t LengthOfBoth(const Intervals& a, const Intervals& b) {
  std::int64_t length = 0;
  for (std::size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    length +=
        std::max<std::int64_t>(std::min(a[i].end, b[j].end) - std::max(a[i].begin, b[j].begin), 0);
    (a[i].end < b[j].end ? i : j) += 1;
  }
  return length;
}

bool IsNccl(const Span& span) { return span.category == "kernel" && span.name.starts_with("nccl"); }

template <typename Want>
Intervals Of(const StepTraceFile& trace, const Want& want) {
  Intervals intervals;
  for (const Span& span : trace.spans) {
    if (want(span)) {
      intervals.push_back({span.begin_ns, span.end_ns});
    }
  }
  return Union(std::move(intervals));
}

template <typename Want>
Overlap OverlapOf(const StepTraceFile& trace, const Want& want, const Intervals& others) {
  Overlap overlap;
  for (const Span& span : trace.spans) {
    if (want(span)) {
      ++overlap.count;
      overlap.bytes += span.bytes;
    }
  }
  const Intervals mine = Of(trace, want);
  overlap.ns = Length(mine);
  overlap.hidden_ns = LengthOfBoth(mine, others);
  return overlap;
}

// Operations of the rank that ran during the steps.
Overlap Operations(const Groups& groups, int rank, const Interval& window, Intervals& intervals) {
  Overlap overlap;
  for (const auto& [key, ranks] : groups) {
    const auto it = ranks.find(rank);
    if (it == ranks.end()) {
      continue;
    }
    for (const Operation& o : it->second.operations) {
      const Interval interval{o.started_us * 1000, it->second.EndOf(o) * 1000};
      if (o.begun() && interval.begin >= window.begin && interval.begin < window.end) {
        ++overlap.count;
        overlap.bytes += o.bytes;
        intervals.push_back(interval);
      }
    }
  }
  intervals = Union(std::move(intervals));
  overlap.ns = Length(intervals);
  return overlap;
}

double Milliseconds(std::int64_t ns) { return static_cast<double>(ns) / 1e6; }

std::string OverlapText(const char* what, const Overlap& overlap, const char* behind) {
  return fmt::format("{}: {}, {:.3f} ms{}; {:.3f} ms of it ({:.1f} %) {}\n", what, overlap.count,
                     Milliseconds(overlap.ns),
                     overlap.bytes == 0
                         ? ""
                         : fmt::format(", {:.2f} MB", static_cast<double>(overlap.bytes) / 1e6),
                     Milliseconds(overlap.hidden_ns), 100 * overlap.share(), behind);
}

}  // namespace

Summary Summarize(const StepTraceFile& trace, const Groups& groups) {
  Summary summary;
  std::map<std::string, KernelTime> kernels;
  Interval window{std::numeric_limits<std::int64_t>::max(), 0};
  for (const Span& span : trace.spans) {
    if (span.category == "range" && span.phase == "step") {
      summary.steps_ns.push_back(span.end_ns - span.begin_ns);
      window.begin = std::min(window.begin, span.begin_ns);
      window.end = std::max(window.end, span.end_ns);
    } else if (span.category == "kernel") {
      KernelTime& kernel = kernels[span.name];
      kernel.name = span.name;
      ++kernel.calls;
      kernel.ns += span.end_ns - span.begin_ns;
      summary.kernels_ns += span.end_ns - span.begin_ns;
    }
  }
  for (auto& [name, kernel] : kernels) {
    summary.kernels.push_back(std::move(kernel));
  }
  std::ranges::stable_sort(summary.kernels, std::greater<>(), &KernelTime::ns);
  const auto is_kernel = [](const Span& span) { return span.category == "kernel"; };
  const Intervals compute =
      Of(trace, [](const Span& span) { return span.category == "kernel" && !IsNccl(span); });
  summary.copies = OverlapOf(
      trace, [](const Span& span) { return span.category == "copy"; }, compute);
  summary.nccl = OverlapOf(trace, IsNccl, compute);
  if (summary.steps_ns.empty()) {
    return summary;
  }
  summary.window_ns = window.end - window.begin;
  summary.busy_ns = LengthOfBoth(Of(trace, is_kernel), {window});
  Intervals intervals;
  summary.operations = Operations(groups, trace.rank, window, intervals);
  summary.operations_in_backward = summary.operations;
  summary.operations.hidden_ns = LengthOfBoth(intervals, compute);
  summary.operations_in_backward.hidden_ns =
      LengthOfBoth(intervals, Of(trace, [](const Span& span) {
                     return span.category == "range" && span.phase == "backward";
                   }));
  return summary;
}

std::string SummaryText(const StepTraceFile& trace, const Summary& summary, std::size_t most) {
  std::string text = RankName(trace.rank, trace.task) + ": ";
  if (summary.steps_ns.empty()) {
    text += "no step";
  } else {
    std::int64_t sum = 0;
    for (const std::int64_t ns : summary.steps_ns) {
      sum += ns;
    }
    const auto [least, longest] = std::ranges::minmax(summary.steps_ns);
    const auto count = static_cast<std::int64_t>(summary.steps_ns.size());
    text += fmt::format("{} steps of {:.3f} ms ({:.3f} to {:.3f})", count,
                        Milliseconds(sum / count), Milliseconds(least), Milliseconds(longest));
  }
  if (summary.window_ns > 0 && !summary.kernels.empty()) {
    text += fmt::format(
        "; kernels ran in {:.1f} % of that time",
        100.0 * static_cast<double>(summary.busy_ns) / static_cast<double>(summary.window_ns));
  }
  text += "\n";
  if (!trace.note.empty()) {
    text += trace.note + "\n";
  }
  if (trace.lost > 0) {
    text += fmt::format("{} records were lost: what follows is less than there was\n", trace.lost);
  }
  if (!summary.kernels.empty()) {
    text += fmt::format("{:>8} {:>11} {:>7} {:>10}  kernel\n", "calls", "ms", "share", "us each");
  }
  const auto line = [&](std::int64_t calls, std::int64_t ns, const std::string& name) {
    constexpr std::size_t kWidth = 100;
    text += fmt::format("{:>8} {:>11.3f} {:>5.1f} % {:>10.2f}  {}\n", calls, Milliseconds(ns),
                        100.0 * static_cast<double>(ns) /
                            static_cast<double>(std::max<std::int64_t>(summary.kernels_ns, 1)),
                        static_cast<double>(ns) / 1e3 / static_cast<double>(calls),
                        name.size() <= kWidth ? name : name.substr(0, kWidth - 3) + "...");
  };
  std::int64_t others = 0;
  std::int64_t others_ns = 0;
  for (std::size_t i = 0; i < summary.kernels.size(); ++i) {
    const KernelTime& kernel = summary.kernels[i];
    if (i < most) {
      line(kernel.calls, kernel.ns, kernel.name);
    } else {
      others += kernel.calls;
      others_ns += kernel.ns;
    }
  }
  if (others > 0) {
    line(others, others_ns, fmt::format("{} others", summary.kernels.size() - most));
  }
  if (summary.copies.count > 0) {
    text += OverlapText("copies", summary.copies, "while kernels ran");
  }
  if (summary.nccl.count > 0) {
    text += OverlapText("NCCL's kernels", summary.nccl, "while other kernels ran");
  }
  if (summary.operations.count > 0) {
    if (!summary.kernels.empty()) {
      text += OverlapText("collectives", summary.operations, "while kernels ran");
    }
    text += OverlapText("collectives", summary.operations_in_backward,
                        "during the backward passes of the host");
  }
  return text;
}

}  // namespace cohort::trace
