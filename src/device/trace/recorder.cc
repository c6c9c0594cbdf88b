#include "trace/recorder.h"

#include <cohort/core/file_system.h>
#include <pthread.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <exception>
#include <filesystem>
#include <utility>

namespace cohort::trace {
namespace {

std::int64_t Now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

Recorder::Recorder(StepTraceOptions options, std::unique_ptr<ActivitySource> source,
                   std::string note)
    : options_(std::move(options)), note_(std::move(note)), source_(std::move(source)) {
  if (source_ != nullptr) {
    if (const Status status = source_->Watch(*this); !status.ok()) {
      note_ = status.message();
      options_.log.Warning("step trace: " + note_);
    }
  }
}

Recorder::~Recorder() = default;

bool Recorder::Full() { return ranges_.size() + activities_.size() >= options_.max_records; }

bool Recorder::recording() {
  const std::lock_guard lock(mutex_);
  return state_ == State::kRecording;
}

int Recorder::ThreadNumber() {
  const auto [it, added] =
      number_of_thread_.emplace(std::this_thread::get_id(), static_cast<int>(threads_.size()));
  if (added) {
    std::array<char, 16> name = {};
    (void)pthread_getname_np(pthread_self(), name.data(), name.size());
    threads_.push_back("thread " + std::to_string(it->second) + " " + name.data());
  }
  return it->second;
}

bool Recorder::Begin(std::uint64_t id, Phase phase, std::int64_t number, std::uint64_t around) {
  if (phase == Phase::kStep && number > options_.last_step && recording()) {
    (void)Finish();  // a count that jumped over the last step
  }
  std::unique_lock lock(mutex_);
  if (phase == Phase::kStep) {
    seen_ = seen_.value_or(number);
    if (state_ == State::kWaiting && number >= options_.first_step &&
        number <= options_.last_step) {
      state_ = State::kRecording;
      lock.unlock();
      StartSource();
      lock.lock();
    }
    step_ = number;
  }
  if (state_ != State::kRecording) {
    return false;
  }
  if (Full()) {
    ++lost_;
    return false;
  }
  RangeRecord range{.id = id, .phase = phase, .number = number, .step = step_};
  if (const auto it = range_by_id_.find(around);
      it != range_by_id_.end() && phase != Phase::kStep) {
    range.step = ranges_[it->second].step;
  }
  range.thread = ThreadNumber();
  range.begin_ns = Now();
  range_by_id_[id] = ranges_.size();
  ranges_.push_back(range);
  if (!started_) {
    return false;
  }
  lock.unlock();
  source_->Push(id);
  return true;
}

void Recorder::End(std::uint64_t id, bool told) {
  if (told) {
    source_->Pop();
  }
  bool last = false;
  {
    const std::lock_guard lock(mutex_);
    const auto it = range_by_id_.find(id);
    if (it == range_by_id_.end() || state_ != State::kRecording) {
      return;
    }
    RangeRecord& range = ranges_[it->second];
    range.end_ns = Now();
    if (range.phase == Phase::kStep) {
      last = range.number >= options_.last_step;
      if (step_ == range.number) {
        step_ = std::nullopt;
      }
    }
  }
  if (last) {
    (void)Finish();  // which is kept, and logged
  }
}

void Recorder::StartSource() {
  if (source_ == nullptr) {
    return;
  }
  const Status status = source_->Start();
  std::unique_lock lock(mutex_);
  if (status.ok() && state_ != State::kRecording) {
    lock.unlock();
    (void)source_->Stop();  // another thread has finished meanwhile
    return;
  }
  started_ = status.ok();
  if (!status.ok()) {
    note_ = status.message();
    options_.log.Warning("step trace: " + note_ +
                         "; only what the host does is recorded, not what GPUs do");
  }
}

Status Recorder::NothingSeen() {
  Status status = OutOfRange(
      "no step from " + std::to_string(options_.first_step) + " to " +
      std::to_string(options_.last_step) + " was run" +
      (seen_.has_value() ? ": the first was step " + std::to_string(*seen_) : std::string()) +
      "; there is no " + options_.path);
  options_.log.Warning("step trace: " + status.message());
  return status;
}

Status Recorder::Finish() {
  std::unique_lock finishing(finishing_);
  bool started = false;
  {
    const std::lock_guard lock(mutex_);
    if (state_ == State::kWaiting) {
      written_ = NothingSeen();
      state_ = State::kDone;
    }
    if (state_ == State::kDone) {
      return written_;
    }
    state_ = State::kStopping;
    started = std::exchange(started_, false);
  }
  if (const Status stopped = started ? source_->Stop() : OkStatus(); !stopped.ok()) {
    const std::lock_guard lock(mutex_);
    note_ = stopped.message();
    options_.log.Warning("step trace: " + note_);
  }
  Status status = Write();
  {
    const std::lock_guard lock(mutex_);
    state_ = State::kDone;
    written_ = status;
  }
  finishing.unlock();
  if (!status.ok()) {
    options_.log.Error("step trace: " + status.ToString());
  } else if (options_.written) {
    options_.written();
  }
  return status;
}

StepTraceData Recorder::Data() {
  const std::lock_guard lock(mutex_);
  state_ = State::kDone;  // what comes now is too late
  StepTraceData data{.rank = options_.rank,
                     .task = options_.task,
                     .first_step = options_.first_step,
                     .last_step = options_.last_step,
                     .note = note_,
                     .lost = lost_,
                     .threads = std::move(threads_),
                     .names = std::move(names_),
                     .ranges = std::move(ranges_),
                     .activities = std::move(activities_)};
  for (std::size_t i = 0; i < data.activities.size(); ++i) {
    ActivityRecord& activity = data.activities[i];
    if (const auto launch = range_of_.find(correlation_of_[i]); launch != range_of_.end()) {
      if (const auto range = range_by_id_.find(launch->second); range != range_by_id_.end()) {
        activity.range = static_cast<std::int32_t>(range->second);
      }
    }
    if (const auto node = phase_of_node_.find(activity.graph_node); node != phase_of_node_.end()) {
      activity.recorded = node->second;
    }
  }
  // Training goes on.
  range_of_ = {};
  range_by_id_ = {};
  phase_of_node_ = {};
  number_of_name_ = {};
  correlation_of_ = {};
  return data;
}

Status Recorder::Write() {
  try {
    StepTraceData data = Data();
    COHORT_RETURN_IF_ERROR(
        WriteFileAtomically(FileSystem::Local(), options_.path, TraceEvents(data)));
    options_.log.Info("step trace: wrote " + options_.path + ", " +
                      std::to_string(data.ranges.size()) + " ranges and " +
                      std::to_string(data.activities.size()) + " activities of GPUs" +
                      (data.lost > 0 ? ", " + std::to_string(data.lost) + " more are lost" : "") +
                      " [ui.perfetto.dev shows it, cohort trace sums it up]");
    return {};
  } catch (const std::exception& error) {
    return ResourceExhausted("writing " + options_.path + ": " + error.what());
  }
}

void Recorder::Add(const Activity& activity) {
  const std::lock_guard lock(mutex_);
  if (state_ == State::kWaiting || state_ == State::kDone) {
    return;
  }
  if (Full() || activity.end_ns == 0) {
    ++lost_;
    return;
  }
  const auto [it, added] = number_of_name_.emplace(std::string(activity.name),
                                                   static_cast<std::uint32_t>(names_.size()));
  if (added) {
    names_.emplace_back(activity.name);
  }
  activities_.push_back({.kind = activity.kind,
                         .recorded = std::nullopt,
                         .name = it->second,
                         .device = activity.device,
                         .stream = activity.stream,
                         .graph_node = activity.graph_node,
                         .bytes = activity.bytes,
                         .begin_ns = activity.begin_ns,
                         .end_ns = activity.end_ns});
  correlation_of_.push_back(activity.correlation);
}

void Recorder::Correlate(std::uint32_t correlation, std::uint64_t range) {
  const std::lock_guard lock(mutex_);
  if (range_of_.size() < options_.max_records) {
    range_of_[correlation] = range;
  } else {
    ++lost_;
  }
}

void Recorder::Lost(std::uint64_t records) {
  const std::lock_guard lock(mutex_);
  lost_ += records;
}

void Recorder::NodeMade(std::uint64_t node) {
  const std::optional<Phase> phase = PhaseHere();
  if (phase.has_value()) {
    const std::lock_guard lock(mutex_);
    KeepNode(node, *phase);
  }
}

void Recorder::NodeCloned(std::uint64_t from, std::uint64_t node) {
  const std::lock_guard lock(mutex_);
  if (const auto it = phase_of_node_.find(from); it != phase_of_node_.end()) {
    KeepNode(node, Phase(it->second));
  }
}

void Recorder::KeepNode(std::uint64_t node, Phase phase) {
  if (state_ == State::kDone) {
    return;
  }
  if (phase_of_node_.size() < options_.max_records) {
    phase_of_node_[node] = phase;
  } else {
    ++lost_;
  }
}

namespace {

class Trace final : public StepTrace {
 public:
  explicit Trace(std::shared_ptr<Recorder> recorder) : recorder_(std::move(recorder)) {}
  ~Trace() override {
    (void)recorder_->Finish();  // an error is logged
    (void)UseRecorder(nullptr);
  }
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;

