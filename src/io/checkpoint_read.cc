#include <cohort/io/checkpoint.h>
#include <cohort/io/crc32c.h>
#include <cohort/io/safetensors.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <set>
#include <utility>

#include "checkpoint_manifest.h"

namespace cohort::io {
namespace {

constexpr std::string_view kStepPrefix = "step-";

// The step of "step-0000001200"; nullopt for any other name.
std::optional<std::int64_t> StepOf(std::string_view name) {
  if (!name.starts_with(kStepPrefix)) {
    return std::nullopt;
  }
  name.remove_prefix(kStepPrefix.size());
  std::int64_t step = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), step);
  if (name.size() < 10 || name.front() == '-' || error != std::errc() ||
      end != name.data() + name.size()) {
    return std::nullopt;
  }
  return step;
}

// Every byte of a file of the manifest, against its digest.
Status Verify(const RandomAccessFile& file, const std::string& path, const FileDigest& expected) {
  if (file.size() != expected.bytes) {
    return DataLoss(path + (file.size() < expected.bytes ? " is truncated: " : " is too long: ") +
                    std::to_string(file.size()) + " of " + std::to_string(expected.bytes) +
                    " bytes");
  }
  std::vector<std::byte> piece(std::min<std::uint64_t>(expected.bytes, std::uint64_t{1} << 20));
  std::uint32_t crc = 0;
  for (std::uint64_t offset = 0; offset < expected.bytes;) {
    COHORT_ASSIGN_OR_RETURN(const std::size_t n, file.Read(offset, piece));
    if (n == 0) {
      return DataLoss(path + " became shorter while it was read");
    }
    crc = Crc32c(std::span(piece).first(n), crc);
    offset += n;
  }
  return crc == expected.crc32c
             ? Status()
             : DataLoss(path + " is corrupted: its checksum is not the manifest's");
}

std::string StepFolder(const std::string& folder, std::int64_t step) {
  std::array<char, 32> digits{};
  std::snprintf(digits.data(), digits.size(), "%010lld", static_cast<long long>(step));
  return folder + "/" + std::string(kStepPrefix) + digits.data();
}

class FolderCheckpoint final : public Checkpoint {
 public:
  struct Part {
    std::string path;
    std::unique_ptr<RandomAccessFile> file;
    std::vector<SafetensorsEntry> entries;
  };

  static Result<std::unique_ptr<Checkpoint>> Open(FileSystem& files, const std::string& path,
                                                  std::int64_t step) {
    auto checkpoint = std::make_unique<FolderCheckpoint>();
    checkpoint->path_ = path;
    COHORT_ASSIGN_OR_RETURN(const Manifest manifest, ReadManifest(files, path));
    if (manifest.state.step != step) {
      return DataLoss(path + ": the manifest is of step " + std::to_string(manifest.state.step));
    }
    checkpoint->state_ = manifest.state;
    COHORT_RETURN_IF_ERROR(VerifyOthers(files, path, manifest));
    for (const auto& [name, digest] : manifest.files) {
      if (IsOther(name)) {
        checkpoint->others_.insert(name);
      }
    }
    const std::string folder = path.substr(0, path.rfind('/'));
    for (std::optional<ManifestBase> base = manifest.base; base.has_value();) {
      const std::string base_path = StepFolder(folder, base->step);
      const auto verify = [&]() -> Status {
        COHORT_ASSIGN_OR_RETURN(const std::string commit,
                                ReadListed(files, base_path + "/" + std::string(kCommitFile)));
        if (commit != base->commit) {
          return DataLoss(base_path + " is another checkpoint than the one of that step was");
        }
        COHORT_ASSIGN_OR_RETURN(const Manifest of_base, ReadManifest(files, base_path));
        base = of_base.base;
        return VerifyOthers(files, base_path, of_base);
      };
      COHORT_RETURN_IF_ERROR(verify().Annotate(path + " builds on one that is lost"));
      checkpoint->bases_.push_back(base_path);
    }
    std::ranges::reverse(checkpoint->bases_);
    for (const CheckpointPart kind : {CheckpointPart::kModel, CheckpointPart::kOptimizer}) {
      const std::string name(PartFile(kind));
      const auto digest = manifest.files.find(name);
      if (digest == manifest.files.end()) {
        return DataLoss(path + ": the manifest does not list " + name);
      }
      Part& part = checkpoint->part(kind);
      part.path = path + "/" + name;
      COHORT_ASSIGN_OR_RETURN(part.file, OpenListed(files, part.path));
      COHORT_RETURN_IF_ERROR(Verify(*part.file, part.path, digest->second));
      COHORT_ASSIGN_OR_RETURN(part.entries, ReadSafetensorsHeader(*part.file, part.path));
    }
    return checkpoint;
  }

