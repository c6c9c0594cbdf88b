// CSV with a header line, as RFC 4180 has it: fields in quotes may hold delimiters, line ends and
// doubled quotes; lines end in LF or CRLF; blank lines are skipped, as is a byte order mark.
//
// Files are read, checked and converted when they are opened, whole or a part of their bytes
// (CsvOptions::part), and stay in memory as columns.
// gzip is told by content. A bad row or value is DataLoss, naming file, line, column and what was
// found; nothing is skipped or guessed.

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <cohort/core/file_system.h>
#include <cohort/core/status.h>
#include <cohort/data/dataset.h>

namespace cohort::data {

enum class CsvType {
  kFloat32,   // finite decimal numbers
  kInt64,     // integers
  kCategory,  // text, as its position in `categories` (int64)
  kHash,      // text, as a 64-bit hash of its bytes, equal on every machine (int64)
};

struct CsvColumn {
  std::string name;  // in the header
  CsvType type = CsvType::kFloat32;
  // Stands for a missing value; without it a missing value is an error.
  std::optional<double> missing = {};
  // kCategory: the texts there are. Empty: those in the files, in bytewise order.
  std::vector<std::string> categories = {};
  // kCategory: stands for a text that is not in `categories`; without it such a text is an error.
  std::optional<std::int64_t> unknown = {};
  // kHash: the hash modulo this, if not 0; never negative.
  std::int64_t buckets = 0;
  // The feature that the column becomes a part of: columns of one feature, in their order here, are
  // a vector of it. Empty: a scalar of its own, called like the column.
  std::string feature = {};
};

// One of `count` parts of the bytes of all files, one behind the other: the rows whose first byte
// lies in it. No other bytes are read but the headers and the rest of the last row. The parts
// together are the data, each row once.
//
// A part begins behind a line feed. Where that is one in quotes, the part before ends within them:
// opening that one is the error, so every part must be opened by some process. Each then has a data
// set of its own: ShardPolicy::kOwn.
// Line numbers in errors count from the header, as if the part were all that follows it.
struct CsvPart {
  int index = 0;
  int count = 1;
};

struct CsvOptions {
  std::vector<CsvColumn> columns;  // those that are read; others are checked for their number only
  char delimiter = ',';
  bool trim = true;  // spaces and tabs around fields without quotes are no part of them
  // What a missing value looks like, besides nothing at all. Not in quotes.
  std::vector<std::string> missing_markers = {"?"};
  int threads = 1;  // that parse a file of at least 1 MiB; one does where there are quotes in it
  // With parts, every kCategory column names its categories: those found in a part would have other
  // positions in the next. InvalidArgument for that, and for gzip, which has no random access.
  CsvPart part = {};
  FileSystem* files = &FileSystem::Local();
};

struct CsvData {
  Dataset dataset;
  // Of each kCategory column: position -> text. For reading other files with the same positions.
  std::map<std::string, std::vector<std::string>> categories;
};

// The rows of all files, one file after another; all must have the same header.
// InvalidArgument: columns that make no sense; NotFound: a column that no header has.
Result<CsvData> Csv(const std::vector<std::string>& paths, const CsvOptions& options);

// Writes rows that Csv reads back as they are: fields in quotes where they need it, lines end in
// LF.
class CsvWriter {
 public:
  // The header line; gzip where the path ends in ".gz". The file is there when Close has returned
  // OK, and not before. InvalidArgument: no columns, a name twice, a delimiter that cannot be one.
  static Result<std::unique_ptr<CsvWriter>> Create(FileSystem& files, const std::string& path,
                                                   const std::vector<std::string>& header,
                                                   char delimiter = ',');
  virtual ~CsvWriter() = default;  // without Close: nothing is left at the path

  // nullopt is a missing value. InvalidArgument: not as many fields as the header has, or nothing
  // but a missing value, which would be a blank line.
  virtual Status Write(const std::vector<std::optional<std::string>>& fields) = 0;
  virtual Status Close() = 0;  // no call may follow
};

// Tensors of as many rows, their first axis, as columns in the order of their names: [N] as one
// column, [N, n] as n that are called name_0, name_1, ...; float32, float64, int32, int64, uint8.
// Numbers are as short as reads back to the same value. InvalidArgument: other shapes or types,
// numbers of rows that differ, a number that is not finite. Atomic, as CsvWriter.
Status WriteCsv(FileSystem& files, const std::string& path, const Example& columns,
                char delimiter = ',');

}  // namespace cohort::data
