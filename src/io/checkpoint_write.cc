// The way of a save. Each line may be the last that runs:
//
//   1. a temporary folder beside the checkpoints, which no reader looks at
//   2. the parts, synced; their sizes and checksums are taken as they are written
//   3. the manifest, which lists them, synced; COMMIT, which seals the manifest, synced
//   4. the temporary folder's entries synced; renamed to its name; the parent's entries synced
//   5. LATEST replaced; old checkpoints deleted: renamed out of sight first, then removed
//
// Before the rename of 4 the folder is as before for every reader; from there on the new checkpoint
// counts. Where the last sync of 4 fails it is taken back; 5 fails with a warning.

#include <cohort/io/checkpoint.h>
#include <cohort/io/crc32c.h>
#include <cohort/io/safetensors.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <utility>

#include "checkpoint_manifest.h"

namespace cohort::io {
namespace {

constexpr std::string_view kTemporaryPrefix = ".tmp-";
constexpr std::string_view kTrashPrefix = ".trash-";
constexpr std::string_view kLatestTemporaryPrefix = "LATEST.tmp-";  // WriteFileAtomically's

// Writes `pieces` one after another, synced.
Result<FileDigest> WriteFile(FileSystem& files, const std::string& path,
                             std::span<const std::span<const std::byte>> pieces) {
  COHORT_ASSIGN_OR_RETURN(const auto file, files.OpenForWrite(path));
  FileDigest digest;
  for (const std::span<const std::byte> piece : pieces) {
    COHORT_RETURN_IF_ERROR(file->Append(piece));
    digest.bytes += piece.size();
    digest.crc32c = Crc32c(piece, digest.crc32c);
  }
  COHORT_RETURN_IF_ERROR(file->Sync());
  COHORT_RETURN_IF_ERROR(file->Close());
  return digest;
}

Result<FileDigest> WriteText(FileSystem& files, const std::string& path, std::string_view text) {
  const std::span<const std::byte> piece = AsBytes(text);
  return WriteFile(files, path, std::span(&piece, 1));
}

Result<FileDigest> WriteTensors(FileSystem& files, const std::string& path,
                                std::span<const CheckpointSource> tensors) {
  std::vector<SafetensorsEntry> entries;
  for (const CheckpointSource& tensor : tensors) {
    entries.push_back({.name = tensor.name, .dtype = DType::kFloat32, .shape = tensor.shape});
  }
  const std::string header = EncodeSafetensorsHeader(entries, {{"format", "cohort"}});
  std::vector<std::span<const std::byte>> pieces = {AsBytes(header)};
  for (const CheckpointSource& tensor : tensors) {
    pieces.push_back(std::as_bytes(tensor.values));
  }
  return WriteFile(files, path, pieces);
}

// Of a file that somebody else wrote.
Result<FileDigest> DigestOf(FileSystem& files, const std::string& path) {
  COHORT_ASSIGN_OR_RETURN(const auto file, files.OpenForRead(path));
  FileDigest digest;
  std::vector<std::byte> piece(std::size_t{1} << 20);
  while (digest.bytes < file->size()) {
    COHORT_ASSIGN_OR_RETURN(const std::size_t n, file->Read(digest.bytes, piece));
    if (n == 0) {
      return DataLoss(path + " became shorter while it was read");
    }
    digest.crc32c = Crc32c(std::span(piece).first(n), digest.crc32c);
    digest.bytes += n;
  }
  return digest;
}

// Steps 2 and 3, in `folder`.
Status WriteParts(FileSystem& files, const std::string& folder, const CheckpointState& state,
                  std::span<const CheckpointSource> model,
                  std::span<const CheckpointSource> optimizer,
                  std::span<const CheckpointFile> others, const std::optional<ManifestBase>& base) {
  Manifest manifest{.state = state, .files = {}, .base = base};
  for (const auto& [part, tensors] : {std::pair(CheckpointPart::kModel, model),
                                      std::pair(CheckpointPart::kOptimizer, optimizer)}) {
    const std::string name(PartFile(part));
    COHORT_ASSIGN_OR_RETURN(manifest.files[name],
                            WriteTensors(files, folder + "/" + name, tensors));
  }
  for (const CheckpointFile& other : others) {
    Require(!manifest.files.contains(other.name), "file names are unique: " + other.name);
    COHORT_RETURN_IF_ERROR(other.write(folder + "/" + other.name));
    COHORT_ASSIGN_OR_RETURN(manifest.files[other.name], DigestOf(files, folder + "/" + other.name));
  }
  const std::string text = EncodeManifest(manifest);
  COHORT_RETURN_IF_ERROR(
      WriteText(files, folder + "/" + std::string(kManifestFile), text).status());
  COHORT_RETURN_IF_ERROR(
      WriteText(files, folder + "/" + std::string(kCommitFile), EncodeCommit(text)).status());
  return files.SyncDirectory(folder);
}

void CheckTensors(std::span<const CheckpointSource> tensors) {
  std::set<std::string_view> names;
  for (const CheckpointSource& tensor : tensors) {
    Require(names.insert(tensor.name).second, "tensor names are unique: " + tensor.name);
    Require(tensor.values.size() == static_cast<std::size_t>(tensor.shape.elements()),
            "as many values as the shape has elements: " + tensor.name);
  }
}

// A name that no other folder has: what an earlier process left behind has another pid, or is gone.
std::string Hidden(const std::string& folder, std::string_view prefix, std::int64_t step) {
  return folder + "/" + std::string(prefix) + std::to_string(step) + "-" +
         std::to_string(::getpid());
}

}  // namespace

Result<std::string> CheckpointStore::Save(const CheckpointState& state,
                                          std::span<const CheckpointSource> model,
                                          std::span<const CheckpointSource> optimizer,
                                          std::span<const CheckpointFile> others,
                                          std::optional<std::int64_t> base) {
  CheckTensors(model);
  CheckTensors(optimizer);
  Require(state.step >= 0, "steps are not negative");
  const std::string path = PathOf(state.step);
  COHORT_RETURN_IF_ERROR(files_.CreateDirectories(folder_));
  const bool replaces = files_.Exists(path);
  if (replaces && Open(state.step).ok()) {
    return AlreadyExists("checkpoint " + path +
                         " is there already, and whole [resume from it, or choose another folder]");
  }
  std::optional<ManifestBase> built_on;
  if (base.has_value()) {
    Require(*base < state.step, "a checkpoint builds on an earlier one");
    Result<std::string> commit = ReadFile(files_, PathOf(*base) + "/" + std::string(kCommitFile));
    if (!commit.ok()) {
      return FailedPrecondition("checkpoint of step " + std::to_string(state.step) +
                                " is to build on " + PathOf(*base) +
                                ", which is not there: " + commit.status().message());
    }
    built_on = ManifestBase{.step = *base, .commit = *std::move(commit)};
  }
  const std::string temporary = Hidden(folder_, kTemporaryPrefix, state.step);
  const auto write = [&]() -> Status {
    COHORT_RETURN_IF_ERROR(files_.RemoveAll(temporary));
    COHORT_RETURN_IF_ERROR(files_.CreateDirectories(temporary));
    COHORT_RETURN_IF_ERROR(
        WriteParts(files_, temporary, state, model, optimizer, others, built_on));
    if (replaces) {
      const std::string trash = Hidden(folder_, kTrashPrefix, state.step);
      COHORT_RETURN_IF_ERROR(files_.RemoveAll(trash));
      COHORT_RETURN_IF_ERROR(files_.Rename(path, trash));
    }
    COHORT_RETURN_IF_ERROR(files_.Rename(temporary, path));
    Status synced = files_.SyncDirectory(folder_);
    if (!synced.ok()) {
      // Readers must not find what the caller takes for failed.
      static_cast<void>(files_.Rename(path, temporary));
    }
    return synced;
  };
  if (const Status status = write(); !status.ok()) {
    static_cast<void>(files_.RemoveAll(temporary));
    return status.Annotate("checkpoint of step " + std::to_string(state.step));
  }
  if (const Status latest =
          WriteFileAtomically(files_, folder_ + "/LATEST", path.substr(folder_.size() + 1) + "\n");
      !latest.ok()) {
    options_.log.Warning("checkpoint " + path +
                         " is there, but LATEST does not name it: " + latest.ToString());
  }
  DeleteOld(state.step);
  return path;
}

void CheckpointStore::DeleteOld(std::int64_t newest) {
  const auto drop = [this](const std::string& path) {
    if (const Status status = files_.RemoveAll(path); !status.ok()) {
      options_.log.Warning("old checkpoint not deleted: " + status.ToString());
    }
  };
  // What interrupted saves and deletions left behind.
  if (const auto names = files_.List(folder_); names.ok()) {
    for (const std::string& name : *names) {
      if (name.starts_with(kTemporaryPrefix) || name.starts_with(kTrashPrefix) ||
          name.starts_with(kLatestTemporaryPrefix)) {
        drop(folder_ + "/" + name);
      }
    }
  }
  const auto steps = Steps();
  if (options_.max_to_keep <= 0 || !steps.ok()) {
    return;
  }
  const auto max = static_cast<std::size_t>(options_.max_to_keep);
  // The newest, but that one first which was just written, though an earlier run has left later
  // ones; and what they build on.
  std::set<std::int64_t> kept = {newest};
  for (auto step = steps->rbegin(); step != steps->rend() && kept.size() < max; ++step) {
    kept.insert(*step);
  }
  // What `step` builds on, into `bases`; the first of it.
  const auto bases_of = [this](std::int64_t step,
                               std::set<std::int64_t>* bases) -> Result<std::int64_t> {
    for (;;) {
      COHORT_ASSIGN_OR_RETURN(const auto manifest, ReadManifest(files_, PathOf(step)));
      if (!manifest.base.has_value()) {
        return step;
      }
      step = manifest.base->step;
      bases->insert(step);
    }
  };
  const std::vector<std::int64_t> wanted(kept.begin(), kept.end());
  for (const std::int64_t step : wanted) {
    // One that is damaged is none, and needs nothing, unless it is the newest; what one builds on
    // that cannot be read just now is not known.
    const auto first = bases_of(step, &kept);
    if (!first.ok() && (step == newest || first.status().code() != StatusCode::kDataLoss)) {
      options_.log.Warning("no old checkpoint is deleted this time: " + first.status().ToString());
      return;
    }
    // What is damaged in the first of a chain takes all of the chain with it: a whole one that is
    // older stays, too.
    const auto before = std::ranges::lower_bound(*steps, first.ok() ? *first : newest);
    if (step == newest && *first != newest && before != steps->begin()) {
      std::set<std::int64_t> others;
      if (const auto whole = bases_of(*std::prev(before), &others); whole.ok()) {
        kept.insert(*whole);
      }
    }
  }
  // The later first: no checkpoint is there without the one that it builds on.
  for (auto at = steps->rbegin(); at != steps->rend(); ++at) {
    const std::int64_t step = *at;
    if (kept.contains(step)) {
      continue;
    }
    const std::string trash = Hidden(folder_, kTrashPrefix, step);
    if (const Status status = files_.Rename(PathOf(step), trash); !status.ok()) {
      options_.log.Warning("old checkpoint not deleted: " + status.ToString());
      return;  // earlier ones may be what it builds on
    }
    drop(trash);
  }
}

}  // namespace cohort::io
