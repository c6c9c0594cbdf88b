#include "rows.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>

#include <cohort/data/arrays.h>
#include <cohort/data/idx.h>
#include <cohort/data/image.h>
#include <cohort/data/tf_example.h>
#include <cohort/io/record_file.h>

#include "../sources/content.h"
#include "../sources/csv_reader.h"
#include "../sources/sample_name.h"
#include "../sources/tar.h"
#include "watched_files.h"

namespace cohort::data {
namespace {

template <typename T>
Tensor ListOf(std::span<const T> values) {
  return Tensor::Of<T>({static_cast<std::int64_t>(values.size())}, values);
}

Value ValueOf(const TfFeature& feature) {
  switch (feature.kind) {
    case TfFeature::Kind::kFloat:
      return Value::Of(ListOf<float>(feature.floats));
    case TfFeature::Kind::kInt64:
      return Value::Of(ListOf<std::int64_t>(feature.ints));
    case TfFeature::Kind::kBytes:
      return {Value::Kind::kStrings, {}, {feature.bytes.begin(), feature.bytes.end()}};
    case TfFeature::Kind::kNone:
      break;
  }
  return {};
}

double PartOf(std::uint64_t done, std::uint64_t of) {
  return of == 0 ? 1 : static_cast<double>(done) / static_cast<double>(of);
}

class RecordRows final : public RowReader {
 public:
  static Result<std::unique_ptr<RowReader>> Open(FileSystem& files, const std::string& path,
                                                 CorruptBudget* corrupt) {
    auto rows = std::make_unique<RecordRows>();
    rows->corrupt_ = corrupt;
    rows->files_ = std::make_unique<WatchedFiles>(
        files, [at = rows.get()](std::uint64_t, std::uint64_t end, std::uint64_t size) {
          at->read_ = end;
          at->size_ = size;
        });
    COHORT_ASSIGN_OR_RETURN(rows->reader_, io::RecordReader::Open(*rows->files_, path));
    return rows;
  }

  Result<bool> Next(Row& row) override {
    COHORT_ASSIGN_OR_RETURN(const auto record, Read());
    row.clear();
    if (!record.has_value()) {
      return false;
    }
    TakeApart(*record, row);
    return true;
  }
  Result<std::shared_ptr<const RowBlock>> NextBlock() override {
    auto block = std::make_shared<Block>();
    while (block->rows() < kBlockRows && block->bytes.size() < kBlockBytes) {
      COHORT_ASSIGN_OR_RETURN(const auto record, Read());
      if (!record.has_value()) {
        break;
      }
      block->bytes += *record;
      block->ends.push_back(block->bytes.size());
    }
    if (block->rows() == 0) {
      block.reset();
    }
    return std::shared_ptr<const RowBlock>(std::move(block));
  }
  double part() const override {
    const bool raw = reader_->compression() == io::Compression::kNone;
    return PartOf(raw ? reader_->offset() : read_, size_);
  }

 private:
  struct Block final : RowBlock {
    std::int64_t rows() const override { return static_cast<std::int64_t>(ends.size()); }
    Status ForEach(const std::function<Status(const Row&)>& each) const override {
      Row row;
      std::size_t begin = 0;
      for (const std::size_t end : ends) {
        row.clear();
        TakeApart(std::string_view(bytes).substr(begin, end - begin), row);
        COHORT_RETURN_IF_ERROR(each(row));
        begin = end;
      }
      return {};
    }

    std::string bytes;
    std::vector<std::size_t> ends;  // of each record
  };

  // The next record that is sound, or the error that may not be passed.
  Result<std::optional<std::string_view>> Read() {
    while (!cut_) {
      const std::int64_t ordinal = reader_->ordinal();
      auto record = reader_->Next();
      if (record.ok() || corrupt_ == nullptr || record.status().code() != StatusCode::kDataLoss) {
        return record;
      }
      const bool cut = reader_->ordinal() == ordinal;
      COHORT_RETURN_IF_ERROR(corrupt_->Add(record.status(), cut));
      cut_ = cut;
    }
    return std::optional<std::string_view>();
  }

