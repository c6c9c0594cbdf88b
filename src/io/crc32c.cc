#include <cohort/core/file_system.h>
#include <cohort/io/crc32c.h>
#include <isa-l/crc.h>

#include <algorithm>

namespace cohort::io {

std::uint32_t Crc32c(std::span<const std::byte> bytes, std::uint32_t crc) {
  constexpr std::size_t kMost = std::size_t{1} << 30;  // ISA-L counts in int
  while (!bytes.empty()) {
    const std::size_t n = std::min(bytes.size(), kMost);
    // The argument is read only; the library's signature predates const.
    auto* const data =
        const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(bytes.data()));
    crc = ~crc32_iscsi(data, static_cast<int>(n), ~crc);
    bytes = bytes.subspan(n);
  }
  return crc;
}

std::uint32_t Crc32c(std::string_view bytes, std::uint32_t crc) {
  return Crc32c(AsBytes(bytes), crc);
}

}  // namespace cohort::io
