#include <cohort/data/csv.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <set>
#include <unordered_map>

#include <cohort/core/random.h>
#include <cohort/core/thread_pool.h>
#include <cohort/io/compression.h>

#include "sources/csv_reader.h"
#include "sources/memory_source.h"
#include "sources/text_hash.h"

namespace cohort::data {
namespace {

// Rows of several files, held as tensors.
class CsvSource final : public MemorySource {
 public:
  CsvSource(const Example& tensors, std::vector<FileRange> files, std::vector<std::int64_t> lines)
      : MemorySource(tensors, static_cast<std::int64_t>(lines.size())),
        files_(std::move(files)),
        lines_(std::move(lines)) {}

  std::string Where(std::int64_t index) const override {
    const auto file = std::find_if(files_.begin(), files_.end(),
                                   [index](const FileRange& range) { return index < range.end; });
    return file->name + ", line " + std::to_string(lines_[static_cast<std::size_t>(index)]);
  }
  std::vector<FileRange> files() const override { return files_; }

 private:
  std::vector<FileRange> files_;
  std::vector<std::int64_t> lines_;  // where each row begins
};

// Numbers that are exact in either type.
template <typename T>
std::optional<T> FewDigits(std::string_view text) {
  constexpr std::size_t kMost = 7;
  if (text.empty() || text.size() > kMost) {
    return std::nullopt;
  }
  std::int32_t value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') {
      return std::nullopt;
    }
    value = value * 10 + (c - '0');
  }
  return static_cast<T>(value);
}

template <typename T>
std::optional<T> ParseNumber(std::string_view text) {
  if (const std::optional<T> value = FewDigits<T>(text)) {
    return value;
  }
  if (text.starts_with('+')) {
    text.remove_prefix(1);
  }
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    return std::nullopt;
  }
  return value;
}

// Text to position. Positions of texts that were found, not given, are by first sight until Sort.
class Vocabulary {
 public:
  Vocabulary(const std::vector<std::string>& given, std::optional<std::int64_t> unknown)
      : texts_(given), open_(given.empty()), unknown_(unknown) {
    for (const std::string& text : given) {
      positions_.emplace(text, static_cast<std::int64_t>(positions_.size()));
    }
  }

  // nullopt: not one of those given.
  std::optional<std::int64_t> Position(std::string_view text) {
    const auto it = positions_.find(text);
    if (it != positions_.end()) {
      return it->second;
    }
    if (!open_) {
      return unknown_;
    }
    texts_.emplace_back(text);
    return positions_.emplace(text, static_cast<std::int64_t>(texts_.size()) - 1).first->second;
  }

  // Puts texts that were found in bytewise order; returns each old position's new one.
  std::vector<std::int64_t> Sort() {
    std::vector<std::string> sorted = texts_;
    if (open_) {
      std::sort(sorted.begin(), sorted.end());
    }
    std::vector<std::int64_t> moved(texts_.size());
    for (std::size_t i = 0; i < sorted.size(); ++i) {
      moved[static_cast<std::size_t>(positions_.at(sorted[i]))] = static_cast<std::int64_t>(i);
    }
    texts_ = std::move(sorted);
    return moved;
  }
  bool open() const { return open_; }
  const std::vector<std::string>& texts() const { return texts_; }

 private:
  std::vector<std::string> texts_;  // by position
  // Found without making a string of what is looked for.
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const {
      return std::hash<std::string_view>()(text);
    }
  };
  std::unordered_map<std::string, std::int64_t, Hash, std::equal_to<>> positions_;
  bool open_;
  std::optional<std::int64_t> unknown_;
};

// The values of one column so far.
class Column {
 public:
  explicit Column(const CsvColumn& spec)
      : spec_(spec), vocabulary_(spec.categories, spec.unknown) {}

  bool is_float() const { return spec_.type == CsvType::kFloat32; }
  const CsvColumn& spec() const { return spec_; }
  const Vocabulary& vocabulary() const { return vocabulary_; }

