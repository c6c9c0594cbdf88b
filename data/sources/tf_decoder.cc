// Nearly every message is laid out in one way: one Features, whose entries are a key and a Feature
// of one list. These are read in one pass over their bytes, values going straight to their rows.
// What is laid out otherwise (lists in parts, unknown fields, SequenceExamples), or is not what was
// asked for, is read once more in the general way, which has words for it.

#include "sources/tf_decoder.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include <cohort/data/tf_example.h>

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

Status AppendSteps(const TfFeatureSpec& spec, std::string_view entry,
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

// Tags of fields: number * 8 + type.
constexpr unsigned char kBytes1 = 0x0a;   // field 1 of bytes: key, list, packed values, one string
constexpr unsigned char kBytes2 = 0x12;   // field 2 of bytes: an entry's Feature
constexpr unsigned char kFixed1 = 0x0d;   // field 1 of four bytes: a float
constexpr unsigned char kVarint1 = 0x08;  // field 1 of a varint: an integer

// The fields of a message in the order that is expected.
class Scanner {
 public:
  explicit Scanner(std::string_view message)
      : at_(reinterpret_cast<const unsigned char*>(message.data())), end_(at_ + message.size()) {}

  bool done() const { return at_ == end_; }
  // What is left.
  std::string_view rest() const { return View(at_, static_cast<std::size_t>(end_ - at_)); }

  bool Tag(unsigned char tag) {
    const bool is = at_ != end_ && *at_ == tag;
    at_ += is ? 1 : 0;
    return is;
  }
  bool Bytes(unsigned char tag, std::string_view& bytes) {
    std::uint64_t size = 0;
    if (!Tag(tag) || !Varint(size) || size > static_cast<std::uint64_t>(end_ - at_)) {
      return false;
    }
    bytes = View(at_, size);
    at_ += size;
    return true;
  }
  bool Varint(std::uint64_t& value) {
    if (at_ == end_) {
      return false;
    }
    value = *at_++;
    for (int shift = 7; (value >> (shift - 7)) >= 0x80; shift += 7) {
      if (at_ == end_ || shift > 56) {  // ten bytes: a negative number
        return shift > 56 && Tenth(value);
      }
      value += (std::uint64_t{*at_++} - 1) << shift;
    }
    return true;
  }

 private:
  // The last byte of a varint of 64 bits, of which nine have been read.
  bool Tenth(std::uint64_t& value) {
    if (at_ == end_ || *at_ > 1) {
      return false;
    }
    value = (value & (~std::uint64_t{0} >> 1)) | (std::uint64_t{*at_++} << 63);
    return true;
  }
  static std::string_view View(const unsigned char* at, std::size_t size) {
    return {reinterpret_cast<const char*>(at), size};
  }

  const unsigned char* at_;
  const unsigned char* end_;
};

bool PlainFloats(std::string_view list, std::size_t want, std::byte* row) {
  Scanner scanner(list);
  std::string_view packed;
  if (!scanner.Bytes(kBytes1, packed)) {
    if (want != 1 || !scanner.Tag(kFixed1)) {
      return false;
    }
    packed = scanner.rest();
  } else if (!scanner.done()) {
    return false;
  }
  if (packed.size() != want * sizeof(float)) {
    return false;
  }
  if (want == 1) {
    std::memcpy(row, packed.data(), sizeof(float));  // of a known size: no call
  } else {
    std::copy(packed.begin(), packed.end(), reinterpret_cast<char*>(row));
  }
  return true;
}

bool PlainInts(std::string_view list, std::size_t want, std::byte* row) {
  Scanner scanner(list);
  std::string_view packed;
  if (scanner.Bytes(kBytes1, packed)) {
    if (!scanner.done()) {
      return false;
    }
    scanner = Scanner(packed);
  } else if (want != 1 || !scanner.Tag(kVarint1)) {
    return false;
  }
  for (std::size_t i = 0; i < want; ++i) {
    std::uint64_t value = 0;
    if (!scanner.Varint(value)) {
      return false;
    }
    std::memcpy(row + i * sizeof(value), &value, sizeof(value));
  }
  return scanner.done();
}

}  // namespace

TfDecoder::TfDecoder(std::vector<TfFeatureSpec> specs) : specs_(std::move(specs)) {
  slots_.fill(-1);
  for (const TfFeatureSpec& spec : specs_) {
    Column column{.name = spec.name,
                  .type = spec.type,
                  .want = static_cast<std::size_t>(spec.shape.elements()),
                  .buckets = spec.buckets};
    if (spec.ragged || spec.steps) {
      ragged_.push_back({spec.name, DTypeOfFeature(spec.type)});
    } else {
      column.row = static_cast<std::ptrdiff_t>(features_.size());
      features_.push_back({spec.name, DTypeOfFeature(spec.type), spec.shape});
    }
    any_steps_ = any_steps_ || spec.steps;
    column.next =
        std::exchange(slots_[SlotOf(spec.name)], static_cast<std::int32_t>(columns_.size()));
    columns_.push_back(column);
  }
}

