#include "key_value_table.h"

namespace cohort {
namespace {
constexpr std::size_t kLargestKey = 4 << 10;
constexpr std::size_t kLargestValue = 1 << 20;
}  // namespace

Result<std::string> NormalizeKey(std::string_view key) {
  if (key.size() > kLargestKey) {
    return InvalidArgument("a key of " + std::to_string(key.size()) + " bytes, beginning \"" +
                           std::string(key.substr(0, 40)) + "\" [at most " +
                           std::to_string(kLargestKey) + "]");
  }
  std::string normal;
  for (const char c : key) {
    if (c != '/' || (!normal.empty() && normal.back() != '/')) {
      normal.push_back(c);
    }
  }
  if (!normal.empty() && normal.back() == '/') {
    normal.pop_back();
  }
  if (normal.empty()) {
    return InvalidArgument("\"" + std::string(key) + "\" is no key: it names nothing");
  }
  return normal;
}

Status CheckValueSize(std::string_view key, std::size_t bytes) {
  if (bytes > kLargestValue) {
    return InvalidArgument("the value of key \"" + std::string(key) + "\" has " +
                           std::to_string(bytes) + " bytes [at most " +
                           std::to_string(kLargestValue) + "; put large data in a file]");
  }
  return OkStatus();
}

Status KeyValueTable::Insert(std::string_view key, std::string value, const std::string& origin,
                             Completions& completions) {
  COHORT_ASSIGN_OR_RETURN(std::string normal, NormalizeKey(key));
  COHORT_RETURN_IF_ERROR(CheckValueSize(normal, value.size()));
  const auto [entry, inserted] = entries_.try_emplace(normal, Entry{std::move(value), origin});
  if (!inserted) {
    return entry->second.origin == origin
               ? OkStatus()
               : AlreadyExists("key \"" + normal + "\" has a value already");
  }
  if (const auto waiting = waiting_.find(normal); waiting != waiting_.end()) {
    waiting->second.FinishAll(entry->second.value, completions);
    waiting_.erase(waiting);
  }
  return OkStatus();
}

Result<std::string> KeyValueTable::Get(std::string_view key) const {
  COHORT_ASSIGN_OR_RETURN(const std::string normal, NormalizeKey(key));
  const auto entry = entries_.find(normal);
  if (entry == entries_.end()) {
    return NotFound("key \"" + normal + "\" has no value");
  }
  return entry->second.value;
}

void KeyValueTable::Wait(std::string_view key, Deadline deadline, Done done,
                         Completions& completions) {
  Result<std::string> value = Get(key);
  if (value.ok() || value.status().code() != StatusCode::kNotFound) {
    completions.Add([done = std::move(done), value = std::move(value)] { done(value); });
    return;
  }
  waiting_[NormalizeKey(key).value()].Add(deadline, std::move(done));
}

void KeyValueTable::Expire(Deadline now, Completions& completions) {
  for (auto entry = waiting_.begin(); entry != waiting_.end();) {
    entry->second.FinishExpired(
        now, DeadlineExceeded("key \"" + entry->first + "\" was not set in time"), completions);
    entry = entry->second.empty() ? waiting_.erase(entry) : std::next(entry);
  }
}

void KeyValueTable::FailAll(const Status& status, Completions& completions) {
  for (auto& [key, list] : waiting_) {
    list.FinishAll(status.Annotate("waiting for key \"" + key + "\""), completions);
  }
  waiting_.clear();
}

Deadline KeyValueTable::Next() const {
  Deadline next = Deadline::max();
  for (const auto& [key, list] : waiting_) {
    next = std::min(next, list.Next());
  }
  return next;
}

}  // namespace cohort
