#include <cohort/data/criteo.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include <cohort/core/random.h>

namespace cohort::data {
namespace {

constexpr int kIntegers = 13;
constexpr int kCategories = 26;

template <typename T>
void Put(std::byte*& row, T value) {
  std::memcpy(row, &value, sizeof(value));
  row += sizeof(value);
}

Status Bad(const std::string& column, std::string_view text, const std::string& what) {
  return DataLoss("column '" + column + "': '" + std::string(text.substr(0, 80)) + "' " + what);
}

// The columns of a line, one after another.
class Columns {
 public:
  Columns(std::string_view line, char delimiter) : rest_(line), delimiter_(delimiter) {}
  std::string_view Next() {
    const std::size_t end = std::min(rest_.find(delimiter_), rest_.size());
    const std::string_view text = rest_.substr(0, end);
    rest_.remove_prefix(std::min(end + 1, rest_.size()));
    return text;
  }

 private:
  std::string_view rest_;
  char delimiter_;
};

Status DecodeInteger(std::string_view text, int column, const CriteoOptions& options,
                     std::byte*& row) {
  if (text.empty()) {
    Put(row, options.missing_integer);
    return {};
  }
  // Copies of the data that went through a data frame have "5.0".
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value != std::floor(value) ||
      std::isinf(value)) {
    return Bad("I" + std::to_string(column + 1), text, "is not an integer");
  }
  Put(row, static_cast<float>(options.log ? std::log1p(std::max(value, 0.0)) : value));
  return {};
}

Status DecodeCategory(std::string_view text, int column, std::int64_t buckets, std::byte*& row) {
  if (text.empty()) {
    Put(row, std::int64_t{buckets > 0 ? 0 : -1});
    return {};
  }
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (error != std::errc() || end != text.data() + text.size() || text.size() > 8) {
    return Bad("C" + std::to_string(column + 1), text, "is not 1 to 8 hexadecimal digits");
  }
  if (buckets == 0) {
    Put(row, static_cast<std::int64_t>(value));
    return {};
  }
  const std::uint32_t words[2] = {static_cast<std::uint32_t>(column), value};
  const std::uint64_t hash = Hash64({reinterpret_cast<const char*>(words), sizeof(words)});
  Put(row, static_cast<std::int64_t>(1 + hash % static_cast<std::uint64_t>(buckets - 1)));
  return {};
}

Status Decode(const CriteoOptions& options, std::string_view line,
              std::span<std::byte* const> rows) {
  const auto found = std::count(line.begin(), line.end(), options.delimiter) + 1;
  const int expected = kIntegers + kCategories + (options.label ? 1 : 0);
  if (found != expected) {
    return DataLoss(std::to_string(found) + " columns, " + std::to_string(expected) +
                    " are expected" +
                    (found == kIntegers + kCategories || found == expected + 1
                         ? " [is there a label? CriteoOptions.label]"
                         : ""));
  }
  Columns columns(line, options.delimiter);
  std::size_t feature = 0;
  if (options.label) {
    const std::string_view text = columns.Next();
    if (text != "0" && text != "1") {
      return Bad("label", text, "is neither 0 nor 1");
    }
    std::byte* row = rows[feature++];
    Put(row, text == "1" ? 1.0F : 0.0F);
  }
  std::byte* row = rows[feature++];
  for (int i = 0; i < kIntegers; ++i) {
    COHORT_RETURN_IF_ERROR(DecodeInteger(columns.Next(), i, options, row));
  }
  row = rows[feature];
  for (int i = 0; i < kCategories; ++i) {
    COHORT_RETURN_IF_ERROR(DecodeCategory(columns.Next(), i, options.buckets, row));
  }
  return {};
}

}  // namespace

LineDecoder CriteoLine(const CriteoOptions& options) {
  Require(options.buckets == 0 || options.buckets >= 2, "Criteo buckets are 0 or at least 2");
  LineDecoder decoder;
  if (options.label) {
    decoder.features.push_back({"label", DType::kFloat32, Shape()});
  }
  decoder.features.push_back({"dense", DType::kFloat32, Shape({kIntegers})});
  decoder.features.push_back({"sparse", DType::kInt64, Shape({kCategories})});
  decoder.decode = [options](std::string_view line, std::span<std::byte* const> rows) {
    return Decode(options, line, rows);
  };
  decoder.name = "criteo " + std::to_string(options.delimiter) + (options.log ? " log " : " ") +
                 std::to_string(options.missing_integer) + " " + std::to_string(options.buckets);
  return decoder;
}

}  // namespace cohort::data
