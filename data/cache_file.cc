// CacheInFile: examples in a safetensors file, which numpy and others read too.
//
// A feature is a tensor of all examples' rows. A list is the values of all examples, one behind
// another, and `cohort.ends/NAME`, where those of each example end. `cohort.crc32c` has the
// checksum of each example, which is compared whenever it is read; `cohort.cache` in the metadata
// says of which data the file is.

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/core/temporary_name.h>
#include <cohort/data/combine.h>
#include <cohort/io/crc32c.h>
#include <cohort/io/safetensors.h>

#include "parts.h"
#include "sources/atomic_file.h"
#include "sources/content.h"

namespace cohort::data {
namespace {

constexpr const char* kMark = "cohort.cache";

template <typename T>
std::span<const std::byte> BytesOf(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

std::uint32_t ListCrc(std::span<const std::byte> values, std::uint32_t crc) {
  return io::Crc32c(values, io::Crc32c(BytesOf(std::uint64_t{values.size()}), crc));
}

// The tensors of a cache of these examples: features, values of lists, their ends, checksums.
// values[i] is how many list i has in all.
std::vector<io::SafetensorsEntry> EntriesOf(const Source& source,
                                            const std::vector<std::int64_t>& values) {
  std::vector<io::SafetensorsEntry> entries;
  for (const FeatureSpec& feature : source.features()) {
    std::vector<std::int64_t> dims = {source.size()};
    dims.insert(dims.end(), feature.shape.dims().begin(), feature.shape.dims().end());
    entries.push_back(
        {.name = feature.name, .dtype = feature.dtype, .shape = Shape(std::move(dims))});
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    const RaggedSpec& list = source.ragged()[i];
    entries.push_back({.name = list.name, .dtype = list.dtype, .shape = {values[i]}});
  }
  for (const RaggedSpec& list : source.ragged()) {
    entries.push_back(
        {.name = "cohort.ends/" + list.name, .dtype = DType::kInt64, .shape = {source.size()}});
  }
  entries.push_back({.name = "cohort.crc32c", .dtype = DType::kInt32, .shape = {source.size()}});
  return entries;
}

class FileCacheSource final : public Source {
 public:
  // Null: what is there is no cache of these examples, or no whole one.
  static Result<std::shared_ptr<const FileCacheSource>> Open(FileSystem& files,
                                                             const std::string& path,
                                                             const Source& source,
                                                             const std::string& mark) {
    std::shared_ptr<const FileCacheSource> none;
    if (!files.Exists(path)) {
      return none;
    }
    auto cache = std::make_shared<FileCacheSource>();
    cache->path_ = path;
    cache->size_ = source.size();
    cache->features_ = source.features();
    cache->ragged_ = source.ragged();
    COHORT_ASSIGN_OR_RETURN(cache->file_, OpenRaw(files, path));
    const Status status = cache->ReadHeader(source, mark);
    if (status.code() == StatusCode::kDataLoss) {
      return none;
    }
    COHORT_RETURN_IF_ERROR(status);
    return std::shared_ptr<const FileCacheSource>(std::move(cache));
  }

  std::int64_t size() const override { return size_; }
  const std::vector<FeatureSpec>& features() const override { return features_; }
  const std::vector<RaggedSpec>& ragged() const override { return ragged_; }

  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    std::vector<std::vector<std::byte>> values(ragged_.size());
    return ReadRagged(index, rows, values);
  }
  Status ReadRagged(std::int64_t index, std::span<std::byte* const> rows,
                    std::span<std::vector<std::byte>> values) const override {
    const Status status = ReadChecked(index, rows, values);
    return status.ok() ? status : status.Annotate(Where(index));
  }

  std::string Where(std::int64_t index) const override {
    return path_ + ", row " + std::to_string(index);
  }
  std::vector<FileRange> files() const override {
    return {{path_, 0, size_, static_cast<std::int64_t>(file_->size())}};
  }
  // The checksums stand for the content.
  std::uint64_t Fingerprint() const override {
    std::uint64_t digest = Hash64("cache");
    for (const FeatureSpec& feature : features_) {
      digest = Hash64(
          feature.name + "/" + std::string(DTypeName(feature.dtype)) + feature.shape.ToString(),
          digest);
    }
    for (const RaggedSpec& list : ragged_) {
      digest = Hash64(list.name + "/" + std::string(DTypeName(list.dtype)), digest);
    }
    const std::uint64_t begin = begins_.back();
    return Hash64(
        std::to_string(ContentDigest(
            *file_, begin, begin + static_cast<std::uint64_t>(size_) * sizeof(std::uint32_t))),
        digest);
  }

 private:
  // DataLoss: not that of a cache of these examples.
  Status ReadHeader(const Source& source, const std::string& mark) {
    COHORT_ASSIGN_OR_RETURN(const auto entries, io::ReadSafetensorsHeader(*file_, path_));
    std::uint64_t length = 0;
    COHORT_RETURN_IF_ERROR(
        ReadExactly(*file_, path_, 0, std::as_writable_bytes(std::span(&length, 1))));
    std::string header(length, '\0');
    COHORT_RETURN_IF_ERROR(
        ReadExactly(*file_, path_, sizeof(length), std::as_writable_bytes(std::span(header))));
    const auto json = nlohmann::json::parse(header, nullptr, /*allow_exceptions=*/false);
    if (!json.contains("__metadata__") || json["__metadata__"].value(kMark, "") != mark) {
      return DataLoss("of other data");
    }
    std::map<std::string, io::SafetensorsEntry> found;
    for (const io::SafetensorsEntry& entry : entries) {
      found[entry.name] = entry;
    }
    for (const RaggedSpec& list : ragged_) {
      totals_.push_back(found[list.name].shape.elements());
    }
    const auto expected = EntriesOf(source, totals_);
    for (const io::SafetensorsEntry& entry : expected) {
      const io::SafetensorsEntry& there = found[entry.name];
      if (there.dtype != entry.dtype || there.shape != entry.shape) {
        return DataLoss("of other features");
      }
      begins_.push_back(there.begin);
    }
    return found.size() == expected.size() ? Status() : DataLoss("of other features");
  }

  // From row `index` of tensor `column`, whose rows have so many bytes.
  Status ReadColumn(std::size_t column, std::int64_t index, std::size_t row_bytes,
                    std::span<std::byte> out) const {
    return ReadExactly(*file_, path_,
                       begins_[column] + static_cast<std::uint64_t>(index) * row_bytes, out);
  }

  Status ReadChecked(std::int64_t index, std::span<std::byte* const> rows,
                     std::span<std::vector<std::byte>> values) const {
    std::uint32_t crc = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::span<std::byte> row(rows[i], features_[i].bytes());
      COHORT_RETURN_IF_ERROR(ReadColumn(i, index, row.size(), row));
      crc = io::Crc32c(row, crc);
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
      std::array<std::int64_t, 2> ends = {};  // of the example before, and of this one
      const std::int64_t before = index == 0 ? 0 : 1;
      COHORT_RETURN_IF_ERROR(ReadColumn(
          features_.size() + ragged_.size() + i, index - before, sizeof(ends[0]),
          std::as_writable_bytes(std::span(ends).last(static_cast<std::size_t>(before) + 1))));
      if (ends[0] < 0 || ends[0] > ends[1] || ends[1] > totals_[i]) {
        return Damaged();
      }
      const std::size_t size = SizeOf(ragged_[i].dtype);
      const std::size_t here = values[i].size();
      values[i].resize(here + static_cast<std::size_t>(ends[1] - ends[0]) * size);
      const auto list = std::span(values[i]).subspan(here);
      COHORT_RETURN_IF_ERROR(ReadColumn(features_.size() + i, ends[0], size, list));
      crc = ListCrc(list, crc);
    }
    std::uint32_t stored = 0;
    COHORT_RETURN_IF_ERROR(ReadColumn(begins_.size() - 1, index, sizeof(stored),
                                      std::as_writable_bytes(std::span(&stored, 1))));
    return stored == io::MaskCrc(crc) ? Status() : Damaged();
  }