Status TfDecoder::Decode(std::string_view message, std::span<std::byte* const> rows,
                         std::span<std::vector<std::byte>> values) const {
  thread_local std::vector<std::string_view> entries;  // between records only for its memory
  entries.assign(specs_.size(), {});
  if (any_steps_ || !StoreAll(message, rows, entries)) {
    return DecodeAny(message, rows, values);
  }
  std::size_t list = 0;
  for (std::size_t i = 0; i < specs_.size() && list < ragged_.size(); ++i) {
    if (specs_[i].ragged) {
      TfFeature feature;
      Status status = ParseTfEntry(entries[i], feature);
      if (status.ok()) {
        status = Append(specs_[i], feature, values[list++]).status();
      }
      if (!status.ok()) {
        return status.Annotate("feature '" + specs_[i].name + "'");
      }
    }
  }
  return {};
}

// Values into rows, and the entries of ragged features into `entries`; false: to be read again.
bool TfDecoder::StoreAll(std::string_view message, std::span<std::byte* const> rows,
                         std::vector<std::string_view>& entries) const {
  Scanner whole(message);
  std::string_view bytes;
  if (message.size() > kMaxTfMessage || !whole.Bytes(kBytes1, bytes) || !whole.done()) {
    return false;
  }
  // The last entry of a key counts.
  for (Scanner features(bytes); !features.done();) {
    std::string_view entry;
    std::string_view key;
    std::string_view feature;
    if (!features.Bytes(kBytes1, entry)) {
      return false;
    }
    Scanner parts(entry);
    if (!parts.Bytes(kBytes1, key) || !parts.Bytes(kBytes2, feature) || !parts.done()) {
      return false;
    }
    const std::int32_t found = Find(key);
    if (found < 0) {
      continue;
    }
    const auto i = static_cast<std::size_t>(found);
    const Column& column = columns_[i];
    entries[i] = feature.empty() ? std::string_view() : entry;
    if (column.row >= 0 && !feature.empty() &&
        !StorePlain(column, feature, rows[static_cast<std::size_t>(column.row)])) {
      return false;
    }
  }
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    if (entries[i].empty() && columns_[i].row >= 0) {
      if (!specs_[i].missing.has_value()) {
        return false;
      }
      FillMissing(specs_[i], rows[static_cast<std::size_t>(columns_[i].row)]);
    }
  }
  return true;
}

// False: laid out otherwise, or not what is asked for.
bool TfDecoder::StorePlain(const Column& column, std::string_view feature, std::byte* row) {
  Scanner scanner(feature);
  std::string_view list;
  const auto kind = static_cast<unsigned char>(static_cast<int>(KindOf(column.type)) * 8 + 2);
  if (!scanner.Bytes(kind, list) || !scanner.done()) {
    return false;
  }
  switch (column.type) {
    case TfType::kFloat32:
      return PlainFloats(list, column.want, row);
    case TfType::kInt64:
      return PlainInts(list, column.want, row);
    case TfType::kHash:
    case TfType::kBytes:
      break;
  }
  Scanner strings(list);
  std::string_view text;
  if (!strings.Bytes(kBytes1, text) || !strings.done() ||
      column.want != (column.type == TfType::kHash ? 1 : text.size())) {
    return false;
  }
  if (column.type == TfType::kHash) {
    const std::int64_t hash = TextHash(text, column.buckets);
    std::memcpy(row, &hash, sizeof(hash));
    return true;
  }
  std::copy(text.begin(), text.end(), reinterpret_cast<char*>(row));
  return true;
}

// Any message.
Status TfDecoder::DecodeAny(std::string_view message, std::span<std::byte* const> rows,
                            std::span<std::vector<std::byte>> values) const {
  // The last entry of a key counts, so entries are found first and parsed afterwards.
  std::vector<std::string_view> entries(specs_.size());
  const auto find = [&](bool steps) {
    return [this, &entries, steps](std::string_view key, std::string_view entry) {
      if (const std::int32_t i = Find(key);
          i >= 0 && specs_[static_cast<std::size_t>(i)].steps == steps) {
        entries[static_cast<std::size_t>(i)] = entry;
      }
      return Status();
    };
  };
  COHORT_RETURN_IF_ERROR(ForEachTfFeature(message, find(false)));
  if (any_steps_) {
    COHORT_RETURN_IF_ERROR(ForEachTfStepList(message, find(true)));
  }
  std::size_t row = 0;
  std::size_t list = 0;
  TfFeature feature;
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    const TfFeatureSpec& spec = specs_[i];
    Status status;
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

}  // namespace cohort::data
