// The bytes around a record, and what is said when they are wrong.

#pragma once

#include <cohort/core/status.h>
#include <cohort/io/crc32c.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#ifdef __SSE4_2__
#include <nmmintrin.h>
#endif

namespace cohort::io {

static_assert(std::endian::native == std::endian::little, "record files are little-endian");

inline constexpr std::size_t kHeaderBytes = 12;  // length, checksum of the length
inline constexpr std::size_t kFooterBytes = 4;   // checksum of the bytes

template <typename T>
T LoadInteger(const char* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

struct RecordHeader {
  std::uint64_t length;
  bool sound;  // the length's checksum is right
};

// Crc32c of a length: one instruction, where a call would cost more than the record's own checksum.
inline std::uint32_t CrcOfLength(std::uint64_t length) {
#ifdef __SSE4_2__
  return ~static_cast<std::uint32_t>(_mm_crc32_u64(~std::uint32_t{0}, length));
#else
  return Crc32c(std::string_view(reinterpret_cast<const char*>(&length), sizeof(length)));
#endif
}

inline RecordHeader ParseHeader(const char* bytes) {
  const auto length = LoadInteger<std::uint64_t>(bytes);
  return {length, MaskCrc(CrcOfLength(length)) == LoadInteger<std::uint32_t>(bytes + 8)};
}

// Where a record stands, for messages.
struct RecordPlace {
  std::string_view path;
  std::int64_t ordinal;
  std::uint64_t offset;

  Status Error(const std::string& what) const {
    return DataLoss(std::string(path) + ": record " + std::to_string(ordinal) + " at byte " +
                    std::to_string(offset) + ": " + what);
  }
  Status BadLength() const {
    return Error(
        "corrupted, the checksum of its length is wrong [nothing behind it can be found; is this a "
        "record file, and is its compression the one that was named?]");
  }
  Status BadBytes() const {
    return Error(
        "corrupted, the checksum of its bytes is wrong [the records behind it can be read]");
  }
  Status ShortHeader(std::uint64_t have) const {
    return Error("truncated header, " + std::to_string(kHeaderBytes - have) + " of " +
                 std::to_string(kHeaderBytes) +
                 " bytes are missing [the file was cut off: copy it "
                 "again, or end its writer with Close]");
  }
  // `have`: bytes present behind the header.
  Status ShortRecord(std::uint64_t length, std::uint64_t have) const {
    return Error("truncated, it has " + std::to_string(length) +
                 " bytes and a checksum, of which " + std::to_string(length - have + kFooterBytes) +
                 " bytes are missing [the file was "
                 "cut off: copy it again, or end its writer with Close]");
  }
};

// A length so large that adding the frame's bytes would overflow.
inline constexpr std::uint64_t kMaxRecordBytes = ~std::uint64_t{0} >> 1;

}  // namespace cohort::io
