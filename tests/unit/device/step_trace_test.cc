// Ranges, and what a step trace keeps of them and of a source's records.

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>
#include <thread>

#include <cohort/core/file_system.h>
#include <cohort/device/step_trace.h>

#include "testing/temp_dir.h"
#include "trace/recorder.h"

namespace cohort::trace {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Which the test fills.
class Double final : public ActivitySource {
 public:
  struct State {
    ActivitySink* sink = nullptr;
    Status start, stop;
    std::vector<std::uint64_t> pushed;  // open ranges
    int starts = 0, stops = 0;
    std::function<void()> late;  // what comes during Stop
  };
  explicit Double(State& state) : state_(state) {}
  Status Watch(ActivitySink& sink) override {
    state_.sink = &sink;
    return {};
  }
  Status Start() override { return ++state_.starts, state_.start; }
  Status Stop() override {
    ++state_.stops;
    if (state_.late) {
      state_.late();
    }
    return state_.stop;
  }
  void Push(std::uint64_t range) override { state_.pushed.push_back(range); }
  void Pop() override { state_.pushed.pop_back(); }

 private:
  State& state_;
};

std::int64_t Now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

class StepTraces : public ::testing::Test {
 protected:
  std::unique_ptr<StepTrace> Start(StepTraceOptions options) {
    options.path = path_;
    options.log =
        Log([this](LogLevel, std::string_view text) { log_ += std::string(text) + "\n"; });
    return OrThrow(StartStepTrace(std::move(options), std::make_unique<Double>(source_)));
  }
  json Events() { return json::parse(OrThrow(ReadFile(FileSystem::Local(), path_))); }
  // The names of a category, in the file's order.
  std::vector<std::string> Names(const json& file, const std::string& category) {
    std::vector<std::string> names;
    for (const json& event : file.at("traceEvents")) {
      if (event.value("cat", "") == category) {
        names.push_back(event.at("name"));
      }
    }
    return names;
  }
  json Find(const json& file, const std::string& name) {
    for (const json& event : file.at("traceEvents")) {
      if (event.at("name") == name) {
        return event;
      }
    }
    return nullptr;
  }
  Activity Kernel(const std::string& name, std::uint32_t correlation, std::int64_t begin_ns,
                  std::int64_t ns) {
    return {.kind = Activity::Kind::kKernel,
            .name = name,
            .stream = 7,
            .correlation = correlation,
            .begin_ns = begin_ns,
            .end_ns = begin_ns + ns};
  }

