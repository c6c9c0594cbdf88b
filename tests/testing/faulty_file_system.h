// FaultyFileSystem: the machine's files, with errors where a test wants them.
#pragma once

#include <cohort/core/file_system.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace cohort::testing {

class FaultyFileSystem final : public FileSystem {
 public:
  // Asked before every operation: open, read, create, append, sync, close, mkdir, rename, syncdir,
  // remove, list. What it returns but OK becomes the operation's error; a failed append has written
  // half of its bytes.
  using Fault = std::function<Status(std::string_view operation, const std::string& path)>;

  explicit FaultyFileSystem(Fault fault) : fault_(std::make_shared<Fault>(std::move(fault))) {}

  Result<std::unique_ptr<RandomAccessFile>> OpenForRead(const std::string& path) override;
  Result<std::unique_ptr<WritableFile>> OpenForWrite(const std::string& path) override;
  Result<std::unique_ptr<WritableFile>> CreateNew(const std::string& path) override;
  Status CreateDirectories(const std::string& path) override;
  Status Rename(const std::string& from, const std::string& to) override;
  Status SyncDirectory(const std::string& path) override;
  Status RemoveAll(const std::string& path) override;
  bool Exists(const std::string& path) override { return Local().Exists(path); }
  Result<std::vector<std::string>> List(const std::string& path) override;

 private:
  std::shared_ptr<Fault> fault_;  // owners: this and the files that it opened
};

}  // namespace cohort::testing