  static void TakeApart(std::string_view record, Row& row) {
    const auto example = ParseTfSequenceExample(record);
    const bool is_example = example.ok() && (record.size() <= 2 || !example->context.empty() ||
                                             !example->steps.empty());
    if (!is_example) {
      row.emplace_back("record", Value::Of(std::string(record)));
      return;
    }
    for (const auto& [name, feature] : example->context) {
      row.emplace_back(name, ValueOf(feature));
    }
    for (const auto& [name, steps] : example->steps) {
      for (std::size_t i = 0; i < steps.size(); ++i) {
        row.emplace_back(name + "[" + std::to_string(i) + "]", ValueOf(steps[i]));
      }
    }
  }

  CorruptBudget* corrupt_ = nullptr;
  bool cut_ = false;        // nothing more can be found
  std::uint64_t read_ = 0;  // bytes of the file
  std::uint64_t size_ = 0;
  std::unique_ptr<WatchedFiles> files_;
  std::unique_ptr<io::RecordReader> reader_;
};

template <typename T>
std::optional<T> Parse(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  return whole ? std::optional(value) : std::nullopt;
}

// What all cells of a column can be read as.
enum class Cell { kNothing, kInt64, kFloat32, kFloat64, kText };

bool IsMissing(const CsvField& field) {
  return !field.quoted && (field.text.empty() || field.text == "?");
}

// Whether the decimal number has no more digits than a float32 gives back.
bool FitsFloat32(double value) {
  const auto narrow = static_cast<float>(value);
  std::array<char, 64> text{};
  const auto end = std::to_chars(text.data(), text.data() + text.size(), narrow).ptr;
  return Parse<double>({text.data(), static_cast<std::size_t>(end - text.data())}) == value;
}

Cell CellOf(const CsvField& field) {
  const std::string_view text = field.text;
  if (IsMissing(field)) {
    return Cell::kNothing;
  }
  // "007" and "+1" would not be written back as they are.
  const std::string_view digits = text.starts_with('-') ? text.substr(1) : text;
  if (field.quoted || text.starts_with('+') ||
      (digits.size() > 1 && digits[0] == '0' && digits[1] != '.')) {
    return Cell::kText;
  }
  if (Parse<std::int64_t>(text).has_value() && text != "-0") {
    return Cell::kInt64;
  }
  const auto number = Parse<double>(text);
  if (!number.has_value() || !std::isfinite(*number)) {
    return Cell::kText;
  }
  return FitsFloat32(*number) ? Cell::kFloat32 : Cell::kFloat64;
}

Cell Both(Cell a, Cell b) {
  if (a == Cell::kNothing || a == b) {
    return b;
  }
  if (b == Cell::kNothing) {
    return a;
  }
  if (a == Cell::kText || b == Cell::kText) {
    return Cell::kText;
  }
  return std::max(a, b);
}

// A CSV file, whole.
struct CsvTable {
  // Where a block of rows begins.
  struct Start {
    std::size_t offset = 0;
    std::int64_t line = 0;
    std::int64_t rows = 0;
  };

  Value ValueAt(const CsvField& field, std::size_t column) const {
    if (IsMissing(field)) {
      return {};
    }
    switch (cells[column]) {
      case Cell::kInt64:
        return Scalar(*Parse<std::int64_t>(field.text));
      case Cell::kFloat32:
        return Scalar(static_cast<float>(*Parse<double>(field.text)));
      case Cell::kFloat64:
        return Scalar(*Parse<double>(field.text));
      default:
        return Value::Of(std::string(field.text));
    }
  }
  // `each` of the fields of all rows of a block, which were read before.
  template <typename Each>
  Status ForEachRow(const Start& start, const Each& each) const {
    CsvReader reader(content, delimiter, /*trim=*/true);
    reader.Seek(start.offset, start.line);
    std::vector<CsvField> fields;
    for (std::int64_t i = 0; i < start.rows; ++i) {
      COHORT_RETURN_IF_ERROR(reader.Next(fields).status());
      COHORT_RETURN_IF_ERROR(each(fields));
    }
    return {};
  }

