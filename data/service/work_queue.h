// WorkQueue: tasks for a few threads, begun only when there is room for the bytes they will make.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace cohort::data {

// Thread rules: all methods from any thread, Release also from tasks.
class WorkQueue {
 public:
  // At most `max_waiting` tasks wait. Throws std::system_error where threads cannot be started.
  WorkQueue(int threads, std::int64_t max_bytes, std::size_t max_waiting);
  ~WorkQueue();  // Stop
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  // Tasks begin in their order, one when so many bytes more are within max_bytes, or nothing else
  // is in use; they are in use until Release. False: too many wait, or Stop was called.
  bool Submit(std::int64_t bytes, std::function<void()> task);
  void Release(std::int64_t bytes);
  // Runs what waits, without regard to bytes, and joins the threads.
  void Stop();

 private:
  struct Task {
    std::int64_t bytes = 0;
    std::function<void()> run;
  };
  bool CanBegin() const;
  void Work();

  const std::int64_t max_bytes_;
  const std::size_t max_waiting_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopped_ = false;      // guarded by mutex_
  std::int64_t in_use_ = 0;   // bytes; guarded by mutex_
  std::deque<Task> waiting_;  // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace cohort::data
