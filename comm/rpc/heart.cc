#include "heart.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include <cohort/core/thread_pool.h>

#include "grpc_util.h"
#include "wire.h"

namespace cohort {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kWatchSlice{3'600'000};  // between two, an end is noticed less early
constexpr milliseconds kWatchSlack{5'000};      // the service answers this much late at worst
constexpr milliseconds kWatchPause{50};
constexpr milliseconds kRetryPause{200};
constexpr milliseconds kProbeTimeout{300};

double Seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace

bool IsBroken(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::UNAVAILABLE ||
         status.error_code() == grpc::StatusCode::CANCELLED;
}

Heart::Heart(ServiceStub& stub, wire::Caller caller, TaskId chief, std::string address,
             const CoordinationOptions& options)
    : stub_(stub),
      caller_(std::move(caller)),
      chief_(chief),
      address_(std::move(address)),
      clock_(*options.clock),
      reconnect_grace_(options.reconnect_grace) {}

void Heart::Start(milliseconds interval, milliseconds timeout, std::uint64_t service) {
  interval_ = interval;
  timeout_ = timeout;
  service_ = service;
  *beat_.request.mutable_caller() = caller_;
  *watch_->request.mutable_caller() = caller_;
  watch_->request.set_wait_ms(kWatchSlice.count());
  thread_ = std::thread([this] { Run(); });
}

void Heart::Stop() {
  if (!thread_.joinable()) {
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
  // The thread is gone: the contexts change no more. Cancelling may call back on this thread.
  for (const auto* context : {&beat_.context, &watch_->context}) {
    if (*context != nullptr) {
      (*context)->TryCancel();
    }
  }
  std::unique_lock lock(mutex_);  // a cancelled call always ends, and at once
  changed_.wait(lock, [this] {
    return beat_.in_flight == beat_.done && watch_->in_flight == watch_->done &&
           (old_watch_ == nullptr || old_watch_->done);
  });
}

Status Heart::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

bool Heart::service_gone() const {
  const std::lock_guard lock(mutex_);
  return service_gone_;
}

void Heart::Fail(const Status& failure) {
  const std::lock_guard lock(mutex_);
  FailLocked(failure);
}

void Heart::FailLocked(const Status& failure) {
  if (failure_.ok() && !failure.ok() && !stop_) {
    failure_ = failure;
    changed_.notify_all();
  }
}

// Another service than the one that this task has joined does not know it.
void Heart::CheckService(std::uint64_t answered) {
  if (answered != service_ && failure_.ok()) {
    service_gone_ = true;
    FailLocked(Unavailable(
        fmt::format("{} (the chief, with the coordination service at {}) was started again, and "
                    "knows nothing of this task",
                    chief_.ToString(), address_)));
  }
}

void Heart::OnFailure(std::function<void(const Status&)> callback) {
  const std::lock_guard lock(mutex_);
  on_failure_.push_back(std::move(callback));
  changed_.notify_all();
}

void Heart::SetProgress(std::function<TaskProgress()> progress) {
  const std::lock_guard lock(progress_mutex_);
  progress_ = std::move(progress);
}

Status Heart::regroup_asked() const {
  const std::lock_guard lock(mutex_);
  return regroup_asked_;
}

void Heart::RegroupDone() {
  const std::lock_guard lock(mutex_);
  regroup_asked_ = OkStatus();
  regroup_news_is_old_ = beat_.in_flight;
}

void Heart::Run() {
  NameThisThread("coord-heart");
  std::unique_lock lock(mutex_);
  last_answer_ = clock_.Now();  // the service has just let us join
  beat_.next = watch_->next = last_answer_;
  while (!stop_) {
    if (beat_.done) {
      TakeBeat(lock);
    }
    if (watch_->done) {
      TakeWatch();
    }
    if (old_watch_ != nullptr && old_watch_->done) {
      old_watch_.reset();
    }
    if (!failure_.ok()) {  // nothing is left to do but to tell
      TellFailure(lock);
      clock_.WaitUntil(lock, changed_, clock_.Now() + std::chrono::hours(1),
                       [this] { return stop_ || !on_failure_.empty(); });
      continue;
    }
    if (std::exchange(renew_, false)) {
      lock.unlock();
      RenewConnection();
      lock.lock();
      continue;
    }
    const Deadline now = clock_.Now();
    const bool beat = !beat_.in_flight && beat_.next <= now;
    const bool watch = !watch_->in_flight && watch_->next <= now;
    if (beat || watch) {
      lock.unlock();  // gRPC may call back on this thread
      if (beat) {
        StartBeat(now);
      }
      if (watch) {
        StartWatch();
      }
      lock.lock();
      continue;
    }
    const Deadline wake = std::min(beat_.in_flight ? Deadline::max() : beat_.next,
                                   watch_->in_flight ? Deadline::max() : watch_->next);
    clock_.WaitUntil(lock, changed_, std::min(wake, now + timeout_), [this] {
      return stop_ || beat_.done || watch_->done || !failure_.ok() ||
             (old_watch_ != nullptr && old_watch_->done);
    });
  }
}

void Heart::StartBeat(Deadline now) {
  // Several attempts fit into the time after which the service counts as gone, and the last of them
  // ends with it.
  const Duration left = last_answer_ + timeout_ - now;
  Duration patience = std::clamp<Duration>(left, interval_ / 2, std::max(timeout_ / 5, interval_));
  if (const Duration third = last_answer_ + timeout_ / 3 - now;
      !renewed_ && third > interval_ / 2) {
    patience = std::min(patience, third);
  }
  {
    const std::lock_guard lock(progress_mutex_);
    if (progress_) {
      ToWire(progress_(), beat_.request.mutable_progress());
    }
  }
  beat_.context = std::make_unique<grpc::ClientContext>();
  beat_.context->set_deadline(GrpcTimeout(patience));
  {
    const std::lock_guard lock(mutex_);
    beat_.in_flight = true;
    beat_.next = now + interval_;
  }
  beat_.stub = stub_.get();
  beat_.stub->async()->Heartbeat(beat_.context.get(), &beat_.request, &beat_.reply,
                                 [this](grpc::Status status) {
                                   const std::lock_guard lock(mutex_);
                                   beat_.status = std::move(status);
                                   beat_.done = true;
                                   changed_.notify_all();
                                 });
}

void Heart::StartWatch() {
  WatchExchange& watch = *watch_;
  watch.context = std::make_unique<grpc::ClientContext>();
  watch.context->set_deadline(GrpcTimeout(kWatchSlice + kWatchSlack));
  {
    const std::lock_guard lock(mutex_);
    watch.in_flight = true;
  }
  watch.stub = stub_.get();
  watch.stub->async()->Watch(watch.context.get(), &watch.request, &watch.reply,
                             [this, &watch](grpc::Status status) {
                               const std::lock_guard lock(mutex_);
                               watch.status = std::move(status);
                               watch.done = true;
                               changed_.notify_all();
                             });
}

// The service takes a broken Watch for the end of the process, unless it has heard of a later one:
// so the old one is given up when the new one is on its way.
void Heart::RenewConnection() {
  stub_.Renew();
  grpc::ClientContext* given_up = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (old_watch_ == nullptr && watch_->in_flight && !watch_->done) {
      given_up = watch_->context.get();
      auto watch = std::make_unique<WatchExchange>();
      watch->request = watch_->request;
      old_watch_ = std::exchange(watch_, std::move(watch));
    }
  }
  if (given_up != nullptr) {
    StartWatch();
    given_up->TryCancel();
  }
  if (on_renewed_) {
    on_renewed_();
  }
}

void Heart::TakeBeat(std::unique_lock<std::mutex>& lock) {
  beat_.done = beat_.in_flight = false;
  const bool old_news = std::exchange(regroup_news_is_old_, false);
  const Deadline now = clock_.Now();
  if (beat_.status.ok()) {
    last_answer_ = now;
    renewed_ = false;
    broken_since_.reset();
    if (!old_news) {
      regroup_asked_ = FromWire(beat_.reply.regroup());
    }
    CheckService(beat_.reply.service());
    FailLocked(FromWire(beat_.reply.outcome()));
    return;
  }
  if (IsBroken(beat_.status)) {
    broken_since_ = broken_since_.value_or(now);
  }
  beat_.next = now + std::min(interval_, kRetryPause);
  if (!IsBroken(beat_.status) && !renewed_ && now - last_answer_ >= timeout_ / 3) {
    renewed_ = renew_ = true;
    beat_.next = now;
  }
  JudgeService(lock);
}

void Heart::TakeWatch() {
  watch_->done = watch_->in_flight = false;
  const Deadline now = clock_.Now();
  watch_->next = now + kWatchPause;
  if (watch_->status.ok()) {
    CheckService(watch_->reply.service());
    FailLocked(FromWire(watch_->reply.outcome()));
  } else if (IsBroken(watch_->status)) {
    // A heartbeat finds out whether the connection can be made again.
    broken_since_ = broken_since_.value_or(now);
    beat_.next = now;
  }
}

// After a heartbeat without an answer: is the service gone?
void Heart::JudgeService(std::unique_lock<std::mutex>& lock) {
  const Deadline now = clock_.Now();
  const bool broken = broken_since_ && now - *broken_since_ > reconnect_grace_;
  if (!broken && now - last_answer_ <= timeout_) {
    return;
  }
  const std::string what =
      broken ? fmt::format("is gone, its connection broken for {:.1f} s",
                           Seconds(now - *broken_since_))
             : fmt::format("answered no heartbeat for {:.1f} s", Seconds(now - last_answer_));
  lock.unlock();
  const std::string reason = ProbeAddress(address_, kProbeTimeout);
  lock.lock();
  if (failure_.ok()) {
    service_gone_ = true;
    FailLocked(Unavailable(
        fmt::format("{} (the chief, with the coordination service at {}) {}: {} [its own log tells "
                    "why]",
                    chief_.ToString(), address_, what, reason)));
  }
}

void Heart::TellFailure(std::unique_lock<std::mutex>& lock) {
  const auto callbacks = std::exchange(on_failure_, {});
  const Status failure = failure_;
  lock.unlock();
  for (const auto& callback : callbacks) {
    callback(failure);
  }
  lock.lock();
}

}  // namespace cohort
