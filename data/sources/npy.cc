#include "sources/npy.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

#include "sources/content.h"
#include "sources/sizes.h"

namespace cohort::data {
namespace {

template <typename Stored, typename T>
void Widen(const std::byte* in, std::size_t count, std::byte* out) {
  for (std::size_t i = 0; i < count; ++i) {
    Stored stored;
    std::memcpy(&stored, in + i * sizeof(Stored), sizeof(Stored));
    const auto value = static_cast<T>(stored);  // NOLINT(bugprone-signed-char-misuse): a number
    std::memcpy(out + i * sizeof(T), &value, sizeof(T));
  }
}

constexpr NpyType kTypes[] = {
    {"f4", DType::kFloat32, 4, nullptr},
    {"f8", DType::kFloat64, 8, nullptr},
    {"f2", DType::kFloat16, 2, nullptr},
    {"i4", DType::kInt32, 4, nullptr},
    {"i8", DType::kInt64, 8, nullptr},
    {"u1", DType::kUInt8, 1, nullptr},
    {"b1", DType::kUInt8, 1, nullptr},
    {"i1", DType::kInt32, 1, Widen<std::int8_t, std::int32_t>},
    {"i2", DType::kInt32, 2, Widen<std::int16_t, std::int32_t>},
    {"u2", DType::kInt32, 2, Widen<std::uint16_t, std::int32_t>},
    {"u4", DType::kInt64, 4, Widen<std::uint32_t, std::int64_t>},
};

// The dictionary of the header, a Python literal: strings, booleans, tuples of integers.
class Literal {
 public:
  explicit Literal(std::string_view text) : text_(text) {}

  bool Take(char c) {
    SkipSpace();
    if (at_ == text_.size() || text_[at_] != c) {
      return false;
    }
    ++at_;
    return true;
  }
  bool TakeWord(std::string_view word) {
    SkipSpace();
    if (!text_.substr(at_).starts_with(word)) {
      return false;
    }
    at_ += word.size();
    return true;
  }
  // Without escapes, which no element type needs.
  std::optional<std::string_view> String() {
    SkipSpace();
    if (at_ == text_.size() || (text_[at_] != '\'' && text_[at_] != '"')) {
      return std::nullopt;
    }
    const std::size_t end = text_.find(text_[at_], at_ + 1);
    if (end == std::string_view::npos) {
      return std::nullopt;
    }
    const std::string_view value = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    return value;
  }
  std::optional<std::vector<std::int64_t>> Sizes() {
    std::vector<std::int64_t> sizes;
    if (!Take('(')) {
      return std::nullopt;
    }
    while (!Take(')')) {
      SkipSpace();
      std::int64_t size = 0;
      const char* const end = text_.data() + text_.size();
      const auto [after, error] = std::from_chars(text_.data() + at_, end, size);
      if (error != std::errc() || size < 0) {
        return std::nullopt;
      }
      at_ = static_cast<std::size_t>(after - text_.data());
      TakeWord("L");  // of Python 2
      sizes.push_back(size);
      if (!Take(',')) {
        if (!Take(')')) {
          return std::nullopt;
        }
        break;
      }
    }
    return sizes;
  }
  bool AtEnd() {
    SkipSpace();
    return at_ == text_.size();
  }
  std::size_t at() const { return at_; }

