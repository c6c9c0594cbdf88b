// Data sets put together of others, chosen from, and kept.
//
// What comes in are data sets before Batch; each keeps its own order and maps, and where it is
// shuffled reads another order in each epoch. What comes out has random access like any other: an
// epoch's order stays a closed form, resuming reads nothing before its place, and workers read only
// their parts.
//
//   auto mix = data::Mix({web.Shuffle(1), books.Shuffle(2).Repeat(3)}, {.weights = {3, 1}});
//   auto batches = OrThrow(mix).Batch(256).Prefetch(4, 2);
//
// Thread rules: free functions, any thread. Functions given to them run on several threads at once.

#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <cohort/core/file_system.h>
#include <cohort/core/metrics.h>
#include <cohort/core/status.h>
#include <cohort/data/dataset.h>

namespace cohort::data {

// One behind another. InvalidArgument: none, or features that differ.
Result<Dataset> Concatenate(const std::vector<Dataset>& parts);

// Example i of all of them as one. InvalidArgument: none, numbers of examples that differ (Take
// makes them equal), a feature that two of them have.
Result<Dataset> Zip(const std::vector<Dataset>& parts);

struct InterleaveOptions {
  std::int64_t cycle_length = 4;  // parts that are open at once
  std::int64_t block_length = 1;  // examples of one before it is the next one's turn
};
// The order of tf.data's interleave: parts are opened in their order, each open one gives a block
// in turn, and the turn after the one in which a part ends opens the next. Every example once. Kept
// are up to 64 bytes for each part and each one open beside it. InvalidArgument: none, features
// that differ, lengths below 1.
Result<Dataset> Interleave(const std::vector<Dataset>& parts,
                           const InterleaveOptions& options = {});

struct MixOptions {
  std::vector<double> weights = {};  // of each; empty: as many of each as it has
  std::uint64_t seed = 0;
  // Proportions are exact in every run of so many examples, and the parts are drawn without rule
  // within it.
  std::int64_t block = 1024;
};
// Examples of all of them, so many of each as the weights say, up to the first whole block that one
// of them cannot fill (Repeat on a part gives more of it); without weights every example of every
// part, once. InvalidArgument: none, features that differ, weights that are not positive, or that a
// block cannot express.
Result<Dataset> Mix(const std::vector<Dataset>& parts, const MixOptions& options = {});

// Examples that hold. One pass over the data on so many threads finds them; 8 bytes are kept for
// each. Errors of the function name the example. InvalidArgument after a Shuffle: an order is drawn
// for what is left, so Filter comes first.
Result<Dataset> Filter(const Dataset& data,
                       const std::function<Result<bool>(const Example&)>& holds, int threads = 1);

// All examples that the function makes of each. Features named in `lists`, and those of the data
// that are ragged, are lists of any length, tensors of one axis; others have one shape. One pass
// counts the examples; 8 bytes are kept for each example of the data, and reading one runs the
// function again. InvalidArgument: a list that the first example does not have. As Filter: before
// Shuffle.
Result<Dataset> FlatMap(const Dataset& data,
                        std::function<Status(const Example&, std::vector<Example>&)> make,
                        int threads = 1, const std::vector<std::string>& lists = {});

struct CorruptExamples {
  std::int64_t examples = 0;
  std::vector<std::string> messages;  // of the first 20: where, and what is wrong
};

// All examples but those that cannot be read for their bytes (DataLoss), of any format: damaged
// images, cut off members, bad rows. One pass over the data on so many threads finds them, with the
// same result on every worker. DataLoss where more than max_corrupt are left out; other errors are
// errors. `metrics` gets both as cohort_data_records_total. As Filter: before Shuffle. TFRecord has
// the same by itself (on_corrupt), which also goes on behind damaged frames.
Result<Dataset> SkipCorrupt(const Dataset& data, std::int64_t max_corrupt,
                            CorruptExamples* corrupt = nullptr, int threads = 1,
                            Metrics* metrics = nullptr);

// Keeps examples in memory as they are first read, with what Map made of them: at most the size of
// all. InvalidArgument after a Shuffle.
Result<Dataset> Cache(const Dataset& data);
// Reads all examples once, with what Map makes of them, lists of any length too, and writes them to
// a safetensors file; if that file is of this data set already (Fingerprint, also of an earlier
// program run) and whole, it is used as it is. Every example has a checksum, compared when it is
// read: DataLoss that names the file and the row. While it is written, the columns (all but the
// first where there are no lists) take their space on the disk twice. `version`: change it where a
// Map does something else than before, which a fingerprint cannot tell.
Result<Dataset> CacheInFile(const Dataset& data, FileSystem& files, const std::string& path,
                            const std::string& version = "");

struct SnapshotOptions {
  int shards = 16;           // files: what is left of an interrupted pass is made up by whole files
  int threads = 1;           // of this process, each of which writes a file at a time
  bool compress = false;     // every example by itself (gzip), so that each can still be read alone
  std::string version = "";  // as CacheInFile's
};
// Reads all examples once, with what Map makes of them, lists of any length too, and writes them to
// files in a folder of their own within `folder`, named after the fingerprint, the version and the
// features: what is there of this data set, also of an earlier run or of another process that is at
// it, is used as it is. Processes that come to it at once share the work, and hold no locks; one
// that is lost loses the files it was writing. Every example has a checksum; what is damaged,
// missing, cut off, or of another shape or type is DataLoss that names the file. InvalidArgument:
// an example whose features are not of the types and shapes of the first one's. Snapshots of other
// data are left alone.
Result<Dataset> Snapshot(const Dataset& data, FileSystem& files, const std::string& folder,
                         const SnapshotOptions& options = {});

}  // namespace cohort::data
