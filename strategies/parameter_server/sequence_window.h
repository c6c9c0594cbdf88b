// SequenceWindow: which of a client's numbered requests have been seen. Numbers may arrive out of
// order, and again.

#pragma once

#include <bitset>
#include <cstdint>

namespace cohort::ps {

class SequenceWindow {
 public:
  static constexpr std::uint64_t kSize = 1024;

  // True the first time for each number; a number that fell out of the window counts as seen.
  // Numbers start at 1.
  bool Claim(std::uint64_t sequence) {
    if (sequence == 0 || sequence + kSize <= highest_) {
      return false;
    }
    if (sequence > highest_) {
      if (sequence - highest_ >= kSize) {
        seen_.reset();
      } else {
        for (std::uint64_t s = highest_ + 1; s < sequence; ++s) {
          seen_.reset(s % kSize);
        }
      }
      highest_ = sequence;
      seen_.set(sequence % kSize);
      return true;
    }
    if (seen_.test(sequence % kSize)) {
      return false;
    }
    seen_.set(sequence % kSize);
    return true;
  }

  // Takes a claim back, if the window still has the number.
  void Forget(std::uint64_t sequence) {
    if (sequence + kSize > highest_) {
      seen_.reset(sequence % kSize);
    }
  }

 private:
  std::uint64_t highest_ = 0;
  std::bitset<kSize> seen_;
};

}  // namespace cohort::ps
