#include "testing/fake_clock.h"

namespace cohort::testing {

std::chrono::steady_clock::time_point FakeClock::Now() const {
  const std::lock_guard lock(mutex_);
  return now_;
}

bool FakeClock::WaitUntil(std::unique_lock<std::mutex>& lock, std::condition_variable& condition,
                          Deadline deadline, const std::function<bool()>& done) {
  const auto count = [this](int change) {
    {
      const std::lock_guard mine(mutex_);
      waiters_ += change;
    }
    waiters_changed_.notify_all();
  };
  count(+1);
  bool result = done();
  while (!result && Now() < deadline) {
    // Advance cannot notify: it does not know that `condition` still exists.
    condition.wait_for(lock, std::chrono::milliseconds(1));
    result = done();
  }
  count(-1);
  return result;
}

void FakeClock::Advance(Duration step) {
  const std::lock_guard lock(mutex_);
  now_ += step;
}

bool FakeClock::AwaitWaiters(int count) const {
  std::unique_lock lock(mutex_);
  return waiters_changed_.wait_for(lock, std::chrono::seconds(10),
                                   [&] { return waiters_ >= count; });
}

}  // namespace cohort::testing
