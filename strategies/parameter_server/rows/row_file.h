// Files of rows: what one server has of a table, whole or not at all.
//
//   a record file (cohort/io/record_file.h): RowFileHeader, then RowTable::DumpBucket of each
//   bucket
//
// A file is a function of the rows: how they came to be there leaves no trace. It is read by any
// number of servers, each taking the buckets that it has.
//
// A file of changes (its header says so) has, for each bucket, either that or what has changed
// since an earlier file (row_changes.h). It is read behind the file that it follows: all of a chain
// together, a file of rows first, are the rows.
//
// Thread rules: beside any other call on the table. Each bucket is consistent in itself; for one
// moment of the whole table nobody may write meanwhile. Blocks for the disk. Errors name the file.

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include <cohort/core/file_system.h>
#include <cohort/core/status.h>

#include "parameter_server/rows/row_table.h"

namespace cohort::ps {

// Replaces `path`: a temporary file beside it, synced, renamed. After an error, or if the process
// ends, `path` is as before. Memory: one bucket.
Status SaveRows(const RowTable& table, FileSystem& files, const std::string& path);

enum class RowFileKind { kRows, kChanges };

// The same, bucket by bucket, for rows that are in no table here: those of `range` in ascending
// order. Nothing is at the path until Close.
class RowFileWriter {
 public:
  static Result<std::unique_ptr<RowFileWriter>> Create(FileSystem& files, const std::string& path,
                                                       const TableSpec& spec, BucketRange range,
                                                       RowFileKind kind = RowFileKind::kRows);
  virtual ~RowFileWriter() = default;  // without Close: leaves nothing
  virtual Status Write(std::string_view dump) = 0;
  virtual Status Close() = 0;
};

// Dumps of buckets from one file, whose header is compared with `spec` as LoadRows does.
class RowFileReader {
 public:
  static Result<std::unique_ptr<RowFileReader>> Open(FileSystem& files, const std::string& path,
                                                     const TableSpec& spec);
  // Of a chain of files, the oldest first. DataLoss names the file that is of the wrong kind, or
  // has changes that do not go with what is before.
  static Result<std::unique_ptr<RowFileReader>> OpenChain(FileSystem& files,
                                                          std::span<const std::string> paths,
                                                          const TableSpec& spec);
  virtual ~RowFileReader() = default;
  virtual BucketRange range() const = 0;
  // NotFound: not in this file.
  virtual Result<std::string> Read(std::uint32_t bucket) = 0;
};

// Fills an empty table from the files of all servers that saved it, however many.
// FailedPrecondition if name, dim, seed, buckets or the optimizer's slots are others than those of
// the file; rates and policies may be. NotFound: a bucket is in no file; InvalidArgument: in two;
// DataLoss: a file is damaged. After an error the table is empty.
Status LoadRows(RowTable& table, FileSystem& files, std::span<const std::string> paths);
// The same from a chain of files of all buckets.
Status LoadChain(RowTable& table, FileSystem& files, std::span<const std::string> paths);

}  // namespace cohort::ps
