// RunAtLowPriority: work that is waited for and yields to all that is not, as that of a save does
// to training: on Linux a thread has a priority of its own, which may be lowered and not raised
// again.

#pragma once

#include <sys/resource.h>
#include <unistd.h>

#include <exception>
#include <functional>
#include <system_error>
#include <thread>

#include <cohort/core/status.h>
#include <cohort/core/thread_pool.h>

namespace cohort::ps {

// Runs `work` on a thread of low priority, to its end; what it throws is thrown here. Where no
// thread can be had, on the caller's.
inline Status RunAtLowPriority(const std::function<Status()>& work) {
  constexpr int kNice = 12;  // a fifteenth of the share of one at 0
  Status status;
  std::exception_ptr thrown;
  const auto run = [&] {
    NameThisThread("background");
    // Refused, it has the usual priority.
    (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kNice);
    try {
      status = work();
    } catch (...) {
      thrown = std::current_exception();
    }
  };
  try {
    std::thread(run).join();
  } catch (const std::system_error&) {
    return work();
  }
  if (thrown != nullptr) {
    std::rethrow_exception(thrown);
  }
  return status;
}

}  // namespace cohort::ps
