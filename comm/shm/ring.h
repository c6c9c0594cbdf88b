// The two ends of a ring of frames: one writer, one reader.

#pragma once

#include <atomic>
#include <cstring>

#include "shm/region.h"
#include "transport.h"

namespace cohort {

class RingWriter {
 public:
  RingWriter() = default;
  RingWriter(std::byte* base, std::size_t bytes, std::atomic<std::uint64_t>& sent,
             const std::atomic<std::uint64_t>& taken)
      : base_(base), bytes_(bytes), sent_(&sent), taken_(&taken) {}

  // Bytes put in so far: a frame has been taken when taken() has come this far.
  std::uint64_t position() const { return at_; }
  std::uint64_t taken() const { return taken_->load(std::memory_order_acquire); }

  // False: it is too full for this.
  bool Put(RingFrame frame, Bytes body) {
    const std::size_t need = Size(body.size());
    const std::size_t offset = at_ % bytes_;
    const std::size_t skip = offset + need > bytes_ ? bytes_ - offset : 0;
    if (at_ + skip + need - known_taken_ > bytes_) {
      known_taken_ = taken();
      if (at_ + skip + need - known_taken_ > bytes_) {
        return false;
      }
    }
    if (skip > 0) {
      const RingFrame over = {.form = RingFrame::kSkip};
      std::memcpy(base_ + offset, &over, sizeof(over));
      at_ += skip;
    }
    std::byte* to = base_ + at_ % bytes_;
    frame.bytes = static_cast<std::uint32_t>(body.size());
    std::memcpy(to, &frame, sizeof(frame));
    if (!body.empty()) {
      std::memcpy(to + sizeof(frame), body.data(), body.size());
    }
    at_ += need;
    sent_->store(at_);  // sequentially consistent: see Bells
    return true;
  }

  static std::size_t Size(std::size_t body) {
    return (sizeof(RingFrame) + body + kLine - 1) / kLine * kLine;
  }

 private:
  std::byte* base_ = nullptr;
  std::size_t bytes_ = 1;
  std::atomic<std::uint64_t>* sent_ = nullptr;
  const std::atomic<std::uint64_t>* taken_ = nullptr;
  std::uint64_t at_ = 0;
  std::uint64_t known_taken_ = 0;
};

class RingReader {
 public:
  RingReader() = default;
  RingReader(const std::byte* base, std::size_t bytes, const std::atomic<std::uint64_t>& sent,
             std::atomic<std::uint64_t>& taken)
      : base_(base), bytes_(bytes), sent_(&sent), taken_(&taken) {}

  // The next frame, if there is one. Its body stays until Pop.
  bool Peek(RingFrame& frame, Bytes& body) {
    for (;;) {
      if (at_ == known_sent_) {
        known_sent_ = sent_->load(std::memory_order_acquire);
        if (at_ == known_sent_) {
          return false;
        }
      }
      const std::size_t offset = at_ % bytes_;
      std::memcpy(&frame, base_ + offset, sizeof(frame));
      if (frame.form != RingFrame::kSkip) {
        body = {base_ + offset + sizeof(frame), frame.bytes};
        return true;
      }
      at_ += bytes_ - offset;
    }
  }
  // Where the frame that Peek showed ends.
  std::uint64_t EndOf(const RingFrame& frame) const { return at_ + RingWriter::Size(frame.bytes); }
  // Of the frame that Peek showed.
  void Pop(const RingFrame& frame) {
    at_ = EndOf(frame);
    taken_->store(at_);  // sequentially consistent: see Bells
  }

 private:
  const std::byte* base_ = nullptr;
  std::size_t bytes_ = 1;
  const std::atomic<std::uint64_t>* sent_ = nullptr;
  std::atomic<std::uint64_t>* taken_ = nullptr;
  std::uint64_t at_ = 0;
  std::uint64_t known_sent_ = 0;
};

}  // namespace cohort
