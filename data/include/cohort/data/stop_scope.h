// Which flag, if any, ends what this thread reads: an iterator's, while it builds a batch. Sources
// that wait (for a network) look at it, so that an iterator is destroyed without waiting for them.

#pragma once

#include <atomic>

namespace cohort::data {

class StopScope {
 public:
  explicit StopScope(const std::atomic<bool>& stop) : before_(current_) { current_ = &stop; }
  ~StopScope() { current_ = before_; }
  StopScope(const StopScope&) = delete;
  StopScope& operator=(const StopScope&) = delete;

  // Null: nothing ends it.
  static const std::atomic<bool>* Current() { return current_; }

 private:
  static inline thread_local const std::atomic<bool>* current_ = nullptr;
  const std::atomic<bool>* before_;
};

}  // namespace cohort::data
