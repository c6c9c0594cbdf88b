// ViewWatch: has the chief's view of the servers told to a process, on a thread of its own: calls
// of this process may be waiting for one that is gone.
//
// Costs a thread and one call that waits in the chief, which answers when the view changes, or
// after a second or so. Where the chief does not answer, it is asked again a few times a second.
//
// Thread rules: made and destroyed by one thread, which waits for the thread of this one: the two
// functions must not wait for it, and what they use must live as long.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "parameter_server/chief/scheduler_service.h"

namespace cohort::ps {

class ViewWatch {
 public:
  // Both are called on the watch's thread. `tell`: the view, also where it is the same as before.
  // `steps`: that this process has been through, which the chief is told.
  ViewWatch(std::unique_ptr<SchedulerClient> client, std::function<void(const ServerView&)> tell,
            std::function<std::uint64_t()> steps);
  ~ViewWatch();
  ViewWatch(const ViewWatch&) = delete;
  ViewWatch& operator=(const ViewWatch&) = delete;

 private:
  void Run();

  const std::unique_ptr<SchedulerClient> client_;
  const std::function<void(const ServerView&)> tell_;
  const std::function<std::uint64_t()> steps_;
  std::mutex mutex_;
  std::condition_variable stop_;
  bool stopped_ = false;
  std::thread thread_;  // last: it uses the rest
};

}  // namespace cohort::ps
