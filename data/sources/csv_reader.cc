#include "sources/csv_reader.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include <algorithm>
#include <bit>
#include <cstring>

namespace cohort::data {
namespace {

bool IsBlank(char c) { return c == ' ' || c == '\t'; }

}  // namespace

CsvReader::CsvReader(std::string_view content, char delimiter, bool trim, std::int64_t first_line)
    : begin_(content.data()),
      end_(content.data() + content.size()),
      at_(content.data()),
      delimiter_(delimiter),
      trim_(trim),
      line_(first_line) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  if (first_line == 1 && content.starts_with(kByteOrderMark)) {
    at_ += kByteOrderMark.size();
  }
  block_ = at_;
  ends_ = FieldEnds(block_);
}

bool CsvReader::AtLineEnd() const {
  return at_ == end_ || *at_ == '\n' || (*at_ == '\r' && at_ + 1 != end_ && at_[1] == '\n');
}

void CsvReader::SkipLineEnd() {
  if (at_ != end_) {
    at_ += *at_ == '\r' ? 2 : 1;
    ++line_;
  }
}

void CsvReader::SkipBlanks() {
  while (trim_ && at_ != end_ && IsBlank(*at_) && *at_ != delimiter_) {
    ++at_;
  }
}

void CsvReader::Seek(std::size_t offset, std::int64_t line) {
  at_ = begin_ + offset;
  line_ = line;
  block_ = at_;
  ends_ = FieldEnds(block_);
}

void CsvReader::Forget() {
  if (!unescaped_.empty()) {
    unescaped_.clear();
  }
}

Result<bool> CsvReader::Next(std::vector<CsvField>& fields) {
  Forget();
  return NextToo(fields);
}

Result<bool> CsvReader::NextToo(std::vector<CsvField>& fields) {
  fields.clear();
  SkipBlanks();
  while (at_ != end_ && AtLineEnd()) {
    SkipLineEnd();
    SkipBlanks();
  }
  if (at_ == end_) {
    return false;
  }
  row_line_ = line_;
  for (;;) {
    SkipBlanks();
    if (at_ != end_ && *at_ == '"') {
      COHORT_ASSIGN_OR_RETURN(const CsvField field, QuotedField());
      fields.push_back(field);
    } else {
      fields.push_back(PlainField());
    }
    if (AtLineEnd()) {
      SkipLineEnd();
      return true;
    }
    ++at_;  // the delimiter
  }
}

std::uint64_t CsvReader::FieldEnds(const char* block) const {
  char last[kBlock] = {};
  if (end_ - block < kBlock) {
    std::copy(block, end_, last);
    std::fill(last + (end_ - block), last + kBlock, '\n');  // what is past the end ends a field too
    block = last;
  }
#ifdef __AVX2__
  std::uint64_t ends = 0;
  const __m256i delimiters = _mm256_set1_epi8(delimiter_);
  const __m256i returns = _mm256_set1_epi8('\r');
  const __m256i feeds = _mm256_set1_epi8('\n');
  for (int half = 0; half < 2; ++half) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block) + half);
    const __m256i found = _mm256_or_si256(
        _mm256_cmpeq_epi8(bytes, delimiters),
        _mm256_or_si256(_mm256_cmpeq_epi8(bytes, returns), _mm256_cmpeq_epi8(bytes, feeds)));
    ends |= std::uint64_t{static_cast<std::uint32_t>(_mm256_movemask_epi8(found))} << (32 * half);
  }
  return ends;
#else
  std::uint64_t ends = 0;
  for (int i = 0; i < kBlock; ++i) {
    const bool end = block[i] == delimiter_ || block[i] == '\r' || block[i] == '\n';
    ends |= std::uint64_t{end} << i;
  }
  return ends;
#endif
}

const char* CsvReader::FieldEnd(const char* from) {
  if (from - block_ >= kBlock) {
    block_ = from;
    ends_ = FieldEnds(block_);
  } else {
    ends_ &= ~std::uint64_t{0} << (from - block_);
  }
  while (ends_ == 0) {
    block_ += kBlock;
    ends_ = FieldEnds(block_);
  }
  return std::min(block_ + std::countr_zero(ends_), end_);
}

CsvField CsvReader::PlainField() {
  const char* const begin = at_;
  at_ = FieldEnd(at_);
  // CR without LF is a character like others.
  while (at_ != end_ && *at_ == '\r' && !AtLineEnd()) {
    at_ = FieldEnd(at_ + 1);
  }
  std::string_view text(begin, static_cast<std::size_t>(at_ - begin));
  while (trim_ && !text.empty() && IsBlank(text.back())) {
    text.remove_suffix(1);
  }
  return {text, false};
}

Result<CsvField> CsvReader::QuotedField() {
  const std::int64_t opened = line_;
  ++at_;
  std::string_view text;
  std::string* joined = nullptr;  // of the parts between doubled quotes
  for (;;) {
    const auto* quote =
        at_ == end_
            ? nullptr
            : static_cast<const char*>(std::memchr(at_, '"', static_cast<std::size_t>(end_ - at_)));
    if (quote == nullptr) {
      return DataLoss("line " + std::to_string(opened) + ": a quote is opened and never closed");
    }
    const std::string_view part(at_, static_cast<std::size_t>(quote - at_));
    line_ += std::count(part.begin(), part.end(), '\n');
    at_ = quote + 1;
    const bool doubled = at_ != end_ && *at_ == '"';
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
    ++at_;
  }
  SkipBlanks();
  if (!AtLineEnd() && *at_ != delimiter_) {
    return DataLoss("line " + std::to_string(line_) + ": text follows a closing quote");
  }
  return CsvField{text, true};
}

}  // namespace cohort::data
