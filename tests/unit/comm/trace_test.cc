// What `cohort trace` makes of step traces and flight records.

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "commands/trace/flight_records.h"
#include "commands/trace/step_traces.h"
#include "commands/trace/summary.h"
#include "commands/trace/timeline.h"

namespace cohort::trace {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::int64_t kBase = 1'700'000'000'000'000;  // microseconds since 1970

json Event(const char* name, const char* category, double ts, double dur, json args) {
  return {{"name", name}, {"cat", category}, {"ph", "X"},  {"pid", 1},
          {"tid", 100},   {"ts", ts},        {"dur", dur}, {"args", std::move(args)}};
}

// Two steps of 1000 us; the first one's backward pass is from 400 to 900.
json File() {
  json events = json::array();
  events.push_back(
      {{"name", "process_name"}, {"ph", "M"}, {"pid", 1}, {"tid", 0}, {"args", {{"name", "x"}}}});
  events.push_back(Event("step 10", "range", 0, 1000, {{"phase", "step"}, {"step", 10}}));
  events.push_back(Event("step 11", "range", 1000, 1000, {{"phase", "step"}, {"step", 11}}));
  events.push_back(Event("backward 10", "range", 400, 500, {{"phase", "backward"}, {"step", 10}}));
  events.push_back(Event("gemm", "kernel", 100.5, 300, {{"phase", "forward"}, {"step", 10}}));
  events.push_back(Event("gemm", "kernel", 500, 100, {{"phase", "backward"}, {"step", 10}}));
  events.push_back(Event("add", "kernel", 550, 100, {{"phase", "backward"}, {"step", 10}}));
  events.push_back(Event("ncclDevKernel_AllReduce", "kernel", 600, 200, json::object()));
  events.push_back(Event("copy host to device", "copy", 0, 200, {{"bytes", 5000}}));
  return {{"otherData",
           {{"cohort_step_trace", 1},
            {"rank", 1},
            {"task", "worker:1"},
            {"base_us", kBase},
            {"first_step", 10},
            {"last_step", 11},
            {"lost", 0},
            {"note", ""}}},
          {"traceEvents", events}};
}

Groups Records() {
  FlightRecord record;
  record.group = "collectives";
  record.generation = 1;
  record.rank = 1;
  record.size = 2;
  record.task = "worker:1";
  record.dumped_us = kBase + 5000;
  const auto add = [&](const char* name, std::int64_t from, std::int64_t to) {
    Operation o;
    o.op = "AllReduce";
    o.name = name;
    o.bytes = 1000;
    o.started_us = kBase + from;
    o.ended_us = kBase + to;
    record.operations.push_back(o);
  };
  add("before", -500, -100);
  add("bucket 0", 800, 1000);  // half of it in the backward pass
  Groups groups;
  EXPECT_TRUE(AddTo(groups, record).ok());
  return groups;
}

StepTraceFile Parsed() { return OrThrow(ParseStepTrace("steps.json", File().dump())); }

TEST(Trace, SumsUpKernelsAndWhatWasHiddenBehindThem) {
  const Summary summary = Summarize(Parsed(), Records());
  EXPECT_EQ(summary.steps_ns.size(), 2U);
  EXPECT_EQ(summary.window_ns, 2'000'000);
  ASSERT_EQ(summary.kernels.size(), 3U);
  EXPECT_EQ(summary.kernels[0].name, "gemm");
  EXPECT_EQ(summary.kernels[0].calls, 2);
  EXPECT_EQ(summary.kernels[0].ns, 400'000);
  EXPECT_EQ(summary.kernels_ns, 700'000);
  EXPECT_EQ(summary.busy_ns, 600'000);          // 100.5 to 400.5, 500 to 800
  EXPECT_EQ(summary.copies.hidden_ns, 99'500);  // of 0 to 200
  EXPECT_EQ(summary.copies.bytes, 5000);
  EXPECT_EQ(summary.nccl.ns, 200'000);
  EXPECT_EQ(summary.nccl.hidden_ns, 50'000);  // behind add, to 650
  EXPECT_EQ(summary.operations.count, 1);     // not the one before the steps
  EXPECT_EQ(summary.operations.ns, 200'000);
  EXPECT_EQ(summary.operations.hidden_ns, 0);
  EXPECT_EQ(summary.operations_in_backward.hidden_ns, 100'000);
}

TEST(Trace, SaysSo) {
  const StepTraceFile file = Parsed();
  const std::string text = SummaryText(file, Summarize(file, Records()), 2);
  EXPECT_THAT(text, AllOf(HasSubstr("rank 1 (worker:1): 2 steps of 1.000 ms (1.000 to 1.000); "
                                    "kernels ran in 30.0 % of that time\n"),
                          HasSubstr("       2       0.400  57.1 %     200.00  gemm\n"),
                          HasSubstr("       1       0.100  14.3 %     100.00  1 others\n")));
  EXPECT_THAT(text, AllOf(HasSubstr("copies: 1, 0.200 ms, 0.01 MB; 0.100 ms of it (49.8 %) while "
                                    "kernels ran\n"),
                          HasSubstr("NCCL's kernels: 1, 0.200 ms; 0.050 ms of it (25.0 %) while "
                                    "other kernels ran\n"),
                          HasSubstr("collectives: 1, 0.200 ms, 0.00 MB; 0.100 ms of it (50.0 %) "
                                    "during the backward passes of the host\n")));
}

TEST(Trace, SaysWhatIsMissing) {
  json file = File();
  file["otherData"]["lost"] = 7;
  file["otherData"]["note"] = "no CUPTI here";
  file["traceEvents"] = json::array();
  const StepTraceFile parsed = OrThrow(ParseStepTrace("steps.json", file.dump()));
  EXPECT_THAT(SummaryText(parsed, Summarize(parsed, {}), 20),
              AllOf(HasSubstr("rank 1 (worker:1): no step\n"), HasSubstr("no CUPTI here\n"),
                    HasSubstr("7 records were lost"), Not(HasSubstr("copies"))));
}

TEST(Trace, PutsBothOnOneClock) {
  StepTraces traces;
  traces.emplace(1, Parsed());
  const json timeline = Timeline(Records(), std::move(traces));
  std::map<std::string, json> by_name;
  for (const json& event : timeline.at("traceEvents")) {
    by_name[event.at("name")] = event;
  }
  // From the earliest on, which is the record's.
  EXPECT_EQ(by_name.at("before").at("ts"), 0);
  EXPECT_EQ(by_name.at("bucket 0").at("ts"), 1300);
  EXPECT_EQ(by_name.at("step 10").at("ts"), 500);
  EXPECT_EQ(by_name.at("bucket 0").at("pid"), by_name.at("step 10").at("pid"));
  EXPECT_NE(by_name.at("bucket 0").at("tid"), by_name.at("step 10").at("tid"));
}

TEST(Trace, RefusesWhatIsNoStepTrace) {
  EXPECT_TRUE(IsStepTrace(File().dump()));
  EXPECT_FALSE(IsStepTrace("{\"cohort_flight_record\": 1}\n"));
  const std::string text = File().dump();
  const Status cut = ParseStepTrace("steps.json", text.substr(0, text.size() / 2)).status();
  EXPECT_EQ(cut.code(), StatusCode::kDataLoss);
  EXPECT_THAT(cut.message(), HasSubstr("steps.json was cut"));
  json file = File();
  file["traceEvents"][1].erase("dur");
  EXPECT_THAT(ParseStepTrace("steps.json", file.dump()).status().message(),
              HasSubstr("steps.json is no step trace: "));
  file = File();
  file["otherData"]["cohort_step_trace"] = 2;
  EXPECT_THAT(ParseStepTrace("steps.json", file.dump()).status().message(),
              HasSubstr("of version 2, and this program reads version 1"));
}

}  // namespace
}  // namespace cohort::trace
