// Dataset: a description of examples and of what is done to them on the way to the model.
//
// A Dataset is an immutable value: each method returns a new one with a stage added, nothing is
// read until it is iterated.
//
//   auto train = OrThrow(data::Idx(images,
//   labels)).Shuffle(seed).Map(normalise).Batch(64).Prefetch(2);
//
// Order is a closed-form function of (seed, epoch): the same for any number of workers, threads and
// restarts. A global batch is a run of that order; worker w of W reads and decodes only its own
// part of each batch. So the union over workers is the data set, once, and every worker sees as
// many batches, of which its part may be short or empty.
//
// Thread rules: a Dataset from any thread; an iterator from one.

#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include <cohort/core/clock.h>
#include <cohort/core/status.h>
#include <cohort/core/tensor.h>
#include <cohort/data/batch.h>

namespace cohort::data {

// One example: named tensors without the example axis.
using Example = std::map<std::string, Tensor>;

// How sources that consist of files are divided among workers.
enum class ShardPolicy { kOff, kAuto, kFile, kData };

// What part of the data an iterator delivers.
struct IterateOptions {
  int num_workers = 1;
  int worker = 0;
  std::int64_t epoch = 0;
  std::int64_t first_batch = 0;  // batches of the epoch to skip: resuming
  ShardPolicy policy = ShardPolicy::kAuto;
  // Only examples [begin, end) of the epoch's order (a split handed out by a coordinator); end -1:
  // to the end.
  std::int64_t begin = 0;
  std::int64_t end = -1;
};

class BatchIterator {
 public:
  virtual ~BatchIterator() = default;  // joins its threads; safe at any point of an epoch
  // The next batch, or nullopt at the end of the epoch. Errors name the file and the ordinal of the
  // record.
  virtual Result<std::optional<Batch>> Next() = 0;
};

class Source;  // data/source.h: random access to examples by index

class Dataset {
 public:
  explicit Dataset(std::shared_ptr<const Source> source);  // owners: every Dataset made from it

  // An exact permutation of the whole set, keyed by (seed, epoch). Before Batch.
  Dataset Shuffle(std::uint64_t seed) const;
  // Runs on pool threads; the example's place in the order is kept. May drop, add and rewrite
  // features.
  Dataset Map(std::function<Status(Example&)> transform) const;
  // Batches of the GLOBAL size. drop_remainder: the short last batch is left out.
  Dataset Batch(std::int64_t global_batch_size, bool drop_remainder = false) const;
  // Prepares this many batches ahead on `threads` threads. 0: in Next, on the caller's thread.
  Dataset Prefetch(int batches, int threads = 1) const;
  Dataset Take(std::int64_t examples) const;

  std::int64_t size() const;        // examples in an epoch
  std::int64_t batch_size() const;  // global; 0 before Batch
  std::int64_t batches_per_epoch() const;
  // A digest of what is read and of every parameter above but the epoch: what workers compare
  // before step 1.
  std::uint64_t Fingerprint() const;

  // InvalidArgument: not batched, worker out of range, files fewer than workers under kFile.
  Result<std::unique_ptr<BatchIterator>> Iterate(const IterateOptions& options = {}) const;

 private:
  struct Plan;
  explicit Dataset(std::shared_ptr<const Plan> plan);
  std::shared_ptr<const Plan> plan_;  // owners: copies of this value and its iterators
};

// Sizes of the parts into which a global batch of `batch` examples is cut: the first batch % parts
// parts get one more. Part p is [PartBegin(batch, parts, p), PartBegin(batch, parts, p + 1)).
std::int64_t PartBegin(std::int64_t batch, int parts, int part);

}  // namespace cohort::data
