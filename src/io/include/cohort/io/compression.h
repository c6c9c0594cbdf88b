// gzip and zlib streams, whole in memory.
//
// A file may consist of several members one after another (`cat a.gz b.gz`); they read as one. Each
// member's checksum is verified.

#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include <cohort/core/file_system.h>
#include <cohort/core/status.h>

namespace cohort::io {

enum class Compression { kNone, kGzip, kZlib };

std::string_view CompressionName(Compression compression);  // "none", "gzip", "zlib"

inline constexpr std::size_t kMaxInflatedBytes = std::size_t{1} << 34;

// What a gzip stream holds. DataLoss names `name` and the byte at which it is damaged or cut off;
// ResourceExhausted if it holds more than `max_bytes`.
Result<std::string> Gunzip(std::string_view compressed, std::string_view name,
                           std::size_t max_bytes = kMaxInflatedBytes);
std::string Gzip(std::string_view content);

// A whole file: unpacked if it begins as gzip does (1f 8b), as it is otherwise.
Result<std::string> ReadMaybeCompressed(FileSystem& files, const std::string& path,
                                        std::size_t max_bytes = kMaxInflatedBytes);

}  // namespace cohort::io
