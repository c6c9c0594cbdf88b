#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <set>
#include <type_traits>

#include <cohort/data/csv.h>
#include <cohort/io/compression.h>

#include "sources/atomic_file.h"

namespace cohort::data {
namespace {

// What reads as something else without quotes: delimiters, quotes, line ends, blanks around the
// text, nothing at all, the mark of missing values, and what may begin a byte order mark.
bool NeedsQuotes(std::string_view text, char delimiter) {
  const auto blank = [](char c) { return c == ' ' || c == '\t'; };
  return text.empty() || text == "?" || blank(text.front()) || blank(text.back()) ||
         text.front() == '\xEF' || text.find(delimiter) != std::string_view::npos ||
         text.find_first_of("\"\r\n") != std::string_view::npos;
}

class FileCsvWriter final : public CsvWriter {
 public:
  FileCsvWriter(std::string path, std::size_t columns, char delimiter,
                std::unique_ptr<AtomicFile> file)
      : path_(std::move(path)),
        columns_(columns),
        delimiter_(delimiter),
        gzip_(path_.ends_with(".gz")),
        file_(std::move(file)) {}

  Status Write(const std::vector<std::optional<std::string>>& fields) override {
    Require(file_->open(), "nothing is written after Close");
    const std::string where = path_ + ", row " + std::to_string(rows_);
    if (fields.size() != columns_) {
      return InvalidArgument(where + ": " + std::to_string(fields.size()) +
                             " fields, the header has " + std::to_string(columns_));
    }
    if (columns_ == 1 && !fields[0].has_value()) {
      return InvalidArgument(where + ": a missing value alone is a blank line, which is no row");
    }
    for (std::size_t i = 0; i < fields.size(); ++i) {
      if (i > 0) {
        buffer_ += delimiter_;
      }
      if (fields[i].has_value()) {
        Put(*fields[i]);
      }
    }
    buffer_ += '\n';
    ++rows_;
    constexpr std::size_t kBufferBytes = std::size_t{1} << 20;
    return buffer_.size() < kBufferBytes ? Status() : Drain();
  }

  Status Close() override {
    static_cast<void>(Drain());  // Close returns its error
    return file_->Close();
  }

 private:
  void Put(const std::string& text) {
    if (!NeedsQuotes(text, delimiter_)) {
      buffer_ += text;
      return;
    }
    buffer_ += '"';
    for (const char c : text) {
      buffer_.append(c == '"' ? 2 : 1, c);
    }
    buffer_ += '"';
  }

  // gzip: a member of its own for each buffer; readers take them for one stream.
  Status Drain() {
    const std::string bytes = std::exchange(buffer_, {});
    return file_->Append(AsBytes(gzip_ ? io::Gzip(bytes) : bytes));
  }

  std::string path_;
  std::size_t columns_;
  char delimiter_;
  bool gzip_;
  std::unique_ptr<AtomicFile> file_;
  std::string buffer_;
  std::int64_t rows_ = -1;  // the header is no row
};

// Element `i`; nullopt if it is not finite.
template <typename T>
std::optional<std::string> NumberAt(const Tensor& tensor, std::size_t i) {
  const T value = tensor.data<T>()[i];
  if constexpr (std::is_floating_point_v<T>) {
    if (!std::isfinite(value)) {
      return std::nullopt;
    }
  }
  std::array<char, 64> text{};
  const auto result = std::to_chars(text.data(), text.data() + text.size(), value);
  return std::string(text.data(), result.ptr);
}

using NumberText = std::optional<std::string> (*)(const Tensor&, std::size_t);

NumberText NumberTextOf(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return NumberAt<float>;
    case DType::kFloat64:
      return NumberAt<double>;
    case DType::kInt32:
      return NumberAt<std::int32_t>;
    case DType::kInt64:
      return NumberAt<std::int64_t>;
    case DType::kUInt8:
      return NumberAt<std::uint8_t>;
    default:
      return nullptr;
  }
}

// Names of the columns, checked against one another.
Result<std::vector<std::string>> HeaderOf(const std::string& path, const Example& columns) {
  std::vector<std::string> header;
  std::int64_t rows = -1;
  for (const auto& [name, tensor] : columns) {
    const Shape& shape = tensor.shape();
    if (NumberTextOf(tensor.dtype()) == nullptr || shape.rank() < 1 || shape.rank() > 2) {
      return InvalidArgument(path + ": tensor '" + name + "' is " +
                             std::string(DTypeName(tensor.dtype())) + shape.ToString() +
                             " [numbers of shape [N] or [N, n] become columns]");
    }
    if (rows >= 0 && shape[0] != rows) {
      return InvalidArgument(path + ": tensor '" + name + "' has " + std::to_string(shape[0]) +
                             " rows, those before it have " + std::to_string(rows));
    }
    rows = shape[0];
    if (shape.rank() == 1) {
      header.push_back(name);
      continue;
    }
    for (std::int64_t i = 0; i < shape[1]; ++i) {
      header.push_back(name + "_" + std::to_string(i));
    }
  }
  return header;
}

}  // namespace

Result<std::unique_ptr<CsvWriter>> CsvWriter::Create(FileSystem& files, const std::string& path,
                                                     const std::vector<std::string>& header,
                                                     char delimiter) {
  if (header.empty()) {
    return InvalidArgument(path + ": no columns to write");
  }
  if (delimiter == '"' || delimiter == '\n' || delimiter == '\r') {
    return InvalidArgument(path + ": quotes and line ends cannot be the delimiter");
  }
  std::set<std::string> names;
  for (const std::string& name : header) {
    if (!names.insert(name).second) {
      return InvalidArgument(path + ": column '" + name + "' stands twice");
    }
  }
  COHORT_ASSIGN_OR_RETURN(auto file, AtomicFile::Create(files, path));
  auto writer = std::make_unique<FileCsvWriter>(path, header.size(), delimiter, std::move(file));
  COHORT_RETURN_IF_ERROR(writer->Write({header.begin(), header.end()}));
  return writer;
}

Status WriteCsv(FileSystem& files, const std::string& path, const Example& columns,
                char delimiter) {
  COHORT_ASSIGN_OR_RETURN(const auto header, HeaderOf(path, columns));
  COHORT_ASSIGN_OR_RETURN(const auto writer, CsvWriter::Create(files, path, header, delimiter));
  const std::int64_t rows = columns.begin()->second.shape()[0];
  std::vector<std::optional<std::string>> fields;
  for (std::int64_t row = 0; row < rows; ++row) {
    fields.clear();
    for (const auto& [name, tensor] : columns) {
      const auto width =
          static_cast<std::size_t>(tensor.shape().rank() == 1 ? 1 : tensor.shape()[1]);
      for (std::size_t i = 0; i < width; ++i) {
        fields.push_back(
            NumberTextOf(tensor.dtype())(tensor, static_cast<std::size_t>(row) * width + i));
        if (!fields.back().has_value()) {
          return InvalidArgument(path + ", row " + std::to_string(row) + ": column '" +
                                 header[fields.size() - 1] + "' is not finite");
        }
      }
    }
    COHORT_RETURN_IF_ERROR(writer->Write(fields));
  }
  return writer->Close();
}

}  // namespace cohort::data
