#include <cohort/data/csv.h>

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <set>

#include <cohort/core/thread_pool.h>
#include <cohort/io/compression.h>

#include "sources/content.h"
#include "sources/csv_column.h"
#include "sources/csv_reader.h"
#include "sources/csv_rows.h"
#include "sources/file_table.h"
#include "sources/holds.h"
#include "sources/memory_source.h"

namespace cohort::data {
namespace {

// The lines that rows begin at: a row's is one more than that of the row before, except where a run
// begins.
struct LineRun {
  std::int64_t row = 0;
  std::int64_t line = 0;
};

// Rows of several files, held as tensors.
class CsvSource final : public MemorySource {
 public:
  CsvSource(const Example& tensors, std::int64_t rows, FileTable files, std::vector<LineRun> lines)
      : MemorySource(tensors, rows), files_(std::move(files)), lines_(std::move(lines)) {}

  std::string Where(std::int64_t index) const override {
    const LineRun& run =
        *(std::upper_bound(lines_.begin(), lines_.end(), index,
                           [](std::int64_t row, const LineRun& next) { return row < next.row; }) -
          1);
    return files_.ranges()[files_.Find(index)].name + ", line " +
           std::to_string(run.line + index - run.row);
  }
  std::vector<FileRange> files() const override { return files_.ranges(); }

 private:
  FileTable files_;
  std::vector<LineRun> lines_;
};

// A tensor of `bytes` that are written before they are read.
std::shared_ptr<std::byte> RawMemory(std::size_t bytes) {
  constexpr std::size_t kCacheLine = 64;
  constexpr std::size_t kHugePage = std::size_t{2} << 20;
  const std::size_t alignment = bytes < kHugePage ? kCacheLine : kHugePage;
  const std::size_t size = std::max((bytes + alignment - 1) / alignment * alignment, alignment);
  void* const memory = std::aligned_alloc(alignment, size);
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  if (alignment == kHugePage) {
    static_cast<void>(::madvise(memory, size, MADV_HUGEPAGE));  // a wish
  }
  return {static_cast<std::byte*>(memory), [](std::byte* p) { std::free(p); }};
}

Tensor RawTensor(DType dtype, const Shape& shape) {
  return {dtype, shape, RawMemory(static_cast<std::size_t>(shape.elements()) * SizeOf(dtype))};
}

// What is looked for before a part is read.
struct Marks {
  std::int64_t feeds = 0;
  bool quotes = false;
};

Marks FindMarks(std::string_view text) {
  Marks marks{.feeds = 0, .quotes = std::memchr(text.data(), '"', text.size()) != nullptr};
  for (std::size_t at = 0; at < text.size();) {
    // Few enough for a sum of bytes, which is added up a register at a time.
    const std::string_view some = text.substr(at, 255);
    std::uint8_t feeds = 0;
    for (const char c : some) {
      feeds = static_cast<std::uint8_t>(feeds + (c == '\n' ? 1 : 0));
    }
    marks.feeds += feeds;
    at += some.size();
  }
  return marks;
}

// A file, whole.
class Content {
 public:
  static Result<Content> Read(FileSystem& files, const std::string& path, ThreadPool* pool);
  // Bytes [begin, end) of a raw file.
  static Result<Content> Read(const RandomAccessFile& file, const std::string& path,
                              std::size_t begin, std::size_t end, ThreadPool* pool);
  // CsvRows::kSlack bytes behind it can be read.
  std::string_view text() const {
    return {memory_ == nullptr ? unpacked_.data() : reinterpret_cast<const char*>(memory_.get()),
            size_};
  }