  testing::TempDir folder_;
  const std::string path_ = folder_.path() + "/made/steps.json";
  Double::State source_;
  std::string log_;
};

TEST_F(StepTraces, HaveTheRangesOfTheirStepsOnEveryThread) {
  int written = 0;
  const auto trace =
      Start({.first_step = 2, .last_step = 3, .rank = 4, .task = "worker:4", .written = [&] {
               ++written;
             }});
  for (int s = 1; s <= 5; ++s) {
    const Range step(Phase::kStep, s);
    std::thread([s] {
      Range forward(Phase::kForward, s);
      forward.End();
      const Range backward(Phase::kBackward, s);
      const Range reduce(Phase::kReduce, 0);
    }).join();
    const Range update(Phase::kUpdate, s);
  }
  EXPECT_EQ(written, 1);
  EXPECT_EQ(source_.starts, 1);
  EXPECT_EQ(source_.stops, 1);
  EXPECT_TRUE(source_.pushed.empty());
  const json file = Events();
  EXPECT_THAT(Names(file, "range"),
              ElementsAre("step 2", "forward 2", "backward 2", "reduce bucket 0", "update 2",
                          "step 3", "forward 3", "backward 3", "reduce bucket 0", "update 3"));
  const json reduce = Find(file, "reduce bucket 0");
  EXPECT_EQ(reduce.at("args").at("step"), 2);
  EXPECT_EQ(reduce.at("pid"), 4);
  EXPECT_NE(reduce.at("tid"), Find(file, "step 2").at("tid"));
  EXPECT_EQ(reduce.at("tid"), Find(file, "backward 2").at("tid"));
  EXPECT_EQ(Find(file, "process_name").at("args").at("name"), "rank 4 (worker:4)");
  EXPECT_EQ(file.at("otherData").at("cohort_step_trace"), 1);
  EXPECT_TRUE(trace->Finish().ok());
}

TEST_F(StepTraces, ActivitiesAreOfTheRangeThatLaunchedThem) {
  const auto trace = Start({.first_step = 1, .last_step = 1});
  const std::int64_t now = Now();
  {
    const Range step(Phase::kStep, 1);
    std::uint64_t backward_id = 0;
    {
      const Range backward(Phase::kBackward, 1);
      ASSERT_EQ(source_.pushed.size(), 2U);
      backward_id = source_.pushed.back();
    }
    source_.sink->Add(Kernel("_ZN6cohort4cuda3MapIfLi4EEEvPKT_Pfl", 11, now + 1000, 2500));
    source_.sink->Add({.kind = Activity::Kind::kCopy,
                       .name = "host to device",
                       .device = 1,
                       .stream = 9,
                       .correlation = 12,
                       .bytes = 4096,
                       .begin_ns = now + 1500,
                       .end_ns = now + 1600});
    // Its correlation, and more, come late; one kernel was cut off.
    source_.late = [&, backward_id] {
      source_.sink->Correlate(11, backward_id);
      source_.sink->Add(Kernel("sm90_gemm", 13, now + 4000, 100));
      source_.sink->Add({.name = "cut", .begin_ns = now, .end_ns = 0});
      source_.sink->Lost(5);
    };
  }
  source_.sink->Add(Kernel("too late", 14, now + 5000, 100));
  const json file = Events();
  EXPECT_THAT(Names(file, "kernel"), ElementsAre("cohort::cuda::Map<float, 4>", "sm90_gemm"));
  const json kernel = Find(file, "cohort::cuda::Map<float, 4>");
  EXPECT_EQ(kernel.at("args").at("range"), "backward 1");
  EXPECT_EQ(kernel.at("args").at("phase"), "backward");
  EXPECT_EQ(kernel.at("args").at("step"), 1);
  EXPECT_EQ(kernel.at("dur"), 2.5);
  const json copy = Find(file, "copy host to device");
  EXPECT_EQ(copy.at("args").at("bytes"), 4096);
  EXPECT_FALSE(copy.at("args").contains("range"));
  EXPECT_NE(copy.at("tid"), kernel.at("tid"));
  // On one clock with the ranges, to the nanosecond.
  EXPECT_NEAR(copy.at("ts").get<double>() - kernel.at("ts").get<double>(), 0.5, 1e-6);
  EXPECT_EQ(file.at("otherData").at("lost"), 6);
  EXPECT_THAT(log_, HasSubstr("3 activities of GPUs, 6 more are lost"));
}

TEST_F(StepTraces, AGraphsKernelsAreOfThePassTheyWereRecordedIn) {
  const auto trace = Start({.first_step = 5, .last_step = 5});
  {
    const Range forward(Phase::kForward, 3);  // long before the window
    source_.sink->NodeMade(21);
  }
  source_.sink->NodeCloned(21, 121);
  {
    const Range step(Phase::kStep, 5);
    const Range replay(Phase::kReplay, 5);
    Activity kernel = Kernel("a", 1, Now(), 10);
    kernel.graph_node = 121;
    source_.sink->Add(kernel);
    source_.sink->Correlate(1, source_.pushed.back());
  }
  const json args = Find(Events(), "a").at("args");
  EXPECT_EQ(args.at("range"), "replay 5");
  EXPECT_EQ(args.at("phase"), "forward");
}

TEST_F(StepTraces, ActivitiesOfAStreamThatOverlapAreOnSeveralThreads) {
  const auto trace = Start({.first_step = 1, .last_step = 1});
  {
    const Range step(Phase::kStep, 1);
    const std::int64_t now = Now();
    source_.sink->Add(Kernel("b", 0, now + 50, 100));
    source_.sink->Add(Kernel("a", 0, now, 100));
    source_.sink->Add(Kernel("c", 0, now + 100, 10));
  }
  const json file = Events();
  EXPECT_NE(Find(file, "a").at("tid"), Find(file, "b").at("tid"));
  EXPECT_EQ(Find(file, "a").at("tid"), Find(file, "c").at("tid"));
}

TEST_F(StepTraces, KeepNoMoreRecordsThanTheyMay) {
  const auto trace = Start({.first_step = 1, .last_step = 1, .max_records = 3});
  {
    const Range step(Phase::kStep, 1);
    for (int i = 0; i < 10; ++i) {
      source_.sink->Add(Kernel("a", 0, Now(), 10));
    }
  }
  const json file = Events();
  EXPECT_THAT(Names(file, "kernel"), ElementsAre("a", "a"));
  EXPECT_EQ(file.at("otherData").at("lost"), 8);
}

TEST_F(StepTraces, HaveTheRangesWhereTheSourceRefuses) {
  source_.start = FailedPrecondition("CUPTI refuses buffers: CUPTI_ERROR_X");
  const auto trace = Start({.first_step = 1, .last_step = 1});
  { const Range step(Phase::kStep, 1); }
  EXPECT_EQ(source_.stops, 0);
  EXPECT_THAT(Names(Events(), "range"), ElementsAre("step 1"));
  EXPECT_EQ(Events().at("otherData").at("note"), "CUPTI refuses buffers: CUPTI_ERROR_X");
  EXPECT_THAT(log_, HasSubstr("refuses buffers: CUPTI_ERROR_X; only what the host does"));
}

TEST_F(StepTraces, EndWithAStepThatIsBehindTheWindow) {
  const auto trace = Start({.first_step = 1, .last_step = 3});
  for (const int s : {2, 9}) {
    const Range step(Phase::kStep, s);
  }
  EXPECT_THAT(Names(Events(), "range"), ElementsAre("step 2"));
}

TEST_F(StepTraces, SayWhatWasNotRun) {
  auto trace = Start({.first_step = 10, .last_step = 12});
  { const Range step(Phase::kStep, 40); }
  const Status status = trace->Finish();
  EXPECT_EQ(status.code(), StatusCode::kOutOfRange);
  EXPECT_THAT(status.message(),
              HasSubstr("no step from 10 to 12 was run: the first was step 40; there is no "));
  EXPECT_EQ(trace->Finish(), status);
  EXPECT_FALSE(FileSystem::Local().Exists(path_));
}

TEST_F(StepTraces, AreOneAtATime) {
  auto trace = Start({});
  EXPECT_EQ(StepTrace::Start({.path = path_}).status().code(), StatusCode::kAlreadyExists);
  trace = nullptr;
  EXPECT_NE(Start({}), nullptr);
  EXPECT_EQ(
      StartStepTrace({.path = path_, .first_step = 3, .last_step = 2}, FailedPrecondition("none"))
          .status()
          .code(),
      StatusCode::kInvalidArgument);
}

TEST_F(StepTraces, RangesThatAreLeftOpenEndWithTheOneAround) {
  const auto trace = Start({.first_step = 1, .last_step = 2});
  auto around = std::make_unique<Range>(Phase::kStep, 1);
  auto inner = std::make_unique<Range>(Phase::kForward, 1);
  EXPECT_EQ(source_.pushed.size(), 2U);
  around = nullptr;
  EXPECT_TRUE(source_.pushed.empty());
  {
    const Range step(Phase::kStep, 2);
    inner = nullptr;  // ended with its step: this is not step 2's
    EXPECT_EQ(source_.pushed.size(), 1U);
  }
  EXPECT_THAT(Names(Events(), "range"), ElementsAre("step 1", "forward 1", "step 2"));
}

TEST(KernelNames, AreWithoutTypesAndParameters) {
  EXPECT_EQ(KernelName("_ZN6cohort4cuda3MapIfLi4EEEvPKT_Pfl"), "cohort::cuda::Map<float, 4>");
  EXPECT_EQ(KernelName("_ZN12_GLOBAL__N_14FillEPfi"), "(anonymous namespace)::Fill");
  EXPECT_EQ(KernelName("sm90_xmma_gemm_f32"), "sm90_xmma_gemm_f32");
}

}  // namespace
}  // namespace cohort::trace
