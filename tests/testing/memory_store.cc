#include "testing/memory_store.h"

namespace cohort::testing {
namespace {

// `a//b/` is `a/b`.
std::string Normal(const std::string& key) {
  std::string normal;
  for (const char c : key) {
    if (c != '/' || (!normal.empty() && normal.back() != '/')) {
      normal += c;
    }
  }
  if (!normal.empty() && normal.back() == '/') {
    normal.pop_back();
  }
  return normal;
}

}  // namespace

Status MemoryStore::Insert(const std::string& key, const std::string& value) {
  const std::lock_guard lock(mutex_);
  if (!values_.emplace(Normal(key), value).second) {
    return AlreadyExists("key '" + key + "' has a value");
  }
  changed_.notify_all();
  return {};
}

Result<std::string> MemoryStore::Get(const std::string& key) {
  const std::lock_guard lock(mutex_);
  const auto it = values_.find(Normal(key));
  if (it == values_.end()) {
    return NotFound("key '" + key + "' has no value");
  }
  return it->second;
}

Result<std::string> MemoryStore::Wait(const std::string& key, Deadline deadline) {
  const std::string normal = Normal(key);
  std::unique_lock lock(mutex_);
  if (!changed_.wait_until(lock, deadline, [&] { return values_.contains(normal); })) {
    return DeadlineExceeded("key '" + key + "' has no value yet");
  }
  return values_.at(normal);
}

}  // namespace cohort::testing
