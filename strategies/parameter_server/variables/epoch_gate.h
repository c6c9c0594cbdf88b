// EpochGate: lets a server's requests of the present epoch in, and keeps those of others out.
//
// The chief numbers the epochs of the servers' values: from each roll-back on they are others. A
// server that has just been started has no epoch, 0.
//
// Thread rules: any thread.

#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <utility>

#include <cohort/core/status.h>

#include <cohort/parameter_server.pb.h>

namespace cohort::ps {

class EpochGate {
 public:
  // A request's stay. While one is let in, no other epoch begins.
  class Pass {
   public:
    const Error& error() const { return error_; }  // kind NONE: it is let in

   private:
    friend class EpochGate;
    std::shared_lock<std::shared_mutex> lock_;
    Error error_;
  };

  Pass Enter(std::uint64_t epoch) {
    Pass pass;
    pass.lock_ = std::shared_lock(mutex_);
    const std::uint64_t present = epoch_.load(std::memory_order_acquire);
    if (epoch != present) {
      pass.error_ = Stale(epoch, present);
      pass.lock_.unlock();
    }
    return pass;
  }

  // For what is asked of a server outside of its epochs, and before one begins: kind NONE unless
  // the sender's is over, as that of a chief in whose place there is another.
  Error CheckNotOver(std::uint64_t epoch) const {
    const std::uint64_t present = epoch_.load(std::memory_order_acquire);
    return epoch < present ? Stale(epoch, present) : Error();
  }

  // When this returns OK `reset` has run, with no request of an earlier epoch at work, and none
  // will be. Asked again for the epoch that has begun last, it says so and resets nothing; an
  // earlier one is stale.
  Result<Error> Begin(std::uint64_t epoch, const std::function<Status()>& reset) {
    const std::lock_guard one(begin_mutex_);
    if (const std::uint64_t present = epoch_.load(std::memory_order_acquire); epoch < present) {
      return Stale(epoch, present);
    }
    if (epoch == begun_) {
      return Error();
    }
    // First: who waits for the lock must not be kept waiting by those who come.
    epoch_.store(epoch, std::memory_order_release);
    const std::unique_lock lock(mutex_);
    COHORT_RETURN_IF_ERROR(reset());
    begun_ = epoch;
    return Error();
  }

  std::uint64_t epoch() const { return epoch_.load(std::memory_order_acquire); }

 private:
  static Error Stale(std::uint64_t epoch, std::uint64_t present) {
    Error error;
    error.set_epoch(present);
    if (present == 0) {
      error.set_kind(Error::NOT_READY);
      error.set_message("this server has just been started and has no values yet");
    } else {
      error.set_kind(Error::STALE_EPOCH);
      error.set_message("a request of epoch " + std::to_string(epoch) +
                        " of the servers, this is epoch " + std::to_string(present));
    }
    return error;
  }

  std::mutex begin_mutex_;
  std::uint64_t begun_ = 0;  // under begin_mutex_
  std::shared_mutex mutex_;
  std::atomic<std::uint64_t> epoch_{0};
};

}  // namespace cohort::ps
