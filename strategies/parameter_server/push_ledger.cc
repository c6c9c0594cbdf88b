#include "parameter_server/push_ledger.h"

#include <algorithm>
#include <utility>

namespace cohort::ps {

PushLedger::Claimed PushLedger::Claim(std::uint64_t client, std::uint64_t sequence) {
  std::unique_lock lock(mutex_);
  if (retired_.contains(client)) {
    return Claimed::kFenced;
  }
  if (clients_.size() >= kMaxClients && !clients_.contains(client)) {
    const auto oldest =
        std::min_element(clients_.begin(), clients_.end(), [](const auto& a, const auto& b) {
          return std::pair(!a.second.applying.empty(), a.second.last_use) <
                 std::pair(!b.second.applying.empty(), b.second.last_use);
        });
    if (oldest->second.applying.empty()) {
      clients_.erase(oldest);
    }
  }
  Client& record = clients_[client];
  record.last_use = ++uses_;
  const auto at_work = [&] {
    return std::ranges::find(record.applying, sequence) != record.applying.end();
  };
  for (;;) {
    if (record.window.Claim(sequence)) {
      record.applying.push_back(sequence);
      return Claimed::kNew;
    }
    if (!at_work()) {
      return Claimed::kRepeated;
    }
    // A client at work is not forgotten, so `record` stays.
    finished_.wait(lock, [&] { return !at_work(); });
  }
}

void PushLedger::Finish(std::uint64_t client, std::uint64_t sequence, bool applied) {
  {
    const std::lock_guard lock(mutex_);
    Client& record = clients_[client];
    std::erase(record.applying, sequence);
    if (!applied) {
      record.window.Forget(sequence);
    }
  }
  finished_.notify_all();
}

void PushLedger::Retire(std::uint64_t client) {
  std::unique_lock lock(mutex_);
  retired_.insert(client);
  finished_.wait(lock, [&] {
    const auto record = clients_.find(client);
    return record == clients_.end() || record->second.applying.empty();
  });
}

void PushLedger::Reset() {
  const std::lock_guard lock(mutex_);
  clients_.clear();
}

bool PushLedger::retired(std::uint64_t client) const {
  const std::lock_guard lock(mutex_);
  return retired_.contains(client);
}

}  // namespace cohort::ps