  template <typename T>
  static Value Scalar(T value) {
    return Value::Of(Tensor::Of<T>(Shape(), {&value, 1}));
  }

  std::string content;
  char delimiter = ',';
  std::vector<std::string> names;
  std::vector<Cell> cells;  // by column
  std::vector<Start> starts;
};

class CsvRows final : public RowReader {
 public:
  // Walks the whole file: where its rows lie, and what the columns are.
  static Result<std::unique_ptr<RowReader>> Open(const std::string& path, std::string content,
                                                 char delimiter, ThreadPool* pool) {
    auto table = std::make_shared<CsvTable>();
    table->content = std::move(content);
    table->delimiter = delimiter;
    Status status = FindRows(*table);
    if (!status.ok()) {
      return status.Annotate(path);
    }
    COHORT_RETURN_IF_ERROR(FindCells(*table, pool));
    auto rows = std::make_unique<CsvRows>();
    rows->table_ = std::move(table);
    return rows;
  }

  Result<bool> Next(Row& row) override {
    row.clear();
    if (left_ == 0) {
      if (block_ == table_->starts.size()) {
        return false;
      }
      if (reader_ == nullptr) {
        reader_ = std::make_unique<CsvReader>(table_->content, table_->delimiter, /*trim=*/true);
        reader_->Seek(table_->starts[0].offset, table_->starts[0].line);
      }
      left_ = table_->starts[block_++].rows;
    }
    COHORT_RETURN_IF_ERROR(reader_->Next(fields_).status());
    --left_;
    for (std::size_t i = 0; i < fields_.size(); ++i) {
      row.emplace_back(table_->names[i], table_->ValueAt(fields_[i], i));
    }
    return true;
  }
  Result<std::shared_ptr<const RowBlock>> NextBlock() override {
    std::shared_ptr<const RowBlock> block;
    if (block_ < table_->starts.size()) {
      block = std::make_shared<Block>(table_, table_->starts[block_++]);
    }
    return block;
  }
  double part() const override {
    return reader_ != nullptr ? PartOf(reader_->offset(), table_->content.size())
                              : PartOf(block_, table_->starts.size());
  }

 private:
  class Block final : public RowBlock {
   public:
    Block(std::shared_ptr<const CsvTable> table, const CsvTable::Start& start)
        : table_(std::move(table)), start_(start) {}
    std::int64_t rows() const override { return start_.rows; }
    Status ForEach(const std::function<Status(const Row&)>& each) const override {
      Row row;
      return table_->ForEachRow(start_, [&](const std::vector<CsvField>& fields) {
        row.clear();
        for (std::size_t i = 0; i < fields.size(); ++i) {
          row.emplace_back(table_->names[i], table_->ValueAt(fields[i], i));
        }
        return each(row);
      });
    }

   private:
    std::shared_ptr<const CsvTable> table_;  // owners: the blocks and the reader
    CsvTable::Start start_;
  };

  static Status FindRows(CsvTable& table) {
    CsvReader reader(table.content, table.delimiter, /*trim=*/true);
    std::vector<CsvField> fields;
    COHORT_RETURN_IF_ERROR(reader.Next(fields).status());
    for (const CsvField& field : fields) {
      table.names.emplace_back(field.text);
    }
    for (;;) {
      const CsvTable::Start next{reader.offset(), reader.next_line()};
      COHORT_ASSIGN_OR_RETURN(const bool more, reader.Next(fields));
      if (!more) {
        return {};
      }
      if (fields.size() != table.names.size()) {
        return DataLoss("line " + std::to_string(reader.line()) + ": " +
                        std::to_string(fields.size()) + " fields, the header has " +
                        std::to_string(table.names.size()));
      }
      if (table.starts.empty() || table.starts.back().rows == kBlockRows) {
        table.starts.push_back(next);
      }
      ++table.starts.back().rows;
    }
  }

