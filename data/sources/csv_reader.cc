#include "sources/csv_reader.h"

#include <algorithm>

namespace cohort::data {
namespace {

bool IsBlank(char c) { return c == ' ' || c == '\t'; }

}  // namespace

CsvReader::CsvReader(std::string_view content, char delimiter, bool trim)
    : rest_(content), size_(content.size()), delimiter_(delimiter), trim_(trim) {
  for (const char end : {delimiter, '\r', '\n'}) {
    ends_field_[static_cast<unsigned char>(end)] = true;
  }
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  if (rest_.starts_with(kByteOrderMark)) {
    rest_.remove_prefix(kByteOrderMark.size());
  }
}

bool CsvReader::AtLineEnd() const {
  return rest_.empty() || rest_[0] == '\n' || rest_.starts_with("\r\n");
}

void CsvReader::SkipLineEnd() {
  if (!rest_.empty()) {
    rest_.remove_prefix(rest_[0] == '\r' ? 2 : 1);
    ++line_;
  }
}

void CsvReader::SkipBlanks() {
  while (trim_ && !rest_.empty() && IsBlank(rest_[0]) && rest_[0] != delimiter_) {
    rest_.remove_prefix(1);
  }
}

Result<bool> CsvReader::Next(std::vector<CsvField>& fields) {
  fields.clear();
  unescaped_.clear();
  SkipBlanks();
  while (!rest_.empty() && AtLineEnd()) {
    SkipLineEnd();
    SkipBlanks();
  }
  if (rest_.empty()) {
    return false;
  }
  row_line_ = line_;
  for (;;) {
    SkipBlanks();
    if (!rest_.empty() && rest_[0] == '"') {
      COHORT_ASSIGN_OR_RETURN(const CsvField field, QuotedField());
      fields.push_back(field);
    } else {
      fields.push_back(PlainField());
    }
    if (AtLineEnd()) {
      SkipLineEnd();
      return true;
    }
    rest_.remove_prefix(1);  // the delimiter
  }
}

CsvField CsvReader::PlainField() {
  const char* const begin = rest_.data();
  const char* const end = begin + rest_.size();
  const char* at = begin;
  for (;; ++at) {
    while (at < end && !ends_field_[static_cast<unsigned char>(*at)]) {
      ++at;
    }
    // CR without LF is a character like others.
    if (at >= end || *at != '\r' || delimiter_ == '\r' || (at + 1 < end && at[1] == '\n')) {
      break;
    }
  }
  const auto size = static_cast<std::size_t>(at - begin);
  std::string_view text = rest_.substr(0, size);
  rest_.remove_prefix(size);
  while (trim_ && !text.empty() && IsBlank(text.back())) {
    text.remove_suffix(1);
  }
  return {text, false};
}

Result<CsvField> CsvReader::QuotedField() {
  const std::int64_t opened = line_;
  rest_.remove_prefix(1);
  std::string_view text;
  std::string* joined = nullptr;  // of the parts between doubled quotes
  for (;;) {
    const std::size_t quote = rest_.find('"');
    if (quote == std::string_view::npos) {
      return DataLoss("line " + std::to_string(opened) + ": a quote is opened and never closed");
    }
    const std::string_view part = rest_.substr(0, quote);
    line_ += std::count(part.begin(), part.end(), '\n');
    rest_.remove_prefix(quote + 1);
    const bool doubled = !rest_.empty() && rest_[0] == '"';
    if (doubled && joined == nullptr) {
      joined = &unescaped_.emplace_back();
    }
    if (joined == nullptr) {
      text = part;
      break;
    }
    *joined += part;
    if (!doubled) {
      text = *joined;
      break;
    }
    *joined += '"';
    rest_.remove_prefix(1);
  }
  SkipBlanks();
  if (!AtLineEnd() && rest_[0] != delimiter_) {
    return DataLoss("line " + std::to_string(line_) + ": text follows a closing quote");
  }
  return CsvField{text, true};
}

}  // namespace cohort::data
