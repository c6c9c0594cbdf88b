#include "parameter_server/chief/remote_functions.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace cohort::ps {
namespace {

constexpr std::size_t kMaxErrorBytes = std::size_t{64} << 10;
constexpr std::size_t kMostDatasets = 16;

class FunctionCoordinator final : public cohort::Coordinator {
 public:
  FunctionCoordinator(ps::Scheduler& state, const ScheduleOptions& options, SaveCalls save)
      : state_(state), options_(options), save_(std::move(save)) {}
  ~FunctionCoordinator() override { state_.CloseFunctions(); }
  FunctionCoordinator(const FunctionCoordinator&) = delete;
  FunctionCoordinator& operator=(const FunctionCoordinator&) = delete;

  Result<RemoteValue> Schedule(std::string function, std::string argument,
                               std::vector<PerWorkerDataset> data) override {
    if (data.size() > kMostDatasets) {
      return InvalidArgument("a call of '" + function.substr(0, 100) + "' with " +
                             std::to_string(data.size()) + " data sets [at most " +
                             std::to_string(kMostDatasets) + "]");
    }
    if (function.empty() || function.size() + argument.size() > kMaxFunctionBytes) {
      return InvalidArgument("a call of '" + function.substr(0, 100) + "' with an argument of " +
                             std::to_string(argument.size()) +
                             " bytes [a name is not empty; large data is read by the worker]");
    }
    COHORT_ASSIGN_OR_RETURN(
        std::shared_ptr<RemoteResult> result,
        state_.Schedule(std::move(function), std::move(argument), std::move(data),
                        options_.max_waiting, DeadlineAfter(options_.schedule_timeout)));
    return RemoteValue(std::move(result));
  }
  PerWorkerDataset CreatePerWorkerDataset(std::string name) override {
    return {.id = ++datasets_, .name = std::move(name)};
  }
  Status Join(Deadline deadline) override { return state_.Join(deadline); }
  bool Done() const override { return state_.Idle(); }
  Result<std::string> Fetch(const RemoteValue& value, Deadline deadline) override {
    Require(value.result() != nullptr, "Fetch of a value that Schedule returned");
    return state_.Fetch(*value.result(), deadline);
  }
  Status Save(const SaveFn& save, Deadline deadline) override {
    Require(save != nullptr, "Save with a function that saves");
    return save_ ? save_(save, deadline)
                 : FailedPrecondition("this coordinator has no servers to save");
  }
  void Close() override { state_.CloseFunctions(); }

 private:
  ps::Scheduler& state_;
  const ScheduleOptions options_;
  const SaveCalls save_;
  std::atomic<std::int64_t> datasets_{0};
};

// Epoch after epoch of a data set.
class EpochIterator final : public data::BatchIterator {
 public:
  explicit EpochIterator(data::Dataset dataset) : dataset_(std::move(dataset)) {}

  Result<std::optional<data::Batch>> Next() override {
    if (batches_ == nullptr) {
      COHORT_ASSIGN_OR_RETURN(batches_, dataset_.Iterate({.epoch = epoch_++}));
    }
    Result<std::optional<data::Batch>> batch = batches_->Next();
    if (batch.ok() && !batch->has_value()) {
      batches_.reset();
    }
    return batch;
  }

 private:
  const data::Dataset dataset_;
  std::int64_t epoch_ = 0;
  std::unique_ptr<data::BatchIterator> batches_;
};

// The data sets of this worker, each made when it is needed first.
class WorkerDatasets {
 public:
  WorkerDatasets(const Functions& functions, const InputPipeline& pipeline)
      : functions_(functions), pipeline_(pipeline) {}

  Result<std::vector<data::BatchIterator*>> Of(const Closure& closure) {
    std::vector<data::BatchIterator*> iterators;
    for (const PerWorkerDataset& dataset : closure.data) {
      auto& iterator = iterators_[dataset.id];
      if (iterator == nullptr) {
        Result<data::Dataset> made = functions_.MakeDataset(dataset.name, pipeline_);
        COHORT_RETURN_IF_ERROR(made.status().Annotate("data set '" + dataset.name + "'"));
        iterator = std::make_unique<EpochIterator>(std::move(made).value());
      }
      iterators.push_back(iterator.get());
    }
    return iterators;
  }

 private:
  const Functions& functions_;
  const InputPipeline pipeline_;
  std::map<std::int64_t, std::unique_ptr<EpochIterator>> iterators_;
};

// The calls that a worker holds: a thread has always asked for the next one, another tells the
// results, so that the one that runs them waits for neither.
class HeldCalls {
 public:
  explicit HeldCalls(SchedulerClient& scheduler) : scheduler_(scheduler) {
    fetch_ = std::thread([this] { Fetch(); });
    tell_ = std::thread([this] { Tell(); });
  }
  ~HeldCalls() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
    fetch_.join();
    tell_.join();
  }

