#include "checkpoint_manifest.h"

#include <cohort/io/crc32c.h>

#include <array>
#include <charconv>
#include <cstdio>

#include "json.h"

namespace cohort::io {
namespace {

constexpr std::string_view kFormat = "cohort-checkpoint";
constexpr int kVersion = 1;
constexpr int kBaseVersion = 2;  // of checkpoints that build on others

std::string Hex(std::uint64_t value, int digits) {
  std::array<char, 20> text{};
  std::snprintf(text.data(), text.size(), "%0*llx", digits, static_cast<unsigned long long>(value));
  return text.data();
}

Result<std::uint64_t> FromHex(const std::string& text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (error != std::errc() || end != text.data() + text.size()) {
    return DataLoss("\"" + text + "\" is no hexadecimal number");
  }
  return value;
}

// json[name], if it is a T.
template <typename T>
Status Take(const Json& json, const std::string& name, T& out) {
  const auto it = json.find(name);
  bool fits = it != json.end();
  if constexpr (std::is_same_v<T, std::string>) {
    fits = fits && it->is_string();
  } else if constexpr (std::is_unsigned_v<T>) {
    fits = fits && it->is_number_unsigned();
  } else if constexpr (std::is_integral_v<T>) {
    fits = fits && it->is_number_integer();
  } else {
    fits = fits && it->is_object();
  }
  if (!fits) {
    return DataLoss("field " + name + (it == json.end() ? " is missing" : " is " + it->dump()));
  }
  out = it->template get<T>();
  return {};
}

Status ParseState(const Json& json, CheckpointState& state) {
  COHORT_RETURN_IF_ERROR(Take(json, "step", state.step));
  COHORT_RETURN_IF_ERROR(Take(json, "epoch", state.epoch));
  COHORT_RETURN_IF_ERROR(Take(json, "batch", state.batch));
  COHORT_RETURN_IF_ERROR(Take(json, "seed", state.seed));
  std::string fingerprint;
  COHORT_RETURN_IF_ERROR(Take(json, "dataset_fingerprint", fingerprint));
  COHORT_ASSIGN_OR_RETURN(state.dataset_fingerprint, FromHex(fingerprint));
  if (json.contains("data_position")) {  // not in what older programs wrote
    COHORT_RETURN_IF_ERROR(Take(json, "data_position", state.data_position));
  }
  COHORT_RETURN_IF_ERROR(Take(json, "optimizer", state.optimizer));
  COHORT_RETURN_IF_ERROR(Take(json, "strategy", state.strategy));
  COHORT_RETURN_IF_ERROR(Take(json, "world_size", state.world_size));
  Json user;
  COHORT_RETURN_IF_ERROR(Take(json, "user", user));
  for (const auto& [key, value] : user.items()) {
    COHORT_RETURN_IF_ERROR(Take(user, key, state.user[key]));
  }
  return {};
}

}  // namespace

std::string_view PartFile(CheckpointPart part) {
  return part == CheckpointPart::kModel ? "model.safetensors" : "optimizer.safetensors";
}

std::string EncodeManifest(const Manifest& manifest) {
  const CheckpointState& s = manifest.state;
  OrderedJson json = {
      {"format", kFormat},
      {"version", manifest.base.has_value() ? kBaseVersion : kVersion},
      {"step", s.step},
      {"epoch", s.epoch},
      {"batch", s.batch},
      {"seed", s.seed},
      {"dataset_fingerprint", Hex(s.dataset_fingerprint, 16)},
      {"data_position", s.data_position},
      {"optimizer", s.optimizer},
      {"strategy", s.strategy},
      {"world_size", s.world_size},
      {"user", s.user},
      {"files", OrderedJson::object()},
  };
  for (const auto& [name, digest] : manifest.files) {
    json["files"][name] = {{"bytes", digest.bytes}, {"crc32c", Hex(digest.crc32c, 8)}};
  }
  if (manifest.base.has_value()) {
    json["base"] = {{"step", manifest.base->step}, {"commit", manifest.base->commit}};
  }
  return json.dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

Result<Manifest> ParseManifest(const std::string& text) {
  COHORT_ASSIGN_OR_RETURN(const Json json, ParseJsonObject(text));
  std::string format;
  COHORT_RETURN_IF_ERROR(Take(json, "format", format));
  if (format != kFormat) {
    return DataLoss("field format is \"" + format + "\", not \"" + std::string(kFormat) + "\"");
  }
  int version = 0;
  COHORT_RETURN_IF_ERROR(Take(json, "version", version));
  if (version != kVersion && version != kBaseVersion) {
    return Unimplemented("version " + std::to_string(version) +
                         " of the format; this program reads " + std::to_string(kVersion) +
                         " and " + std::to_string(kBaseVersion));
  }
  Manifest manifest;
  COHORT_RETURN_IF_ERROR(ParseState(json, manifest.state));
  Json files;
  COHORT_RETURN_IF_ERROR(Take(json, "files", files));
  for (const auto& [name, value] : files.items()) {
    FileDigest& digest = manifest.files[name];
    std::string crc;
    COHORT_RETURN_IF_ERROR(Take(value, "bytes", digest.bytes).Annotate(name));
    COHORT_RETURN_IF_ERROR(Take(value, "crc32c", crc).Annotate(name));
    COHORT_ASSIGN_OR_RETURN(const std::uint64_t number, FromHex(crc));
    digest.crc32c = static_cast<std::uint32_t>(number);
  }
  if (version == kBaseVersion) {
    Json base;
    COHORT_RETURN_IF_ERROR(Take(json, "base", base));
    manifest.base.emplace();
    COHORT_RETURN_IF_ERROR(Take(base, "step", manifest.base->step).Annotate("base"));
    COHORT_RETURN_IF_ERROR(Take(base, "commit", manifest.base->commit).Annotate("base"));
    if (manifest.base->step >= manifest.state.step) {
      return DataLoss("field base is of step " + std::to_string(manifest.base->step) +
                      ", which is not before " + std::to_string(manifest.state.step));
    }
  }
  return manifest;
}

std::uint64_t Manifest::other_bytes() const {
  std::uint64_t bytes = 0;
  for (const auto& [name, digest] : files) {
    if (name != PartFile(CheckpointPart::kModel) && name != PartFile(CheckpointPart::kOptimizer)) {
      bytes += digest.bytes;
    }
  }
  return bytes;
}

Result<std::string> ReadListed(FileSystem& files, const std::string& path) {
  auto text = ReadFile(files, path);
  if (text.status().code() == StatusCode::kNotFound) {
    return DataLoss(path + " is missing");
  }
  return text;
}

Result<Manifest> ReadManifest(FileSystem& files, const std::string& folder) {
  COHORT_ASSIGN_OR_RETURN(const std::string commit,
                          ReadListed(files, folder + "/" + std::string(kCommitFile)));
  const std::string path = folder + "/" + std::string(kManifestFile);
  COHORT_ASSIGN_OR_RETURN(const std::string text, ReadListed(files, path));
  if (commit != EncodeCommit(text)) {
    return DataLoss(path + " is corrupted: COMMIT does not match it");
  }
  auto manifest = ParseManifest(text);
  if (!manifest.ok()) {
    return manifest.status().Annotate(path);
  }
  return manifest;
}

std::string EncodeCommit(std::string_view manifest) {
  return std::string(kManifestFile) + " " + std::to_string(manifest.size()) + " " +
         Hex(Crc32c(manifest), 8) + "\n";
}

}  // namespace cohort::io
