// Dataset: a description of examples and of what is done to them on the way to the model.
//
// A Dataset is an immutable value: each method returns a new one with a stage added, nothing is
// read until it is iterated.
//
//   auto digits = OrThrow(data::Idx(images, labels));
//   auto train = digits.Shuffle(seed).Map(augment).Batch(64).Prefetch(2);
//
// Order is a closed-form function of (seed, epoch): the same for any number of workers, threads and
// restarts. A global batch is a run of that order; worker w of W reads and decodes only its own
// part of each batch. So the union over workers is the data set, once, and every worker sees as
// many batches, of which its part may be short or empty. Data to read: see the formats in this
// module's README, memory.h and digits.h, and source.h for a format of your own.
//
// Thread rules: a Dataset from any thread; an iterator from one.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/data/batch.h>
#include <cohort/data/source.h>

namespace cohort::data {

// How the examples of an epoch are divided among workers.
enum class ShardPolicy {
  kOff,   // not at all: every worker gets whole batches of everything
  kData,  // records: each worker gets its part of every global batch. No order depends on W
  // kFile where that can be, so where there are as many files as workers, or more; else kData.
  // tf.data's AUTO, but that too few files are no error.
  kAuto,
  // Whole files: each worker has a share of them of about as many bytes (FileRange::bytes) as the
  // others', shuffled among themselves, and takes its part of the batch size from it. Where there
  // is a Shuffle the shares are others in each epoch. Workers agree on the number of batches; those
  // with fewer examples get empty ones. The order depends on W.
  kFile,
  // Where the data set says so: Shard(kShardHint, kShardHint) becomes Shard(W, w), and what stands
  // behind it is the worker's own. Its part of the batch size is taken from that; numbers of
  // batches are as under kFile. The order depends on W. A data set with such a mark goes with no
  // other policy.
  kHint,
  // The data set is a worker's share already, made by it: a part of CSV files (CsvOptions::part),
  // files of its own. Its part of the batch size is taken from that. Others' shares are not known
  // here, so workers tell each other the number of batches (IterateOptions::num_batches);
  // Strategy::Distribute does.
  kOwn,
};
// Whether each worker has an order of its own, which depends on how many they are: kFile, kHint,
// kOwn. The others share one; kAuto: see Dataset::PolicyFor.
bool HasOwnOrder(ShardPolicy policy);
// "by record", "by file", ..., for messages.
std::string_view DivisionName(ShardPolicy policy);

// Of Shard: as many parts as there are workers, and the worker's.
inline constexpr std::int64_t kShardHint = -1;

// Memory for batches: at least so many bytes (never 0), aligned to 64, unzeroed. From many threads
// at once; what it throws, Next returns as an error.
using AllocateBytes = std::function<std::shared_ptr<std::byte>(std::size_t bytes)>;

// What becomes of an epoch's end where it fills no batch.
enum class Remainder {
  kShort,  // a short batch
  kDrop,   // nothing: those examples are left out
  // A whole batch: the last example stands behind the end as often as it takes. Every batch has a
  // float32 feature [examples], 1 for an example and 0 for what stands behind the end: a step
  // function weighs with it, and returns the sum as its weight.
  kPad,
  kWrap,  // a whole batch: the first examples of the epoch's order come once more
};

// How the examples of an epoch were divided where it was left, when that is more than a place in
// an order that all share.
struct EpochDivision {
  ShardPolicy policy = ShardPolicy::kData;
  int num_workers = 1;
  std::int64_t batch = 0;  // every worker was given so many batches
  // By worker, ascending: those still to come of the batches before the last it was given, of
  // Dataset::Deterministic(false). Empty: of none any.
  std::vector<std::vector<std::int64_t>> overtaken = {};
  friend bool operator==(const EpochDivision&, const EpochDivision&) = default;
};

// What part of the data an iterator delivers.
struct IterateOptions {
  int num_workers = 1;
  int worker = 0;
  // The parts of so many workers, from `worker` on, as one; not where HasOwnOrder.
  int span = 1;
  std::int64_t epoch = 0;
  std::int64_t first_batch = 0;  // batches of the epoch to skip: resuming
  ShardPolicy policy = ShardPolicy::kData;
  // Only examples [begin, end) of the epoch's order (a split handed out by a scheduler), in
  // batches that start at `begin`; end -1: to the end. Not where HasOwnOrder.
  std::int64_t begin = 0;
  std::int64_t end = -1;
  // kOwn: that many batches, also where this worker's share ends before: empty ones then, or, where
  // a remainder fills up, whole ones. Under Remainder::kDrop at most as many as the share has, else
  // at least. -1: as the share has.
  std::int64_t num_batches = -1;
  // The divisions under which this epoch was begun, one after another: its batches stay those of
  // the first, of which these workers now get parts by record (kOff: all of them). As ResumeAt sets
  // it, with first_batch.
  std::vector<EpochDivision> begun = {};
  // Where batches are decoded to, say into page-locked memory that a device copies from; empty: the
  // host's. Every byte that is read is written before.
  AllocateBytes allocate = {};
};

// Where a pass over the data stands, for a checkpoint: the same for every worker. As text under 100
// bytes, or, where `begun`, under 1 KB and what each worker has in `overtaken` (at most as many
// numbers as Prefetch prepares batches).
struct DataPosition {
  std::int64_t epoch = 0;
  std::int64_t example = 0;       // of the epoch's order: those before it are done
  std::uint64_t fingerprint = 0;  // of the order; not of the batches, but where `begun`; kOwn: 0
  // Where the epoch was divided in another way than by record and in order: instead of `example`.
  std::vector<EpochDivision> begun = {};
  std::int64_t batch = 0;
  std::int64_t batch_size = 0;

