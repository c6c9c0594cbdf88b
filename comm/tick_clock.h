// TickClock: the time of the monotonic clock at half its price, from the processor's ticks.
//
// The clock itself is read once a millisecond or so; in between ticks are counted at the rate that
// its last two readings showed. Within a millisecond that is exact to about 0.1 us.
//
// Thread rules: one thread at a time.

#pragma once

#include <cohort/core/clock.h>
#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace cohort {

class TickClock {
 public:
  static std::uint64_t Ticks() { return __rdtsc(); }

  // `ticks`: of this moment. Never before what it returned earlier.
  Deadline At(std::uint64_t ticks) {
    const std::uint64_t since = ticks - read_ticks_;
    if (since > read_again_) {  // also where ticks run backwards
      return Read(ticks);
    }
    last_ = std::max(last_, read_ + Duration(static_cast<Duration::rep>(static_cast<double>(since) *
                                                                        per_tick_)));
    return last_;
  }

 private:
  static constexpr std::uint64_t kReadAgain = 2'000'000;    // 0.5 to 1 ms
  static constexpr std::uint64_t kTogether = 20'000;        // 5 to 10 us
  static constexpr std::uint64_t kTooShort = 200'000;       // for a rate
  static constexpr std::uint64_t kTooLong = 2'000'000'000;  // who knows what happened meanwhile

  Deadline Read(std::uint64_t ticks) {
    const Deadline now = std::chrono::steady_clock::now();
    if (Ticks() - ticks > kTogether) {  // interrupted in between: no pair to reckon with
      read_again_ = 0;
      read_ticks_ = Ticks();
      read_ = std::chrono::steady_clock::now();
      last_ = std::max(last_, now);
      return last_;
    }
    const std::uint64_t since = ticks - read_ticks_;
    if (since >= kTooShort) {
      const bool rate = since <= kTooLong;
      per_tick_ =
          rate ? static_cast<double>((now - read_).count()) / static_cast<double>(since) : 0;
      read_again_ = rate ? kReadAgain : 0;
      read_ = now;
      read_ticks_ = ticks;
    }
    last_ = std::max(last_, now);
    return last_;
  }

  Deadline read_;
  std::uint64_t read_ticks_ = 0;
  std::uint64_t read_again_ = 0;  // 0: at each call
  double per_tick_ = 0;           // of Duration's units
  Deadline last_;
};

}  // namespace cohort