 private:
  std::string unpacked_;
  std::shared_ptr<std::byte> memory_;  // instead, if it is not null
  std::size_t size_ = 0;
};

constexpr std::size_t kLarge = std::size_t{1} << 20;  // bytes from which threads and parts pay

Result<Content> Content::Read(FileSystem& files, const std::string& path, ThreadPool* pool) {
  Content content;
  COHORT_ASSIGN_OR_RETURN(const auto file, files.OpenForRead(path));
  std::array<std::byte, 2> magic{};
  COHORT_ASSIGN_OR_RETURN(const std::size_t n, file->Read(0, magic));
  const bool packed = n == 2 && magic == std::array{std::byte{0x1f}, std::byte{0x8b}};
  if (packed || file->size() < kLarge) {
    COHORT_ASSIGN_OR_RETURN(content.unpacked_, io::ReadMaybeCompressed(files, path));
    content.size_ = content.unpacked_.size();
    content.unpacked_.resize(content.size_ + CsvRows::kSlack);
    return content;
  }
  return Read(*file, path, 0, file->size(), pool);
}

Result<Content> Content::Read(const RandomAccessFile& file, const std::string& path,
                              std::size_t begin, std::size_t end, ThreadPool* pool) {
  Content content;
  const std::size_t size = end - begin;
  content.size_ = size;
  content.memory_ = RawMemory(size + CsvRows::kSlack);
  std::memset(content.memory_.get() + size, 0, CsvRows::kSlack);
  constexpr std::size_t kSlice = std::size_t{4} << 20;
  const auto slices = static_cast<std::int64_t>((size + kSlice - 1) / kSlice);
  std::vector<Status> status(static_cast<std::size_t>(slices));
  const auto read = [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      const std::size_t at = static_cast<std::size_t>(i) * kSlice;
      const std::span<std::byte> out(content.memory_.get() + at, std::min(kSlice, size - at));
      const Result<std::size_t> got = file.Read(begin + at, out);
      status[static_cast<std::size_t>(i)] =
          !got.ok()            ? got.status()
          : *got == out.size() ? Status()
                               : DataLoss(path + ": of its " + std::to_string(file.size()) +
                                          " bytes only " + std::to_string(begin + at + *got) +
                                          " are there [it was cut while it was read]");
    }
  };
  if (pool != nullptr) {
    pool->ParallelFor(slices, 1, read);
  } else {
    read(0, slices);
  }
  for (const Status& one : status) {
    COHORT_RETURN_IF_ERROR(one);
  }
  return content;
}

// The header line of a raw file.
struct Header {
  std::string text;  // and what was read behind it
  std::vector<std::string> names;
  std::size_t end = 0;  // where the rows begin
};

Result<std::unique_ptr<Header>> ReadHeader(const RandomAccessFile& file, const std::string& path,
                                           const CsvOptions& options) {
  constexpr std::size_t kMostHeader = std::size_t{16} << 20;
  auto header = std::make_unique<Header>();
  for (std::size_t size = std::size_t{1} << 12;; size *= 4) {
    header->text.resize(std::min<std::uint64_t>(size, file.size()));
    COHORT_RETURN_IF_ERROR(
        ReadExactly(file, path, 0, std::as_writable_bytes(std::span(header->text))));
    CsvReader reader(header->text, options.delimiter, options.trim);
    std::vector<CsvField> fields;
    const Result<bool> more = reader.Next(fields);
    const bool whole = header->text.size() == file.size();
    if (!whole && (!more.ok() || !*more || reader.offset() == header->text.size())) {
      if (size >= kMostHeader) {
        return DataLoss(path + ": the header line does not end within " +
                        std::to_string(kMostHeader >> 20) + " MiB" +
                        (more.ok() ? "" : ": " + more.status().message()));
      }
      continue;  // it may go on
    }
    if (!more.ok()) {
      return more.status().Annotate(path);
    }
    if (!*more) {
      return DataLoss(path + ": empty, not even a header line");
    }
    header->end = reader.offset();
    for (const CsvField& field : fields) {
      header->names.emplace_back(field.text);
    }
    return header;
  }
}

// Where the first line behind byte `at` - 1 begins; the end of the file where none does.
Result<std::size_t> LineBehind(const RandomAccessFile& file, const std::string& path,
                               std::size_t at) {
  std::string piece;
  for (std::size_t begin = at - 1; begin < file.size(); begin += piece.size()) {
    constexpr std::size_t kPiece = std::size_t{1} << 12;
    piece.resize(std::min<std::uint64_t>(kPiece, file.size() - begin));
    COHORT_RETURN_IF_ERROR(
        ReadExactly(file, path, begin, std::as_writable_bytes(std::span(piece))));
    if (const std::size_t feed = piece.find('\n'); feed != std::string::npos) {
      return begin + feed + 1;
    }
  }
  return file.size();
}

// Rows that stand in a block of memory one after another.
struct Piece {
  std::size_t block = 0;
  std::int64_t begin = 0;  // row of the block
  std::int64_t rows = 0;
  // Of each column with an open vocabulary: what position a position found here is; the first is
  // that of a missing value.
  std::vector<std::vector<std::int64_t>> positions;
};

// Where a column's values go in the tensor of its feature.
struct Place {
  std::string feature;
  DType dtype = DType::kFloat32;
  std::size_t offset = 0;  // bytes, in a row
  std::size_t step = 0;    // bytes of a row
};

// Columns in, features out.
class Table {
 public:
  static Result<Table> Make(const CsvOptions& options);
  Status ReadFile(const std::string& path);
  // The rows that lie in options.part of all files.
  Status ReadPart(const std::vector<std::string>& paths);
  CsvData Finish() &&;

