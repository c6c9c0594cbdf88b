// CRC-32C (Castagnoli), the checksum of record files, event files and checkpoints.
//
// Pure functions: any thread, nothing blocks.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace cohort::io {

// The checksum of what `crc` is of, followed by `bytes`. Start with 0.
std::uint32_t Crc32c(std::span<const std::byte> bytes, std::uint32_t crc = 0);
std::uint32_t Crc32c(std::string_view bytes, std::uint32_t crc = 0);

// The form that record files store: a checksum over data that itself holds checksums is weak, so
// the bits are turned and moved.
constexpr std::uint32_t MaskCrc(std::uint32_t crc) {
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8U;
}
constexpr std::uint32_t UnmaskCrc(std::uint32_t masked) {
  const std::uint32_t turned = masked - 0xa282ead8U;
  return (turned >> 17) | (turned << 15);
}

}  // namespace cohort::io
