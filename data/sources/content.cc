#include "sources/content.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include <cohort/core/random.h>
#include <cohort/io/compression.h>
#include <cohort/io/crc32c.h>

namespace cohort::data {
namespace {

Result<bool> BeginsAsGzip(const RandomAccessFile& file) {
  std::array<std::byte, 2> magic{};
  COHORT_ASSIGN_OR_RETURN(const std::size_t n, file.Read(0, magic));
  return n == 2 && magic == std::array{std::byte{0x1f}, std::byte{0x8b}};
}

}  // namespace

std::string VersionOf(const RandomAccessFile& file) {
  const auto* const versioned = dynamic_cast<const VersionedContent*>(&file);
  return versioned == nullptr ? "" : versioned->version();
}

Result<std::size_t> BytesFile::Read(std::uint64_t offset, std::span<std::byte> out) const {
  if (offset >= bytes_.size()) {
    return std::size_t{0};
  }
  const std::size_t n = std::min<std::size_t>(out.size(), bytes_.size() - offset);
  if (n != 0) {
    std::memcpy(out.data(), bytes_.data() + offset, n);
  }
  return n;
}

Result<std::shared_ptr<const RandomAccessFile>> OpenGzip(FileSystem& files,
                                                         const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(const auto raw, OpenRaw(files, path));
  COHORT_ASSIGN_OR_RETURN(const bool is_gzip, BeginsAsGzip(*raw));
  if (!is_gzip) {
    return DataLoss(path + ": does not begin as gzip does (1f 8b)");
  }
  COHORT_ASSIGN_OR_RETURN(std::string bytes, io::ReadMaybeCompressed(files, path));
  return std::make_shared<const BytesFile>(std::move(bytes));
}

Result<std::shared_ptr<const RandomAccessFile>> OpenRaw(FileSystem& files,
                                                        const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(auto file, files.OpenForRead(path));
  return std::shared_ptr<const RandomAccessFile>(std::move(file));
}

Result<std::shared_ptr<const RandomAccessFile>> OpenMaybeGzip(FileSystem& files,
                                                              const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(auto file, OpenRaw(files, path));
  COHORT_ASSIGN_OR_RETURN(const bool is_gzip, BeginsAsGzip(*file));
  if (is_gzip) {
    return OpenGzip(files, path);
  }
  return file;
}

Status ReadExactly(const RandomAccessFile& file, const std::string& path, std::uint64_t offset,
                   std::span<std::byte> out) {
  if (out.empty()) {
    return {};
  }
  COHORT_ASSIGN_OR_RETURN(const std::size_t n, file.Read(offset, out));
  if (n < out.size()) {
    return DataLoss(path + ": " + std::to_string(out.size()) + " bytes expected at byte " +
                    std::to_string(offset) + ", " + std::to_string(n) +
                    " there [the file is cut short, or became shorter after it was opened]");
  }
  return {};
}

std::uint64_t ContentDigest(const RandomAccessFile& file, std::uint64_t begin, std::uint64_t end,
                            std::uint64_t max_bytes) {
  if (const std::string version = VersionOf(file); !version.empty()) {
    return Hash64(version + " " + std::to_string(begin) + " " + std::to_string(end));
  }
  constexpr std::uint64_t kPiece = std::uint64_t{1} << 20;
  const std::uint64_t size = end - begin;
  const std::uint64_t pieces = (size + kPiece - 1) / kPiece;
  const std::uint64_t taken = std::min(pieces, std::max<std::uint64_t>(1, max_bytes / kPiece));
  std::uint64_t digest = Hash64(std::to_string(size));
  std::vector<std::byte> buffer(std::min(size, kPiece));
  for (std::uint64_t i = 0; i < taken; ++i) {
    const std::uint64_t piece = taken == 1 ? 0 : i * (pieces - 1) / (taken - 1);
    const std::uint64_t at = piece * kPiece;
    const auto out = std::span(buffer).first(std::min(kPiece, size - at));
    const Result<std::size_t> n = file.Read(begin + at, out);
    digest =
        Hash64(n.ok() ? std::to_string(io::Crc32c(out.first(*n))) : n.status().ToString(), digest);
  }
  return digest;
}

}  // namespace cohort::data
