#include <array>
#include <cstring>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>

#include <cohort/core/random.h>
#include <cohort/core/temporary_name.h>
#include <cohort/data/arrays.h>
#include <cohort/data/combine.h>
#include <cohort/io/safetensors.h>

#include "parts.h"
#include "sources/atomic_file.h"
#include "sources/content.h"

namespace cohort::data {
namespace {

// An example's bytes: rows one after another, then for each list its size and values.
class CachedSource final : public Source {
 public:
  explicit CachedSource(std::shared_ptr<const Source> source)
      : source_(std::move(source)), slots_(static_cast<std::size_t>(source_->size())) {}

  std::int64_t size() const override { return source_->size(); }
  const std::vector<FeatureSpec>& features() const override { return source_->features(); }
  const std::vector<RaggedSpec>& ragged() const override { return source_->ragged(); }

  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    std::vector<std::vector<std::byte>> values(ragged().size());
    return ReadRagged(index, rows, values);
  }
  Status ReadRagged(std::int64_t index, std::span<std::byte* const> rows,
                    std::span<std::vector<std::byte>> values) const override {
    const auto slot = static_cast<std::size_t>(index);
    std::mutex& mutex = mutexes_[slot % mutexes_.size()];
    std::shared_ptr<const Kept> kept;
    {
      std::lock_guard lock(mutex);
      kept = slots_[slot];
    }
    if (kept == nullptr) {
      COHORT_ASSIGN_OR_RETURN(kept, Load(index));
      std::lock_guard lock(mutex);
      slots_[slot] = kept;  // where two threads read it at once, both have the same
    }
    const std::byte* at = kept->rows.data();
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::size_t bytes = features()[i].bytes();
      if (bytes != 0) {
        std::memcpy(rows[i], at, bytes);
      }
      at += bytes;
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i].insert(values[i].end(), kept->values[i].begin(), kept->values[i].end());
    }
    return {};
  }
  std::string Where(std::int64_t index) const override { return source_->Where(index); }
  std::vector<FileRange> files() const override { return source_->files(); }
  std::uint64_t Fingerprint() const override { return source_->Fingerprint(); }

 private:
  struct Kept {
    std::vector<std::byte> rows;
    std::vector<std::vector<std::byte>> values;
  };

  // Rows begin where their elements may be.
  static std::size_t Room(const FeatureSpec& feature) { return (feature.bytes() + 7) / 8 * 8; }

  Result<std::shared_ptr<const Kept>> Load(std::int64_t index) const {
    auto kept = std::make_shared<Kept>();
    std::size_t bytes = 0;
    for (const FeatureSpec& feature : features()) {
      bytes += Room(feature);
    }
    kept->rows.resize(bytes);
    kept->values.resize(ragged().size());
    std::vector<std::byte*> rows;
    std::byte* at = kept->rows.data();
    for (const FeatureSpec& feature : features()) {
      rows.push_back(at);
      at += Room(feature);
    }
    COHORT_RETURN_IF_ERROR(source_->ReadRagged(index, rows, kept->values));
    return std::shared_ptr<const Kept>(std::move(kept));
  }

  std::shared_ptr<const Source> source_;        // owners: this and data sets
  mutable std::array<std::mutex, 64> mutexes_;  // of the slots of equal remainder
  mutable std::vector<std::shared_ptr<const Kept>> slots_;
};

// What a file says that it is of; empty: it is no cache, or none at all.
std::string MarkOf(FileSystem& files, const std::string& path) {
  if (!files.Exists(path)) {
    return {};
  }
  const auto file = OpenRaw(files, path);
  std::uint64_t length = 0;
  if (!file.ok() ||
      !ReadExactly(**file, path, 0, std::as_writable_bytes(std::span(&length, 1))).ok() ||
      length > (*file)->size()) {
    return {};
  }
  std::string header(length, '\0');
  if (!ReadExactly(**file, path, sizeof(length), std::as_writable_bytes(std::span(header))).ok()) {
    return {};
  }
  const auto json = nlohmann::json::parse(header, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("__metadata__") || !json["__metadata__"].is_object()) {
    return {};
  }
  const auto mark = json["__metadata__"].find("cohort.cache");
  return mark != json["__metadata__"].end() && mark->is_string() ? mark->get<std::string>() : "";
}

