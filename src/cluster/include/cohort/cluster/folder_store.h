// FolderStore: a KeyValueStore for processes that share a file system and nothing else: a file for
// each key. No server has to run, and none can be lost; a program without a cluster connects its
// ranks through it (MakeTcpCommunicator, MakeShmCommunicator), as the benchmarks do.
//
// The folder is the caller's: it exists, is empty before the first process starts, and is used for
// one run, since values stay. A value appears whole or not at all (link(2)), on NFS too.

#pragma once

#include <string>

#include <cohort/cluster/key_value_store.h>

namespace cohort {

class FolderStore final : public KeyValueStore {
 public:
  explicit FolderStore(std::string folder) : folder_(std::move(folder)) {}

  Status Insert(const std::string& key, const std::string& value) override;
  Result<std::string> Get(const std::string& key) override;
  // Looks every 2 ms.
  Result<std::string> Wait(const std::string& key, Deadline deadline) override;

 private:
  const std::string folder_;
};

}  // namespace cohort
