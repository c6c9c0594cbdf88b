// SequenceWindow: which of a client's numbered requests have been seen. Numbers may arrive out of
// order, and again.

#pragma once

#include <bitset>
#include <cstdint>
#include <string>
#include <string_view>

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

  // Was it claimed? A number that fell out of the window counts as seen.
  bool Has(std::uint64_t sequence) const {
    return sequence + kSize <= highest_ ||
           (sequence != 0 && sequence <= highest_ && seen_.test(sequence % kSize));
  }

  // Was it claimed, and is that still told apart from those around it?
  bool Keeps(std::uint64_t sequence) const {
    return sequence != 0 && sequence <= highest_ && sequence + kSize > highest_ &&
           seen_.test(sequence % kSize);
  }

  // Takes a claim back, if the window still has the number.
  void Forget(std::uint64_t sequence) {
    if (sequence + kSize > highest_) {
      seen_.reset(sequence % kSize);
    }
  }

  // As it travels: the highest number, and a bit for each place of the window, 8 a byte.
  std::uint64_t highest() const { return highest_; }
  std::string seen() const {
    std::string bytes(kSize / 8, '\0');
    for (std::size_t i = 0; i < kSize; ++i) {
      bytes[i / 8] = static_cast<char>(bytes[i / 8] | (seen_.test(i) ? 1 << (i % 8) : 0));
    }
    return bytes;
  }
  // False: `seen` is of another length.
  bool Set(std::uint64_t highest, std::string_view seen) {
    if (seen.size() != kSize / 8) {
      return false;
    }
    highest_ = highest;
    for (std::size_t i = 0; i < kSize; ++i) {
      seen_.set(i, ((static_cast<unsigned char>(seen[i / 8]) >> (i % 8)) & 1) != 0);
    }
    return true;
  }

 private:
  std::uint64_t highest_ = 0;
  std::bitset<kSize> seen_;
};

}  // namespace cohort::ps
