#include "parameter_server/closure_queue.h"

#include <utility>

namespace cohort::ps {

ClosureQueue::ClosureQueue(int max_attempts, Log log)
    : max_attempts_(max_attempts), log_(std::move(log)) {
  Require(max_attempts >= 1, "closures that are handed out at least once");
}

std::string ClosureQueue::NameOf(const Entry& entry) {
  return entry.closure.function + " (" + std::to_string(entry.closure.id) + ")";
}

void ClosureQueue::End(Entry& entry, Status error, std::string value) {
  entry.result->over = true;
  entry.result->error = std::move(error);
  entry.result->value = std::move(value);
}

std::shared_ptr<RemoteResult> ClosureQueue::Add(std::string function, std::string argument) {
  Entry entry;
  entry.closure = {
      .id = ++last_id_, .function = std::move(function), .argument = std::move(argument)};
  entry.result = std::make_shared<RemoteResult>();
  waiting_.push_back(std::move(entry));
  return waiting_.back().result;
}

const Closure* ClosureQueue::Next(const TaskId& worker) {
  if (const auto held = held_.find(worker); held != held_.end()) {
    return &held->second.closure;
  }
  if (waiting_.empty()) {
    return nullptr;
  }
  Entry entry = std::move(waiting_.front());
  waiting_.pop_front();
  ++entry.attempts;
  return &held_.emplace(worker, std::move(entry)).first->second.closure;
}

void ClosureQueue::Finish(const TaskId& worker, std::int64_t id, Result<std::string> outcome) {
  const auto held = held_.find(worker);
  if (held == held_.end() || held->second.closure.id != id) {
    return;
  }
  Entry entry = std::move(held->second);
  held_.erase(held);
  if (outcome.ok()) {
    End(entry, {}, std::move(outcome).value());
    return;
  }
  const Status why = outcome.status().Annotate(NameOf(entry) + " on " + worker.ToString());
  if (why.code() == StatusCode::kUnavailable || why.code() == StatusCode::kAborted) {
    Again(std::move(entry), why);
  } else {
    Fail(entry, why);
  }
}

void ClosureQueue::Lost(const TaskId& worker, const Status& why) {
  if (const auto held = held_.find(worker); held != held_.end()) {
    Entry entry = std::move(held->second);
    held_.erase(held);
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
  for (auto& [worker, entry] : held_) {
    End(entry, Cancelled(NameOf(entry) + " was cancelled: " + why.message()));
  }
  held_.clear();
}

Status ClosureQueue::TakeError() { return std::exchange(error_, {}); }

std::string ClosureQueue::Describe() const {
  std::string text = std::to_string(waiting_.size()) + " wait";
  for (const auto& [worker, entry] : held_) {
    text += ", " + NameOf(entry) + " runs on " + worker.ToString();
  }
  return text;
}

}  // namespace cohort::ps