  Status Finish() override { return recorder_->Finish(); }

 private:
  const std::shared_ptr<Recorder> recorder_;  // owners: this, the process's, open ranges
};

}  // namespace

Result<std::unique_ptr<StepTrace>> StartStepTrace(StepTraceOptions options,
                                                  Result<std::unique_ptr<ActivitySource>> source) {
  if (options.first_step < 0 || options.last_step < options.first_step) {
    return InvalidArgument("a step trace of steps " + std::to_string(options.first_step) + " to " +
                           std::to_string(options.last_step) +
                           " [the first at least 0, the last not before it]");
  }
  if (const std::string folder = std::filesystem::path(options.path).parent_path().string();
      !folder.empty()) {
    COHORT_RETURN_IF_ERROR(FileSystem::Local().CreateDirectories(folder));
  }
  std::string note;
  if (!source.ok()) {
    note = source.status().message();
    options.log.Warning("step trace: " + note +
                        "; only what the host does is recorded, not what GPUs do");
  }
  auto recorder = std::make_shared<Recorder>(
      std::move(options), source.ok() ? std::move(source).value() : nullptr, std::move(note));
  COHORT_RETURN_IF_ERROR(UseRecorder(recorder));
  return std::make_unique<Trace>(std::move(recorder));
}

}  // namespace cohort::trace

namespace cohort {

Result<std::unique_ptr<StepTrace>> StepTrace::Start(StepTraceOptions options) {
  return trace::StartStepTrace(std::move(options), trace::OpenActivitySource());
}

}  // namespace cohort
