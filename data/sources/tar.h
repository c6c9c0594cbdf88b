// Reading a tar archive: where its members lie.
//
// Format: POSIX.1-2017, pax, "ustar Interchange Format"; pax extended headers for path and size;
// GNU's long names and base-256 numbers (www.gnu.org/software/tar/manual, "Basic Tar Format").

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <cohort/core/file_system.h>
#include <cohort/core/status.h>

namespace cohort::data {

inline constexpr std::uint64_t kTarBlock = 512;

struct TarMember {
  std::string name;
  std::uint64_t header = 0;  // byte of the archive
  std::uint64_t begin = 0;   // of the content
  std::uint64_t size = 0;
};

// Whether the first block is a tar header, by its checksum.
bool LooksLikeTar(const RandomAccessFile& file);

// The regular files of an archive, in its order. Folders are left out. Every header's checksum is
// verified; the archive must hold every byte that it promises and end with a block of zeros, with
// nothing but zeros behind it: anything else is DataLoss, naming path and byte. Links, devices and
// sparse files are InvalidArgument. For gzip, bytes are those of the unpacked archive.
Result<std::vector<TarMember>> IndexTar(const RandomAccessFile& file, const std::string& path);

}  // namespace cohort::data
