#include "sources/atomic_file.h"

#include <filesystem>
#include <utility>

#include <cohort/core/temporary_name.h>

#include "remote/requests.h"

namespace cohort::data {

Result<std::unique_ptr<AtomicFile>> AtomicFile::Create(FileSystem& files, const std::string& path) {
  // An object of S3 is there when it is closed, and has no other name before.
  std::string temporary = IsRemote(path) ? path : TemporaryName(path);
  COHORT_ASSIGN_OR_RETURN(auto file, files.OpenForWrite(temporary));
  return std::unique_ptr<AtomicFile>(
      new AtomicFile(files, path, std::move(temporary), std::move(file)));
}

AtomicFile::AtomicFile(FileSystem& files, std::string path, std::string temporary,
                       std::unique_ptr<WritableFile> file)
    : files_(files),
      path_(std::move(path)),
      temporary_(std::move(temporary)),
      file_(std::move(file)) {}

AtomicFile::~AtomicFile() { Discard(); }

void AtomicFile::Discard() {
  if (file_ != nullptr) {
    file_.reset();
    if (temporary_ != path_) {
      static_cast<void>(files_.RemoveAll(temporary_));
    }
  }
}

Status AtomicFile::Append(std::span<const std::byte> bytes) {
  Require(file_ != nullptr, "nothing is written after Close");
  COHORT_RETURN_IF_ERROR(broken_);
  broken_ = file_->Append(bytes);
  return broken_;
}

Status AtomicFile::Close() {
  Require(file_ != nullptr, "Close is called once");
  const auto finish = [this]() -> Status {
    COHORT_RETURN_IF_ERROR(broken_);
    COHORT_RETURN_IF_ERROR(file_->Sync());
    COHORT_RETURN_IF_ERROR(file_->Close());
    return temporary_ == path_ ? Status() : files_.Rename(temporary_, path_);
  };
  if (Status status = finish(); !status.ok()) {
    Discard();
    return status;
  }
  file_.reset();
  if (temporary_ == path_) {
    return {};
  }
  const std::string folder = std::filesystem::path(path_).parent_path().string();
  return files_.SyncDirectory(folder.empty() ? "." : folder);
}

}  // namespace cohort::data
