// Communicator: collective operations among a group of ranks.
//
// Every rank of the group calls the same operations in the same order. Each operation carries a
// sequence number, the communicator's generation and a fingerprint (operation, element type, count,
// reduction, root, name); where ranks disagree, every rank gets InvalidArgument that names both
// sides for that operation, and the next one on which all agree succeeds. Any other failure (and a
// mismatch in which Send or Receive takes part) fails the communicator: pending and later
// operations return that first error, on this rank at once and on the others when they next hear of
// it. A new one is made with a higher generation; the processes go on.
//
// Operations are asynchronous: the call checks its arguments and returns a Work. Buffers belong to
// the operation from the call until the Work is done. Operations of one communicator run one after
// the other, in call order: on the thread that waits for them in Work::Wait(), else on the
// communicator's own. That starts an operation at once if it has a stream or others are before it;
// one that looks as if its caller will wait at once is given half a millisecond for that, and up to
// 16 where callers have always waited at once.
//
// Thread rules: calls on one communicator from one thread at a time; different communicators from
// different threads.

#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/comm/cost.h>
#include <cohort/comm/memory.h>
#include <cohort/comm/operation_kind.h>
#include <cohort/core/clock.h>
#include <cohort/core/dtype.h>
#include <cohort/core/log.h>
#include <cohort/core/status.h>
#include <cohort/device/stream.h>

namespace cohort {

class Metrics;  // cohort/core/metrics.h

enum class ReduceOp : std::uint8_t { kSum, kMean, kMin, kMax, kProduct };
std::string_view ReduceOpName(ReduceOp op);

// `count` elements of `dtype` at `data`, which an operation may write to. A span of what is not
// const converts to one.
struct Buffer {
  void* data = nullptr;
  std::int64_t count = 0;
  DType dtype = DType::kFloat32;

  Buffer() = default;
  Buffer(void* d, std::int64_t n, DType t) : data(d), count(n), dtype(t) {}
  template <typename T, std::size_t kExtent>
  requires(!std::is_const_v<T>) Buffer(std::span<T, kExtent> s)  // NOLINT: implicit by design
      : data(s.data()), count(static_cast<std::int64_t>(s.size())), dtype(DTypeOf<T>::value) {}
  std::size_t bytes() const { return static_cast<std::size_t>(count) * SizeOf(dtype); }
};

// One that an operation reads only. A Buffer and every span convert to one.
struct ConstBuffer {
  const void* data = nullptr;
  std::int64_t count = 0;
  DType dtype = DType::kFloat32;