  static Status FindCells(CsvTable& table, ThreadPool* pool) {
    struct Found {
      std::vector<Cell> cells;
      std::vector<char> large;  // an integer that float32 does not give back
      Status status;
    };
    std::vector<Found> found(table.starts.size());
    const auto look = [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t b = first; b < last; ++b) {
        Found& at = found[static_cast<std::size_t>(b)];
        at.cells.assign(table.names.size(), Cell::kNothing);
        at.large.assign(table.names.size(), 0);
        at.status = table.ForEachRow(
            table.starts[static_cast<std::size_t>(b)], [&at](const std::vector<CsvField>& fields) {
              for (std::size_t i = 0; i < fields.size(); ++i) {
                const Cell cell = CellOf(fields[i]);
                if (cell == Cell::kInt64 && at.large[i] == 0) {
                  const auto value = static_cast<double>(*Parse<std::int64_t>(fields[i].text));
                  at.large[i] = FitsFloat32(value) ? 0 : 1;
                }
                at.cells[i] = Both(at.cells[i], cell);
              }
              return Status();
            });
      }
    };
    const auto blocks = static_cast<std::int64_t>(found.size());
    if (pool != nullptr) {
      pool->ParallelFor(blocks, 1, look);
    } else {
      look(0, blocks);
    }
    table.cells.assign(table.names.size(), Cell::kNothing);
    std::vector<bool> large(table.names.size());
    for (const Found& at : found) {
      COHORT_RETURN_IF_ERROR(at.status);
      for (std::size_t i = 0; i < large.size(); ++i) {
        table.cells[i] = Both(table.cells[i], at.cells[i]);
        large[i] = large[i] || at.large[i] != 0;
      }
    }
    for (std::size_t i = 0; i < large.size(); ++i) {
      if (table.cells[i] == Cell::kFloat32 && large[i]) {
        table.cells[i] = Cell::kFloat64;
      }
    }
    return {};
  }

  std::shared_ptr<const CsvTable> table_;
  std::unique_ptr<CsvReader> reader_;  // of Next
  std::vector<CsvField> fields_;
  std::size_t block_ = 0;  // that comes next
  std::int64_t left_ = 0;  // rows of the block before it that Next has not given
};

// A data set's examples in the order of its source.
class SourceRows final : public RowReader {
 public:
  explicit SourceRows(Dataset dataset) : dataset_(std::move(dataset)) {}

  Result<bool> Next(Row& row) override {
    row.clear();
    if (next_ >= dataset_.size()) {
      return false;
    }
    COHORT_ASSIGN_OR_RETURN(Example example, dataset_.source().Read(next_++));
    for (auto& [name, tensor] : example) {
      row.emplace_back(name, Value::Of(std::move(tensor)));
    }
    return true;
  }
  Result<std::int64_t> Skip(std::int64_t rows) override {
    const std::int64_t skipped = std::min(rows, dataset_.size() - next_);
    next_ += skipped;
    return skipped;
  }
  double part() const override {
    return PartOf(static_cast<std::uint64_t>(next_), static_cast<std::uint64_t>(dataset_.size()));
  }

 private:
  Dataset dataset_;
  std::int64_t next_ = 0;
};

// A tensor's rows, or one row where it has no axis.
class TensorRows final : public RowReader {
 public:
  TensorRows(std::string name, Tensor tensor, bool whole)
      : name_(std::move(name)), tensor_(std::move(tensor)), whole_(whole) {}