  // The Status names neither file nor line.
  Status Append(const CsvField& field, const std::vector<std::string>& markers) {
    if (!field.quoted && (field.text.empty() ||
                          std::find(markers.begin(), markers.end(), field.text) != markers.end())) {
      return AppendMissing();
    }
    switch (spec_.type) {
      case CsvType::kFloat32: {
        const std::optional<float> value = ParseNumber<float>(field.text);
        if (!value.has_value() || !std::isfinite(*value)) {
          return Bad(field, "is not a finite number");
        }
        floats_.push_back(*value);
        return {};
      }
      case CsvType::kInt64: {
        const std::optional<std::int64_t> value = ParseNumber<std::int64_t>(field.text);
        if (!value.has_value()) {
          return Bad(field, "is not a 64-bit integer");
        }
        ints_.push_back(*value);
        return {};
      }
      case CsvType::kCategory: {
        const std::optional<std::int64_t> position = vocabulary_.Position(field.text);
        if (!position.has_value()) {
          return Bad(field, "is not one of the " + std::to_string(spec_.categories.size()) +
                                " categories");
        }
        ints_.push_back(*position);
        missing_.push_back(false);
        return {};
      }
      case CsvType::kHash:
        ints_.push_back(TextHash(field.text, spec_.buckets));
        return {};
    }
    return {};
  }

  // Appends the values of another one of this spec.
  void Append(const Column& other) {
    floats_.insert(floats_.end(), other.floats_.begin(), other.floats_.end());
    const std::size_t before = ints_.size();
    ints_.insert(ints_.end(), other.ints_.begin(), other.ints_.end());
    missing_.insert(missing_.end(), other.missing_.begin(), other.missing_.end());
    if (spec_.type != CsvType::kCategory || !vocabulary_.open()) {
      return;
    }
    std::vector<std::int64_t> moved;
    for (const std::string& text : other.vocabulary_.texts()) {
      moved.push_back(*vocabulary_.Position(text));
    }
    for (std::size_t i = before; i < ints_.size(); ++i) {
      if (!missing_[i]) {
        ints_[i] = moved[static_cast<std::size_t>(ints_[i])];
      }
    }
  }

  void Finish() {
    if (spec_.type != CsvType::kCategory || !vocabulary_.open()) {
      return;
    }
    const std::vector<std::int64_t> moved = vocabulary_.Sort();
    for (std::size_t i = 0; i < ints_.size(); ++i) {
      if (!missing_[i]) {
        ints_[i] = moved[static_cast<std::size_t>(ints_[i])];
      }
    }
  }

  void CopyTo(std::byte* out) const {
    const std::size_t bytes =
        is_float() ? floats_.size() * sizeof(float) : ints_.size() * sizeof(std::int64_t);
    if (bytes != 0) {
      std::memcpy(out, is_float() ? static_cast<const void*>(floats_.data()) : ints_.data(), bytes);
    }
  }
  void CopyTo(std::size_t row, std::byte* out) const {
    if (is_float()) {
      *reinterpret_cast<float*>(out) = floats_[row];
    } else {
      *reinterpret_cast<std::int64_t*>(out) = ints_[row];
    }
  }

 private:
  Status AppendMissing() {
    if (!spec_.missing.has_value()) {
      return DataLoss("column '" + spec_.name +
                      "': the value is missing [set the column's `missing` to accept that]");
    }
    if (is_float()) {
      floats_.push_back(static_cast<float>(*spec_.missing));
    } else {
      ints_.push_back(static_cast<std::int64_t>(*spec_.missing));
      missing_.push_back(true);
    }
    return {};
  }

  Status Bad(const CsvField& field, const std::string& what) const {
    return DataLoss("column '" + spec_.name + "': '" + std::string(field.text.substr(0, 80)) +
                    "' " + what);
  }

  CsvColumn spec_;
  Vocabulary vocabulary_;
  std::vector<float> floats_;
  std::vector<std::int64_t> ints_;
  std::vector<bool> missing_;  // kCategory: values that are not positions
};

// Columns in, features out.
class Table {
 public:
  static Result<Table> Make(const CsvOptions& options);
  Status ReadFile(const std::string& path);
  CsvData Finish() &&;

 private:
  explicit Table(const CsvOptions& options) : options_(options) {}
  Status TakeHeader(const std::string& path, const std::vector<CsvField>& fields);
  // All rows that are left. `lines_before`: of the file, before what the reader was given.
  Status ReadRows(const std::string& path, CsvReader& reader, std::int64_t lines_before,
                  std::vector<Column>& columns, std::vector<std::int64_t>& lines) const;
  // The same on options_.threads threads, of the content from byte `begin` on, the beginning of a
  // line; false: it is not for several, and nothing was read.
  Result<bool> ReadInParts(const std::string& path, std::string_view content, std::size_t begin);
  Example Tensors() const;

  CsvOptions options_;
  std::vector<Column> columns_;
  std::vector<std::string> header_;  // of the first file
  std::string header_path_;
  std::vector<std::size_t> places_;  // of columns_, in a row
  std::vector<FileRange> files_;
  std::vector<std::int64_t> lines_;
};

std::string FeatureOf(const CsvColumn& column) {
  return column.feature.empty() ? column.name : column.feature;
}