 private:
  // A part of a file that is read by itself.
  struct Part {
    std::string_view content;
    std::int64_t first_line = 0;
    std::int64_t begin = 0;  // row of the block
    std::int64_t rows = 0;
    std::vector<CsvValues> values;  // of each column
    std::vector<LineRun> lines;     // rows from the part's first
    Status status;
  };

  explicit Table(const CsvOptions& options) : options_(options) {}
  Status TakeHeader(const std::string& path, const std::vector<std::string>& header);
  // The rows of a content that begins with that line; errors call it `name`.
  Status ReadContent(const std::string& name, std::string_view content, std::int64_t line);
  // The content, which begins with that line, in parts that end with one, their lines counted.
  std::vector<Part> Cut(std::string_view content, std::int64_t line) const;
  void ReadRows(const std::string& path, Part& part) const;
  // Rows of every feature, for `rows` of them.
  Example Block(std::int64_t rows) const;
  void Run(std::size_t count, const std::function<void(std::size_t)>& body) const;
  Example Tensors();

  CsvOptions options_;
  std::vector<Place> places_;                // of each column
  std::vector<CsvVocabulary> vocabularies_;  // of each column, of all files
  std::map<std::string, FeatureSpec> features_;
  std::unique_ptr<ThreadPool> pool_;
  std::vector<std::string> header_;  // of the first file
  std::string header_path_;
  std::vector<std::size_t> fields_;  // of each column, in a row
  FileTable files_;
  std::vector<LineRun> lines_;
  std::vector<Example> blocks_;
  std::vector<Piece> pieces_;
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
  if (options.part.count < 1 || options.part.index < 0 ||
      options.part.index >= options.part.count) {
    return InvalidArgument("CSV: part " + std::to_string(options.part.index) + " of " +
                           std::to_string(options.part.count));
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
    if (options.part.count > 1 && column.type == CsvType::kCategory && column.categories.empty()) {
      return InvalidArgument("CSV: column '" + column.name +
                             "' is read in parts, each of which would find other categories [name "
                             "them, or hash the column]");
    }
    if (column.buckets < 0 || (column.missing.has_value() && !std::isfinite(*column.missing))) {
      return InvalidArgument("CSV: column '" + column.name +
                             "': buckets are not negative, `missing` is finite");
    }
    const DType stored = column.type == CsvType::kFloat32 ? DType::kFloat32 : DType::kInt64;
    if (column.missing.has_value() && !Holds(stored, *column.missing)) {
      return InvalidArgument("CSV: column '" + column.name + "' is " +
                             std::string(DTypeName(stored)) + ", which has no " +
                             std::to_string(*column.missing) + " for `missing`");
    }
    if (std::set<std::string>(column.categories.begin(), column.categories.end()).size() !=
        column.categories.size()) {
      return InvalidArgument("CSV: column '" + column.name + "' has a category twice");
    }
    const DType dtype = column.type == CsvType::kFloat32 ? DType::kFloat32 : DType::kInt64;
    FeatureSpec& feature = table.features_[FeatureOf(column)];
    const std::size_t offset = feature.name.empty() ? 0 : feature.bytes();
    feature.name = FeatureOf(column);
    feature.dtype = dtype;
    feature.shape = column.feature.empty()
                        ? Shape({})
                        : Shape({static_cast<std::int64_t>(offset / SizeOf(dtype)) + 1});
    table.places_.push_back({feature.name, dtype, offset, 0});
    table.vocabularies_.emplace_back(column.categories);
  }
  for (Place& place : table.places_) {
    place.step = table.features_.at(place.feature).bytes();
  }
  if (options.threads > 1) {
    table.pool_ = std::make_unique<ThreadPool>(options.threads, "csv");
  }
  return table;
}

Status Table::TakeHeader(const std::string& path, const std::vector<std::string>& header) {
  std::string listed;
  for (const std::string& name : header) {
    listed += (listed.empty() ? "" : ", ") + name;
  }
  if (!header_path_.empty()) {
    return header == header_ ? Status()
                             : InvalidArgument(path + ": the header is not that of " +
                                               header_path_ + ": " + listed);
  }
  header_ = header;
  header_path_ = path;
  for (const CsvColumn& column : options_.columns) {
    const std::string& name = column.name;
    const auto it = std::find(header.begin(), header.end(), name);
    if (it == header.end()) {
      return NotFound(path + ": no column '" + name + "'; the header has: " + listed);
    }
    if (std::count(header.begin(), header.end(), name) != 1) {
      return InvalidArgument(path + ": the header has column '" + name + "' more than once");
    }
    fields_.push_back(static_cast<std::size_t>(it - header.begin()));
  }
  return {};
}

std::vector<Table::Part> Table::Cut(std::string_view content, std::int64_t line) const {
  constexpr std::size_t kPartsOfAThread = 4;  // some take longer than others
  std::vector<Part> parts;
  const std::size_t n = content.size() < kLarge || pool_ == nullptr
                            ? 1
                            : kPartsOfAThread * static_cast<std::size_t>(options_.threads);
  for (std::size_t i = 1, at = 0; i <= n && at < content.size(); ++i) {
    const std::size_t feed =
        i == n ? std::string_view::npos : content.find('\n', std::max(at, content.size() / n * i));
    const std::size_t end = feed == std::string_view::npos ? content.size() : feed + 1;
    parts.emplace_back().content = content.substr(at, end - at);
    at = end;
  }
  std::vector<Marks> marks(parts.size());
  Run(parts.size(), [&](std::size_t i) { marks[i] = FindMarks(parts[i].content); });
  // Without quotes every line feed ends a row.
  if (parts.size() > 1 &&
      std::any_of(marks.begin(), marks.end(), [](const Marks& one) { return one.quotes; })) {
    for (std::size_t i = 1; i < marks.size(); ++i) {
      marks[0].feeds += marks[i].feeds;
    }
    parts.resize(1);
    parts[0].content = content;
  }
  std::int64_t rows = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    parts[i].first_line = line;
    parts[i].begin = rows;
    line += marks[i].feeds;
    rows += marks[i].feeds + (parts[i].content.ends_with('\n') ? 0 : 1);
    parts[i].rows = rows - parts[i].begin;  // at most
  }
  return parts;
}

