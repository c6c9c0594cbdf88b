// Rows: the records of a file of any known format, one after another, as named values.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <cohort/core/file_system.h>
#include <cohort/core/status.h>
#include <cohort/core/tensor.h>
#include <cohort/core/thread_pool.h>

#include "corrupt_budget.h"
#include "file_kind.h"

namespace cohort::data {

struct Value {
  enum class Kind { kMissing, kNumbers, kStrings };
  Kind kind = Kind::kMissing;
  Tensor numbers;                    // kNumbers: of one example
  std::vector<std::string> strings;  // kStrings

  static Value Of(Tensor tensor) { return {Kind::kNumbers, std::move(tensor), {}}; }
  static Value Of(std::string text) { return {Kind::kStrings, {}, {std::move(text)}}; }
  std::int64_t size() const;  // values in it
};

using Row = std::vector<std::pair<std::string, Value>>;

// Some rows of a file. They may not be taken apart yet: ForEach does that.
class RowBlock {
 public:
  virtual ~RowBlock() = default;
  virtual std::int64_t rows() const = 0;
  virtual Status ForEach(const std::function<Status(const Row&)>& each) const = 0;  // any thread
};

// What each format gives:
//   TFRecord     the features of an Example or SequenceExample; "record" where it is neither
//   CSV          columns, each int64, float32, float64 or text as all of its cells can be read
//   .npy, IDX    "values"
//   safetensors  the tensors, which have as many rows
//   tar          "__key__", and the members by extension
//   text         "line"
//   an image     "image"
class RowReader {
 public:
  static constexpr std::int64_t kBlockRows = 4096;
  static constexpr std::size_t kBlockBytes = std::size_t{4} << 20;  // or one row

  // `pool`: helps to find out what the columns of a CSV file are. `corrupt`: what may be left out
  // of a TFRecord file, and is counted there; none: nothing.
  static Result<std::unique_ptr<RowReader>> Open(FileSystem& files, const std::string& path,
                                                 ThreadPool* pool = nullptr,
                                                 CorruptBudget* corrupt = nullptr);
  virtual ~RowReader() = default;

  // False at the end. Errors name file and record.
  virtual Result<bool> Next(Row& row) = 0;
  // Passes over so many rows, or to the end: without reading them where the format allows. How
  // many there were.
  virtual Result<std::int64_t> Skip(std::int64_t rows);
  // Instead of Next: the next kBlockRows or kBlockBytes, whatever is less, or what is left; null at
  // the end. Blocks do not depend on threads.
  virtual Result<std::shared_ptr<const RowBlock>> NextBlock();
  // How much of the file the rows so far are, from 0 to 1.
  virtual double part() const = 0;
};

// A row as a JSON object. Text that is no UTF-8 is {"bytes": its length}, or {"base64": ...}.
std::string RowAsJson(const Row& row, bool base64);

}  // namespace cohort::data
