#include "work_queue.h"

#include <string>
#include <utility>

#include <cohort/core/thread_pool.h>

namespace cohort::data {

WorkQueue::WorkQueue(int threads, std::int64_t max_bytes, std::size_t max_waiting)
    : max_bytes_(max_bytes), max_waiting_(max_waiting) {
  try {
    for (int i = 0; i < threads; ++i) {
      threads_.emplace_back([this, i] {
        NameThisThread("serve/" + std::to_string(i));
        Work();
      });
    }
  } catch (...) {
    Stop();
    throw;
  }
}

WorkQueue::~WorkQueue() { Stop(); }

void WorkQueue::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) {
    thread.join();
  }
  threads_.clear();
}

bool WorkQueue::Submit(std::int64_t bytes, std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    if (stopped_ || waiting_.size() >= max_waiting_) {
      return false;
    }
    waiting_.push_back({bytes, std::move(task)});
  }
  changed_.notify_one();
  return true;
}

void WorkQueue::Release(std::int64_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    in_use_ -= bytes;
  }
  changed_.notify_all();
}

bool WorkQueue::CanBegin() const {
  return !waiting_.empty() &&
         (stopped_ || in_use_ == 0 || in_use_ + waiting_.front().bytes <= max_bytes_);
}

void WorkQueue::Work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return CanBegin() || (stopped_ && waiting_.empty()); });
    if (waiting_.empty()) {
      return;
    }
    Task task = std::move(waiting_.front());
    waiting_.pop_front();
    in_use_ += task.bytes;
    lock.unlock();
    task.run();
    lock.lock();
  }
}

}  // namespace cohort::data