  ConstBuffer() = default;
  ConstBuffer(const void* d, std::int64_t n, DType t) : data(d), count(n), dtype(t) {}
  ConstBuffer(const Buffer& b)  // NOLINT: implicit by design
      : data(b.data), count(b.count), dtype(b.dtype) {}
  template <typename T, std::size_t kExtent>
  ConstBuffer(std::span<T, kExtent> s)  // NOLINT: implicit by design
      : data(s.data()),
        count(static_cast<std::int64_t>(s.size())),
        dtype(DTypeOf<std::remove_const_t<T>>::value) {}
  std::size_t bytes() const { return static_cast<std::size_t>(count) * SizeOf(dtype); }
};

struct CollectiveOptions {
  std::string name;                      // what errors call this operation: a tensor, a bucket
  std::chrono::milliseconds timeout{0};  // 0: the communicator's
  std::string algorithm = "auto";        // or one of Communicator::algorithms()
  // The operation starts when what this stream holds now has run. nullptr: the buffers are ready at
  // the call.
  Stream* stream = nullptr;
};

// One operation under way. Destroying a Work does not cancel the operation; its buffers must
// outlive it all the same, and nobody may touch them before it is done.
class Work {
 public:
  virtual ~Work() = default;
  virtual bool done() const = 0;
  // Blocks the host until the operation is done or failed, at most until `deadline` (the
  // operation's own deadline holds besides): DeadlineExceeded then, and the operation goes on.
  virtual Status Wait(Deadline deadline) = 0;
  // Waits until the operation's own deadline. The calling thread runs the operation, and those
  // before it, if nobody else does: no hand-over between threads. The communicator must live.
  virtual Status Wait() = 0;
  // What `stream` is given after this call starts when the operation is done. Does not block the
  // host.
  virtual void Order(Stream& stream) = 0;
};

struct CommunicatorStats {
  std::uint64_t operations = 0;
  std::uint64_t bytes_sent = 0;
  std::uint64_t bytes_received = 0;
  // What was sent besides data: the record of an operation, ahead of its first data to each peer
  // (over TCP and MPI in one message with them); where a rank waits for 2 ms, to the next rank too;
  // and what is said of faults, joins and the end. 0 over NCCL, and of what goes over shared memory
  // without messages.
  std::uint64_t control_messages = 0;
};

// Where a rank is: the operation that it began last.
struct OperationProgress {
  std::uint64_t generation = 0;
  std::uint64_t sequence = 0;  // 0: none yet
  std::string operation;       // "AllReduce 'bucket 1' float32[1000]"
  Deadline since;              // when it began
  bool under_way = false;
};

class Communicator {
 public:
  virtual ~Communicator() = default;  // waits for operations under way, at most their deadlines

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::uint64_t generation() const = 0;
  virtual std::string_view backend() const = 0;       // "local", "tcp", "mpi"
  virtual std::string peer_name(int rank) const = 0;  // "worker:1": what errors call a rank
  virtual CommunicatorStats stats() const = 0;
  // OK, or the failure that ended this communicator; it may come from a peer, between operations.
  virtual Status status() const = 0;
  // From any thread, also while operations are under way.
  virtual OperationProgress progress() const = 0;
  // Writes what the last 1,000 operations were and how far they came (see flight_recorder.h) to
  // options.flight_folder, as happens by itself when an operation fails; returns the file's path.
  // From any thread. FailedPrecondition without a folder.
  virtual Result<std::string> DumpFlightRecord(std::string_view reason) const = 0;

  using Pending = Result<std::unique_ptr<Work>>;

  // output becomes op over all ranks' inputs. Mean divides by size(), in float for float types; for
  // integers it truncates toward zero. output may be input, else they are apart and input stays.
  virtual Pending AllReduce(ConstBuffer input, Buffer output, ReduceOp op,
                            const CollectiveOptions& options = {}) = 0;
  Pending AllReduce(Buffer buffer, ReduceOp op, const CollectiveOptions& options = {}) {
    return AllReduce(buffer, buffer, op, options);
  }
  // As AllReduce, at `root`; the other ranks' buffers are scratch.
  virtual Pending Reduce(Buffer buffer, ReduceOp op, int root,
                         const CollectiveOptions& options = {}) = 0;
  // output (count elements) becomes slice `rank` of op over the ranks' inputs (size()*count
  // elements). input is scratch, and holds anything afterwards; output may be its slice `rank`.
  virtual Pending ReduceScatter(Buffer input, Buffer output, ReduceOp op,
                                const CollectiveOptions& options = {}) = 0;
  // output (size()*count) becomes the ranks' inputs (count each) in rank order; input may be slice
  // `rank` of output.
  virtual Pending AllGather(ConstBuffer input, Buffer output,
                            const CollectiveOptions& options = {}) = 0;
  // As AllGather, where rank r gives counts[r] elements; counts are equal on all ranks.
  virtual Pending AllGatherV(ConstBuffer input, Buffer output, std::span<const std::int64_t> counts,
                             const CollectiveOptions& options = {}) = 0;
  virtual Pending Broadcast(Buffer buffer, int root, const CollectiveOptions& options = {}) = 0;
  // Slice r of input goes to rank r; slice r of output comes from it. Counts divide by size().
  virtual Pending AllToAll(ConstBuffer input, Buffer output,
                           const CollectiveOptions& options = {}) = 0;
  // Rank r gets send_counts[r] elements of input and gives receive_counts[r], packed in rank order.
  virtual Pending AllToAllV(ConstBuffer input, std::span<const std::int64_t> send_counts,
                            Buffer output, std::span<const std::int64_t> receive_counts,
                            const CollectiveOptions& options = {}) = 0;
  // Between two ranks; only they call, and only their order among themselves counts.
  virtual Pending Send(ConstBuffer buffer, int to, const CollectiveOptions& options = {}) = 0;
  virtual Pending Receive(Buffer buffer, int from, const CollectiveOptions& options = {}) = 0;
  virtual Pending Barrier(const CollectiveOptions& options = {}) = 0;