  std::string ToString() const;
  static Result<DataPosition> Parse(const std::string& text);  // InvalidArgument
  friend bool operator==(const DataPosition&, const DataPosition&) = default;
};

// How lists of different lengths become a tensor.
struct PadOptions {
  double value = 0;           // behind the end of a list
  std::int64_t length = 0;    // of every list, longer ones are an error; 0: as the longest one
                              // among those that this worker has of the batch
  bool cut = false;           // with `length`: longer lists lose their end
  std::int64_t multiple = 1;  // the longest one's length is rounded up to a multiple of this
  std::string lengths = {};   // an int64 feature of this name has the lengths themselves
};

class BatchIterator {
 public:
  virtual ~BatchIterator() = default;  // joins its threads; safe at any point of an epoch
  // The next batch, or nullopt at the end of the epoch. Errors name the file and the ordinal of the
  // record; the iterator then stays at that error.
  virtual Result<std::optional<Batch>> Next() = 0;
  // Numbers of batches that are still to come before the last that came: see
  // Dataset::Deterministic and PositionAt. On the thread that calls Next.
  virtual std::vector<std::int64_t> Overtaken() const { return {}; }
};

inline constexpr int kAutotune = -1;

class Dataset {
 public:
  explicit Dataset(std::shared_ptr<const Source> source);  // owners: every Dataset made from it

  // All of these but Prefetch and Pad stand before Batch; sizes that make no sense are a
  // ContractError.

  // An exact permutation of the whole set, keyed by (seed, epoch), or, with reshuffle false, the
  // same in every epoch.
  Dataset Shuffle(std::uint64_t seed, bool reshuffle = true) const;
  // Blocks of so many neighbouring examples change places, and then the examples within each
  // `mixed_blocks` of them: for storage where a jump is dear. mixed_blocks * block examples are
  // read close together.
  Dataset ShuffleBlocks(std::uint64_t seed, std::int64_t block, std::int64_t mixed_blocks,
                        bool reshuffle = true) const;
  // The order of a shuffle buffer, as of tf.data's shuffle, for runs that are to be compared with
  // it: each place has one of `buffer` examples, drawn at random, and the next in order takes its
  // place. With a buffer of all examples or more this is Shuffle. To be read in order: a place far
  // from the one before costs some buffer * log(buffer) steps, as resuming does.
  Dataset ShuffleBuffer(std::uint64_t seed, std::int64_t buffer, bool reshuffle = true) const;
  // All but the first so many examples.
  Dataset Skip(std::int64_t examples) const;
  // So many times, 0 to any; shuffled before, each time in another order.
  Dataset Repeat(std::int64_t times) const;
  // Examples i, i + parts, i + 2 * parts, ... of the order: one of `parts` disjoint data sets. Not
  // needed to divide work among workers, see ShardPolicy. Shard(kShardHint, kShardHint), once:
  // where ShardPolicy::kHint divides; size() and batches_per_epoch() are then of one worker that
  // has all.
  Dataset Shard(std::int64_t parts, std::int64_t i) const;
  // Runs on the threads of Prefetch, several at once; the example's place in the order is kept. May
  // drop, add and rewrite features; the result must have the same features for every example. May
  // run more than once for an example. An exception is reported like an error.
  Dataset Map(std::function<Status(Example&)> transform) const;
  // Features of these names are lists of any length, tensors of one axis: a batch has them as
  // Ragged. Those that are ragged in the source need not be named.
  Dataset Lists(const std::vector<std::string>& names) const;
  // A ragged feature as a tensor [examples, longest].
  Dataset Pad(const std::string& name, const PadOptions& options = {}) const;
  // Within each window of so many batches, examples are sorted by length, and the batches change
  // places: a batch has lists of about one length, little of it is padding. Lengths are of the
  // source's examples, see LengthsOf. Follows Shuffle; nothing but Batch follows.
  Dataset BucketByLength(std::shared_ptr<const std::vector<std::int32_t>> lengths,
                         std::uint64_t seed, std::int64_t window_batches = 64) const;
  // The first so many examples: of the source, or, after Shuffle, of each epoch's order.
  Dataset Take(std::int64_t examples) const;
  // Batches of the GLOBAL size, at least 1. drop_remainder: Remainder::kDrop, else kShort.
  Dataset Batch(std::int64_t global_batch_size, bool drop_remainder = false) const;
  // `weights` names the feature of kPad. The examples of a split, too, that end with the epoch fill
  // its last batch.
  Dataset Batch(std::int64_t global_batch_size, Remainder remainder,
                const std::string& weights = "weight") const;
  // Prepares this many batches ahead on `threads` threads. 0: in Next, on the caller's thread.
  // Beyond max_bytes of them (0: 1 GiB, or a quarter of the machine's memory if that is less) only
  // the batch that comes next is prepared; what is being built counts as the largest before it, and
  // where the size of none is known, the first is built alone.
  // kAutotune, of either: grows while the consumer waits, to 64 batches, and to the machine's
  // processors or 8 threads; then max_bytes 0 is 256 MiB.
  Dataset Prefetch(int batches, int threads = 1, std::int64_t max_bytes = 0) const;
  // false, as tf.data's option of this name: an iterator with Prefetch hands out batches as they
  // are ready, so that one which takes long holds up nothing but itself. What a batch is made of
  // stays the same, and each comes once; which comes when is then another in each run. A range of
  // the order (begin, end) is in order always. True where nothing is said.
  Dataset Deterministic(bool deterministic) const;

