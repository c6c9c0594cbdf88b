// AtomicRecords: a record file that is there when it is closed, and not before.

#pragma once

#include <memory>
#include <string>
#include <utility>

#include <cohort/io/record_file.h>

#include "../sources/atomic_file.h"

namespace cohort::data {

class AtomicRecords {
 public:
  static Result<std::unique_ptr<AtomicRecords>> Create(FileSystem& files, const std::string& path,
                                                       io::Compression compression) {
    COHORT_ASSIGN_OR_RETURN(auto file, AtomicFile::Create(files, path));
    auto records = std::unique_ptr<AtomicRecords>(new AtomicRecords());
    records->writer_ = io::RecordWriter::To(
        std::make_unique<Target>(std::move(file), records->complete_), compression);
    return records;
  }

  Status Write(std::string_view record) { return writer_->Write(record); }
  Status Close() {
    *complete_ = true;
    return writer_->Close();
  }

 private:
  // A RecordWriter closes its file also where it is dropped: only a complete one gets its name.
  class Target final : public WritableFile {
   public:
    Target(std::unique_ptr<AtomicFile> file, std::shared_ptr<const bool> complete)
        : file_(std::move(file)), complete_(std::move(complete)) {}
    Status Append(std::span<const std::byte> bytes) override { return file_->Append(bytes); }
    Status Flush() override { return {}; }
    Status Sync() override { return {}; }  // AtomicFile::Close does
    Status Close() override { return *complete_ ? file_->Close() : Status(); }

   private:
    std::unique_ptr<AtomicFile> file_;
    std::shared_ptr<const bool> complete_;  // owners: this and AtomicRecords
  };

  AtomicRecords() = default;

  std::shared_ptr<bool> complete_ = std::make_shared<bool>(false);
  std::unique_ptr<io::RecordWriter> writer_;
};

}  // namespace cohort::data
