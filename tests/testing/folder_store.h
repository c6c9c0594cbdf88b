// FolderStore: a rendezvous for processes of one machine: a file for each key in a folder.
#pragma once

#include <cohort/cluster/key_value_store.h>

#include <string>

namespace cohort::testing {

class FolderStore final : public KeyValueStore {
 public:
  // `suffix` is added to the names under which this store inserts: whoever stands between the ranks
  // (tcp_proxy) reads them there, and inserts under the names that the others look for.
  explicit FolderStore(std::string folder, std::string suffix = {})
      : folder_(std::move(folder)), suffix_(std::move(suffix)) {}

  Status Insert(const std::string& key, const std::string& value) override;
  Result<std::string> Get(const std::string& key) override;
  Result<std::string> Wait(const std::string& key, Deadline deadline) override;

 private:
  std::string Path(std::string key) const;

  const std::string folder_;
  const std::string suffix_;
};

}  // namespace cohort::testing
