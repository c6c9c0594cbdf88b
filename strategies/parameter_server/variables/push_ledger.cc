#include "parameter_server/variables/push_ledger.h"

#include <algorithm>
#include <string>

namespace cohort::ps {

PushLedger::Claimed PushLedger::Claim(std::uint64_t client, std::uint64_t sequence,
                                      Deadline deadline, bool behind_all) {
  std::unique_lock lock(mutex_);
  for (bool in_time = true;;
       in_time = finished_.wait_until(lock, deadline) != std::cv_status::timeout) {
    if (retired_.contains(client)) {
      return Claimed::kFenced;
    }
    auto found = clients_.find(client);
    if (found == clients_.end()) {
      if (clients_.size() >= kMaxClients) {
        return Claimed::kTooMany;
      }
      found = clients_.try_emplace(client).first;
    }
    Client& record = found->second;
    const bool waits = behind_all && std::ranges::any_of(record.applying, [&](std::uint64_t other) {
                         return other < sequence;
                       });
    record.applying.reserve(record.applying.size() + 1);  // before the number is taken
    if (!waits && record.window.Claim(sequence)) {
      record.applying.push_back(sequence);
      return Claimed::kNew;
    }
    if (!waits && std::ranges::find(record.applying, sequence) == record.applying.end()) {
      return record.elsewhere.contains(sequence) ? Claimed::kElsewhere
             : record.failed.contains(sequence)  ? Claimed::kFailed
                                                 : Claimed::kRepeated;
    }
    if (!in_time) {
      return Claimed::kBusy;
    }
  }
}

void PushLedger::Applied(std::uint64_t client, std::uint64_t sequence) {
  const auto record = clients_.find(client);
  std::erase(record->second.applying, sequence);
  if (record->second.applying.empty() && retired_.contains(client)) {
    clients_.erase(record);  // Retire may not have waited for it
  }
}

void PushLedger::Finish(std::uint64_t client, std::uint64_t sequence, bool applied) {
  {
    const std::lock_guard lock(mutex_);
    if (!applied) {
      clients_.at(client).window.Forget(sequence);  // not forgotten before this
    }
    Applied(client, sequence);
  }
  finished_.notify_all();
}

void PushLedger::FinishElsewhere(std::uint64_t client, std::uint64_t sequence) {
  {
    const std::lock_guard lock(mutex_);
    Client& record = clients_.at(client);
    std::erase_if(record.elsewhere, [sequence](std::uint64_t other) {
      return other + SequenceWindow::kSize <= sequence;
    });
    record.elsewhere.insert(sequence);
    Applied(client, sequence);
  }
  finished_.notify_all();
}

void PushLedger::FinishFailed(std::uint64_t client, std::uint64_t sequence, const Error& answer) {
  {
    const std::lock_guard lock(mutex_);
    Client& record = clients_.at(client);
    std::erase_if(record.failed, [sequence](const auto& other) {
      return other.first + SequenceWindow::kSize <= sequence;
    });
    record.failed.emplace(sequence, answer);
    Applied(client, sequence);
  }
  finished_.notify_all();
}

Error PushLedger::AnswerTo(std::uint64_t client, std::uint64_t sequence) const {
  const std::lock_guard lock(mutex_);
  const auto record = clients_.find(client);
  if (record == clients_.end()) {
    return RefusalOf(Claimed::kFenced);
  }
  const auto failed = record->second.failed.find(sequence);
  return failed == record->second.failed.end() ? Error() : failed->second;
}

bool PushLedger::AwaitApplied(std::uint64_t client, std::uint64_t sequence, Deadline deadline) {
  std::unique_lock lock(mutex_);
  for (bool in_time = true;;
       in_time = finished_.wait_until(lock, deadline) != std::cv_status::timeout) {
    if (retired_.contains(client)) {
      return true;
    }
    const auto record = clients_.find(client);
    if (record == clients_.end() || !record->second.window.Has(sequence)) {
      return false;
    }
    const std::vector<std::uint64_t>& applying = record->second.applying;
    if (std::ranges::find(applying, sequence) == applying.end()) {
      return true;
    }
    if (!in_time) {
      return false;
    }
  }
}

bool PushLedger::Retire(std::uint64_t first, std::uint64_t last, Deadline deadline) {
  std::unique_lock lock(mutex_);
  retired_.Add(first, last);
  // Those that wait for a push of theirs are to hear of it.
  finished_.notify_all();
  std::erase_if(clients_, [&](const auto& client) {
    return client.first >= first && client.first <= last && client.second.applying.empty();
  });
  return finished_.wait_until(
      lock, deadline, [&] { return clients_.lower_bound(first) == clients_.upper_bound(last); });
}

void PushLedger::Tell(Pushes* pushes) const {
  const std::lock_guard lock(mutex_);
  for (const auto& [number, client] : clients_) {
    ClientPushes* const told = pushes->Add();
    told->set_client(number);
    told->set_highest(client.window.highest());
    told->set_seen(client.window.seen());
    for (const std::uint64_t sequence : client.elsewhere) {
      if (client.window.Keeps(sequence)) {
        told->add_elsewhere(sequence);
      }
    }
    for (const auto& [sequence, answer] : client.failed) {
      if (client.window.Keeps(sequence)) {
        FailedPush* const failed = told->add_failed();
        failed->set_number(sequence);
        *failed->mutable_answer() = answer;
      }
    }
  }
}

Status PushLedger::Learn(const Pushes& pushes) {
  std::map<std::uint64_t, Client> clients;
  for (const ClientPushes& told : pushes) {
    const std::string whose = "pushes of client " + std::to_string(told.client());
    Client& client = clients[told.client()];
    if (!client.window.Set(told.highest(), told.seen())) {
      return InvalidArgument(whose + " in " + std::to_string(told.seen().size()) + " bytes");
    }
    for (const std::uint64_t sequence : told.elsewhere()) {
      if (!client.window.Keeps(sequence)) {
        return InvalidArgument(whose + ": number " + std::to_string(sequence) +
                               " was for another server, and has not come");
      }
      client.elsewhere.insert(sequence);
    }
    for (const FailedPush& failed : told.failed()) {
      if (!client.window.Keeps(failed.number()) || failed.answer().kind() == Error::NONE) {
        return InvalidArgument(whose + ": number " + std::to_string(failed.number()) +
                               " has failed, and has not come, or is without an answer");
      }
      client.failed.emplace(failed.number(), failed.answer());
    }
  }
  const std::lock_guard lock(mutex_);
  std::erase_if(clients, [this](const auto& client) { return retired_.contains(client.first); });
  clients_ = std::move(clients);
  return {};
}

void PushLedger::Reset() {
  const std::lock_guard lock(mutex_);
  clients_.clear();
}

bool PushLedger::retired(std::uint64_t client) const {
  const std::lock_guard lock(mutex_);
  return retired_.contains(client);
}

Error RefusalOf(PushLedger::Claimed claimed) {
  Error error;
  if (claimed == PushLedger::Claimed::kFenced) {
    error.set_kind(Error::FENCED);
    error.set_message("this worker was given up, its work went to others");
  } else if (claimed == PushLedger::Claimed::kTooMany) {
    error.set_kind(Error::TOO_MANY);
    error.set_message(std::to_string(PushLedger::kMaxClients) +
                      " workers that have not ended push to this server already");
  } else if (claimed == PushLedger::Claimed::kBusy) {
    error.set_kind(Error::NOT_YET);
    error.set_message(
        "this push, or one before it, came by another connection, too, and is still "
        "being applied");
  }
  return error;
}

}  // namespace cohort::ps
