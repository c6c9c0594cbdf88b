#include <cohort/data/tf_record.h>

#include <cmath>
#include <memory>
#include <string_view>

#include <cohort/core/random.h>

#include "record_counts.h"
#include "sources/exact_text.h"
#include "sources/file_table.h"
#include "sources/holds.h"
#include "sources/record_store.h"
#include "sources/same_file.h"
#include "sources/tf_decoder.h"

namespace cohort::data {
namespace {

class TfRecordSource final : public Source {
 public:
  // One of `records` for each path.
  TfRecordSource(std::vector<TfFeatureSpec> specs, const std::vector<std::string>& paths,
                 std::vector<std::unique_ptr<RecordStore>> records)
      : decoder_(std::move(specs)), records_(std::move(records)) {
    for (std::size_t i = 0; i < paths.size(); ++i) {
      table_.Add(paths[i], records_[i]->size(), records_[i]->bytes());
    }
  }

  std::int64_t size() const override { return table_.size(); }
  const std::vector<FeatureSpec>& features() const override { return decoder_.features(); }
  const std::vector<RaggedSpec>& ragged() const override { return decoder_.ragged(); }

  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    std::vector<std::vector<std::byte>> values(ragged().size());
    return ReadRagged(index, rows, values);
  }
  Status ReadRagged(std::int64_t index, std::span<std::byte* const> rows,
                    std::span<std::vector<std::byte>> values) const override {
    const std::size_t file = table_.Find(index);
    std::string buffer;
    COHORT_ASSIGN_OR_RETURN(const std::string_view record,
                            records_[file]->Read(index - table_.ranges()[file].begin, buffer));
    Status status = decoder_.Decode(record, rows, values);
    return status.ok() ? status : status.Annotate(Where(index));
  }

  std::string Where(std::int64_t index) const override {
    const std::size_t file = table_.Find(index);
    const FileRange& range = table_.ranges()[file];
    return range.name + ", record " + std::to_string(records_[file]->Ordinal(index - range.begin));
  }
  std::vector<FileRange> files() const override { return table_.ranges(); }

  std::uint64_t Fingerprint() const override {
    std::uint64_t digest = Hash64("tf_record");
    for (const TfFeatureSpec& spec : decoder_.specs()) {
      digest = Hash64(spec.name + "/" + std::to_string(static_cast<int>(spec.type)) +
                          spec.shape.ToString() + ExactText(spec.missing) + "/" +
                          std::to_string(spec.buckets) + (spec.ragged ? "r" : "") +
                          (spec.steps ? "s" : ""),
                      digest);
    }
    for (const auto& records : records_) {
      digest = Hash64(std::to_string(records->Digest()), digest);
    }
    return digest;
  }

