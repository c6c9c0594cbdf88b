// When the servers are in another epoch, or the chief is lost: what the other processes do until
// they are in that epoch, of the chief that there is then.
#include "parameter_server/job.h"

#include <algorithm>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "parameter_server/view_watch.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kLeastSilence{5'000};  // several times what a view is waited for

}  // namespace

Status Job::Rejoin(const Status& error) {
  if (watch_ == nullptr ||
      (error.code() != StatusCode::kUnavailable && !ChiefLost() && !AwaitChiefLost(error))) {
    return Explain(error);
  }
  const auto begun = std::chrono::steady_clock::now();
  bool found = false;
  Status status = ChiefLost() ? error : AwaitNextView();
  while (!status.ok()) {
    if (!ChiefLost() && !AwaitChiefLost(status)) {
      return status.code() == StatusCode::kDeadlineExceeded ? CutOff(error) : status;
    }
    COHORT_RETURN_IF_ERROR(FindChief());
    status = FindScheduler();
    found = true;
  }
  work_stands_ = work_stands_ && !found;  // what this process held is another's
  if (client_ != nullptr) {
    MakeClients(epoch_, work_stands_);
  } else {
    scheduler_client_->SetEpoch(epoch_);
  }
  log_.Info(fmt::format("goes on in epoch {} of the servers, after {:.1f} s", epoch_,
                        SecondsSince(begun)));
  return {};
}

// The chief hears all servers, and this process one of them, or the chief's scheduler, no more.
// Others may: it is as if this process had been lost, which does not end them.
Status Job::CutOff(const Status& error) {
  if (const Status failure = coordination_->failure(); !failure.ok()) {
    return failure;
  }
  cut_off_ = true;
  return {
      error.code(),
      fmt::format("{}; {} hears all servers: the others go on without this process [look at the "
                  "network between these two]",
                  error.message(), chief_.ToString())};
}

void Job::Told(const ServerView& view) {
  {
    const std::lock_guard lock(failure_mutex_);
    view_ = view;
    heard_ = std::chrono::steady_clock::now();
    if (view.recovering) {
      AbortClients(Unavailable(view.why));
    } else if (view.epoch != epoch_) {
      AbortClients(Unavailable("the servers have been rolled back"));
    }
  }
  view_changed_.notify_all();
}

// The servers' next epoch, of which the clients to be made are. DeadlineExceeded: the chief does
// not say that anything is the matter with the servers.
Status Job::AwaitNextView() {
  const auto begun = std::chrono::steady_clock::now();
  std::unique_lock lock(failure_mutex_);
  for (bool said = false; view_.epoch <= epoch_ || view_.recovering;) {
    COHORT_RETURN_IF_ERROR(failure_);
    // While the chief waits for a server, it has the deadline.
    const auto silent_since = view_.recovering ? heard_ : begun;
    if (std::chrono::steady_clock::now() - silent_since >=
        std::max(heartbeat_timeout_, kLeastSilence)) {
      return DeadlineExceeded("");
    }
    if (view_.recovering && !std::exchange(said, true)) {
      log_.Info("waits for the servers: " + view_.why);
    }
    view_changed_.wait_for(lock, kLook);
  }
  TakeView();
  return {};
}

// With the lock held.
void Job::TakeView() {
  work_stands_ = view_.rolled_back <= epoch_;
  rolled_back_ = view_.rolled_back;
  epoch_ = view_.epoch;
  server_addresses_ = view_.addresses;
}

bool Job::ChiefLost() const {
  return chief_may_be_lost() && !is_chief() && coordination_ != nullptr &&
         coordination_->service_lost();
}

// Is `error` that the chief is lost? A call may learn that before the heartbeats do, from the
// service of a successor, which does not know this process.
bool Job::AwaitChiefLost(const Status& error) const {
  if (!chief_may_be_lost() || is_chief() || coordination_ == nullptr ||
      (error.code() != StatusCode::kUnavailable && error.code() != StatusCode::kAborted)) {
    return false;
  }
  const Deadline deadline = DeadlineAfter(heartbeat_timeout_ + kNoticed);
  for (;;) {
    const bool known = !coordination_->failure().ok();
    if (coordination_->service_lost()) {
      return true;
    }
    if (known || std::chrono::steady_clock::now() >= deadline) {
      return false;
    }
    std::this_thread::sleep_for(milliseconds(10));
  }
}

// In another process than the chief, which is lost: joins the one in its place.
Status Job::FindChief() {
  const Status why = coordination_->failure();
  const double grace = static_cast<double>(rejoin_grace_.count()) / 1000;
  log_.Warning(
      fmt::format("{}; waits for another process in its place, for {:g} s", why.message(), grace));
  watch_.reset();
  coordination_.reset();
  {
    const std::lock_guard lock(failure_mutex_);
    scheduler_client_.reset();
    failure_ = OkStatus();
    view_ = {};
  }
  const Deadline deadline = DeadlineAfter(rejoin_grace_);
  Status joined;
  do {  // this one may be lost, too
    const auto left = std::chrono::ceil<milliseconds>(deadline - std::chrono::steady_clock::now());
    joined = JoinCoordination(/*wait_for_all=*/false, std::max(left, milliseconds(1)));
  } while ((joined.code() == StatusCode::kUnavailable || joined.code() == StatusCode::kAborted) &&
           std::chrono::steady_clock::now() < deadline);
  if (joined.code() == StatusCode::kDeadlineExceeded) {
    return Unavailable(fmt::format(
        "{}; no other process has taken its place within {:g} s (rejoin_grace) [start {} again "
        "with its TF_CONFIG in that time; the job itself, started again, goes on from its last "
        "save]",
        why.message(), grace, chief_.ToString()));
  }
  return joined;
}

}  // namespace cohort::ps
