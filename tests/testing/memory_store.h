// MemoryStore: a KeyValueStore within one process.
#pragma once

#include <cohort/cluster/key_value_store.h>

#include <condition_variable>
#include <map>
#include <mutex>

namespace cohort::testing {

class MemoryStore final : public KeyValueStore {
 public:
  Status Insert(const std::string& key, const std::string& value) override;
  Result<std::string> Get(const std::string& key) override;
  Result<std::string> Wait(const std::string& key, Deadline deadline) override;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::string> values_;  // guarded by mutex_
};

}  // namespace cohort::testing