  static Status Damaged() {
    return DataLoss("damaged, its checksum is wrong [remove the file, and it is made anew]");
  }

  std::string path_;
  std::shared_ptr<const RandomAccessFile> file_;  // owner: this
  std::int64_t size_ = 0;
  std::vector<FeatureSpec> features_;
  std::vector<RaggedSpec> ragged_;
  std::vector<std::int64_t> totals_;   // values of each list
  std::vector<std::uint64_t> begins_;  // bytes of the file: where each tensor begins
};

// Tensors to which rows are added in turns: each waits in a file of its own, but for the first
// where that may go to its place at once.
class ColumnFiles {
 public:
  ColumnFiles(FileSystem& files, std::string path, AtomicFile* first)
      : files_(files), path_(std::move(path)), first_(first) {}
  ~ColumnFiles() {
    open_.clear();
    for (const std::string& part : parts_) {
      static_cast<void>(files_.RemoveAll(part));
    }
  }
  ColumnFiles(const ColumnFiles&) = delete;
  ColumnFiles& operator=(const ColumnFiles&) = delete;

  Status Create(std::size_t columns) {
    buffers_.resize(columns);
    for (std::size_t i = first_ == nullptr ? 0 : 1; i < columns; ++i) {
      parts_.push_back(TemporaryName(path_ + ".column" + std::to_string(i)));
      COHORT_ASSIGN_OR_RETURN(open_.emplace_back(), files_.OpenForWrite(parts_.back()));
    }
    return {};
  }
  Status Append(std::size_t column, std::span<const std::byte> bytes) {
    std::vector<std::byte>& buffer = buffers_[column];
    buffer.insert(buffer.end(), bytes.begin(), bytes.end());
    return buffer.size() < kBufferBytes ? Status() : Drain(column);
  }
  // All of them, one behind another.
  Status MoveTo(AtomicFile& file) {
    for (std::size_t column = 0; column < buffers_.size(); ++column) {
      COHORT_RETURN_IF_ERROR(Drain(column));
    }
    std::vector<std::byte> piece;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      COHORT_RETURN_IF_ERROR(open_[i]->Close());
      COHORT_ASSIGN_OR_RETURN(const auto part, OpenRaw(files_, parts_[i]));
      for (std::uint64_t offset = 0; offset < part->size(); offset += piece.size()) {
        piece.resize(std::min<std::uint64_t>(kBufferBytes, part->size() - offset));
        COHORT_RETURN_IF_ERROR(ReadExactly(*part, parts_[i], offset, piece));
        COHORT_RETURN_IF_ERROR(file.Append(piece));
      }
    }
    return {};
  }

