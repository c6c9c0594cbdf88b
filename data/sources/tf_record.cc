#include <cohort/data/tf_record.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string_view>

#include <cohort/core/random.h>
#include <cohort/data/tf_example.h>

#include "sources/file_table.h"
#include "sources/record_store.h"
#include "sources/same_file.h"
#include "sources/text_hash.h"
#include "sources/tf_wire.h"

namespace cohort::data {
namespace {

TfFeature::Kind KindOf(TfType type) {
  switch (type) {
    case TfType::kFloat32:
      return TfFeature::Kind::kFloat;
    case TfType::kInt64:
      return TfFeature::Kind::kInt64;
    default:
      return TfFeature::Kind::kBytes;
  }
}

DType DTypeOfFeature(TfType type) {
  switch (type) {
    case TfType::kFloat32:
      return DType::kFloat32;
    case TfType::kBytes:
      return DType::kUInt8;
    default:
      return DType::kInt64;
  }
}

void FillMissing(const TfFeatureSpec& spec, std::byte* row) {
  const auto n = static_cast<std::size_t>(spec.shape.elements());
  const double value = *spec.missing;
  switch (DTypeOfFeature(spec.type)) {
    case DType::kFloat32:
      std::fill_n(reinterpret_cast<float*>(row), n, static_cast<float>(value));
      break;
    case DType::kUInt8:
      std::fill_n(reinterpret_cast<std::uint8_t*>(row), n, static_cast<std::uint8_t>(value));
      break;
    default:
      std::fill_n(reinterpret_cast<std::int64_t*>(row), n, static_cast<std::int64_t>(value));
  }
}

// The feature's values into its row; the Status says what does not fit the spec.
Status Store(const TfFeatureSpec& spec, const TfFeature& feature, std::byte* row) {
  if (feature.kind == TfFeature::Kind::kNone) {
    if (!spec.missing.has_value()) {
      return InvalidArgument("is missing [set the feature's `missing` to accept that]");
    }
    FillMissing(spec, row);
    return {};
  }
  if (feature.kind != KindOf(spec.type)) {
    return InvalidArgument("holds a list of " + std::string(TfKindName(feature.kind)) +
                           ", a list of " + std::string(TfKindName(KindOf(spec.type))) +
                           " is asked for");
  }
  const auto want = static_cast<std::size_t>(spec.shape.elements());
  const std::size_t lists = spec.type == TfType::kBytes ? 1 : want;
  if (feature.size() != lists) {
    return InvalidArgument("holds " + std::to_string(feature.size()) + " values, " +
                           std::to_string(lists) + " are asked for");
  }
  switch (spec.type) {
    case TfType::kFloat32:
      std::copy(feature.floats.begin(), feature.floats.end(), reinterpret_cast<float*>(row));
      break;
    case TfType::kInt64:
      std::copy(feature.ints.begin(), feature.ints.end(), reinterpret_cast<std::int64_t*>(row));
      break;
    case TfType::kHash:
      std::transform(feature.bytes.begin(), feature.bytes.end(),
                     reinterpret_cast<std::int64_t*>(row),
                     [&spec](std::string_view text) { return TextHash(text, spec.buckets); });
      break;
    case TfType::kBytes:
      if (feature.bytes[0].size() != want) {
        return InvalidArgument("holds " + std::to_string(feature.bytes[0].size()) + " bytes, " +
                               std::to_string(want) + " are asked for");
      }
      std::copy(feature.bytes[0].begin(), feature.bytes[0].end(), reinterpret_cast<char*>(row));
      break;
  }
  return {};
}

// Store of what nearly every entry is, without memory of its own; false: another one, or one that
// does not fit, about which Store has words.
bool StorePlain(const TfFeatureSpec& spec, std::string_view entry, std::byte* row) {
  const std::optional<TfList> list = PlainTfList(entry);
  if (!list.has_value() || list->kind != KindOf(spec.type)) {
    return false;
  }
  const auto want = static_cast<std::size_t>(spec.shape.elements());
  switch (spec.type) {
    case TfType::kFloat32:
      return PlainTfFloats(list->values, {reinterpret_cast<float*>(row), want});
    case TfType::kInt64:
      return PlainTfInts(list->values, {reinterpret_cast<std::int64_t*>(row), want});
    case TfType::kHash:
    case TfType::kBytes:
      break;
  }
  const std::optional<std::string_view> text = PlainTfString(list->values);
  if (!text.has_value() || (spec.type == TfType::kHash ? 1 : text->size()) != want) {
    return false;
  }
  if (spec.type == TfType::kHash) {
    *reinterpret_cast<std::int64_t*>(row) = TextHash(*text, spec.buckets);
  } else {
    std::copy(text->begin(), text->end(), reinterpret_cast<char*>(row));
  }
  return true;
}

template <typename T>
void AppendValue(T value, std::vector<std::byte>& to) {
  const auto* const bytes = reinterpret_cast<const std::byte*>(&value);
  to.insert(to.end(), bytes, bytes + sizeof(value));
}

// The values of a feature behind what `to` holds; how many there were.
Result<std::size_t> Append(const TfFeatureSpec& spec, const TfFeature& feature,
                           std::vector<std::byte>& to) {
  if (feature.kind != TfFeature::Kind::kNone && feature.kind != KindOf(spec.type)) {
    return InvalidArgument("holds a list of " + std::string(TfKindName(feature.kind)) +
                           ", a list of " + std::string(TfKindName(KindOf(spec.type))) +
                           " is asked for");
  }
  switch (spec.type) {
    case TfType::kFloat32:
      for (const float value : feature.floats) {
        AppendValue(value, to);
      }
      break;
    case TfType::kInt64:
      for (const std::int64_t value : feature.ints) {
        AppendValue(value, to);
      }
      break;
    case TfType::kHash:
      for (const std::string_view text : feature.bytes) {
        AppendValue(TextHash(text, spec.buckets), to);
      }
      break;
    case TfType::kBytes: {
      if (feature.size() > 1) {
        return InvalidArgument("holds " + std::to_string(feature.size()) +
                               " strings, at most 1 is asked for");
      }
      for (const std::string_view text : feature.bytes) {
        const auto* const bytes = reinterpret_cast<const std::byte*>(text.data());
        to.insert(to.end(), bytes, bytes + text.size());
      }
      break;
    }
  }
  return feature.size();
}

class TfRecordSource final : public Source {
 public:
  // One of `records` for each path.
  TfRecordSource(std::vector<TfFeatureSpec> specs, const std::vector<std::string>& paths,
                 std::vector<std::unique_ptr<RecordStore>> records)
      : specs_(std::move(specs)), records_(std::move(records)) {
    for (const TfFeatureSpec& spec : specs_) {
      if (spec.ragged || spec.steps) {
        ragged_.push_back({spec.name, DTypeOfFeature(spec.type)});
      } else {
        features_.push_back({spec.name, DTypeOfFeature(spec.type), spec.shape});
      }
      any_steps_ = any_steps_ || spec.steps;
      slots_[SlotOf(spec.name)].push_back(static_cast<std::size_t>(&spec - specs_.data()));
    }
    for (std::size_t i = 0; i < paths.size(); ++i) {
      table_.Add(paths[i], records_[i]->size(), records_[i]->bytes());
    }
  }

