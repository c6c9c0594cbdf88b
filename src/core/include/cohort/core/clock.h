// Clock: time as a dependency, so that code with timeouts is tested in milliseconds.
//
// Deadlines are points of the monotonic clock; wall time is for people and file names only.

#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>

namespace cohort {

using Deadline = std::chrono::steady_clock::time_point;
using Duration = std::chrono::steady_clock::duration;

inline Deadline DeadlineAfter(Duration timeout) {
  return std::chrono::steady_clock::now() + timeout;
}

// Thread rules: all methods from any thread.
class Clock {
 public:
  virtual ~Clock() = default;

  virtual std::chrono::steady_clock::time_point Now() const = 0;

  // Waits on `condition` with `lock` held until `done()` or until this clock reaches `deadline`;
  // returns done(). Whoever changes what `done` reads must notify `condition`.
  virtual bool WaitUntil(std::unique_lock<std::mutex>& lock, std::condition_variable& condition,
                         Deadline deadline, const std::function<bool()>& done) = 0;

  // The machine's clock. Lives as long as the program; holds no state.
  static Clock& Real();
};

}  // namespace cohort