 private:
  void SkipSpace() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t')) {
      ++at_;
    }
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

struct Fields {
  std::string descr;
  std::optional<bool> fortran_order;
  std::optional<std::vector<std::int64_t>> shape;
};

Result<Fields> ParseFields(std::string_view text) {
  Literal in(text);
  const auto bad = [&in](const std::string& what) {
    return DataLoss("header at character " + std::to_string(in.at()) + ": " + what);
  };
  Fields fields;
  if (!in.Take('{')) {
    return bad("no dictionary");
  }
  while (!in.Take('}')) {
    const auto key = in.String();
    if (!key.has_value() || !in.Take(':')) {
      return bad("a key is expected");
    }
    if (*key == "descr") {
      if (in.Take('[')) {
        return InvalidArgument("a structured element type is not read [save each field by itself]");
      }
      const auto value = in.String();
      if (!value.has_value()) {
        return bad("'descr' is no element type");
      }
      fields.descr = *value;
    } else if (*key == "fortran_order") {
      const bool is_true = in.TakeWord("True");
      if (!is_true && !in.TakeWord("False")) {
        return bad("'fortran_order' is neither True nor False");
      }
      fields.fortran_order = is_true;
    } else if (*key == "shape") {
      fields.shape = in.Sizes();
      if (!fields.shape.has_value()) {
        return bad("'shape' is no tuple of sizes");
      }
    } else {
      return bad("'" + std::string(key->substr(0, 80)) + "' is no key of the format");
    }
    if (!in.Take(',')) {
      if (!in.Take('}')) {
        return bad("the dictionary does not end");
      }
      break;
    }
  }
  if (!in.AtEnd()) {
    return bad("text follows the dictionary");
  }
  if (fields.descr.empty() || !fields.fortran_order.has_value() || !fields.shape.has_value()) {
    return bad("'descr', 'fortran_order' and 'shape' must be there");
  }
  return fields;
}

Result<const NpyType*> FindType(const std::string& descr) {
  const std::string_view code = std::string_view(descr).substr(1);
  if (descr[0] == '>') {
    return InvalidArgument("elements are big-endian ('" + descr + "') [array.astype('<" +
                           std::string(code) + "') before saving]");
  }
  if (code.starts_with('O')) {
    return InvalidArgument("elements are Python objects ('" + descr +
                           "'), which are not read [save arrays of numbers]");
  }
  const auto* const type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                        [code](const NpyType& t) { return t.code == code; });
  if (type == std::end(kTypes) ||
      (descr[0] != '<' && !(descr[0] == '|' && type->stored_bytes == 1))) {
    return InvalidArgument("element type '" + descr.substr(0, 80) +
                           "' is not read [float16, float32, float64, bool, int8 to int64 and "
                           "uint8 to uint32, little-endian, are]");
  }
  return type;
}

Result<NpyHeader> Parse(std::string_view text, std::uint64_t data_begin, std::uint64_t file_bytes) {
  COHORT_ASSIGN_OR_RETURN(const Fields fields, ParseFields(text));
  NpyHeader header;
  COHORT_ASSIGN_OR_RETURN(header.type, FindType(fields.descr));
  if (*fields.fortran_order) {
    return InvalidArgument(
        "the array is in Fortran order [numpy.ascontiguousarray(array) before saving]");
  }
  const auto bytes = CheckedBytes(*fields.shape, header.type->stored_bytes);
  const std::uint64_t there = file_bytes - data_begin;
  const std::string shape = Shape(*fields.shape).ToString();
  if (!bytes.has_value()) {
    return DataLoss("shape " + shape + " is larger than any file");
  }
  if (*bytes > there) {
    return DataLoss("data at byte " + std::to_string(data_begin) + ": shape " + shape + " makes " +
                    std::to_string(*bytes) + " bytes, " + std::to_string(there) +
                    " there [the file is cut short]");
  }
  if (*bytes < there) {
    return DataLoss(std::to_string(there - *bytes) + " bytes follow the data of shape " + shape +
                    ", from byte " + std::to_string(data_begin + *bytes) + " [one array a file]");
  }
  header.shape = Shape(*fields.shape);
  header.data_begin = data_begin;
  return header;
}

}  // namespace

Result<NpyHeader> ReadNpyHeader(const RandomAccessFile& file, const std::string& path) {
  constexpr std::uint64_t kMaxText = std::uint64_t{1} << 16;
  std::string start(12, '\0');
  COHORT_ASSIGN_OR_RETURN(const std::size_t n,
                          file.Read(0, std::as_writable_bytes(std::span(start))));
  start.resize(n);
  if (!start.starts_with(kNpyMagic)) {
    return DataLoss(path + ": does not begin as .npy does (93 'NUMPY')");
  }
  const auto byte = [&start](std::size_t i) {
    return static_cast<std::uint64_t>(static_cast<unsigned char>(start[i]));
  };
  const std::size_t length_bytes = n > 6 && byte(6) == 1 ? 2 : 4;
  const std::size_t text_begin = 8 + length_bytes;
  if (n < text_begin) {
    return DataLoss(path + ": the header is cut short at byte " + std::to_string(n));
  }
  if (byte(6) < 1 || byte(6) > 3 || byte(7) != 0) {
    return InvalidArgument(path + ": .npy version " + std::to_string(byte(6)) + "." +
                           std::to_string(byte(7)) + " [1.0, 2.0 and 3.0 are read]");
  }
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < length_bytes; ++i) {
    length |= byte(8 + i) << (8 * i);
  }
  if (length > kMaxText || length > file.size() - text_begin) {
    return DataLoss(path + ": a header of " + std::to_string(length) + " bytes at byte " +
                    std::to_string(text_begin) + " is larger than " +
                    (length > kMaxText ? "the format needs" : "the file"));
  }
  std::string text(length, '\0');
  COHORT_RETURN_IF_ERROR(
      ReadExactly(file, path, text_begin, std::as_writable_bytes(std::span(text))));
  Result<NpyHeader> header = Parse(text, text_begin + length, file.size());
  return header.ok() ? std::move(header) : Result<NpyHeader>(header.status().Annotate(path));
}

std::string EncodeNpyHeader(DType dtype, const Shape& shape) {
  const auto* const type =
      std::find_if(std::begin(kTypes), std::end(kTypes),
                   [dtype](const NpyType& t) { return t.dtype == dtype && t.widen == nullptr; });
  Require(type != std::end(kTypes), ".npy has no bfloat16");
  std::string text = "{'descr': '";
  text += type->stored_bytes == 1 ? '|' : '<';
  text += std::string(type->code) + "', 'fortran_order': False, 'shape': (";
  for (int axis = 0; axis < shape.rank(); ++axis) {
    text += (axis == 0 ? "" : ", ") + std::to_string(shape[axis]);
  }
  text += shape.rank() == 1 ? ",), }" : "), }";
  // The data begins at a multiple of 64.
  constexpr std::size_t kStart = 10;
  const std::size_t total = (kStart + text.size() + 1 + 63) / 64 * 64;
  Require(total - kStart <= 0xFFFF, "a shape of so many axes has no .npy header of version 1.0");
  text.resize(total - kStart - 1, ' ');
  text += '\n';
  std::string header(kNpyMagic);
  header += {1, 0, static_cast<char>(text.size() & 0xFF), static_cast<char>(text.size() >> 8)};
  return header + text;
}

}  // namespace cohort::data