Result<Table> Table::Make(const CsvOptions& options) {
  if (options.columns.empty()) {
    return InvalidArgument("CSV: no columns to read [name them in CsvOptions.columns]");
  }
  if (options.threads < 1) {
    return InvalidArgument("CSV: at least 1 thread");
  }
  if (options.delimiter == '"' || options.delimiter == '\n' || options.delimiter == '\r') {
    return InvalidArgument("CSV: quotes and line ends cannot be the delimiter");
  }
  Table table(options);
  std::map<std::string, const CsvColumn*> features;
  std::set<std::string> names;
  for (const CsvColumn& column : options.columns) {
    if (!names.insert(column.name).second) {
      return InvalidArgument("CSV: column '" + column.name + "' is asked for twice");
    }
    const auto [it, is_new] = features.emplace(FeatureOf(column), &column);
    if (!is_new && (it->second->feature.empty() || column.feature.empty())) {
      return InvalidArgument("CSV: columns '" + it->second->name + "' and '" + column.name +
                             "' both become feature '" + it->first + "'");
    }
    if (!is_new && (it->second->type == CsvType::kFloat32) != (column.type == CsvType::kFloat32)) {
      return InvalidArgument("CSV: feature '" + it->first + "' mixes numbers of two types ('" +
                             it->second->name + "' and '" + column.name + "')");
    }
    if (column.buckets < 0 || (column.missing.has_value() && !std::isfinite(*column.missing))) {
      return InvalidArgument("CSV: column '" + column.name +
                             "': buckets are not negative, `missing` is finite");
    }
    if (std::set<std::string>(column.categories.begin(), column.categories.end()).size() !=
        column.categories.size()) {
      return InvalidArgument("CSV: column '" + column.name + "' has a category twice");
    }
    table.columns_.emplace_back(column);
  }
  return table;
}

Status Table::TakeHeader(const std::string& path, const std::vector<CsvField>& fields) {
  std::vector<std::string> header;
  std::string listed;
  for (const CsvField& field : fields) {
    header.emplace_back(field.text);
    listed += (listed.empty() ? "" : ", ") + header.back();
  }
  if (!header_path_.empty()) {
    return header == header_ ? Status()
                             : InvalidArgument(path + ": the header is not that of " +
                                               header_path_ + ": " + listed);
  }
  header_ = header;
  header_path_ = path;
  for (const Column& column : columns_) {
    const std::string& name = column.spec().name;
    const auto it = std::find(header.begin(), header.end(), name);
    if (it == header.end()) {
      return NotFound(path + ": no column '" + name + "'; the header has: " + listed);
    }
    if (std::count(header.begin(), header.end(), name) != 1) {
      return InvalidArgument(path + ": the header has column '" + name + "' more than once");
    }
    places_.push_back(static_cast<std::size_t>(it - header.begin()));
  }
  return {};
}

Status Table::ReadFile(const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(const std::string content,
                          io::ReadMaybeCompressed(*options_.files, path));
  CsvReader reader(content, options_.delimiter, options_.trim);
  std::vector<CsvField> fields;
  const auto next = [&]() -> Result<bool> {
    Result<bool> more = reader.Next(fields);
    return more.ok() ? std::move(more) : Result<bool>(more.status().Annotate(path));
  };
  COHORT_ASSIGN_OR_RETURN(bool more, next());
  if (!more) {
    return DataLoss(path + ": empty, not even a header line");
  }
  COHORT_RETURN_IF_ERROR(TakeHeader(path, fields));
  files_.push_back({path, static_cast<std::int64_t>(lines_.size()), 0});
  COHORT_ASSIGN_OR_RETURN(const bool done, ReadInParts(path, content, reader.offset()));
  if (!done) {
    COHORT_RETURN_IF_ERROR(ReadRows(path, reader, 0, columns_, lines_));
  }
  files_.back().end = static_cast<std::int64_t>(lines_.size());
  return {};
}

