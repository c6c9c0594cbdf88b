// PrefetchTuner: how many threads and batches ahead an iterator whose consumer waits should have.
//
// Every so many batches it looks how often the consumer had to wait. Where it did, and every thread
// was building a batch, one more thread helps; where threads stood still because enough was ready
// or on its way, more batches ahead do: some take longer than others. Nothing is taken back: a
// thread that is not needed waits for room, and costs nothing.

#pragma once

#include <algorithm>

namespace cohort::data {

class PrefetchTuner {
 public:
  struct Size {
    int threads = 1;
    int ahead = 2;
  };
  // The first is where it begins; it never goes beyond `most`.
  PrefetchTuner(Size first, Size most) : size_(first), most_(most) {}

  // The consumer has taken a batch. `waited`: it had to wait; `idle`: at that time a thread was,
  // for want of room. True: the size has grown.
  bool Took(bool waited, bool idle) {
    ++batches_;
    waits_ += waited ? 1 : 0;
    idle_ += waited && idle ? 1 : 0;
    if (batches_ < kWindow) {
      return false;
    }
    const Size before = size_;
    if (waits_ >= kMany) {
      if (2 * idle_ < waits_) {
        size_.threads = std::min(size_.threads + 1, most_.threads);
        size_.ahead = std::clamp(size_.threads + 1, size_.ahead, most_.ahead);
      } else {
        size_.ahead = std::min(size_.ahead * 2, most_.ahead);
      }
    }
    batches_ = waits_ = idle_ = 0;
    return size_.threads != before.threads || size_.ahead != before.ahead;
  }

  const Size& size() const { return size_; }

 private:
  static constexpr int kWindow = 8;  // batches
  static constexpr int kMany = 2;    // waits among them: one may be a hiccup

  Size size_;
  const Size most_;
  int batches_ = 0;
  int waits_ = 0;
  int idle_ = 0;
};

}  // namespace cohort::data
