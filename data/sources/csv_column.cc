#include "sources/csv_column.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>

#include "sources/text_hash.h"

namespace cohort::data {
namespace {

constexpr std::size_t kWord = sizeof(std::uint64_t);

inline std::uint64_t Load(const char* from) {
  std::uint64_t word;
  std::memcpy(&word, from, kWord);
  return word;
}

// 1 to 8 digits, all at once; kWord bytes can be read from the beginning of `text` on. nullopt: it
// is something else, or longer.
std::optional<std::int32_t> FewDigits(std::string_view text) {
  if (std::endian::native != std::endian::little || text.size() - 1 >= kWord) {
    return std::nullopt;
  }
  const std::size_t absent = 8 * (kWord - text.size());  // bits
  constexpr std::uint64_t kZeros = 0x3030303030303030;
  // The digits at the end, and zeros before them.
  const std::uint64_t digits =
      Load(text.data()) << absent | (kZeros & ((std::uint64_t{1} << absent) - 1));
  constexpr std::uint64_t kHigh = 0xF0F0F0F0F0F0F0F0;
  constexpr std::uint64_t kSix = 0x0606060606060606;
  if ((digits & kHigh) != kZeros || ((digits + kSix) & kHigh) != kZeros) {
    return std::nullopt;
  }
  // Pairs, then fours, then all eight.
  const std::uint64_t ones = digits & ~kHigh;
  const std::uint64_t pairs = (ones * 10 + (ones >> 8)) & 0x00FF00FF00FF00FF;
  const std::uint64_t fours = (pairs * 100 + (pairs >> 16)) & 0x0000FFFF0000FFFF;
  return static_cast<std::int32_t>((fours * 10000 + (fours >> 32)) & 0xFFFFFFFF);
}

template <typename T>
bool ParseNumber(const CsvField& field, T& value) {
  std::string_view text = field.text;
  if (!field.quoted) {
    if (const std::optional<std::int32_t> digits = FewDigits(text)) {
      value = static_cast<T>(*digits);  // rounded once, as from_chars does
      return true;
    }
  }
  if (text.starts_with('+')) {
    text.remove_prefix(1);
  }
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

// Both halves of the product: what wyhash and its kin mix with.
std::uint64_t Mix(std::uint64_t a, std::uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

}  // namespace

CsvVocabulary::Key::Key(std::string_view of) : text(of) {
  if (!of.empty()) {
    std::memcpy(words.data(), of.data(), std::min(of.size(), kBytes));
  }
}

inline CsvVocabulary::Key CsvVocabulary::Key::WithSlack(std::string_view of) {
  static constexpr auto kMasks = [] {
    std::array<std::uint64_t, 2 * kWords> masks = {};
    std::fill(masks.begin(), masks.begin() + kWords, ~std::uint64_t{0});
    return masks;
  }();
  const char* const mask =
      reinterpret_cast<const char*>(kMasks.data()) + kBytes - std::min(of.size(), kBytes);
  Key key;
  key.text = of;
  for (std::size_t i = 0; i < kWords; ++i) {
    key.words[i] = Load(of.data() + i * kWord) & Load(mask + i * kWord);
  }
  return key;
}

// Of this process only: positions do not depend on it.
inline std::uint64_t CsvVocabulary::Key::Hash() const {
  constexpr std::uint64_t kFirst = 0x9E3779B97F4A7C15;
  constexpr std::uint64_t kSecond = 0xD1B54A32D192ED03;
  std::uint64_t hash = Mix(words[0] ^ kFirst, words[1] ^ kSecond ^ text.size()) ^
                       Mix(words[2] ^ kSecond, words[3] ^ kFirst);
  if (text.size() > kBytes) {
    const char* const last = text.data() + text.size() - kWord;
    for (const char* at = text.data() + kBytes; at < last; at += kWord) {
      hash = Mix(hash ^ Load(at), kFirst);
    }
    hash = Mix(hash ^ Load(last), kSecond);
  }
  return hash;
}

CsvVocabulary::CsvVocabulary(const std::vector<std::string>& given) : open_(given.empty()) {
  constexpr std::size_t kLeast = 64;
  slots_.resize(kLeast);
  for (const std::string& text : given) {
    FindOrAdd(Key(text));
  }
}

std::int64_t CsvVocabulary::Find(const Key& key) const {
  return slots_[SlotOf(key, key.Hash())].position;
}

std::int64_t CsvVocabulary::FindOrAdd(const Key& key) {
  const std::size_t slot = SlotOf(key, key.Hash());
  return slots_[slot].position != kNone ? slots_[slot].position : Add(key, slot);
}

std::int64_t CsvVocabulary::Add(const Key& key, std::size_t slot) {
  const auto position = static_cast<std::int64_t>(texts_.size());
  texts_.emplace_back(key.text);
  slots_[slot] = {key.words, key.text.size(), position};
  if (2 * texts_.size() > slots_.size()) {
    Rehash(2 * slots_.size());
  }
  return position;
}

void CsvVocabulary::Rehash(std::size_t slots) {
  slots_.assign(slots, Slot{});
  for (std::size_t i = 0; i < texts_.size(); ++i) {
    const Key key(texts_[i]);
    slots_[SlotOf(key, key.Hash())] = {key.words, key.text.size(), static_cast<std::int64_t>(i)};
  }
}

std::vector<std::int64_t> CsvVocabulary::Sort() {
  std::vector<std::size_t> order(texts_.size());  // new position: old one
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [this](std::size_t a, std::size_t b) { return texts_[a] < texts_[b]; });
  std::vector<std::int64_t> moved(order.size());
  std::vector<std::string> sorted(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    moved[order[i]] = static_cast<std::int64_t>(i);
    sorted[i] = std::move(texts_[order[i]]);
  }
  texts_ = std::move(sorted);
  Rehash(slots_.size());
  return moved;
}

CsvValues::CsvValues(const CsvColumn& spec, const std::vector<std::string>& markers,
                     const CsvVocabulary& given)
    : spec_(&spec), markers_(&markers), given_(&given) {
  for (const std::string& marker : markers) {
    if (!marker.empty()) {
      begins_marker_[static_cast<unsigned char>(marker[0])] = true;
    }
  }
}

inline bool CsvValues::IsMissing(const CsvField& field) const {
  const std::string_view text = field.text;
  return !field.quoted &&
         (text.empty() || (begins_marker_[static_cast<unsigned char>(text[0])] &&
                           std::find(markers_->begin(), markers_->end(), text) != markers_->end()));
}

inline bool CsvValues::Number(const CsvField& field, float& value) const {
  return ParseNumber(field, value) && std::isfinite(value);
}

inline bool CsvValues::Number(const CsvField& field, std::int64_t& value) const {
  return ParseNumber(field, value);
}

inline bool CsvValues::Position(const CsvField& field, std::int64_t& value) {
  const CsvVocabulary::Key key =
      field.quoted ? CsvVocabulary::Key(field.text) : CsvVocabulary::Key::WithSlack(field.text);
  value = given_->open() ? found_.FindOrAdd(key) : given_->Find(key);
  if (value == CsvVocabulary::kNone && spec_->unknown.has_value()) {
    value = *spec_->unknown;
    return true;
  }
  return value != CsvVocabulary::kNone;
}

inline bool CsvValues::Hash(const CsvField& field, std::int64_t& value) const {
  value = TextHash(field.text, spec_->buckets);
  return true;
}

template <typename T, typename Convert>
std::size_t CsvValues::AppendAs(const CsvField* fields, std::size_t width, std::size_t rows,
                                T missing, const Convert& convert) {
  std::byte* out = out_;
  std::size_t row = 0;
  for (; row < rows; ++row, out += step_) {
    const CsvField& field = fields[row * width];
    T value = missing;
    if (IsMissing(field) ? !spec_->missing.has_value() : !convert(field, value)) {
      break;
    }
    *reinterpret_cast<T*>(out) = value;
  }
  out_ = out;
  return row;
}

std::size_t CsvValues::Append(const CsvField* fields, std::size_t width, std::size_t rows) {
  const double missing = spec_->missing.value_or(0);
  const auto whole = spec_->type == CsvType::kFloat32 ? 0 : static_cast<std::int64_t>(missing);
  switch (spec_->type) {
    case CsvType::kFloat32:
      return AppendAs(fields, width, rows, static_cast<float>(missing),
                      [this](const CsvField& field, float& value) { return Number(field, value); });
    case CsvType::kInt64:
      return AppendAs(
          fields, width, rows, whole,
          [this](const CsvField& field, std::int64_t& value) { return Number(field, value); });
    case CsvType::kCategory:
      return AppendAs(
          fields, width, rows, given_->open() ? CsvVocabulary::kNone : whole,
          [this](const CsvField& field, std::int64_t& value) { return Position(field, value); });
    case CsvType::kHash:
      return AppendAs(
          fields, width, rows, whole,
          [this](const CsvField& field, std::int64_t& value) { return Hash(field, value); });
  }
  return 0;
}

Status CsvValues::Why(const CsvField& field) const {
  const std::string column = "column '" + spec_->name + "': ";
  if (IsMissing(field)) {
    return DataLoss(column + "the value is missing [set the column's `missing` to accept that]");
  }
  return DataLoss(column + "'" + std::string(field.text.substr(0, 80)) + "' is not " +
                  (spec_->type == CsvType::kFloat32 ? "a finite number"
                   : spec_->type == CsvType::kInt64
                       ? "a 64-bit integer"
                       : "one of the " + std::to_string(spec_->categories.size()) + " categories"));
}

}  // namespace cohort::data
