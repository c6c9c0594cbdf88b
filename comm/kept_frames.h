// KeptFrames: the data frames of one peer that came before they were asked for: small ones, and up
// to a bound, so that a peer that is ahead waits instead of filling this process's memory.
//
// Not synchronised.

#pragma once

#include <cstddef>
#include <deque>
#include <utility>
#include <vector>

namespace cohort {

class KeptFrames {
 public:
  static constexpr std::size_t kFrameBytes = 64 << 10;  // of a frame
  static constexpr std::size_t kAllBytes = 1 << 20;     // of all of them, and what each takes

  bool empty() const { return frames_.empty(); }
  // What is next is data, and no reject.
  bool HasData() const { return !frames_.empty() && !frames_.front().reject; }
  // Is there room for a frame with a body of so many bytes?
  bool MayKeep(std::size_t bytes) const {
    return bytes <= kFrameBytes && (frames_.empty() || bytes_ + bytes <= kAllBytes);
  }

  void Keep(std::vector<std::byte> body) { Add({.reject = false, .body = std::move(body)}); }
  // What comes after it belongs to later operations. Always kept.
  void KeepReject() { Add({.reject = true, .body = {}}); }
  // Where there are HasData.
  std::vector<std::byte> Take() { return TakeFirst().body; }
  // Drops what belongs to an operation that is given up, which is all up to its reject. False: that
  // is still to come.
  bool GiveUp() {
    while (!frames_.empty()) {
      if (TakeFirst().reject) {
        return true;
      }
    }
    return false;
  }
  void Clear() {
    frames_.clear();
    bytes_ = 0;
  }

 private:
  struct Frame {
    bool reject = false;
    std::vector<std::byte> body;
    std::size_t bytes() const { return sizeof(Frame) + body.size(); }  // empty ones take room, too
  };

  void Add(Frame frame) {
    bytes_ += frame.bytes();
    frames_.push_back(std::move(frame));
  }
  Frame TakeFirst() {
    Frame frame = std::move(frames_.front());
    frames_.pop_front();
    bytes_ -= frame.bytes();
    return frame;
  }

  std::deque<Frame> frames_;
  std::size_t bytes_ = 0;
};

}  // namespace cohort