Status Table::ReadFile(const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(const Content whole, Content::Read(*options_.files, path, pool_.get()));
  const std::string_view content = whole.text();
  CsvReader reader(content, options_.delimiter, options_.trim);
  std::vector<CsvField> fields;
  const Result<bool> more = reader.Next(fields);
  if (!more.ok()) {
    return more.status().Annotate(path);
  }
  if (!*more) {
    return DataLoss(path + ": empty, not even a header line");
  }
  std::vector<std::string> header;
  header.reserve(fields.size());
  for (const CsvField& field : fields) {
    header.emplace_back(field.text);
  }
  COHORT_RETURN_IF_ERROR(TakeHeader(path, header));
  return ReadContent(path, content.substr(reader.offset()),
                     FindMarks(content.substr(0, reader.offset())).feeds + 1);
}

Status Table::ReadPart(const std::vector<std::string>& paths) {
  std::vector<std::uint64_t> begins = {0};  // of each file among the bytes of all, and the end
  for (const std::string& path : paths) {   // one at a time: there may be more than may be open
    COHORT_ASSIGN_OR_RETURN(const auto opened, options_.files->OpenForRead(path));
    if (opened->size() == 0) {
      return DataLoss(path + ": empty, not even a header line");
    }
    begins.push_back(begins.back() + opened->size());
  }
  const auto cut = [&](int part) {
    const auto share = static_cast<unsigned __int128>(begins.back()) * static_cast<unsigned>(part) /
                       static_cast<unsigned>(options_.part.count);
    return static_cast<std::uint64_t>(share);
  };
  const std::uint64_t begin = cut(options_.part.index);
  const std::uint64_t end = cut(options_.part.index + 1);
  for (std::size_t i = 0; i < paths.size(); ++i) {
    const bool here = begin < begins[i + 1] && begins[i] < end;
    if (!here && i > 0) {
      continue;  // of the first the header is needed
    }
    const std::string& path = paths[i];
    COHORT_ASSIGN_OR_RETURN(const auto opened, options_.files->OpenForRead(path));
    const RandomAccessFile& file = *opened;
    if (file.size() != begins[i + 1] - begins[i]) {
      return DataLoss(path + ": its size changed while it was read");
    }
    std::array<std::byte, 2> magic{};
    COHORT_ASSIGN_OR_RETURN(const std::size_t n, file.Read(0, magic));
    if (n == 2 && magic == std::array{std::byte{0x1f}, std::byte{0x8b}}) {
      return InvalidArgument(path + ": gzip has no parts [unpack it, or give whole files]");
    }
    COHORT_ASSIGN_OR_RETURN(const auto header, ReadHeader(file, path, options_));
    COHORT_RETURN_IF_ERROR(TakeHeader(path, header->names));
    if (!here) {
      continue;
    }
    const auto row_behind = [&](std::uint64_t at) -> Result<std::size_t> {
      return at <= header->end ? header->end : LineBehind(file, path, at);
    };
    COHORT_ASSIGN_OR_RETURN(const std::size_t first,
                            row_behind(begin < begins[i] ? 0 : begin - begins[i]));
    COHORT_ASSIGN_OR_RETURN(const std::size_t last,
                            row_behind(end >= begins[i + 1] ? file.size() : end - begins[i]));
    COHORT_ASSIGN_OR_RETURN(const Content content,
                            Content::Read(file, path, first, std::max(first, last), pool_.get()));
    const std::string name = path + ", part " + std::to_string(options_.part.index) + " of " +
                             std::to_string(options_.part.count) + " from byte " +
                             std::to_string(first);
    Status status =
        ReadContent(name, content.text(), FindMarks(header->text.substr(0, header->end)).feeds + 1);
    if (!status.ok()) {
      return last < file.size() && status.message().find("never closed") != std::string::npos
                 ? InvalidArgument(status.message() + ": byte " + std::to_string(last) +
                                   ", where the next part begins, lies in quotes [another number "
                                   "of parts, or no line feeds in quotes]")
                 : status;
    }
  }
  return {};
}

