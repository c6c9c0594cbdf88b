// FolderStore: a rendezvous for processes that share a file system: a file for each key.

#pragma once

#include <string>

#include <cohort/cluster/key_value_store.h>

namespace cohort {

class FolderStore final : public KeyValueStore {
 public:
  explicit FolderStore(std::string folder) : folder_(std::move(folder)) {}

  Status Insert(const std::string& key, const std::string& value) override;
  Result<std::string> Get(const std::string& key) override;
  Result<std::string> Wait(const std::string& key, Deadline deadline) override;

 private:
  std::string Path(std::string key) const;

  const std::string folder_;
};

}  // namespace cohort
