// Record files in the TFRecord framing: read in sequence, read at random, written.
//
//   uint64 length | uint32 masked crc32c(length) | length bytes | uint32 masked crc32c(bytes)
//
// little-endian, one after another, nothing before or between. gzip or zlib may wrap the file as a
// whole; then offsets are of the unpacked stream, and there is no random access.
//
// Errors name the file, the record's ordinal (from 0) and its byte offset; DataLoss is what the
// bytes are to blame for. No memory is taken for a length whose checksum is wrong or that the file
// is too short for.
//
// Thread rules: readers and writers from one thread at a time; RecordFile::Read from many.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/core/file_system.h>
#include <cohort/core/status.h>
#include <cohort/io/compression.h>

namespace cohort::io {

class RecordReader {
 public:
  // Without `compression`, detects it: a file that begins with a sound record header, or is empty,
  // is raw; otherwise the first bytes tell gzip and zlib. InvalidArgument: they tell another one
  // than was named.
  static Result<std::unique_ptr<RecordReader>> Open(FileSystem& files, const std::string& path,
                                                    std::optional<Compression> compression = {});
  virtual ~RecordReader() = default;

  // The next record, valid until the next call; nullopt at the end of the file, as often as asked.
  // After a wrong checksum of a record's bytes the next call goes on behind it. After a wrong
  // length or a cut-off file nothing more can be found: the error repeats. After an error of the
  // file system a call tries the same record again.
  virtual Result<std::optional<std::string_view>> Next() = 0;

  virtual Compression compression() const = 0;
  virtual std::int64_t ordinal() const = 0;  // of the record that Next reads next
  virtual std::uint64_t offset() const = 0;  // where that record begins
};

// A raw record file whose records are found by their number.
class RecordFile {
 public:
  // Walks the headers once: every length is checked, no record's bytes are.
  static Result<std::unique_ptr<RecordFile>> Open(FileSystem& files, const std::string& path);

  std::int64_t size() const { return static_cast<std::int64_t>(offsets_.size()) - 1; }
  // Where record `i` begins; offsets()[size()] is the size of the file.
  const std::vector<std::uint64_t>& offsets() const { return offsets_; }
  // Record `i`, its checksum verified, into `record`. Blocks for the disk.
  Status Read(std::int64_t i, std::string& record) const;

 private:
  RecordFile(std::unique_ptr<RandomAccessFile> file, std::string path,
             std::vector<std::uint64_t> offsets);

  std::unique_ptr<RandomAccessFile> file_;
  std::string path_;
  std::vector<std::uint64_t> offsets_;
};

class RecordWriter {
 public:
  // Replaces what is at `path`.
  static Result<std::unique_ptr<RecordWriter>> Create(FileSystem& files, const std::string& path,
                                                      Compression compression = Compression::kNone);
  // Takes `file` over.
  static std::unique_ptr<RecordWriter> To(std::unique_ptr<WritableFile> file,
                                          Compression compression = Compression::kNone);
  virtual ~RecordWriter() = default;  // without Close: as WritableFile

  virtual Status Write(std::string_view record) = 0;
  // What was written so far, to the operating system; a reader that follows the file sees it.
  virtual Status Flush() = 0;
  virtual Status Sync() = 0;   // Flush, and to the disk
  virtual Status Close() = 0;  // Flush, and the end of the stream; no call may follow
};

}  // namespace cohort::io