Status Table::ReadContent(const std::string& path, std::string_view content, std::int64_t line) {
  std::vector<Part> parts = Cut(content, line);
  blocks_.push_back(Block(parts.empty() ? 0 : parts.back().begin + parts.back().rows));
  Run(parts.size(), [&](std::size_t i) { ReadRows(path, parts[i]); });
  const std::int64_t first = files_.size();
  std::int64_t rows = 0;
  for (const Part& part : parts) {
    COHORT_RETURN_IF_ERROR(part.status);  // of the first line that is wrong
    for (const LineRun& run : part.lines) {
      lines_.push_back({first + rows + run.row, run.line});
    }
    Piece& piece = pieces_.emplace_back(Piece{
        .block = blocks_.size() - 1, .begin = part.begin, .rows = part.rows, .positions = {}});
    for (std::size_t i = 0; i < vocabularies_.size(); ++i) {
      std::vector<std::int64_t>& positions = piece.positions.emplace_back();
      if (options_.columns[i].type == CsvType::kCategory && vocabularies_[i].open()) {
        positions.push_back(CsvVocabulary::kNone);
        for (const std::string& text : part.values[i].found()) {
          positions.push_back(vocabularies_[i].FindOrAdd(CsvVocabulary::Key(text)));
        }
      }
    }
    rows += part.rows;
  }
  files_.Add(path, rows, content.size());
  return {};
}

void Table::ReadRows(const std::string& path, Part& part) const {
  const Example& block = blocks_.back();
  for (std::size_t i = 0; i < places_.size(); ++i) {
    const Place& place = places_[i];
    part.values.emplace_back(options_.columns[i], options_.missing_markers, vocabularies_[i]);
    part.values.back().WriteTo(block.at(place.feature).raw() +
                                   static_cast<std::size_t>(part.begin) * place.step + place.offset,
                               place.step);
  }
  part.rows = 0;
  CsvRows rows(part.content, options_.delimiter, options_.trim, part.first_line, header_.size());
  std::int64_t next_line = -1;
  while (const std::size_t count = rows.Next()) {
    std::size_t right = count;  // rows before the first that is wrong, by its first column that is
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < places_.size(); ++i) {
      const std::size_t written =
          part.values[i].Append(rows.field(fields_[i]), rows.width(), right);
      wrong = written < right ? i : wrong;
      right = written;
    }
    if (right < count) {
      const CsvField& field = rows.field(fields_[wrong])[right * rows.width()];
      part.status = part.values[wrong].Why(field).Annotate(path + ", line " +
                                                           std::to_string(rows.line(right)));
      return;
    }
    for (std::size_t row = 0; row < count; ++row, ++part.rows, ++next_line) {
      if (rows.line(row) != next_line) {
        next_line = rows.line(row);
        part.lines.push_back({part.rows, next_line});
      }
    }
  }
  if (!rows.status().ok()) {
    part.status = DataLoss(path + ", " + rows.status().message());
  }
}

