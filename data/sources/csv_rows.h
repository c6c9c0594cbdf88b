// CsvRows: rows of a part of a CSV file, many at a time, so that a column's values stand together
// for what converts them. Rows without quotes are cut where a bit mask of 64 bytes says; CsvReader
// reads the others, and says what is wrong with them.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include <cohort/core/status.h>

#include "sources/csv_reader.h"

namespace cohort::data {

class CsvRows {
 public:
  static constexpr std::size_t kMost = 256;  // rows at a time, at most
  // What can be read behind a field that was not in quotes: a whole register.
  static constexpr std::size_t kSlack = 64;

  // `content` outlives this, and kSlack bytes behind it are memory too. It begins with line
  // `first_line` of its file. `width`: fields that a row must have.
  CsvRows(std::string_view content, char delimiter, bool trim, std::int64_t first_line,
          std::size_t width);

  // How many rows there are now; 0 at the end, or at what status() says is wrong. What it returned
  // before is gone.
  std::size_t Next();
  // Field `i` of all rows is at field(i)[row * width()].
  const CsvField* field(std::size_t i) const { return fields_.data() + i; }
  std::size_t width() const { return width_; }
  std::int64_t line(std::size_t row) const { return lines_[row]; }  // where it begins
  // DataLoss: the row behind those that Next returned last; it names the line.
  const Status& status() const { return status_; }

 private:
  // Rows without quotes, as many as fit, from at_ on.
  std::size_t Plain(std::size_t count);
  // Delimiters, LFs and quotes of a block, a bit each.
  std::uint64_t Ends(const char* block) const;
  CsvField Trimmed(const char* begin, const char* end) const;

  const char* begin_;
  const char* end_;
  const char* at_;  // of the row that comes next
  char delimiter_;
  bool trim_;
  std::size_t width_;
  std::size_t most_;   // rows at a time, no more than the content can hold
  std::int64_t line_;  // of what comes next
  CsvReader reader_;   // of rows that are not plain
  std::vector<CsvField> row_;
  std::vector<CsvField> fields_;
  std::vector<std::int64_t> lines_;
  Status status_;
};

}  // namespace cohort::data
