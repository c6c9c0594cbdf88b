// CsvReader: text into rows of fields. Knows nothing of types.

#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/core/status.h>

namespace cohort::data {

struct CsvField {
  std::string_view text;
  bool quoted = false;
};

class CsvReader {
 public:
  // `content` must outlive this.
  CsvReader(std::string_view content, char delimiter, bool trim);

  // The next row that is not blank; false at the end. Fields are valid until the next call.
  // DataLoss: a quote that is not closed, or text beside quotes.
  Result<bool> Next(std::vector<CsvField>& fields);
  // Where the row that Next returned begins, from 1.
  std::int64_t line() const { return row_line_; }
  // Byte of the content behind the row that Next returned, its line end included.
  std::size_t offset() const { return size_ - rest_.size(); }

 private:
  Result<CsvField> QuotedField();
  CsvField PlainField();
  bool AtLineEnd() const;
  void SkipLineEnd();
  void SkipBlanks();

  std::array<bool, 256> ends_field_ = {};  // of a field without quotes: the delimiter, CR, LF
  std::string_view rest_;
  std::size_t size_;  // of the content
  char delimiter_;
  bool trim_;
  std::int64_t line_ = 1;  // of what comes next
  std::int64_t row_line_ = 0;
  std::deque<std::string> unescaped_;  // fields of this row that had doubled quotes
};

}  // namespace cohort::data