 private:
  static constexpr std::size_t kBufferBytes = std::size_t{1} << 18;

  Status Drain(std::size_t column) {
    const std::vector<std::byte> bytes = std::exchange(buffers_[column], {});
    const std::size_t direct = first_ == nullptr ? 0 : 1;
    return column < direct ? first_->Append(bytes) : open_[column - direct]->Append(bytes);
  }

  FileSystem& files_;
  const std::string path_;
  AtomicFile* const first_;
  std::vector<std::vector<std::byte>> buffers_;      // of each column
  std::vector<std::string> parts_;                   // the columns' files
  std::vector<std::unique_ptr<WritableFile>> open_;  // the same
};

// An example is read once.
Status WriteCache(const Source& source, FileSystem& files, const std::string& path,
                  const std::string& mark) {
  const std::size_t features = source.features().size();
  const std::size_t lists = source.ragged().size();
  std::vector<std::int64_t> totals(lists);
  const auto header = [&] {
    return io::EncodeSafetensorsHeader(EntriesOf(source, totals), {{kMark, mark}});
  };
  COHORT_ASSIGN_OR_RETURN(const auto file, AtomicFile::Create(files, path));
  const bool known = lists == 0;  // how long each tensor is
  if (known) {
    COHORT_RETURN_IF_ERROR(file->Append(AsBytes(header())));
  }
  ColumnFiles columns(files, path, known ? file.get() : nullptr);
  COHORT_RETURN_IF_ERROR(columns.Create(EntriesOf(source, totals).size()));

  std::vector<Tensor> example;
  std::vector<std::byte*> rows;
  for (const FeatureSpec& feature : source.features()) {
    rows.push_back(example.emplace_back(feature.dtype, feature.shape).raw());
  }
  std::vector<std::vector<std::byte>> values(lists);
  for (std::int64_t index = 0; index < source.size(); ++index) {
    COHORT_RETURN_IF_ERROR(source.ReadRagged(index, rows, values));
    std::uint32_t crc = 0;
    for (std::size_t i = 0; i < features; ++i) {
      const std::span<const std::byte> row(rows[i], example[i].bytes());
      crc = io::Crc32c(row, crc);
      COHORT_RETURN_IF_ERROR(columns.Append(i, row));
    }
    for (std::size_t i = 0; i < lists; ++i) {
      crc = ListCrc(values[i], crc);
      totals[i] += static_cast<std::int64_t>(values[i].size() / SizeOf(source.ragged()[i].dtype));
      COHORT_RETURN_IF_ERROR(columns.Append(features + i, values[i]));
      COHORT_RETURN_IF_ERROR(columns.Append(features + lists + i, BytesOf(totals[i])));
      values[i].clear();
    }
    COHORT_RETURN_IF_ERROR(columns.Append(features + 2 * lists, BytesOf(io::MaskCrc(crc))));
  }
  if (!known) {
    COHORT_RETURN_IF_ERROR(file->Append(AsBytes(header())));
  }
  COHORT_RETURN_IF_ERROR(columns.MoveTo(*file));
  return file->Close();
}

}  // namespace

Result<Dataset> CacheInFile(const Dataset& data, FileSystem& files, const std::string& path,
                            const std::string& version) {
  COHORT_ASSIGN_OR_RETURN(const auto source, Unshuffled(data, "Cache"));
  if (source->features().empty() && source->ragged().empty()) {
    return InvalidArgument(path + ": there are no examples to keep");
  }
  const std::string mark = std::to_string(source->Fingerprint()) + "/" + version;
  COHORT_ASSIGN_OR_RETURN(auto cached, FileCacheSource::Open(files, path, *source, mark));
  if (cached == nullptr) {
    COHORT_RETURN_IF_ERROR(WriteCache(*source, files, path, mark));
    COHORT_ASSIGN_OR_RETURN(cached, FileCacheSource::Open(files, path, *source, mark));
  }
  if (cached == nullptr) {
    return DataLoss(path + ": is not what was written there [is another process at it?]");
  }
  return Dataset(std::move(cached));
}

}  // namespace cohort::data
