// What a checkpoint's manifest.json and COMMIT hold.

#pragma once

#include <cohort/io/checkpoint.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace cohort::io {

inline constexpr std::string_view kManifestFile = "manifest.json";
inline constexpr std::string_view kCommitFile = "COMMIT";

std::string_view PartFile(CheckpointPart part);  // "model.safetensors"

// Size and checksum of a file.
struct FileDigest {
  std::uint64_t bytes = 0;
  std::uint32_t crc32c = 0;
  friend bool operator==(const FileDigest&, const FileDigest&) = default;
};

// The checkpoint that another one builds on: its step and its COMMIT, which is of no other.
struct ManifestBase {
  std::int64_t step = 0;
  std::string commit;
};

struct Manifest {
  CheckpointState state;
  std::map<std::string, FileDigest> files;
  std::optional<ManifestBase> base;

  // Of the files beside the tensors.
  std::uint64_t other_bytes() const;
};

std::string EncodeManifest(const Manifest& manifest);
// DataLoss names the field that is missing or of another type; Unimplemented a later version.
Result<Manifest> ParseManifest(const std::string& text);

// Of a checkpoint's folder, as COMMIT seals it; DataLoss.
Result<Manifest> ReadManifest(FileSystem& files, const std::string& folder);
// A file that a committed checkpoint must have: that it is not there is damage.
Result<std::string> ReadListed(FileSystem& files, const std::string& path);

// The one line of COMMIT.
std::string EncodeCommit(std::string_view manifest);

}  // namespace cohort::io
