#include <cohort/data/fixed_records.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>

#include <cohort/core/random.h>

#include "sources/content.h"
#include "sources/file_table.h"
#include "sources/sizes.h"

namespace cohort::data {
namespace {

void CopyField(const FixedField& field, std::size_t bytes, const std::byte* in, std::byte* out) {
  if (!field.big_endian) {
    std::memcpy(out, in, bytes);
    return;
  }
  const std::size_t each = SizeOf(field.dtype);
  for (std::size_t at = 0; at < bytes; at += each) {
    std::reverse_copy(in + at, in + at + each, out + at);
  }
}

class FixedRecordSource final : public Source {
 public:
  explicit FixedRecordSource(const FixedRecordOptions& options) : options_(options) {
    for (const FixedField& field : options_.fields) {
      features_.push_back({field.name, field.dtype, field.shape});
    }
  }

  Status AddFile(const std::string& path) {
    const auto open = options_.gzip ? OpenGzip : OpenRaw;
    COHORT_ASSIGN_OR_RETURN(auto file, open(*options_.files, path));
    const std::uint64_t around = options_.header_bytes + options_.footer_bytes;
    if (file->size() < around) {
      return DataLoss(path + ": " + std::to_string(file->size()) +
                      " bytes, header and footer are " + std::to_string(around));
    }
    const std::uint64_t bytes = file->size() - around;
    if (const std::uint64_t rest = bytes % options_.record_bytes; rest != 0) {
      std::byte magic[2] = {};
      const bool is_gzip = !options_.gzip && file->Read(0, magic).ok() &&
                           magic[0] == std::byte{0x1f} && magic[1] == std::byte{0x8b};
      return DataLoss(path + ": record " + std::to_string(bytes / options_.record_bytes) +
                      " at byte " + std::to_string(options_.header_bytes + bytes - rest) + " has " +
                      std::to_string(rest) + " of " + std::to_string(options_.record_bytes) +
                      " bytes [" +
                      (is_gzip ? "the file begins as gzip does: set FixedRecordOptions.gzip"
                               : "cut short, or header, record or footer is of another size") +
                      "]");
    }
    table_.Add(path, static_cast<std::int64_t>(bytes / options_.record_bytes), bytes);
    files_.push_back(std::move(file));
    return {};
  }

  std::int64_t size() const override { return table_.size(); }
  const std::vector<FeatureSpec>& features() const override { return features_; }

  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    const std::size_t file = table_.Find(index);
    const FileRange& range = table_.ranges()[file];
    const auto record = static_cast<std::uint64_t>(index - range.begin);
    std::vector<std::byte> bytes(options_.record_bytes);
    Status status = ReadExactly(*files_[file], range.name,
                                options_.header_bytes + record * options_.record_bytes, bytes);
    if (!status.ok()) {
      return status.Annotate("record " + std::to_string(record));
    }
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const FixedField& field = options_.fields[i];
      CopyField(field, features_[i].bytes(), bytes.data() + field.offset, rows[i]);
    }
    return {};
  }

  std::string Where(std::int64_t index) const override {
    const FileRange& range = table_.ranges()[table_.Find(index)];
    return range.name + ", record " + std::to_string(index - range.begin);
  }
  std::vector<FileRange> files() const override { return table_.ranges(); }

  std::uint64_t Fingerprint() const override {
    std::uint64_t digest = Hash64("fixed_records" + std::to_string(options_.record_bytes));
    for (const FixedField& field : options_.fields) {
      digest =
          Hash64(field.name + "/" + std::string(DTypeName(field.dtype)) + field.shape.ToString() +
                     std::to_string(field.offset) + (field.big_endian ? ">" : "<"),
                 digest);
    }
    for (const auto& file : files_) {
      digest = Hash64(std::to_string(ContentDigest(*file, options_.header_bytes,
                                                   file->size() - options_.footer_bytes,
                                                   kDigestBytes / files_.size())),
                      digest);
    }
    return digest;
  }

 private:
  FixedRecordOptions options_;
  std::vector<FeatureSpec> features_;
  FileTable table_;
  std::vector<std::shared_ptr<const RandomAccessFile>> files_;  // owner: this
};

Status CheckOptions(const FixedRecordOptions& options) {
  constexpr std::size_t kMaxBytes = std::size_t{1} << 40;
  if (options.record_bytes == 0 || options.record_bytes > kMaxBytes ||
      options.header_bytes > kMaxBytes || options.footer_bytes > kMaxBytes) {
    return InvalidArgument(
        "fixed records: record_bytes is from 1 to 2^40, header and footer as "
        "well are no larger");
  }
  if (options.fields.empty()) {
    return InvalidArgument(
        "fixed records: no fields to read [name them in FixedRecordOptions.fields]");
  }
  std::set<std::string> names;
  for (const FixedField& field : options.fields) {
    if (!names.insert(field.name).second) {
      return InvalidArgument("fixed records: field '" + field.name + "' is asked for twice");
    }
    const auto bytes = CheckedBytes(field.shape.dims(), SizeOf(field.dtype));
    if (!bytes.has_value() || field.offset > options.record_bytes ||
        *bytes > options.record_bytes - field.offset) {
      return InvalidArgument(
          "fixed records: field '" + field.name + "', " + std::string(DTypeName(field.dtype)) +
          field.shape.ToString() + " from byte " + std::to_string(field.offset) +
          ", reaches beyond the record of " + std::to_string(options.record_bytes) + " bytes");
    }
  }
  return {};
}

}  // namespace

Result<Dataset> FixedRecords(const std::vector<std::string>& paths,
                             const FixedRecordOptions& options) {
  if (paths.empty()) {
    return InvalidArgument("fixed records: no files");
  }
  COHORT_RETURN_IF_ERROR(CheckOptions(options));
  auto source = std::make_shared<FixedRecordSource>(options);
  for (const std::string& path : paths) {
    COHORT_RETURN_IF_ERROR(source->AddFile(path));
  }
  return Dataset(std::move(source));
}

}  // namespace cohort::data
