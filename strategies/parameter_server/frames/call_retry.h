// CallRetry: how long a gRPC call to a server is tried, and when again. A connection on which no
// answer comes may be forgotten: half of the time is another's.

#pragma once

#include <algorithm>
#include <chrono>
#include <optional>

#include <cohort/core/clock.h>

namespace cohort::ps {

class CallRetry {
 public:
  // From the first try, which begins now. `peer_timeout`: that a server may be silent.
  explicit CallRetry(std::chrono::milliseconds peer_timeout)
      : try_timeout_(peer_timeout / 2), give_up_(DeadlineAfter(peer_timeout)) {}

  // Of each try.
  std::chrono::milliseconds try_timeout() const { return try_timeout_; }
  // How long to wait before the next try, after one that has failed: `silent`: at its deadline.
  // nullopt: it is the last.
  std::optional<std::chrono::milliseconds> Next(bool silent) {
    if (std::chrono::steady_clock::now() >= give_up_) {
      return std::nullopt;
    }
    if (silent) {
      return std::chrono::milliseconds(0);  // it has waited long enough
    }
    const std::chrono::milliseconds pause = pause_;
    pause_ = std::min(pause_ * 2, std::chrono::milliseconds(500));
    return pause;
  }

 private:
  const std::chrono::milliseconds try_timeout_;
  const Deadline give_up_;
  std::chrono::milliseconds pause_{20};
};

}  // namespace cohort::ps