  const Source& source() const;
  std::int64_t size() const;               // examples in an epoch
  std::int64_t batch_size() const;         // global; 0 before Batch
  std::int64_t batches_per_epoch() const;  // 0 before Batch
  Remainder remainder() const;             // what Batch was given
  bool deterministic() const;              // what Deterministic was given
  // Examples of global batch `batch` of an epoch, with those that fill it up.
  std::int64_t SizeOfBatch(std::int64_t batch) const;
  // What kAuto stands for here; the others: themselves. Cost: the files, once.
  ShardPolicy PolicyFor(ShardPolicy policy, int num_workers) const;
  // How many batches an iterator with these options delivers when first_batch is 0; equal for every
  // worker, but for kOwn without num_batches. Differs from batches_per_epoch where HasOwnOrder and
  // for a split. Errors as Iterate.
  Result<std::int64_t> CountBatches(const IterateOptions& options) const;
  // The length of feature `name`, a list or a tensor of one axis, in every example of the source:
  // one pass over it, through Map, on so many threads. What BucketByLength takes; 4 bytes an
  // example.
  Result<std::shared_ptr<const std::vector<std::int32_t>>> LengthsOf(const std::string& name,
                                                                     int threads = 1) const;
  // The examples in their order, before Batch, as a source: how data sets are put together
  // (combine.h). Where there is a Map, its first example is read, to know what it makes. It reads
  // as epoch 0 does; AtEpoch gives the others. InvalidArgument after Batch, or with a mark for
  // kHint.
  Result<std::shared_ptr<const Source>> AsSource() const;

  // Where training stands when an iterator with these options has delivered batches up to
  // `batch`, first_batch included; where some were overtaken, those of each worker (empty: of
  // none). The first call of this or of Fingerprint may take as long as a pass over the data.
  DataPosition PositionAt(const IterateOptions& options, std::int64_t batch,
                          const std::vector<std::vector<std::int64_t>>& overtaken = {}) const;
  // The options with which an iterator goes on there, reading nothing before it: also with another
  // number of workers, under another policy, or, where the position is one of an order that all
  // workers share, with another batch size. Where it is not, the rest of the epoch has the batches
  // that it would have had. FailedPrecondition: the data, its order, or what is mapped is not what
  // it was; the batch size, where it matters; a place in shares that are not known here (kOwn, or
  // kOff with batches overtaken) for other workers.
  Result<IterateOptions> ResumeAt(const DataPosition& position, IterateOptions options = {}) const;

  // A digest of what is read and of every parameter above that changes it (of Map, that it is
  // there; not Prefetch): what workers compare before step 1.
  std::uint64_t Fingerprint() const;

  // InvalidArgument: not batched, worker or range out of range, first_batch after the end; where
  // HasOwnOrder a batch smaller than the workers, or a worker without examples to fill its batches
  // up from; under kFile files fewer than workers, or Take after Shuffle; kHint without a mark, or
  // a mark without kHint; a num_batches that the share cannot have.
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