  // Is there one now, or will there be none any more?
  bool ready() {
    const std::lock_guard lock(mutex_);
    return !waiting_.empty() || over_ || !error_.ok();
  }
  // Waits for it. Nothing: there will be no more.
  Result<std::optional<Closure>> Next() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !waiting_.empty() || over_ || !error_.ok(); });
    COHORT_RETURN_IF_ERROR(error_);
    if (waiting_.empty()) {
      return std::optional<Closure>();
    }
    std::optional<Closure> next = std::move(waiting_.front());
    waiting_.pop_front();
    return next;
  }
  void Finish(std::int64_t id, Result<std::string> outcome) {
    {
      const std::lock_guard lock(mutex_);
      finished_.emplace_back(id, std::move(outcome));
    }
    changed_.notify_all();
  }

 private:
  void Fetch() {
    for (;;) {
      std::vector<std::int64_t> has;
      {
        const std::lock_guard lock(mutex_);
        if (stopped_ || !error_.ok()) {
          return;
        }
        has = has_;
      }
      Result<ClosureReply> reply = scheduler_.NextClosure(has);
      {
        const std::lock_guard lock(mutex_);
        if (!reply.ok()) {
          error_ = error_.ok() ? reply.status() : error_;
        } else if (reply->progress == Progress::kOver) {
          over_ = true;
        } else if (reply->progress == Progress::kGo) {
          has_.push_back(reply->closure.id);
          waiting_.push_back(std::move(reply->closure));
        }
      }
      changed_.notify_all();
      if (!reply.ok() || reply->progress == Progress::kOver) {
        return;
      }
    }
  }

  void Tell() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return !finished_.empty() || stopped_; });
      if (finished_.empty() || !error_.ok()) {
        return;  // where the job has failed, this is what fails: the client knows the reason
      }
      const auto [id, outcome] = std::move(finished_.front());
      finished_.pop_front();
      lock.unlock();
      const Status told = scheduler_.FinishClosure(id, outcome);
      lock.lock();
      // Once: the chief may have handed it out again already.
      if (const auto at = std::ranges::find(has_, id); at != has_.end()) {
        has_.erase(at);
      }
      if (!told.ok()) {
        error_ = error_.ok() ? told : error_;
        changed_.notify_all();
      }
    }
  }

  SchedulerClient& scheduler_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::int64_t> has_;  // that the chief need not send
  std::deque<Closure> waiting_;
  std::deque<std::pair<std::int64_t, Result<std::string>>> finished_;
  bool over_ = false;
  bool stopped_ = false;
  Status error_;
  std::thread fetch_;  // last: they use the rest
  std::thread tell_;
};

}  // namespace

Result<std::unique_ptr<cohort::Coordinator>> OpenFunctions(Scheduler& state,
                                                           const ScheduleOptions& options,
                                                           Scheduler::Recover recover,
                                                           SaveCalls save) {
  if (options.max_waiting < 1 || options.max_attempts < 1 || options.calls_in_flight < 1) {
    return InvalidArgument("a coordinator of " + std::to_string(options.max_waiting) +
                           " waiting calls, " + std::to_string(options.max_attempts) +
                           " attempts and " + std::to_string(options.calls_in_flight) +
                           " calls in flight [each at least 1]");
  }
  COHORT_RETURN_IF_ERROR(
      state.OpenFunctions(options.max_attempts, options.calls_in_flight, std::move(recover),
                          {.calls = options.max_kept_calls, .bytes = options.max_kept_bytes}));
  return std::make_unique<FunctionCoordinator>(state, options, std::move(save));
}

Status RunFunctions(SchedulerClient& scheduler, const Functions& functions,
                    const InputPipeline& pipeline, const CallHooks& hooks) {
  WorkerDatasets datasets(functions, pipeline);
  HeldCalls calls(scheduler);
  for (;;) {
    if (hooks.idle && !calls.ready()) {
      COHORT_RETURN_IF_ERROR(hooks.idle());
    }
    COHORT_ASSIGN_OR_RETURN(const std::optional<Closure> closure, calls.Next());
    if (!closure.has_value()) {
      return {};
    }
    if (hooks.begin) {
      COHORT_ASSIGN_OR_RETURN(const bool counts, hooks.begin(closure->epoch));
      if (!counts) {
        calls.Finish(closure->id, Aborted("it was not begun: the servers have gone back since"));
        continue;
      }
    }
    const Result<std::vector<data::BatchIterator*>> data = datasets.Of(*closure);
    Result<std::string> outcome =
        data.ok() ? functions.Call(closure->function, closure->argument, *data) : data.status();
    if (outcome.ok() && outcome->size() > kMaxFunctionBytes) {
      outcome = ResourceExhausted("a result of " + std::to_string(outcome->size()) +
                                  " bytes is more than " + std::to_string(kMaxFunctionBytes) +
                                  " [write large results to files]");
    }
    if (!outcome.ok() && outcome.status().message().size() > kMaxErrorBytes) {
      outcome =
          Status(outcome.status().code(), outcome.status().message().substr(0, kMaxErrorBytes));
    }
    calls.Finish(closure->id, std::move(outcome));
  }
}

}  // namespace cohort::ps