  const std::string& path() const override { return path_; }
  const CheckpointState& state() const override { return state_; }

  Result<std::string> File(const std::string& name) const override {
    if (!others_.contains(name)) {
      return FailedPrecondition(path_ + " has no " + name +
                                " [is this the checkpoint of another model?]");
    }
    return path_ + "/" + name;
  }

  Result<std::vector<std::string>> Chain(const std::string& name) const override {
    COHORT_ASSIGN_OR_RETURN(const std::string last, File(name));
    std::vector<std::string> paths;
    for (const std::string& base : bases_) {
      paths.push_back(base + "/" + name);
    }
    paths.push_back(last);
    return paths;
  }

  Status Read(CheckpointPart kind, std::span<const CheckpointTarget> targets) const override {
    const Part& part = kind == CheckpointPart::kModel ? parts_[0] : parts_[1];
    std::map<std::string_view, const SafetensorsEntry*> left;
    for (const SafetensorsEntry& entry : part.entries) {
      left[entry.name] = &entry;
    }
    std::vector<std::pair<const SafetensorsEntry*, const CheckpointTarget*>> matches;
    std::string differences;
    const auto differs = [&differences](const std::string& what) {
      differences += (differences.empty() ? "" : "; ") + what;
    };
    for (const CheckpointTarget& target : targets) {
      Require(target.values.size() == static_cast<std::size_t>(target.shape.elements()),
              "as many values as the shape has elements: " + target.name);
      const auto it = left.find(target.name);
      if (it == left.end()) {
        differs("tensor \"" + target.name + "\" is missing");
        continue;
      }
      const SafetensorsEntry& entry = *it->second;
      left.erase(it);
      if (entry.dtype != DType::kFloat32) {
        differs("tensor \"" + target.name + "\" has dtype " + std::string(DTypeName(entry.dtype)) +
                ", not float32");
      } else if (entry.shape != target.shape) {
        differs("tensor \"" + target.name + "\" has shape " + entry.shape.ToString() + ", not " +
                target.shape.ToString());
      } else {
        matches.emplace_back(&entry, &target);
      }
    }
    for (const auto& [name, entry] : left) {
      differs("tensor \"" + std::string(name) + "\" is not expected");
    }
    if (!differences.empty()) {
      return FailedPrecondition(part.path + ": " + differences +
                                " [is this the checkpoint of another model?]");
    }
    for (const auto& [entry, target] : matches) {
      COHORT_ASSIGN_OR_RETURN(
          const std::size_t n,
          part.file->Read(entry->begin, std::as_writable_bytes(target->values)));
      if (n < target->values.size_bytes()) {
        return DataLoss(part.path + " became shorter while it was read");
      }
    }
    return {};
  }

 private:
  static bool IsOther(const std::string& name) {
    return name != PartFile(CheckpointPart::kModel) && name != PartFile(CheckpointPart::kOptimizer);
  }
  static Status VerifyOthers(FileSystem& files, const std::string& path, const Manifest& manifest) {
    for (const auto& [name, digest] : manifest.files) {
      if (IsOther(name)) {
        COHORT_ASSIGN_OR_RETURN(const auto file, OpenListed(files, path + "/" + name));
        COHORT_RETURN_IF_ERROR(Verify(*file, path + "/" + name, digest));
      }
    }
    return {};
  }