  Result<bool> Next(Row& row) override {
    row.clear();
    if (next_ >= (whole_ ? 1 : tensor_.shape()[0])) {
      return false;
    }
    if (whole_) {
      row.emplace_back(name_, Value::Of(tensor_));
    } else {
      std::vector<std::int64_t> dims = tensor_.shape().dims();
      dims.erase(dims.begin());
      row.emplace_back(name_,
                       Value::Of(tensor_.Rows(next_, next_ + 1).Reshaped(Shape(std::move(dims)))));
    }
    ++next_;
    return true;
  }
  double part() const override {
    return whole_ ? 1
                  : PartOf(static_cast<std::uint64_t>(next_),
                           static_cast<std::uint64_t>(tensor_.shape()[0]));
  }

 private:
  std::string name_;
  Tensor tensor_;
  bool whole_;
  std::int64_t next_ = 0;
};

class TarRows final : public RowReader {
 public:
  TarRows(std::string path, std::shared_ptr<const RandomAccessFile> file,
          std::vector<TarMember> members)
      : path_(std::move(path)), file_(std::move(file)), members_(std::move(members)) {}

  Result<bool> Next(Row& row) override { return Read(&row); }
  Result<std::int64_t> Skip(std::int64_t rows) override {
    for (std::int64_t i = 0; i < rows; ++i) {
      COHORT_ASSIGN_OR_RETURN(const bool more, Read(nullptr));
      if (!more) {
        return i;
      }
    }
    return rows;
  }
  double part() const override { return PartOf(next_, members_.size()); }

 private:
  Result<bool> Read(Row* row) {
    std::string key;
    if (row != nullptr) {
      row->clear();
    }
    for (; next_ < members_.size(); ++next_) {
      const TarMember& member = members_[next_];
      const SampleName name = SplitSampleName(member.name);
      if (name.key.empty()) {
        continue;
      }
      if (!key.empty() && name.key != key) {
        break;
      }
      if (row != nullptr) {
        if (key.empty()) {
          row->emplace_back("__key__", Value::Of(name.key));
        }
        std::string content(member.size, '\0');
        COHORT_RETURN_IF_ERROR(
            ReadExactly(*file_, path_, member.begin, std::as_writable_bytes(std::span(content))));
        row->emplace_back(name.extension, Value::Of(std::move(content)));
      }
      key = name.key;
    }
    return !key.empty();
  }

  std::string path_;
  std::shared_ptr<const RandomAccessFile> file_;  // owner: this
  std::vector<TarMember> members_;
  std::size_t next_ = 0;
};

class TextRows final : public RowReader {
 public:
  explicit TextRows(std::string content) : content_(std::move(content)), rest_(content_) {}

  Result<bool> Next(Row& row) override {
    row.clear();
    if (rest_.empty()) {
      return false;
    }
    const std::size_t end = std::min(rest_.find('\n'), rest_.size());
    std::string_view line = rest_.substr(0, end);
    rest_.remove_prefix(std::min(end + 1, rest_.size()));
    if (line.ends_with('\r')) {
      line.remove_suffix(1);
    }
    row.emplace_back("line", Value::Of(std::string(line)));
    return true;
  }
  double part() const override { return PartOf(content_.size() - rest_.size(), content_.size()); }

 private:
  std::string content_;
  std::string_view rest_;
};

class NoRows final : public RowReader {
 public:
  Result<bool> Next(Row& /*row*/) override { return false; }
  double part() const override { return 1; }
};

std::size_t BytesOf(const Row& row) {
  std::size_t bytes = 0;
  for (const auto& [name, value] : row) {
    bytes +=
        value.kind == Value::Kind::kNumbers
            ? static_cast<std::size_t>(value.numbers.elements()) * SizeOf(value.numbers.dtype())
            : 0;
    for (const std::string& text : value.strings) {
      bytes += text.size();
    }
  }
  return bytes;
}

struct RowsInMemory final : RowBlock {
  std::int64_t rows() const override { return static_cast<std::int64_t>(all.size()); }
  Status ForEach(const std::function<Status(const Row&)>& each) const override {
    for (const Row& row : all) {
      COHORT_RETURN_IF_ERROR(each(row));
    }
    return {};
  }

