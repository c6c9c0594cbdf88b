// CsvReader: text into rows of fields. Knows nothing of types.

#pragma once

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
  // `content` must outlive this; it begins with line `first_line` of its file, and with a byte
  // order mark only in the first.
  CsvReader(std::string_view content, char delimiter, bool trim, std::int64_t first_line = 1);

  // The next row that is not blank; false at the end. Fields are valid until the next call.
  // DataLoss: a quote that is not closed, or text beside quotes.
  Result<bool> Next(std::vector<CsvField>& fields);
  // As Next, and the fields of rows before stay valid until Next or Forget.
  Result<bool> NextToo(std::vector<CsvField>& fields);
  void Forget();
  // Where the row that Next returned begins, and what follows it.
  std::int64_t line() const { return row_line_; }
  std::int64_t next_line() const { return line_; }
  // Byte of the content behind the row that Next returned, its line end included.
  std::size_t offset() const { return static_cast<std::size_t>(at_ - begin_); }
  // Goes on at this byte, the beginning of that line.
  void Seek(std::size_t offset, std::int64_t line);

 private:
  static constexpr std::ptrdiff_t kBlock = 64;  // bytes that are looked at together

  Result<CsvField> QuotedField();
  CsvField PlainField();
  bool AtLineEnd() const;
  void SkipLineEnd();
  void SkipBlanks();
  // The first delimiter, CR or LF from `from` on, which never goes back; the end where none is.
  const char* FieldEnd(const char* from);
  std::uint64_t FieldEnds(const char* block) const;  // of a block, a bit each

  const char* begin_;
  const char* end_;
  const char* at_;
  char delimiter_;
  bool trim_;
  const char* block_;       // the block looked at last
  std::uint64_t ends_ = 0;  // in it
  std::int64_t line_;       // of what comes next
  std::int64_t row_line_ = 0;
  std::deque<std::string> unescaped_;  // fields of this row that had doubled quotes
};

}  // namespace cohort::data
