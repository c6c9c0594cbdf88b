// Checkpoints: named tensors and where training stood, on disk whole or not at all.
//
//   <folder>/step-0000001200/manifest.json  model.safetensors  optimizer.safetensors  COMMIT
//   <folder>/LATEST
//
// A checkpoint is written into a temporary folder, synced to the disk, renamed, and counts when
// COMMIT matches the manifest and every file has the size and checksum that the manifest lists. So
// a process may be killed, or the disk be full, at any moment: what was committed before stays
// readable. The format is described in src/io/README.md.
//
// Thread rules: one thread and one writing process to a folder; any number of processes may read.
// Everything blocks for the disk. Errors name the file and, where there is one, the tensor.

#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <cohort/core/dtype.h>
#include <cohort/core/file_system.h>
#include <cohort/core/log.h>
#include <cohort/core/status.h>
#include <cohort/core/tensor.h>

namespace cohort::io {

// Where training stands. Everything but the tensors.
struct CheckpointState {
  std::int64_t step = 0;   // updates made; names the checkpoint
  std::int64_t epoch = 0;  // the next batch to train on: `batch` of `epoch`
  std::int64_t batch = 0;
  std::uint64_t seed = 0;
  std::uint64_t dataset_fingerprint = 0;
  std::string data_position;  // data::DataPosition of that batch as text; empty: none was saved
  std::string optimizer;      // Optimizer::config()
  std::string strategy;       // for people: training may go on under another
  int world_size = 1;
  std::map<std::string, std::string> user;
  friend bool operator==(const CheckpointState&, const CheckpointState&) = default;
};

enum class CheckpointPart { kModel, kOptimizer };

// A tensor to be written, and one to be read into: elements in memory that belongs to the caller.
struct CheckpointSource {
  std::string name;
  Shape shape;
  std::span<const float> values;
};
struct CheckpointTarget {
  std::string name;
  Shape shape;
  std::span<float> values;
};

// A file of its own beside the tensors: of a sparse table, whose rows are no tensor. `write` makes
// it at the path that it is given, synced.
struct CheckpointFile {
  std::string name;  // without folder
  std::function<Status(const std::string& path)> write;
};

// An open checkpoint, found whole: sizes and checksums of all files are right.
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;
  virtual const std::string& path() const = 0;
  virtual const CheckpointState& state() const = 0;
  // Fills every target. All names, shapes and the dtype float32 are compared before anything is
  // written: FailedPrecondition lists each tensor that is missing, unexpected, or different.
  virtual Status Read(CheckpointPart part, std::span<const CheckpointTarget> targets) const = 0;
  // Where a file is that was saved beside the tensors; FailedPrecondition if there is none.
  virtual Result<std::string> File(const std::string& name) const = 0;
  // The same of every checkpoint that this one builds on, the oldest first, and of this one last.
  virtual Result<std::vector<std::string>> Chain(const std::string& name) const = 0;
};

struct CheckpointStoreOptions {
  // Older ones are deleted after a save; 0: none are. Beside these stays what they build on, and,
  // of what is older than all that the newest builds on, one that is whole in itself.
  int max_to_keep = 5;
  // Warns of a checkpoint that is passed over, of one that cannot be deleted, and of a LATEST that
  // cannot be written.
  Log log;
};

class CheckpointStore {
 public:
  CheckpointStore(FileSystem& files, std::string folder, CheckpointStoreOptions options = {});

  const std::string& folder() const { return folder_; }
  FileSystem& files() const { return files_; }

  // Commits a checkpoint, and returns its path. Replaces one of the same step only if that is
  // damaged; AlreadyExists if it is whole. After another error readers find no checkpoint of the
  // step, and the folder's others are as before. ContractError: a name twice, a span that is not as
  // long as its shape says.
  //
  // `base`: the step of an earlier checkpoint of the folder on which `others` build (they hold
  // changes): it is not deleted while this one is there, and this one is damaged where the other
  // is, or is another than it was. FailedPrecondition: there is none.
  Result<std::string> Save(const CheckpointState& state, std::span<const CheckpointSource> model,
                           std::span<const CheckpointSource> optimizer,
                           std::span<const CheckpointFile> others = {},
                           std::optional<std::int64_t> base = std::nullopt);

  // Steps that have a committed folder, ascending, whole or not. Empty if there is no folder.
  Result<std::vector<std::int64_t>> Steps() const;
  // A checkpoint and those that it builds on, as their manifests say. DataLoss, NotFound: one of
  // them cannot be read.
  struct ChainSize {
    int checkpoints = 1;
    std::uint64_t first_bytes = 0;   // of the files beside the tensors, in the oldest
    std::uint64_t change_bytes = 0;  // in the others together
  };
  Result<ChainSize> SizeOfChain(std::int64_t step) const;
  // The checkpoint of a step. NotFound; DataLoss says what is damaged.
  Result<std::unique_ptr<Checkpoint>> Open(std::int64_t step) const;
  // The newest whole checkpoint; damaged ones are passed over with a warning. NotFound if the
  // folder holds none at all, DataLoss if all are damaged.
  Result<std::unique_ptr<Checkpoint>> OpenLatest() const;

 private:
  std::string PathOf(std::int64_t step) const;
  void DeleteOld(std::int64_t newest);

  FileSystem& files_;
  std::string folder_;
  CheckpointStoreOptions options_;
};

}  // namespace cohort::io