  // Memory from which and into which this communicator moves bytes without staging them;
  // prefaulted, aligned to at least 64 bytes, in huge pages where it is large and the kernel has
  // them. Any other memory works as well, at the cost of a copy where ranks are processes of one
  // host. This rank alone calls; the memory may outlive the communicator.
  virtual Result<std::unique_ptr<Memory>> Allocate(std::size_t bytes) = 0;

  // New groups of the ranks that give the same color, ordered by (key, rank). color < 0: nullptr
  // for this rank. All ranks must call. Blocks until the groups stand, or the timeout.
  virtual Result<std::unique_ptr<Communicator>> Split(int color, int key) = 0;

  // For a rank that has run out of data while others go on: takes part in their operations until
  // all have called Join, and returns the rank that joined last (the one that called most
  // operations; of several, the highest). Meanwhile this rank gives zeros to AllReduce of sum and
  // mean (which divides by size() all the same), drops what it gets by Broadcast, and makes up the
  // number in Barrier. On all other operations, and a Broadcast whose root has joined, their
  // callers get InvalidArgument. Ends with DeadlineExceeded, naming who has not joined, when no
  // operation comes within the timeout. Blocks.
  virtual Result<int> Join(const CollectiveOptions& options = {}) = 0;
  // The names by which CollectiveOptions::algorithm may ask for an algorithm of `kind` here, "auto"
  // apart.
  virtual std::vector<std::string_view> algorithms(OperationKind kind) const = 0;
  // Whether AllReduce by this algorithm, "auto" or another name, is here and combines in the
  // canonical order (README.md) whatever its size. The same answer on all ranks.
  virtual bool keeps_order(std::string_view algorithm) const = 0;
  // What "auto" reckons for an operation on `bytes`, and takes. A collective operation: all ranks
  // call, and wait for it; measures what has not been measured yet. README.md says how.
  virtual Result<CostEstimate> Explain(OperationKind kind, std::int64_t bytes) = 0;

  // Fails the communicator on purpose: operations under way and later ones return `reason`, here
  // and at the peers.
  virtual void Abort(const Status& reason) = 0;
};

struct CommunicatorOptions {
  std::chrono::milliseconds timeout{120'000};  // of one operation
  // An operation that waits for longer is logged, once, with those who are behind.
  std::chrono::milliseconds slow_peer_warning{10'000};
  std::uint64_t generation = 1;
  std::string name = "collectives";  // of the group, in the names of dumps
  std::string flight_folder;         // where flight records go; empty: nowhere
  std::int64_t segment_bytes = 0;    // 0: chosen by the backend. Tests force small ones
  // Reductions combine in the canonical order by rank: the same bits whatever the algorithm, the
  // backend, the segments, and wherever buffers are cut. This refuses by name what cannot
  // (InvalidArgument), and "auto" does without it: hierarchical where hosts do not all have the
  // same power of two of consecutive ranks. Elsewhere "auto" keeps the order anyway, but for MPI's
  // own collectives and NCCL, with which this is InvalidArgument.
  bool deterministic = false;
  // What "auto" reckons with, equal on all ranks; none: measured at the first need.
  std::optional<CostParameters> cost;
  std::function<std::string(int rank)> peer_name;  // default "rank N"
  // Counts the operations that are done, and their bytes (src/obs/README.md); outlives the
  // communicator and the groups made by Split, which count here too. nullptr: nobody counts.
  Metrics* metrics = nullptr;
  Log log;
};

}  // namespace cohort
