#include "parameter_server/chief/closure_queue.h"

#include <algorithm>
#include <iterator>
#include <new>
#include <utility>
#include <vector>

namespace cohort::ps {
namespace {

// That are told with another error by themselves; each may be long.
constexpr std::size_t kMostMissing = 8;
constexpr std::size_t kMissingBytes = 500;

}  // namespace

ClosureQueue::ClosureQueue(int max_attempts, int in_flight, Log log, ClosureMemory memory)
    : max_attempts_(max_attempts), in_flight_(in_flight), log_(std::move(log)), memory_(memory) {
  Require(max_attempts >= 1 && in_flight >= 1, "closures that are handed out at least once");
}

std::string ClosureQueue::NameOf(const Entry& entry) {
  return entry.closure.function + " (" + std::to_string(entry.number) + ")";
}

std::size_t ClosureQueue::SizeOf(const Entry& entry) {
  std::size_t bytes = 200 + entry.closure.function.size() + entry.closure.argument.size();
  for (const PerWorkerDataset& dataset : entry.closure.data) {
    bytes += sizeof(dataset) + dataset.name.size();
  }
  return bytes;
}

void ClosureQueue::End(Entry& entry, Status error, std::string value) {
  if (entry.result == nullptr) {
    return;
  }
  entry.result->over = true;
  entry.result->error = std::move(error);
  entry.result->value = std::move(value);
}

std::shared_ptr<RemoteResult> ClosureQueue::Add(std::string function, std::string argument,
                                                std::vector<PerWorkerDataset> data) {
  Entry entry;
  entry.closure = {.id = ++last_id_,
                   .epoch = 0,
                   .function = std::move(function),
                   .argument = std::move(argument),
                   .data = std::move(data)};
  entry.number = ++last_number_;
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
  if (waiting_.empty() || (holds_back_ && waiting_.front().number > begun_)) {
    return nullptr;
  }
  std::deque<Entry>& entries = held_[worker];
  begun_ = std::max(begun_, waiting_.front().number);
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
    owed_ -= entry.result == nullptr ? 1 : 0;
    const std::int64_t number = entry.number;
    End(entry, {}, std::move(outcome).value());
    try {
      Remember(std::move(entry));
    } catch (const std::bad_alloc&) {  // the result is out, and cannot be made again
      forgotten_ = std::max(forgotten_, number);
    }
    return;
  }
  const Status why = outcome.status().Annotate(NameOf(entry) + " on " + worker.ToString());
  if (why.code() == StatusCode::kUnavailable || why.code() == StatusCode::kAborted) {
    entry.attempts += entry.excused ? 0 : 1;
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

void ClosureQueue::ServerLost() {
  for (auto& [worker, entries] : held_) {
    for (Entry& entry : entries) {
      entry.excused = true;
    }
  }
}

void ClosureQueue::Again(Entry entry, const Status& why) {
  entry.excused = false;
  if (!error_.ok() && entry.result != nullptr) {
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
  Status why = error;
  if (entry.result == nullptr) {
    --owed_;
    why = {error.code(), error.message() +
                             ", when it ran again since the servers went back to a save: the "
                             "values are without it"};
    TellMissing(why);
  }
  End(entry, why);
  if (error_.ok()) {
    error_ = why;
    CancelWaiting(why);
  }
}

// Nobody else tells of such a call: its result is there.
void ClosureQueue::TellMissing(const Status& why) {
  log_.Warning(why.message());
  ++lacking_;
  if (error_.ok()) {
    return;  // it becomes that
  }
  if (missing_.size() < kMostMissing) {
    missing_.push_back(why.ToString().substr(0, kMissingBytes));
  } else {
    ++more_missing_;
  }
}

// What runs again is not: its result was given out, so the values must have it.
void ClosureQueue::CancelWaiting(const Status& why) {
  std::deque<Entry> again;
  for (Entry& entry : waiting_) {
    begun_ = std::max(begun_, entry.number);
    if (entry.result == nullptr) {
      again.push_back(std::move(entry));
    } else {
      End(entry, Cancelled(NameOf(entry) + " was cancelled: " + why.message()));
    }
  }
  waiting_ = std::move(again);
}

void ClosureQueue::Cancel(const Status& why) {
  CancelWaiting(why);
  for (auto worker = held_.begin(); worker != held_.end();) {
    std::deque<Entry> again;
    for (Entry& entry : worker->second) {
      if (entry.result == nullptr) {
        again.push_back(std::move(entry));
      } else {
        End(entry, Cancelled(NameOf(entry) + " was cancelled: " + why.message()));
      }
    }
    worker->second = std::move(again);
    worker = worker->second.empty() ? held_.erase(worker) : std::next(worker);
  }
}

void ClosureQueue::Remember(Entry entry) {
  entry.result.reset();  // whoever wants it has it
  entry.attempts = 0;
  entry.excused = false;
  const std::size_t bytes = SizeOf(entry);
  const std::int64_t number = entry.number;
  returned_.emplace(number, std::move(entry));
  returned_bytes_ += bytes;
  while (returned_.size() > memory_.calls || returned_bytes_ > memory_.bytes) {
    const auto first = returned_.begin();
    forgotten_ = std::max(forgotten_, first->first);
    returned_bytes_ -= SizeOf(first->second);
    returned_.erase(first);
  }
}

std::size_t ClosureQueue::RollBack(std::int64_t number) {
  std::vector<Entry> all;
  const auto again = [this, &all](Entry entry) {
    entry.closure.id = ++last_id_;
    entry.attempts = 0;
    entry.excused = false;
    all.push_back(std::move(entry));
  };
  const auto first = returned_.upper_bound(number);
  for (auto returned = first; returned != returned_.end(); ++returned) {
    returned_bytes_ -= SizeOf(returned->second);
    again(std::move(returned->second));
  }
  returned_.erase(first, returned_.end());
  const std::size_t had_returned = all.size();
  owed_ += had_returned;
  for (auto& [worker, entries] : held_) {
    for (Entry& entry : entries) {
      if (!error_.ok() && entry.result != nullptr) {  // nothing else is begun before it is taken
        End(entry, Cancelled(NameOf(entry) + " was cancelled: " + error_.message()));
      } else {
        again(std::move(entry));
      }
    }
  }
  held_.clear();
  std::ranges::move(waiting_, std::back_inserter(all));
  std::ranges::sort(all, {}, &Entry::number);
  waiting_.assign(std::make_move_iterator(all.begin()), std::make_move_iterator(all.end()));
  return had_returned;
}

void ClosureQueue::Forget(std::int64_t number) {
  const auto end = returned_.upper_bound(number);
  for (auto returned = returned_.begin(); returned != end; ++returned) {
    returned_bytes_ -= SizeOf(returned->second);
  }
  returned_.erase(returned_.begin(), end);
  forgotten_ = std::max(forgotten_, number);
}

Status ClosureQueue::TakeError() {
  Status error = std::exchange(error_, {});
  const std::vector<std::string> missing = std::exchange(missing_, {});
  const std::size_t more = std::exchange(more_missing_, 0);
  lacking_ = 0;
  std::string text;
  for (const std::string& one : missing) {
    text += "; also " + one;
  }
  if (more > 0) {
    text += "; and " + std::to_string(more) + " more, likewise [see the chief's log]";
  }
  return text.empty() ? error : Status(error.code(), error.message() + text);
}

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
  return holds_back_ ? text + "; a save holds back what is not begun" : text;
}

}  // namespace cohort::ps
