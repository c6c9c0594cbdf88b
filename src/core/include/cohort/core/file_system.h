// FileSystem: files as a dependency, so that full disks and torn writes can be tested.
//
// Errors name the path. Thread rules: a FileSystem from any thread; a file object from one thread
// at a time, except RandomAccessFile::Read, which is safe from many.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/core/status.h>

namespace cohort {

class RandomAccessFile {
 public:
  virtual ~RandomAccessFile() = default;
  virtual std::uint64_t size() const = 0;  // bytes, when the file was opened
  // Reads up to out.size() bytes at `offset`; returns how many: fewer only at the end of the file.
  virtual Result<std::size_t> Read(std::uint64_t offset, std::span<std::byte> out) const = 0;
};

class WritableFile {
 public:
  virtual ~WritableFile() = default;  // without Close errors are dropped; on S3 there is no file
  virtual Status Append(std::span<const std::byte> bytes) = 0;
  virtual Status Flush() = 0;  // to the operating system
  virtual Status Sync() = 0;   // to the disk
  virtual Status Close() = 0;
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;

  virtual Result<std::unique_ptr<RandomAccessFile>> OpenForRead(const std::string& path) = 0;
  // Creates or truncates.
  virtual Result<std::unique_ptr<WritableFile>> OpenForWrite(const std::string& path) = 0;
  // Creates; AlreadyExists if the path is taken, also where two processes try at once.
  virtual Result<std::unique_ptr<WritableFile>> CreateNew(const std::string& path) = 0;
  virtual Status CreateDirectories(const std::string& path) = 0;
  virtual Status Rename(const std::string& from, const std::string& to) = 0;
  virtual Status SyncDirectory(const std::string& path) = 0;
  virtual Status RemoveAll(const std::string& path) = 0;
  virtual bool Exists(const std::string& path) = 0;
  // Names (not paths) in a folder, in bytewise order.
  virtual Result<std::vector<std::string>> List(const std::string& path) = 0;

  // The machine's files. Lives as long as the program; holds no state.
  static FileSystem& Local();
};

// The whole file.
Result<std::string> ReadFile(FileSystem& files, const std::string& path);
// Replaces `path` so that a reader, also after a crash, sees the old or the new content whole:
// temporary file beside it, sync, rename, sync of the folder.
Status WriteFileAtomically(FileSystem& files, const std::string& path, std::string_view content);

inline std::span<const std::byte> AsBytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

}  // namespace cohort
