// ThreadStore: the rendezvous of ranks that are threads of this process.

#pragma once

#include <condition_variable>
#include <map>
#include <mutex>
#include <string>

#include <cohort/cluster/key_value_store.h>

namespace cohort {

class ThreadStore final : public KeyValueStore {
 public:
  Status Insert(const std::string& key, const std::string& value) override {
    const std::lock_guard lock(mutex_);
    if (!values_.emplace(key, value).second) {
      return AlreadyExists(key);
    }
    changed_.notify_all();
    return {};
  }
  Result<std::string> Get(const std::string& key) override {
    const std::lock_guard lock(mutex_);
    const auto it = values_.find(key);
    return it == values_.end() ? Result<std::string>(NotFound(key)) : it->second;
  }
  Result<std::string> Wait(const std::string& key, Deadline deadline) override {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_until(lock, deadline, [&] { return values_.contains(key); })) {
      return DeadlineExceeded(key);
    }
    return values_.at(key);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::string> values_;  // guarded by mutex_
};

}  // namespace cohort