// Features one after another; each passes over the examples, so that memory is bounded.
Status WriteCache(const Source& source, FileSystem& files, const std::string& path,
                  const std::string& mark) {
  std::vector<io::SafetensorsEntry> entries;
  std::vector<Tensor> rows;
  for (const FeatureSpec& feature : source.features()) {
    std::vector<std::int64_t> dims = {source.size()};
    dims.insert(dims.end(), feature.shape.dims().begin(), feature.shape.dims().end());
    entries.push_back(
        {.name = feature.name, .dtype = feature.dtype, .shape = Shape(std::move(dims))});
    rows.emplace_back(feature.dtype, feature.shape);
  }
  // An example is read once: the columns wait in files of their own.
  std::vector<std::string> parts;
  std::vector<std::unique_ptr<WritableFile>> columns;
  const auto remove_parts = [&] {
    columns.clear();
    for (const std::string& part : parts) {
      static_cast<void>(files.RemoveAll(part));
    }
  };
  const auto write = [&]() -> Status {
    for (std::size_t i = 1; i < entries.size(); ++i) {
      parts.push_back(TemporaryName(path + ".column" + std::to_string(i)));
      COHORT_ASSIGN_OR_RETURN(columns.emplace_back(), files.OpenForWrite(parts.back()));
    }
    COHORT_ASSIGN_OR_RETURN(const auto file, AtomicFile::Create(files, path));
    COHORT_RETURN_IF_ERROR(
        file->Append(AsBytes(io::EncodeSafetensorsHeader(entries, {{"cohort.cache", mark}}))));
    constexpr std::size_t kBufferBytes = std::size_t{1} << 18;
    std::vector<std::vector<std::byte>> buffers(entries.size());
    const auto drain = [&](std::size_t i) {
      const std::vector<std::byte> bytes = std::exchange(buffers[i], {});
      return i == 0 ? file->Append(bytes) : columns[i - 1]->Append(bytes);
    };
    std::vector<std::byte*> at;
    for (const Tensor& row : rows) {
      at.push_back(row.raw());
    }
    for (std::int64_t index = 0; index < source.size(); ++index) {
      COHORT_RETURN_IF_ERROR(source.ReadInto(index, at));
      for (std::size_t i = 0; i < rows.size(); ++i) {
        buffers[i].insert(buffers[i].end(), at[i], at[i] + rows[i].bytes());
        if (buffers[i].size() >= kBufferBytes) {
          COHORT_RETURN_IF_ERROR(drain(i));
        }
      }
    }
    for (std::size_t i = 0; i < rows.size(); ++i) {
      COHORT_RETURN_IF_ERROR(drain(i));
    }
    for (std::size_t i = 0; i < parts.size(); ++i) {
      COHORT_RETURN_IF_ERROR(columns[i]->Close());
      COHORT_ASSIGN_OR_RETURN(const auto part, OpenRaw(files, parts[i]));
      std::vector<std::byte> piece(kBufferBytes);
      for (std::uint64_t offset = 0; offset < part->size(); offset += piece.size()) {
        piece.resize(std::min<std::uint64_t>(kBufferBytes, part->size() - offset));
        COHORT_RETURN_IF_ERROR(ReadExactly(*part, parts[i], offset, piece));
        COHORT_RETURN_IF_ERROR(file->Append(piece));
      }
    }
    return file->Close();
  };
  const Status status = write();
  remove_parts();
  return status;
}

}  // namespace

Result<Dataset> Cache(const Dataset& data) {
  COHORT_ASSIGN_OR_RETURN(auto source, Unshuffled(data, "Cache"));
  return Dataset(std::make_shared<const CachedSource>(std::move(source)));
}

Result<Dataset> CacheInFile(const Dataset& data, FileSystem& files, const std::string& path,
                            const std::string& version) {
  COHORT_ASSIGN_OR_RETURN(const auto source, Unshuffled(data, "Cache"));
  if (!source->ragged().empty()) {
    return InvalidArgument(path + ": feature '" + source->ragged()[0].name +
                           "' has any length, a cache file holds fixed shapes [Cache in memory]");
  }
  if (source->features().empty()) {
    return InvalidArgument(path + ": there are no examples to keep");
  }
  const std::string mark = std::to_string(source->Fingerprint()) + "/" + version;
  if (MarkOf(files, path) != mark) {
    COHORT_RETURN_IF_ERROR(WriteCache(*source, files, path, mark));
  }
  Result<Dataset> cached = Safetensors(path, {.files = &files});
  if (cached.ok() && cached->size() != source->size()) {
    return DataLoss(path + ": holds " + std::to_string(cached->size()) + " examples of " +
                    std::to_string(source->size()) + " [remove it]");
  }
  return cached;
}

}  // namespace cohort::data
