#include "parameter_server/chief/split_queue.h"

#include <algorithm>

#include <cohort/core/status.h>

namespace cohort::ps {

SplitQueue::SplitQueue(std::int64_t begin, std::int64_t end, std::int64_t size)
    : begin_(std::min(begin, end)), end_(end), size_(size), next_(begin_) {
  Require(size >= 1, "splits of at least one example");
}

SplitQueue::Kept SplitQueue::Keep() const {
  Kept kept = {.begin = begin_,
               .end = end_,
               .size = size_,
               .next = next_,
               .returned = {returned_.begin(), returned_.end()},
               .seen = seen_,
               .reissued = reissued_,
               .splits = splits_};
  for (const auto& [worker, split] : held_) {
    kept.returned.push_back(split);
  }
  return kept;
}

SplitQueue::SplitQueue(const Kept& kept) : SplitQueue(kept.begin, kept.end, kept.size) {
  next_ = kept.next;
  returned_ = {kept.returned.begin(), kept.returned.end()};
  seen_ = kept.seen;
  reissued_ = kept.reissued;
  splits_ = kept.splits;
  for (const Split& split : kept.returned) {
    splits_ = std::max(splits_, split.id);
  }
}

std::optional<Split> SplitQueue::Next(const TaskId& worker, std::int64_t most) {
  if (const auto held = held_.find(worker); held != held_.end()) {
    return held->second;
  }
  Split split;
  if (!returned_.empty()) {
    split = returned_.front();
    returned_.pop_front();
  } else if (next_ < end_ && most > 0) {
    split = {.id = ++splits_, .begin = next_, .end = std::min(next_ + std::min(size_, most), end_)};
    next_ = split.end;
  } else {
    return std::nullopt;
  }
  held_[worker] = split;
  return split;
}

bool SplitQueue::Finish(const TaskId& worker, std::int64_t id) {
  const auto held = held_.find(worker);
  if (held == held_.end() || held->second.id != id) {
    return false;
  }
  seen_ += held->second.end - held->second.begin;
  held_.erase(held);
  return true;
}

void SplitQueue::Lost(const TaskId& worker) {
  if (const auto held = held_.find(worker); held != held_.end()) {
    returned_.push_back(held->second);
    held_.erase(held);
    ++reissued_;
  }
}

std::vector<TaskId> SplitQueue::holders() const {
  std::vector<TaskId> holders;
  for (const auto& [worker, split] : held_) {
    holders.push_back(worker);
  }
  return holders;
}

std::int64_t SplitQueue::held() const {
  std::int64_t held = 0;
  for (const auto& [worker, split] : held_) {
    held += split.end - split.begin;
  }
  return held;
}

std::int64_t BatchesPerSplit(std::int64_t batches, int workers) {
  return std::clamp<std::int64_t>(batches / (10 * std::max(workers, 1)), 1, 64);
}

std::int64_t BatchesBeforeAStop(std::int64_t left, int workers) {
  return std::max<std::int64_t>(left / (2 * std::max(workers, 1)), 1);
}

}  // namespace cohort::ps