  Part& part(CheckpointPart kind) { return kind == CheckpointPart::kModel ? parts_[0] : parts_[1]; }

  // A file that a committed checkpoint must have: that it is not there is damage.
  static Result<std::unique_ptr<RandomAccessFile>> OpenListed(FileSystem& files,
                                                              const std::string& path) {
    auto file = files.OpenForRead(path);
    if (file.status().code() == StatusCode::kNotFound) {
      return DataLoss(path + " is missing");
    }
    return file;
  }
  std::string path_;
  CheckpointState state_;
  std::array<Part, 2> parts_;
  std::set<std::string> others_;    // names of files
  std::vector<std::string> bases_;  // folders, the oldest first
};

}  // namespace

CheckpointStore::CheckpointStore(FileSystem& files, std::string folder,
                                 CheckpointStoreOptions options)
    : files_(files), folder_(std::move(folder)), options_(std::move(options)) {
  Require(!folder_.empty(), "a checkpoint store has a folder");
  while (folder_.size() > 1 && folder_.back() == '/') {
    folder_.pop_back();
  }
}

std::string CheckpointStore::PathOf(std::int64_t step) const { return StepFolder(folder_, step); }

Result<std::vector<std::int64_t>> CheckpointStore::Steps() const {
  std::vector<std::int64_t> steps;
  const auto names = files_.List(folder_);
  if (names.status().code() == StatusCode::kNotFound) {
    return steps;
  }
  if (!names.ok()) {
    return names.status();
  }
  for (const std::string& name : *names) {
    if (const auto step = StepOf(name)) {
      steps.push_back(*step);
    }
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

Result<std::unique_ptr<Checkpoint>> CheckpointStore::Open(std::int64_t step) const {
  const std::string path = PathOf(step);
  if (!files_.Exists(path)) {
    return NotFound("no checkpoint " + path);
  }
  return FolderCheckpoint::Open(files_, path, step);
}

Result<CheckpointStore::ChainSize> CheckpointStore::SizeOfChain(std::int64_t step) const {
  if (!files_.Exists(PathOf(step))) {
    return NotFound("no checkpoint " + PathOf(step));
  }
  ChainSize size;
  COHORT_ASSIGN_OR_RETURN(Manifest manifest, ReadManifest(files_, PathOf(step)));
  while (manifest.base.has_value()) {
    ++size.checkpoints;
    size.change_bytes += manifest.other_bytes();
    COHORT_ASSIGN_OR_RETURN(manifest, ReadManifest(files_, PathOf(manifest.base->step)));
  }
  size.first_bytes = manifest.other_bytes();
  return size;
}

namespace {

// About the checkpoint: its files could not be asked for now (too many are open, a server of files
// is away). An older one in its place would cost what was trained since.
bool SaysNothing(const Status& status) {
  return status.code() == StatusCode::kUnavailable ||
         status.code() == StatusCode::kDeadlineExceeded ||
         status.code() == StatusCode::kResourceExhausted;
}

}  // namespace

Result<std::unique_ptr<Checkpoint>> CheckpointStore::OpenLatest() const {
  COHORT_ASSIGN_OR_RETURN(std::vector<std::int64_t> steps, Steps());
  if (steps.empty()) {
    return NotFound("no checkpoint in " + folder_);
  }
  std::reverse(steps.begin(), steps.end());
  Status first;
  for (const std::int64_t step : steps) {
    auto checkpoint = Open(step);
    if (checkpoint.ok() || SaysNothing(checkpoint.status())) {
      return checkpoint;
    }
    options_.log.Warning("checkpoint of step " + std::to_string(step) +
                         " is passed over: " + checkpoint.status().ToString());
    if (first.ok()) {
      first = checkpoint.status();
    }
  }
  return DataLoss("all " + std::to_string(steps.size()) + " checkpoints in " + folder_ +
                  " are damaged; the newest: " + first.message());
}

}  // namespace cohort::io