  std::vector<Row> all;
};

Result<std::unique_ptr<RowReader>> OpenContent(FileSystem& files, const std::string& path,
                                               const FileKind& kind, ThreadPool* pool) {
  COHORT_ASSIGN_OR_RETURN(const auto file, OpenMaybeGzip(files, path));
  if (kind.format == Format::kTar) {
    COHORT_ASSIGN_OR_RETURN(auto members, IndexTar(*file, path));
    return std::make_unique<TarRows>(path, file, std::move(members));
  }
  std::string content(file->size(), '\0');
  COHORT_RETURN_IF_ERROR(ReadExactly(*file, path, 0, std::as_writable_bytes(std::span(content))));
  if (kind.format == Format::kImage) {
    Result<Tensor> image = DecodeImage(content);
    if (!image.ok()) {
      return image.status().Annotate(path);
    }
    return std::make_unique<TensorRows>("image", std::move(image).value(), /*whole=*/true);
  }
  if (kind.format == Format::kText) {
    return std::make_unique<TextRows>(std::move(content));
  }
  return CsvRows::Open(path, std::move(content), kind.delimiter, pool);
}

}  // namespace

std::int64_t Value::size() const {
  switch (kind) {
    case Kind::kMissing:
      return 0;
    case Kind::kNumbers:
      return numbers.elements();
    case Kind::kStrings:
      break;
  }
  return static_cast<std::int64_t>(strings.size());
}

Result<std::int64_t> RowReader::Skip(std::int64_t rows) {
  Row row;
  for (std::int64_t i = 0; i < rows; ++i) {
    COHORT_ASSIGN_OR_RETURN(const bool more, Next(row));
    if (!more) {
      return i;
    }
  }
  return rows;
}

Result<std::shared_ptr<const RowBlock>> RowReader::NextBlock() {
  auto block = std::make_shared<RowsInMemory>();
  for (std::size_t bytes = 0; block->rows() < kBlockRows && bytes < kBlockBytes;) {
    Row row;
    COHORT_ASSIGN_OR_RETURN(const bool more, Next(row));
    if (!more) {
      break;
    }
    bytes += BytesOf(row);
    block->all.push_back(std::move(row));
  }
  if (block->rows() == 0) {
    block.reset();
  }
  return std::shared_ptr<const RowBlock>(std::move(block));
}

Result<std::unique_ptr<RowReader>> RowReader::Open(FileSystem& files, const std::string& path,
                                                   ThreadPool* pool, CorruptBudget* corrupt) {
  COHORT_ASSIGN_OR_RETURN(const FileKind kind, KindOf(files, path));
  switch (kind.format) {
    case Format::kEmpty:
      return std::make_unique<NoRows>();
    case Format::kTfRecord:
      return RecordRows::Open(files, path, corrupt);
    case Format::kNpy: {
      COHORT_ASSIGN_OR_RETURN(Tensor tensor, ReadNpy(files, path));
      const bool whole = tensor.shape().rank() == 0;
      return std::make_unique<TensorRows>("values", std::move(tensor), whole);
    }
    case Format::kIdx: {
      COHORT_ASSIGN_OR_RETURN(Tensor tensor, ReadIdx(files, path));
      const bool whole = tensor.shape().rank() == 0;
      return std::make_unique<TensorRows>("values", std::move(tensor), whole);
    }
    case Format::kSafetensors: {
      COHORT_ASSIGN_OR_RETURN(Dataset dataset, Safetensors(path, {.files = &files}));
      return std::make_unique<SourceRows>(std::move(dataset));
    }
    default:
      return OpenContent(files, path, kind, pool);
  }
}

}  // namespace cohort::data
