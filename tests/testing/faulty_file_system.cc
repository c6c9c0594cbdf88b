#include "testing/faulty_file_system.h"

#include <utility>

namespace cohort::testing {
namespace {

class FaultyReadFile final : public RandomAccessFile {
 public:
  FaultyReadFile(std::unique_ptr<RandomAccessFile> file, std::string path,
                 std::shared_ptr<FaultyFileSystem::Fault> fault)
      : file_(std::move(file)), path_(std::move(path)), fault_(std::move(fault)) {}

  std::uint64_t size() const override { return file_->size(); }
  Result<std::size_t> Read(std::uint64_t offset, std::span<std::byte> out) const override {
    COHORT_RETURN_IF_ERROR((*fault_)("read", path_));
    return file_->Read(offset, out);
  }

 private:
  std::unique_ptr<RandomAccessFile> file_;
  std::string path_;
  std::shared_ptr<FaultyFileSystem::Fault> fault_;
};

class FaultyWriteFile final : public WritableFile {
 public:
  FaultyWriteFile(std::unique_ptr<WritableFile> file, std::string path,
                  std::shared_ptr<FaultyFileSystem::Fault> fault)
      : file_(std::move(file)), path_(std::move(path)), fault_(std::move(fault)) {}

  Status Append(std::span<const std::byte> bytes) override {
    if (const Status status = (*fault_)("append", path_); !status.ok()) {
      static_cast<void>(file_->Append(bytes.first(bytes.size() / 2)));
      return status;
    }
    return file_->Append(bytes);
  }
  Status Flush() override { return file_->Flush(); }
  Status Sync() override {
    COHORT_RETURN_IF_ERROR((*fault_)("sync", path_));
    return {};  // what a power cut would lose is not tested here, and tests stay fast
  }
  Status Close() override {
    const Status status = (*fault_)("close", path_);
    const Status closed = file_->Close();
    return status.ok() ? closed : status;
  }

 private:
  std::unique_ptr<WritableFile> file_;
  std::string path_;
  std::shared_ptr<FaultyFileSystem::Fault> fault_;
};

}  // namespace

Result<std::unique_ptr<RandomAccessFile>> FaultyFileSystem::OpenForRead(const std::string& path) {
  COHORT_RETURN_IF_ERROR((*fault_)("open", path));
  COHORT_ASSIGN_OR_RETURN(auto file, Local().OpenForRead(path));
  return std::make_unique<FaultyReadFile>(std::move(file), path, fault_);
}

Result<std::unique_ptr<WritableFile>> FaultyFileSystem::OpenForWrite(const std::string& path) {
  COHORT_RETURN_IF_ERROR((*fault_)("create", path));
  COHORT_ASSIGN_OR_RETURN(auto file, Local().OpenForWrite(path));
  return std::make_unique<FaultyWriteFile>(std::move(file), path, fault_);
}

Result<std::unique_ptr<WritableFile>> FaultyFileSystem::CreateNew(const std::string& path) {
  COHORT_RETURN_IF_ERROR((*fault_)("create", path));
  COHORT_ASSIGN_OR_RETURN(auto file, Local().CreateNew(path));
  return std::make_unique<FaultyWriteFile>(std::move(file), path, fault_);
}

Status FaultyFileSystem::CreateDirectories(const std::string& path) {
  COHORT_RETURN_IF_ERROR((*fault_)("mkdir", path));
  return Local().CreateDirectories(path);
}

Status FaultyFileSystem::Rename(const std::string& from, const std::string& to) {
  COHORT_RETURN_IF_ERROR((*fault_)("rename", from));
  return Local().Rename(from, to);
}

Status FaultyFileSystem::SyncDirectory(const std::string& path) {
  return (*fault_)("syncdir", path);
}

Status FaultyFileSystem::RemoveAll(const std::string& path) {
  COHORT_RETURN_IF_ERROR((*fault_)("remove", path));
  return Local().RemoveAll(path);
}

Result<std::vector<std::string>> FaultyFileSystem::List(const std::string& path) {
  COHORT_RETURN_IF_ERROR((*fault_)("list", path));
  return Local().List(path);
}

}  // namespace cohort::testing
