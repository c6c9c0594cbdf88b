// BufferShuffle: the order of a shuffle buffer, at any place without running it from the start.
//
// Step p gives what is in a slot that is drawn from (seed, pass, p), and puts the next example in
// order, buffer + p, there; what is in the buffer when nothing is left comes in the order of a
// permutation. So what a slot holds before step p is what the last step before p that drew it put
// there, or what it began with: looking back until every slot was seen, some buffer * log(buffer)
// steps, is the state of the buffer at any place.

#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include <cohort/core/random.h>

namespace cohort::data {

// Thread rules: At from many threads at once.
class BufferShuffle {
 public:
  // 1 <= buffer <= size.
  BufferShuffle(std::int64_t size, std::int64_t buffer, std::uint64_t seed)
      : size_(size), buffer_(buffer), slots_(seed, "data/buffer") {}

  // Which example, 0 <= position < size, comes there in pass `pass`; `rest_key` is that of the
  // permutation of the rest.
  std::int64_t At(std::int64_t position, std::int64_t pass, std::uint64_t rest_key);

 private:
  // A run of steps.
  struct Window {
    std::vector<std::int64_t> given;  // by its steps
    std::vector<std::int64_t> left;   // in the slots after it
    std::uint64_t used = 0;           // when last, in calls of At
  };

  std::int64_t SlotOf(std::int64_t step, std::int64_t pass) const;
  std::vector<std::int64_t> StateBefore(std::int64_t step, std::int64_t pass) const;
  Window& WindowOf(std::int64_t window, std::int64_t pass);

  const std::int64_t size_;
  const std::int64_t buffer_;
  const Philox slots_;
  std::mutex mutex_;
  std::map<std::pair<std::int64_t, std::int64_t>, Window> windows_;  // by pass; guarded by mutex_
  std::uint64_t calls_ = 0;                                          // guarded by mutex_
};

}  // namespace cohort::data
