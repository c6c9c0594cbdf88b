// Recorder: what a StepTrace records and when.
//
// It waits until a range of Phase::kStep with a number of the window begins, records ranges and
// activities until the one of the last number ends, and writes them. The range of an activity is
// found when all records are there: the ones that tell may come late.
//
// Thread rules: all methods from any thread.

#pragma once

#include <cohort/device/range.h>
#include <cohort/device/step_trace.h>

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "trace/activity.h"
#include "trace/events.h"

namespace cohort::trace {

class Recorder final : public ActivitySink {
 public:
  // Without a source: ranges alone, and `note` says why.
  Recorder(StepTraceOptions options, std::unique_ptr<ActivitySource> source, std::string note);
  ~Recorder() override;

  // A range begins and ends on the calling thread; `around` is the id of the innermost open one
  // there, or 0. Begin says whether the source was told, for End to tell it again.
  bool Begin(std::uint64_t id, Phase phase, std::int64_t number, std::uint64_t around);
  void End(std::uint64_t id, bool told);
  // As StepTrace's.
  Status Finish();

  void Add(const Activity& activity) override;
  void Correlate(std::uint32_t correlation, std::uint64_t range) override;
  void Lost(std::uint64_t records) override;
  void NodeMade(std::uint64_t node) override;
  void NodeCloned(std::uint64_t from, std::uint64_t node) override;

 private:
  enum class State : std::uint8_t { kWaiting, kRecording, kStopping, kDone };

  bool recording();
  bool Full();
  int ThreadNumber();
  void StartSource();
  Status NothingSeen();
  Status Write();
  StepTraceData Data();
  void KeepNode(std::uint64_t node, Phase phase);  // under mutex_

  const StepTraceOptions options_;

  std::mutex finishing_;  // the second to finish waits for the first
  std::mutex mutex_;      // guards the following; not held while the source is called
  State state_ = State::kWaiting;
  bool started_ = false;  // the source
  std::string note_;
  std::optional<std::int64_t> seen_;  // the first step that there was
  std::optional<std::int64_t> step_;  // under way, the one begun last
  std::vector<RangeRecord> ranges_;
  std::unordered_map<std::uint64_t, std::size_t> range_by_id_;
  std::vector<ActivityRecord> activities_;
  std::vector<std::uint32_t> correlation_of_;  // by activity
  std::unordered_map<std::uint32_t, std::uint64_t> range_of_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, std::uint32_t> number_of_name_;
  std::unordered_map<std::uint64_t, Phase> phase_of_node_;
  std::vector<std::string> threads_;
  std::map<std::thread::id, int> number_of_thread_;
  std::uint64_t lost_ = 0;
  Status written_;

  const std::unique_ptr<ActivitySource> source_;  // ends first: it calls this from other threads
};

// The innermost open range of the calling thread that is watched.
std::optional<Phase> PhaseHere();

// Makes the recorder the process's; AlreadyExists if there is one. nullptr: none any more.
Status UseRecorder(std::shared_ptr<Recorder> recorder);

// StepTrace::Start with another source, for tests.
Result<std::unique_ptr<StepTrace>> StartStepTrace(StepTraceOptions options,
                                                  Result<std::unique_ptr<ActivitySource>> source);

}  // namespace cohort::trace
