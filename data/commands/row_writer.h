// RowWriter: rows to a file of a format. What a format cannot hold is an error that names the
// field; nothing is rounded or left out silently.

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <cohort/core/file_system.h>
#include <cohort/core/status.h>
#include <cohort/io/compression.h>

#include "rows.h"

namespace cohort::data {

// A field over all rows.
struct FieldSummary {
  std::string name;
  std::int64_t rows = 0;       // that have it
  std::optional<DType> dtype;  // numbers; nothing: strings, or never there
  bool strings = false;
  bool mixed = false;       // of several types
  std::int64_t fewest = 0;  // values, where it is there
  std::int64_t most = 0;
  std::optional<Shape> shape;  // the same in all rows that have it
};

struct Summary {
  std::int64_t rows = 0;
  std::vector<FieldSummary> fields;  // in the order of their first row

  void Add(const Row& row);

 private:
  std::map<std::string, std::size_t> places_;
};

struct WriteOptions {
  io::Compression compression = io::Compression::kNone;  // TFRecord, CSV and tar
  bool float32 = false;                                  // round float64 to it for TFRecord
  std::optional<double> fill;                            // stands for missing numbers
};

class RowWriter {
 public:
  // kTfRecord, kCsv (with tabs where the name has ".tsv"), kNpy, kSafetensors, kTar. `summary` is
  // of the rows that will be written. The file is there when Close has returned OK.
  static Result<std::unique_ptr<RowWriter>> Create(FileSystem& files, const std::string& path,
                                                   Format format, const Summary& summary,
                                                   const WriteOptions& options);
  virtual ~RowWriter() = default;

  virtual Status Write(const Row& row) = 0;
  virtual Status Close() = 0;
};

}  // namespace cohort::data