  std::int64_t size() const override { return table_.size(); }
  const std::vector<FeatureSpec>& features() const override { return features_; }
  const std::vector<RaggedSpec>& ragged() const override { return ragged_; }

  Status ReadInto(std::int64_t index, std::span<std::byte* const> rows) const override {
    std::vector<std::vector<std::byte>> values(ragged_.size());
    return ReadRagged(index, rows, values);
  }
  Status ReadRagged(std::int64_t index, std::span<std::byte* const> rows,
                    std::span<std::vector<std::byte>> values) const override {
    const std::size_t file = table_.Find(index);
    std::string buffer;
    COHORT_ASSIGN_OR_RETURN(const std::string_view record,
                            records_[file]->Read(index - table_.ranges()[file].begin, buffer));
    Status status = Decode(record, rows, values);
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
    for (const TfFeatureSpec& spec : specs_) {
      digest = Hash64(spec.name + "/" + std::to_string(static_cast<int>(spec.type)) +
                          spec.shape.ToString() + std::to_string(spec.missing.value_or(0.5)) + "/" +
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
  Status Decode(std::string_view record, std::span<std::byte* const> rows,
                std::span<std::vector<std::byte>> values) const {
    // The last entry of a key counts, so entries are found first and parsed afterwards.
    thread_local std::vector<std::string_view> entries;  // between records only for its memory
    entries.assign(specs_.size(), {});
    const auto find = [&](bool steps) {
      return [this, steps](std::string_view key, std::string_view entry) {
        for (const std::size_t i : slots_[SlotOf(key)]) {
          if (specs_[i].name == key && specs_[i].steps == steps) {
            entries[i] = entry;
          }
        }
        return Status();
      };
    };
    COHORT_RETURN_IF_ERROR(ForEachTfFeature(record, find(false)));
    if (any_steps_) {
      COHORT_RETURN_IF_ERROR(ForEachTfStepList(record, find(true)));
    }
    std::size_t row = 0;
    std::size_t list = 0;
    TfFeature feature;
    for (std::size_t i = 0; i < specs_.size(); ++i) {
      const TfFeatureSpec& spec = specs_[i];
      Status status;
      if (!spec.steps && !spec.ragged && StorePlain(spec, entries[i], rows[row])) {
        ++row;
        continue;
      }
      if (spec.steps) {
        status = AppendSteps(spec, entries[i], values[list++]);
      } else if (status = ParseTfEntry(entries[i], feature); status.ok()) {
        status = spec.ragged ? Append(spec, feature, values[list++]).status()
                             : Store(spec, feature, rows[row++]);
      }
      if (!status.ok()) {
        return status.Annotate("feature '" + spec.name + "'");
      }
    }
    return {};
  }

  static Status AppendSteps(const TfFeatureSpec& spec, std::string_view entry,
                            std::vector<std::byte>& values) {
    std::vector<TfFeature> steps;
    COHORT_RETURN_IF_ERROR(ParseTfStepList(entry, steps));
    const std::size_t before = values.size();
    const auto want = static_cast<std::size_t>(spec.shape.elements());
    for (std::size_t i = 0; i < steps.size(); ++i) {
      const Result<std::size_t> n = Append(spec, steps[i], values);
      const Status status = !n.ok() ? n.status()
                            : *n == want
                                ? Status()
                                : InvalidArgument("holds " + std::to_string(*n) + " values, " +
                                                  std::to_string(want) + " are asked for");
      if (!status.ok()) {
        values.resize(before);
        return status.Annotate("step " + std::to_string(i));
      }
    }
    return {};
  }

  static std::size_t SlotOf(std::string_view name) {
    return name.empty() ? 0
                        : (name.size() + static_cast<unsigned char>(name.front()) * 3 +
                           static_cast<unsigned char>(name.back()) * 7) %
                              kSlots;
  }

  static constexpr std::size_t kSlots = 64;

  std::vector<TfFeatureSpec> specs_;
  std::array<std::vector<std::size_t>, kSlots> slots_;  // of specs_, by SlotOf their names
  std::vector<std::unique_ptr<RecordStore>> records_;   // of each file
  std::vector<FeatureSpec> features_;                   // those of fixed shape
  std::vector<RaggedSpec> ragged_;                      // and the others
  bool any_steps_ = false;
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
  for (std::size_t i = 0; i < paths.size(); ++i) {
    sound += records[i]->size();
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
  return Dataset(std::make_shared<TfRecordSource>(options.features, paths, std::move(records)));
}

}  // namespace cohort::data
