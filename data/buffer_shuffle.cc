#include "buffer_shuffle.h"

#include <algorithm>
#include <numeric>

namespace cohort::data {
namespace {

constexpr std::int64_t kLeast = 1 << 12;  // steps of a window
// Windows that are kept: readers on several threads are close together, but those that each read a
// part of their own are not.
constexpr std::size_t kKept = 3;
constexpr std::size_t kKeptBytes = std::size_t{64} << 20;  // more than kKept within these

}  // namespace

std::int64_t BufferShuffle::At(std::int64_t position, std::int64_t pass, std::uint64_t rest_key) {
  const auto rest = [&](std::int64_t at) {
    return static_cast<std::size_t>(
        Permutation(static_cast<std::uint64_t>(buffer_), rest_key)(static_cast<std::uint64_t>(at)));
  };
  const std::int64_t steps = size_ - buffer_;
  if (steps == 0) {
    return static_cast<std::int64_t>(rest(position));
  }
  const std::int64_t length = std::max(buffer_, kLeast);
  const std::int64_t window = std::min(position, steps - 1) / length;
  std::lock_guard lock(mutex_);
  Window& found = WindowOf(window, pass);
  found.used = ++calls_;
  return position < steps ? found.given[static_cast<std::size_t>(position - window * length)]
                          : found.left[rest(position - steps)];
}

std::int64_t BufferShuffle::SlotOf(std::int64_t step, std::int64_t pass) const {
  return static_cast<std::int64_t>(slots_.Below(static_cast<std::uint64_t>(buffer_),
                                                static_cast<std::uint64_t>(step),
                                                static_cast<std::uint64_t>(pass)));
}

std::vector<std::int64_t> BufferShuffle::StateBefore(std::int64_t step, std::int64_t pass) const {
  constexpr std::int64_t kUnseen = -1;
  std::vector<std::int64_t> slots(static_cast<std::size_t>(buffer_), kUnseen);
  std::int64_t unseen = buffer_;
  for (std::int64_t q = step; q-- > 0 && unseen > 0;) {
    std::int64_t& slot = slots[static_cast<std::size_t>(SlotOf(q, pass))];
    if (slot == kUnseen) {
      slot = buffer_ + q;
      --unseen;
    }
  }
  for (std::size_t s = 0; s < slots.size() && unseen > 0; ++s) {
    if (slots[s] == kUnseen) {
      slots[s] = static_cast<std::int64_t>(s);
      --unseen;
    }
  }
  return slots;
}

BufferShuffle::Window& BufferShuffle::WindowOf(std::int64_t window, std::int64_t pass) {
  const auto kept = windows_.find({pass, window});
  if (kept != windows_.end()) {
    return kept->second;
  }
  const std::int64_t length = std::max(buffer_, kLeast);
  const std::int64_t begin = window * length;
  const std::int64_t end = std::min(begin + length, size_ - buffer_);
  Window made;
  const auto before = windows_.find({pass, window - 1});
  made.left = before != windows_.end() ? before->second.left : StateBefore(begin, pass);
  made.given.reserve(static_cast<std::size_t>(end - begin));
  for (std::int64_t step = begin; step < end; ++step) {
    std::int64_t& slot = made.left[static_cast<std::size_t>(SlotOf(step, pass))];
    made.given.push_back(std::exchange(slot, buffer_ + step));
  }
  const std::size_t bytes =
      sizeof(std::int64_t) * static_cast<std::size_t>(length + buffer_);  // of a window
  if (windows_.size() >= std::max(kKept, kKeptBytes / bytes)) {
    windows_.erase(std::ranges::min_element(windows_, {},
                                            [](const auto& entry) { return entry.second.used; }));
  }
  return windows_[{pass, window}] = std::move(made);
}

}  // namespace cohort::data
