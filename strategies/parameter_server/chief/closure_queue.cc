#include "parameter_server/chief/closure_queue.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace cohort::ps {

ClosureQueue::ClosureQueue(int max_attempts, int in_flight, Log log)
    : max_attempts_(max_attempts), in_flight_(in_flight), log_(std::move(log)) {
  Require(max_attempts >= 1 && in_flight >= 1, "closures that are handed out at least once");
}

std::string ClosureQueue::NameOf(const Entry& entry) {
  return entry.closure.function + " (" + std::to_string(entry.closure.id) + ")";
}

void ClosureQueue::End(Entry& entry, Status error, std::string value) {
  entry.result->over = true;
  entry.result->error = std::move(error);
  entry.result->value = std::move(value);
}

std::shared_ptr<RemoteResult> ClosureQueue::Add(std::string function, std::string argument,
                                                std::vector<PerWorkerDataset> data) {
  Entry entry;
  entry.closure = {.id = ++last_id_,
                   .function = std::move(function),
                   .argument = std::move(argument),
                   .data = std::move(data)};
  entry.result = std::make_shared<RemoteResult>();
  waiting_.push_back(std::move(entry));
  return waiting_.back().result;
}

const Closure* ClosureQueue::Next(const TaskId& worker, std::span<const std::int64_t> has,
                                  std::size_t spared) {
  const auto held = held_.find(worker);
  if (held != held_.end()) {
    for (const Entry& entry : held->second) {
      if (std::ranges::find(has, entry.closure.id) == has.end()) {
        return &entry.closure;
      }
    }
    if (held->second.size() >= static_cast<std::size_t>(in_flight_) || waiting_.size() <= spared) {
      return nullptr;
    }
  }
  if (waiting_.empty()) {
    return nullptr;
  }
  std::deque<Entry>& entries = held_[worker];
  entries.push_back(std::move(waiting_.front()));
  waiting_.pop_front();
  return &entries.back().closure;
}

void ClosureQueue::Finish(const TaskId& worker, std::int64_t id, Result<std::string> outcome) {
  const auto held = held_.find(worker);
  if (held == held_.end()) {
    return;
  }
  const auto found =
      std::ranges::find(held->second, id, [](const Entry& e) { return e.closure.id; });
  if (found == held->second.end()) {
    return;
  }
  Entry entry = std::move(*found);
  held->second.erase(found);
  if (held->second.empty()) {
    held_.erase(held);
  }
  if (outcome.ok()) {
    End(entry, {}, std::move(outcome).value());
    return;
  }
  const Status why = outcome.status().Annotate(NameOf(entry) + " on " + worker.ToString());
  if (why.code() == StatusCode::kUnavailable || why.code() == StatusCode::kAborted) {
    ++entry.attempts;
    Again(std::move(entry), why);
  } else {
    Fail(entry, why);
  }
}

void ClosureQueue::Lost(const TaskId& worker, const Status& why) {
  const auto held = held_.find(worker);
  if (held == held_.end()) {
    return;
  }
  std::deque<Entry> entries = std::move(held->second);
  held_.erase(held);
  ++entries.front().attempts;  // the one that ran
  while (!entries.empty()) {   // the last first, since each goes to the head of the queue
    Entry entry = std::move(entries.back());
    entries.pop_back();
    const Status reason = why.Annotate(NameOf(entry) + " on " + worker.ToString());
    Again(std::move(entry), reason);
  }
}

void ClosureQueue::Again(Entry entry, const Status& why) {
  if (!error_.ok()) {
    End(entry, Cancelled(NameOf(entry) + " was cancelled: " + error_.message()));
  } else if (entry.attempts >= max_attempts_) {
    Fail(entry, {why.code(), why.message() + ", the last of " + std::to_string(max_attempts_) +
                                 " attempts [see the workers' logs, or raise max_attempts]"});
  } else {
    log_.Warning("runs again: " + why.message());
    waiting_.push_front(std::move(entry));
  }
}

void ClosureQueue::Fail(Entry& entry, const Status& error) {
  End(entry, error);
  if (error_.ok()) {
    error_ = error;
    CancelWaiting(error);
  }
}

void ClosureQueue::CancelWaiting(const Status& why) {
  for (Entry& entry : waiting_) {
    End(entry, Cancelled(NameOf(entry) + " was cancelled: " + why.message()));
  }
  waiting_.clear();
}

void ClosureQueue::Cancel(const Status& why) {
  CancelWaiting(why);
  for (auto& [worker, entries] : held_) {
    for (Entry& entry : entries) {
      End(entry, Cancelled(NameOf(entry) + " was cancelled: " + why.message()));
    }
  }
  held_.clear();
}

Status ClosureQueue::TakeError() { return std::exchange(error_, {}); }

std::size_t ClosureQueue::running() const {
  std::size_t count = 0;
  for (const auto& [worker, entries] : held_) {
    count += entries.size();
  }
  return count;
}

std::string ClosureQueue::Describe() const {
  std::string text = std::to_string(waiting_.size()) + " wait";
  for (const auto& [worker, entries] : held_) {
    text += ", " + NameOf(entries.front()) + " runs on " + worker.ToString();
    for (auto entry = std::next(entries.begin()); entry != entries.end(); ++entry) {
      text += ", " + NameOf(*entry) + " behind it";
    }
  }
  return text;
}

}  // namespace cohort::ps
