// What a checkpoint's manifest.json and COMMIT hold.

#pragma once

#include <cohort/io/checkpoint.h>

#include <cstdint>
#include <map>
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

struct Manifest {
  CheckpointState state;
  std::map<std::string, FileDigest> files;
};

std::string EncodeManifest(const Manifest& manifest);
// DataLoss names the field that is missing or of another type; Unimplemented a later version.
Result<Manifest> ParseManifest(const std::string& text);

// The one line of COMMIT.
std::string EncodeCommit(std::string_view manifest);

}  // namespace cohort::io
