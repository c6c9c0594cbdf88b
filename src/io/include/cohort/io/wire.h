// The wire format of protobuf messages: what files hold that other programs read as messages.
//
// Thread rules: none; everything is the caller's.

#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace cohort::io::wire {

static_assert(std::endian::native == std::endian::little, "fixed fields are little-endian");

enum Type { kVarint = 0, kFixed64 = 1, kBytes = 2, kGroup = 3, kGroupEnd = 4, kFixed32 = 5 };

struct Field {
  std::uint64_t number = 0;
  Type type = kVarint;
  std::uint64_t varint = 0;  // kVarint
  std::string_view bytes;    // kBytes, kFixed32, kFixed64
};

// The fields of a message, one after another.
class Fields {
 public:
  explicit Fields(std::string_view message) : rest_(message) {}

  bool done() const { return rest_.empty(); }

  // False if the bytes are not a message.
  bool Next(Field& field) { return Tag(field) && Value(field, 0); }

  bool Varint(std::uint64_t& value) {
    value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      if (rest_.empty()) {
        return false;
      }
      const auto byte = static_cast<unsigned char>(rest_[0]);
      rest_.remove_prefix(1);
      if (shift < 64) {
        value |= std::uint64_t{byte & 0x7FU} << shift;
      }
      if (byte < 0x80) {
        return true;
      }
    }
    return false;
  }

 private:
  bool Tag(Field& field) {
    std::uint64_t tag = 0;
    if (!Varint(tag) || (tag >> 3) == 0 || (tag >> 3) >= (std::uint64_t{1} << 29)) {
      return false;
    }
    field.number = tag >> 3;
    field.type = static_cast<Type>(tag & 7);
    return true;
  }

  bool Value(Field& field, int depth) {
    switch (field.type) {
      case kVarint:
        return Varint(field.varint);
      case kFixed64:
        return Take(8, field.bytes);
      case kFixed32:
        return Take(4, field.bytes);
      case kBytes: {
        std::uint64_t size = 0;
        return Varint(size) && Take(size, field.bytes);
      }
      case kGroup:
        return SkipGroup(field.number, depth + 1);
      default:
        return false;
    }
  }

  bool SkipGroup(std::uint64_t number, int depth) {
    constexpr int kMaxDepth = 100;  // protobuf's
    Field inner;
    while (depth <= kMaxDepth && Tag(inner)) {
      if (inner.type == kGroupEnd) {
        return inner.number == number;
      }
      if (!Value(inner, depth)) {
        return false;
      }
    }
    return false;
  }

  bool Take(std::uint64_t size, std::string_view& bytes) {
    if (size > rest_.size()) {
      return false;
    }
    bytes = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return true;
  }

  std::string_view rest_;
};

// Calls each(field) for the fields of a message; false if the bytes are not one or `each` says so.
template <typename Each>
bool ForEachField(std::string_view message, const Each& each) {
  Fields fields(message);
  Field field;
  while (!fields.done()) {
    if (!fields.Next(field) || !each(field)) {
      return false;
    }
  }
  return true;
}

// Written whatever the value. The fields of a proto3 message that have their default value are left
// out, and are the caller's to leave out.
inline void AppendVarint(std::string& to, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) {
    to.push_back(static_cast<char>((value & 0x7F) | 0x80));
  }
  to.push_back(static_cast<char>(value));
}
inline void AppendField(std::string& to, std::uint64_t number, std::string_view bytes) {
  AppendVarint(to, (number << 3) | kBytes);
  AppendVarint(to, bytes.size());
  to.append(bytes);
}
inline void AppendVarintField(std::string& to, std::uint64_t number, std::uint64_t value) {
  AppendVarint(to, (number << 3) | kVarint);
  AppendVarint(to, value);
}
// A double, fixed64 or sfixed64; a float, fixed32 or sfixed32.
template <typename T>
requires(sizeof(T) == 8 || sizeof(T) == 4) void AppendFixedField(std::string& to,
                                                                 std::uint64_t number, T value) {
  AppendVarint(to, (number << 3) | (sizeof(T) == 8 ? kFixed64 : kFixed32));
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  to.append(bytes, sizeof(T));
}

}  // namespace cohort::io::wire
