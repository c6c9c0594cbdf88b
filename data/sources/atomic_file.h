// AtomicFile: a file that is there when it is closed, and not before.

#pragma once

#include <memory>
#include <span>
#include <string>

#include <cohort/core/file_system.h>
#include <cohort/core/status.h>

namespace cohort::data {

class AtomicFile {
 public:
  static Result<std::unique_ptr<AtomicFile>> Create(FileSystem& files, const std::string& path);
  ~AtomicFile();  // without Close: nothing is left
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  bool open() const { return file_ != nullptr; }
  // After an error nothing more is written, and Close returns that error.
  Status Append(std::span<const std::byte> bytes);
  // To the disk, and to its name. After an error nothing is left.
  Status Close();

 private:
  AtomicFile(FileSystem& files, std::string path, std::string temporary,
             std::unique_ptr<WritableFile> file);
  void Discard();

  FileSystem& files_;
  std::string path_;
  std::string temporary_;  // where the file is until Close
  std::unique_ptr<WritableFile> file_;
  Status broken_;
};

}  // namespace cohort::data