 private:
  TfDecoder decoder_;
  std::vector<std::unique_ptr<RecordStore>> records_;  // of each file
  FileTable table_;
};

Status CheckFeatures(const std::vector<TfFeatureSpec>& features) {
  if (features.empty()) {
    return InvalidArgument("TFRecord: no features to read [name them in TfRecordOptions.features]");
  }
  for (std::size_t i = 0; i < features.size(); ++i) {
    for (std::size_t k = 0; k < i; ++k) {
      if (features[i].name == features[k].name) {
        return InvalidArgument("TFRecord: feature '" + features[i].name + "' is asked for twice");
      }
    }
    if (features[i].ragged && features[i].shape != Shape()) {
      return InvalidArgument("TFRecord: feature '" + features[i].name +
                             "' is ragged: a list without a shape");
    }
    if (features[i].steps && features[i].type == TfType::kBytes) {
      return InvalidArgument("TFRecord: feature '" + features[i].name +
                             "': steps hold numbers or hashes, not bytes");
    }
    if (features[i].buckets < 0 ||
        (features[i].missing.has_value() && !std::isfinite(*features[i].missing))) {
      return InvalidArgument("TFRecord: feature '" + features[i].name +
                             "': buckets are not negative, `missing` is finite");
    }
    const DType stored = features[i].type == TfType::kFloat32 ? DType::kFloat32
                         : features[i].type == TfType::kBytes ? DType::kUInt8
                                                              : DType::kInt64;
    if (features[i].missing.has_value() && !Holds(stored, *features[i].missing)) {
      return InvalidArgument("TFRecord: feature '" + features[i].name + "' is " +
                             std::string(DTypeName(stored)) + ", which has no " +
                             std::to_string(*features[i].missing) + " for `missing`");
    }
  }
  return {};
}

// Of all files: then the part that is bad is known.
Status CheckFraction(const TfRecordOptions& options, const CorruptRecords& corrupt,
                     std::int64_t sound) {
  if (corrupt.cut_files > 0 && options.max_corrupt_fraction < 1) {
    return DataLoss("how many records are lost in " + std::to_string(corrupt.cut_files) +
                    " files behind damage that cannot be passed is not known, so that "
                    "TfRecordOptions.max_corrupt_fraction cannot hold; the first: " +
                    corrupt.messages[0]);
  }
  const std::int64_t found = corrupt.records + corrupt.cut_files;
  const std::int64_t all = sound + found;
  if (static_cast<double>(found) <= options.max_corrupt_fraction * static_cast<double>(all)) {
    return {};
  }
  return DataLoss(
      std::to_string(found) + " corrupt records of " + std::to_string(all) +
      ", at most a part of " + std::to_string(options.max_corrupt_fraction) +
      " is skipped [TfRecordOptions.max_corrupt_fraction]; the first: " + corrupt.messages[0]);
}

void Summarize(const TfRecordOptions& options, const std::vector<std::string>& paths,
               const std::vector<std::unique_ptr<RecordStore>>& records,
               const CorruptRecords& corrupt) {
  std::int64_t sound = 0;
  std::int64_t empty = 0;
  std::string first;
  std::int64_t packed = 0;
  std::uint64_t unpacked_bytes = 0;
  for (std::size_t i = 0; i < paths.size(); ++i) {
    sound += records[i]->size();
    if (records[i]->in_memory()) {
      ++packed;
      unpacked_bytes += records[i]->bytes();
    }
    if (records[i]->bytes() == 0) {
      first = empty++ == 0 ? paths[i] : first;
    }
  }
  if (empty > 0) {
    options.log.Warning("TFRecord: " + std::to_string(empty) + " of " +
                        std::to_string(paths.size()) + " files are empty, the first: " + first);
  }
  if (corrupt.records + corrupt.cut_files > 0) {
    options.log.Warning("TFRecord: " + std::to_string(corrupt.records) +
                        " corrupt records are left out, and the rest of " +
                        std::to_string(corrupt.cut_files) + " files that are cut off; " +
                        std::to_string(sound) +
                        " records are read; the first: " + corrupt.messages[0]);
  }
  if (packed > 0) {
    options.log.Info("TFRecord: " + std::to_string(packed) + " of " + std::to_string(paths.size()) +
                     " files are packed: each process has all of them in memory, " +
                     std::to_string(unpacked_bytes) +
                     " bytes [cohort data convert makes raw files, of which a process reads its "
                     "own records]");
  }
  WarnOfTwice(paths, options.log);
}

Status CheckBudget(const TfRecordOptions& options, const CorruptRecords& corrupt) {
  const std::int64_t found = corrupt.records + corrupt.cut_files;
  if (found <= options.max_corrupt) {
    return {};
  }
  return DataLoss(std::to_string(found) + " corrupt records, at most " +
                  std::to_string(options.max_corrupt) +
                  " are skipped [TfRecordOptions.max_corrupt]; the first: " + corrupt.messages[0]);
}

}  // namespace

Result<Dataset> TfRecords(const std::vector<std::string>& paths, const TfRecordOptions& options) {
  if (paths.empty()) {
    return InvalidArgument("TFRecord: no files");
  }
  COHORT_RETURN_IF_ERROR(CheckFeatures(options.features));
  if (!(options.max_corrupt_fraction >= 0 && options.max_corrupt_fraction <= 1)) {
    return InvalidArgument("TFRecord: max_corrupt_fraction is from 0 to 1");
  }
  std::vector<std::unique_ptr<RecordStore>> records;
  CorruptRecords corrupt;
  for (const std::string& path : paths) {
    // The analyzer loses the unique_ptr inside Result's optional.
    // NOLINTNEXTLINE(clang-analyzer-cplusplus.NewDeleteLeaks)
    COHORT_ASSIGN_OR_RETURN(records.emplace_back(), OpenRecordStore(options, path, corrupt));
    COHORT_RETURN_IF_ERROR(CheckBudget(options, corrupt));
  }
  if (options.corrupt != nullptr) {
    *options.corrupt = corrupt;
  }
  std::int64_t sound = 0;
  for (const auto& one : records) {
    sound += one->size();
  }
  COHORT_RETURN_IF_ERROR(CheckFraction(options, corrupt, sound));
  Summarize(options, paths, records, corrupt);
  if (options.on_corrupt == OnCorrupt::kSkip) {
    CountRecords(options.metrics, sound, corrupt.records + corrupt.cut_files);
  }
  return Dataset(std::make_shared<TfRecordSource>(options.features, paths, std::move(records)));
}

}  // namespace cohort::data