Result<bool> Table::ReadInParts(const std::string& path, std::string_view content,
                                std::size_t begin) {
  constexpr std::size_t kLeast = std::size_t{1} << 20;
  // Without quotes every line feed ends a row.
  if (options_.threads <= 1 || content.size() < kLeast ||
      content.find('"') != std::string_view::npos) {
    return false;
  }
  struct Part {
    std::string_view content;
    std::int64_t lines_before = 0;
    std::vector<Column> columns;
    std::vector<std::int64_t> lines;
    Status status;
  };
  std::vector<Part> parts;
  const auto n = static_cast<std::size_t>(options_.threads);
  std::int64_t lines =
      std::count(content.begin(), content.begin() + static_cast<std::ptrdiff_t>(begin), '\n');
  for (std::size_t i = 1, at = begin; i <= n && at < content.size(); ++i) {
    const std::size_t feed =
        i == n ? std::string_view::npos
               : content.find('\n', std::max(at, begin + (content.size() - begin) * i / n));
    const std::size_t end = feed == std::string_view::npos ? content.size() : feed + 1;
    Part part{.content = content.substr(at, end - at),
              .lines_before = lines,
              .columns = {},
              .lines = {},
              .status = {}};
    if (part.content.starts_with("\xEF\xBB\xBF")) {
      return false;  // a reader would take it for the mark of a file
    }
    lines += std::count(part.content.begin(), part.content.end(), '\n');
    for (const Column& column : columns_) {
      part.columns.emplace_back(column.spec());
    }
    parts.push_back(std::move(part));
    at = end;
  }
  ThreadPool pool(options_.threads, "csv");
  pool.ParallelFor(
      static_cast<std::int64_t>(parts.size()), 1, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t i = first; i < last; ++i) {
          Part& part = parts[static_cast<std::size_t>(i)];
          CsvReader reader(part.content, options_.delimiter, options_.trim);
          part.status = ReadRows(path, reader, part.lines_before, part.columns, part.lines);
        }
      });
  for (const Part& part : parts) {
    COHORT_RETURN_IF_ERROR(part.status);  // of the first line that is wrong
    lines_.insert(lines_.end(), part.lines.begin(), part.lines.end());
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      columns_[i].Append(part.columns[i]);
    }
  }
  return true;
}

Status Table::ReadRows(const std::string& path, CsvReader& reader, std::int64_t lines_before,
                       std::vector<Column>& columns, std::vector<std::int64_t>& lines) const {
  std::vector<CsvField> fields;
  for (;;) {
    const Result<bool> more = reader.Next(fields);
    if (!more.ok()) {
      return more.status().Annotate(path);
    }
    if (!*more) {
      return {};
    }
    const auto where = [&] {
      return path + ", line " + std::to_string(lines_before + reader.line());
    };
    if (fields.size() != header_.size()) {
      return DataLoss(where() + ": " + std::to_string(fields.size()) + " fields, the header has " +
                      std::to_string(header_.size()));
    }
    for (std::size_t i = 0; i < columns.size(); ++i) {
      Status status = columns[i].Append(fields[places_[i]], options_.missing_markers);
      if (!status.ok()) {
        return status.Annotate(where());
      }
    }
    lines.push_back(lines_before + reader.line());
  }
}

Example Table::Tensors() const {
  std::map<std::string, std::vector<const Column*>> features;
  for (const Column& column : columns_) {
    features[FeatureOf(column.spec())].push_back(&column);
  }
  Example tensors;
  const auto rows = static_cast<std::int64_t>(lines_.size());
  for (const auto& [name, columns] : features) {
    const bool is_float = columns[0]->is_float();
    Shape shape({rows});
    if (!columns[0]->spec().feature.empty()) {
      shape = Shape({rows, static_cast<std::int64_t>(columns.size())});
    }
    const Tensor tensor(is_float ? DType::kFloat32 : DType::kInt64, shape);
    std::byte* out = tensor.raw();
    if (columns.size() == 1) {
      columns[0]->CopyTo(out);
      tensors.emplace(name, tensor);
      continue;
    }
    for (std::size_t row = 0; row < lines_.size(); ++row) {
      for (const Column* column : columns) {
        column->CopyTo(row, out);
        out += SizeOf(tensor.dtype());
      }
    }
    tensors.emplace(name, tensor);
  }
  return tensors;
}

CsvData Table::Finish() && {
  std::map<std::string, std::vector<std::string>> categories;
  for (Column& column : columns_) {
    column.Finish();
    if (column.spec().type == CsvType::kCategory) {
      categories[column.spec().name] = column.vocabulary().texts();
    }
  }
  return {Dataset(std::make_shared<CsvSource>(Tensors(), std::move(files_), std::move(lines_))),
          std::move(categories)};
}

}  // namespace

Result<CsvData> Csv(const std::vector<std::string>& paths, const CsvOptions& options) {
  if (paths.empty()) {
    return InvalidArgument("CSV: no files");
  }
  COHORT_ASSIGN_OR_RETURN(Table table, Table::Make(options));
  for (const std::string& path : paths) {
    COHORT_RETURN_IF_ERROR(table.ReadFile(path));
  }
  return std::move(table).Finish();
}

}  // namespace cohort::data
