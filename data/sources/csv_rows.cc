#include "sources/csv_rows.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include <algorithm>
#include <bit>

namespace cohort::data {
namespace {

constexpr std::ptrdiff_t kBlock = 64;  // bytes that are looked at together

bool IsBlank(char c) { return c == ' ' || c == '\t'; }

}  // namespace

CsvRows::CsvRows(std::string_view content, char delimiter, bool trim, std::int64_t first_line,
                 std::size_t width)
    : begin_(content.data()),
      end_(content.data() + content.size()),
      at_(content.data()),
      delimiter_(delimiter),
      trim_(trim),
      width_(width),
      most_(std::min(kMost, content.size() / std::max<std::size_t>(width, 1) + 1)),
      line_(first_line),
      reader_(content, delimiter, trim, first_line),
      fields_(most_ * width),
      lines_(most_) {}

inline std::uint64_t CsvRows::Ends(const char* block) const {
  std::uint64_t ends = 0;
#ifdef __AVX2__
  const __m256i delimiters = _mm256_set1_epi8(delimiter_);
  const __m256i feeds = _mm256_set1_epi8('\n');
  const __m256i quotes = _mm256_set1_epi8('"');
  for (int half = 0; half < 2; ++half) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block) + half);
    const __m256i found = _mm256_or_si256(
        _mm256_or_si256(_mm256_cmpeq_epi8(bytes, delimiters), _mm256_cmpeq_epi8(bytes, feeds)),
        _mm256_cmpeq_epi8(bytes, quotes));
    ends |= std::uint64_t{static_cast<std::uint32_t>(_mm256_movemask_epi8(found))} << (32 * half);
  }
#else
  for (int i = 0; i < kBlock; ++i) {
    const bool end = block[i] == delimiter_ || block[i] == '\n' || block[i] == '"';
    ends |= std::uint64_t{end} << i;
  }
#endif
  // What lies behind the end is not looked at; a row that is not ended by then is the reader's.
  const std::ptrdiff_t left = end_ - block;
  return left >= kBlock ? ends : left <= 0 ? 0 : ends & ((std::uint64_t{1} << left) - 1);
}

inline CsvField CsvRows::Trimmed(const char* begin, const char* end) const {
  if (trim_) {
    while (begin != end && IsBlank(*begin)) {
      ++begin;
    }
    while (begin != end && IsBlank(end[-1])) {
      --end;
    }
  }
  return {std::string_view(begin, static_cast<std::size_t>(end - begin)), false};
}

std::size_t CsvRows::Plain(std::size_t count) {
  const char* block = at_;
  const char* at = at_;
  std::uint64_t ends = Ends(block);
  CsvField* fields = fields_.data() + count * width_;
  for (; count < most_; ++count, fields += width_) {
    const char* begin = at;
    for (std::size_t i = 0; i < width_; ++i) {
      while (ends == 0) {
        block += kBlock;
        if (block >= end_) {
          return count;
        }
        ends = Ends(block);
      }
      const char* end = block + std::countr_zero(ends);
      ends &= ends - 1;
      const bool last = i + 1 == width_;
      if (*end != (last ? '\n' : delimiter_)) {
        return count;
      }
      const char* const next = end + 1;
      if (last && end != begin && end[-1] == '\r') {
        --end;
      }
      fields[i] = Trimmed(begin, end);
      begin = next;
    }
    if (width_ == 1 && fields[0].text.empty()) {
      return count;  // blank
    }
    lines_[count] = line_++;
    at = begin;
    at_ = begin;
  }
  return count;
}

std::size_t CsvRows::Next() {
  std::size_t count = 0;
  reader_.Forget();
  while (status_.ok() && count < most_) {
    count = Plain(count);
    if (count == most_) {
      break;
    }
    reader_.Seek(static_cast<std::size_t>(at_ - begin_), line_);
    const Result<bool> more = reader_.NextToo(row_);
    if (!more.ok()) {
      status_ = more.status();
      break;
    }
    if (!*more) {
      break;
    }
    if (row_.size() != width_) {
      status_ =
          DataLoss("line " + std::to_string(reader_.line()) + ": " + std::to_string(row_.size()) +
                   " fields, the header has " + std::to_string(width_));
      break;
    }
    std::copy(row_.begin(), row_.end(),
              fields_.begin() + static_cast<std::ptrdiff_t>(count * width_));
    lines_[count++] = reader_.line();
    at_ = begin_ + reader_.offset();
    line_ = reader_.next_line();
  }
  return count;
}

}  // namespace cohort::data
