// A file's bytes for random access, and a digest of them at bounded cost.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include <cohort/core/file_system.h>
#include <cohort/core/status.h>

namespace cohort::data {

// What a file may be besides: one whose content has a name of its own (a remote one's ETag).
class VersionedContent {
 public:
  virtual ~VersionedContent() = default;
  virtual std::string version() const = 0;  // equal: equal bytes; empty: not known
};
// The version of a file that has one; otherwise empty.
std::string VersionOf(const RandomAccessFile& file);

// Bytes in memory as a file.
class BytesFile final : public RandomAccessFile {
 public:
  explicit BytesFile(std::string bytes) : bytes_(std::move(bytes)) {}
  std::uint64_t size() const override { return bytes_.size(); }
  Result<std::size_t> Read(std::uint64_t offset, std::span<std::byte> out) const override;

 private:
  std::string bytes_;
};

// A gzip file unpacked into memory. DataLoss as io::Gunzip, and if it is none.
Result<std::shared_ptr<const RandomAccessFile>> OpenGzip(FileSystem& files,
                                                         const std::string& path);
// The file as it is on disk.
Result<std::shared_ptr<const RandomAccessFile>> OpenRaw(FileSystem& files, const std::string& path);
// One of both, told by content: gzip begins with 1f 8b.
Result<std::shared_ptr<const RandomAccessFile>> OpenMaybeGzip(FileSystem& files,
                                                              const std::string& path);

// out.size() bytes at `offset`; DataLoss, naming path and byte, where the file ends before that.
Status ReadExactly(const RandomAccessFile& file, const std::string& path, std::uint64_t offset,
                   std::span<std::byte> out);

// What a source may read for its Fingerprint, over all of its files.
inline constexpr std::uint64_t kDigestBytes = std::uint64_t{64} << 20;

// A digest of bytes [begin, end): of the file's version, where it has one; otherwise of all of them
// up to `max_bytes`, otherwise of pieces of 1 MiB spread evenly, the first and the last among them.
// Bytes that cannot be read count as their error.
std::uint64_t ContentDigest(const RandomAccessFile& file, std::uint64_t begin, std::uint64_t end,
                            std::uint64_t max_bytes = kDigestBytes);

}  // namespace cohort::data
