#include "parameter_server/view_watch.h"

#include <chrono>
#include <utility>

namespace cohort::ps {
namespace {

// Before a chief that did not answer is asked again.
constexpr std::chrono::milliseconds kPause{200};

}  // namespace

ViewWatch::ViewWatch(std::unique_ptr<SchedulerClient> client,
                     std::function<void(const ServerView&)> tell,
                     std::function<std::uint64_t()> steps)
    : client_(std::move(client)), tell_(std::move(tell)), steps_(std::move(steps)) {
  thread_ = std::thread([this] { Run(); });
}

ViewWatch::~ViewWatch() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  stop_.notify_all();
  client_->Abort(Cancelled("the watch is over"));
  thread_.join();
}

void ViewWatch::Run() {
  ServerView last;
  for (;;) {
    const Result<ServerView> view = client_->AwaitView(last.epoch, last.recovering, steps_());
    if (view.ok()) {
      last = *view;
      tell_(last);
    }
    std::unique_lock lock(mutex_);
    if (stopped_ || (!view.ok() && stop_.wait_for(lock, kPause, [this] { return stopped_; }))) {
      return;
    }
  }
}

}  // namespace cohort::ps
