// WatchedFiles: files that tell how far they were read.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <cohort/core/file_system.h>

namespace cohort::data {

class WatchedFiles final : public FileSystem {
 public:
  // Called behind each read, with the bytes [begin, end) that came and the size of the file; from
  // the thread that reads.
  using OnRead = std::function<void(std::uint64_t begin, std::uint64_t end, std::uint64_t size)>;

  WatchedFiles(FileSystem& files, OnRead on_read) : files_(files), on_read_(std::move(on_read)) {}

  Result<std::unique_ptr<RandomAccessFile>> OpenForRead(const std::string& path) override {
    COHORT_ASSIGN_OR_RETURN(auto file, files_.OpenForRead(path));
    return std::make_unique<File>(std::move(file), on_read_);
  }
  Result<std::unique_ptr<WritableFile>> OpenForWrite(const std::string& path) override {
    return files_.OpenForWrite(path);
  }
  Result<std::unique_ptr<WritableFile>> CreateNew(const std::string& path) override {
    return files_.CreateNew(path);
  }
  Status CreateDirectories(const std::string& path) override {
    return files_.CreateDirectories(path);
  }
  Status Rename(const std::string& from, const std::string& to) override {
    return files_.Rename(from, to);
  }
  Status SyncDirectory(const std::string& path) override { return files_.SyncDirectory(path); }
  Status RemoveAll(const std::string& path) override { return files_.RemoveAll(path); }
  bool Exists(const std::string& path) override { return files_.Exists(path); }
  Result<std::vector<std::string>> List(const std::string& path) override {
    return files_.List(path);
  }

 private:
  class File final : public RandomAccessFile {
   public:
    File(std::unique_ptr<RandomAccessFile> file, OnRead on_read)
        : file_(std::move(file)), on_read_(std::move(on_read)) {}
    std::uint64_t size() const override { return file_->size(); }
    Result<std::size_t> Read(std::uint64_t offset, std::span<std::byte> out) const override {
      Result<std::size_t> n = file_->Read(offset, out);
      if (n.ok()) {
        on_read_(offset, offset + *n, file_->size());
      }
      return n;
    }

   private:
    std::unique_ptr<RandomAccessFile> file_;
    OnRead on_read_;
  };

  FileSystem& files_;
  OnRead on_read_;
};

}  // namespace cohort::data