Example Table::Block(std::int64_t rows) const {
  Example block;
  for (const auto& [name, feature] : features_) {
    std::vector<std::int64_t> dims = feature.shape.dims();
    dims.insert(dims.begin(), rows);
    block.emplace(name, RawTensor(feature.dtype, Shape(std::move(dims))));
  }
  return block;
}

void Table::Run(std::size_t count, const std::function<void(std::size_t)>& body) const {
  const auto some = [&body](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      body(static_cast<std::size_t>(i));
    }
  };
  if (pool_ == nullptr || count <= 1) {
    some(0, static_cast<std::int64_t>(count));
  } else {
    pool_->ParallelFor(static_cast<std::int64_t>(count), 1, some);
  }
}

Example Table::Tensors() {
  const std::int64_t rows = files_.size();
  bool adjacent = blocks_.size() == 1;
  std::int64_t next = 0;
  for (const Piece& piece : pieces_) {
    adjacent = adjacent && piece.begin == next;
    next += piece.rows;
  }
  Example tensors = adjacent ? Example() : Block(rows);
  if (adjacent) {
    for (const auto& [name, tensor] : blocks_[0]) {
      tensors.emplace(name, tensor.Rows(0, rows));
    }
    return tensors;
  }
  std::vector<std::int64_t> begins;
  std::int64_t begin = 0;
  for (const Piece& piece : pieces_) {
    begins.push_back(begin);
    begin += piece.rows;
  }
  Run(pieces_.size(), [&](std::size_t i) {
    const Piece& piece = pieces_[i];
    for (const auto& [name, tensor] : blocks_[piece.block]) {
      const Tensor from = tensor.Rows(piece.begin, piece.begin + piece.rows);
      if (from.bytes() != 0) {
        std::memcpy(tensors.at(name).Rows(begins[i], begins[i] + piece.rows).raw(), from.raw(),
                    from.bytes());
      }
    }
  });
  return tensors;
}

CsvData Table::Finish() && {
  std::map<std::string, std::vector<std::string>> categories;
  for (std::size_t i = 0; i < vocabularies_.size(); ++i) {
    const CsvColumn& column = options_.columns[i];
    if (column.type != CsvType::kCategory) {
      continue;
    }
    if (vocabularies_[i].open()) {
      const std::vector<std::int64_t> sorted = vocabularies_[i].Sort();
      Run(pieces_.size(), [&](std::size_t k) {
        Piece& piece = pieces_[k];
        std::vector<std::int64_t>& positions = piece.positions[i];
        positions[0] = static_cast<std::int64_t>(column.missing.value_or(0));
        for (std::size_t p = 1; p < positions.size(); ++p) {
          positions[p] = sorted[static_cast<std::size_t>(positions[p])];
        }
        std::byte* at = blocks_[piece.block].at(places_[i].feature).raw() +
                        static_cast<std::size_t>(piece.begin) * places_[i].step + places_[i].offset;
        for (std::int64_t row = 0; row < piece.rows; ++row, at += places_[i].step) {
          auto& position = *reinterpret_cast<std::int64_t*>(at);
          position = positions[static_cast<std::size_t>(position + 1)];
        }
      });
    }
    categories[column.name] = vocabularies_[i].texts();
  }
  const Example tensors = Tensors();
  return {Dataset(std::make_shared<CsvSource>(tensors, files_.size(), std::move(files_),
                                              std::move(lines_))),
          std::move(categories)};
}

}  // namespace

Result<CsvData> Csv(const std::vector<std::string>& paths, const CsvOptions& options) {
  if (paths.empty()) {
    return InvalidArgument("CSV: no files");
  }
  COHORT_ASSIGN_OR_RETURN(Table table, Table::Make(options));
  if (options.part.count > 1) {
    COHORT_RETURN_IF_ERROR(table.ReadPart(paths));
  } else {
    for (const std::string& path : paths) {
      COHORT_RETURN_IF_ERROR(table.ReadFile(path));
    }
  }
  return std::move(table).Finish();
}

}  // namespace cohort::data
