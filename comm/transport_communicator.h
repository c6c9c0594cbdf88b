// TransportCommunicator: the Communicator of every backend: an Exchange, the algorithms, and who
// runs the operations, in call order.
//
// Whoever holds the driver's role runs them: a thread in Work::Wait() takes it if it is free, so
// that a synchronous call wakes no other thread. The communicator's own thread has it otherwise:
// it starts what nobody waits for, and hears peers between operations. While callers drive, it naps
// and looks now and then; when nothing has been called for a while, it watches the transport.
//
// In three files: transport_communicator.cc is who drives, transport_collectives.cc the operations,
// transport_groups.cc Split and Join.

#pragma once

#include <cohort/comm/communicator.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "algorithms/choose.h"
#include "algorithms/cost_model.h"
#include "collective_counts.h"
#include "exchange.h"
#include "flight_recorder.h"
#include "native_collectives.h"
#include "tick_clock.h"
#include "work.h"

namespace cohort {

inline MutableBytes BytesOf(const Buffer& buffer) {
  return {static_cast<std::byte*>(buffer.data), buffer.bytes()};
}
inline Algorithm AlgorithmOf(const OperationRecord& record) {
  return static_cast<Algorithm>(record.algorithm);
}

struct TransportCommunicatorParts {
  std::unique_ptr<Transport> transport;
  int rank = 0;
  int size = 1;
  bool shared_memory = false;  // peers read each other's memory: see CostModel
};

// The shape of the record of an Explain, which is a Barrier at its end, and may measure before.
inline constexpr std::uint64_t kExplains = 1;

class TransportCommunicator final : public Communicator, private Driver {
 public:
  TransportCommunicator(TransportCommunicatorParts parts, CommunicatorOptions options);
  ~TransportCommunicator() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::uint64_t generation() const override { return options_.generation; }
  std::string_view backend() const override { return backend_; }
  std::string peer_name(int rank) const override;
  CommunicatorStats stats() const override;
  Status status() const override;
  OperationProgress progress() const override;
  Result<std::string> DumpFlightRecord(std::string_view reason) const override;

  using Communicator::AllReduce;
  Pending AllReduce(ConstBuffer input, Buffer output, ReduceOp op,
                    const CollectiveOptions& options) override;
  Pending Reduce(Buffer buffer, ReduceOp op, int root, const CollectiveOptions& options) override;
  Pending ReduceScatter(Buffer input, Buffer output, ReduceOp op,
                        const CollectiveOptions& options) override;
  Pending AllGather(ConstBuffer input, Buffer output, const CollectiveOptions& options) override;
  Pending AllGatherV(ConstBuffer input, Buffer output, std::span<const std::int64_t> counts,
                     const CollectiveOptions& options) override;
  Pending Broadcast(Buffer buffer, int root, const CollectiveOptions& options) override;
  Pending AllToAll(ConstBuffer input, Buffer output, const CollectiveOptions& options) override;
  Pending AllToAllV(ConstBuffer input, std::span<const std::int64_t> send_counts, Buffer output,
                    std::span<const std::int64_t> receive_counts,
                    const CollectiveOptions& options) override;
  Pending Send(ConstBuffer buffer, int to, const CollectiveOptions& options) override;
  Pending Receive(Buffer buffer, int from, const CollectiveOptions& options) override;
  Pending Barrier(const CollectiveOptions& options) override;
  Result<std::unique_ptr<Memory>> Allocate(std::size_t bytes) override;
  Result<std::unique_ptr<Communicator>> Split(int color, int key) override;
  Result<int> Join(const CollectiveOptions& options) override;
  std::vector<std::string_view> algorithms(OperationKind kind) const override;
  bool keeps_order(std::string_view algorithm) const override;
  Result<CostEstimate> Explain(OperationKind kind, std::int64_t bytes) override;
  void Abort(const Status& reason) override;

  // Before the first operation: `native` is one more way to run some, and names the backend.
  void Adopt(std::unique_ptr<NativeCollectives> native);

 private:
  struct Task;
  using Body = std::function<Status(Exchange&, Algorithm)>;  // never kAuto

  // Fills in what all operations share and queues it. `total` bytes decide the algorithm.
  Pending Enqueue(OperationRecord record, std::int64_t total, const CollectiveOptions& options,
                  Body body);
  // What `kind` may run by here, and what `deterministic` takes away from that.
  struct Menu {
    std::vector<Algorithm> offered;
    std::vector<Algorithm> refused;
  };
  Menu MenuOf(OperationKind kind) const;
  // Whether "auto" runs it by `native`.
  bool Takes(const NativeCollectives& native, OperationKind kind, DType dtype,
             std::int64_t total) const;
  Result<Algorithm> AlgorithmFor(const OperationRecord& record, std::int64_t total,
                                 std::string_view name) const;
  // The quiet algorithm, one_shot or shared, that all ranks take for these arguments, if one.
  std::optional<Algorithm> Quiet(OperationKind kind, std::size_t bytes,
                                 const std::string& algorithm);
  // The algorithms that the cost model does not know.
  void AddUnreckoned(CostEstimate& estimate, OperationKind kind, std::int64_t bytes);
  // Begins a quiet operation on the calling thread, if nothing is before it.
  std::unique_ptr<Work> BeginAtOnce(OperationRecord& record, Buffer buffer,
                                    const CollectiveOptions& options);
  Status FinishAtOnce();
  Status RunAtOnce();
  Pending EnqueueGather(OperationKind kind, Buffer input, Buffer output,
                        std::vector<std::int64_t> counts, const CollectiveOptions& options);
  Pending EnqueueAllToAll(OperationKind kind, Buffer input, std::vector<std::int64_t> send_counts,
                          Buffer output, std::vector<std::int64_t> receive_counts,
                          const CollectiveOptions& options);
  Result<Algorithm> Settle(Exchange& exchange, std::int64_t total);
  Status RunAllReduce(Exchange& exchange, Buffer input, Buffer output, ReduceOp op,
                      Algorithm algorithm);
  Status RunBroadcast(Exchange& exchange, Buffer buffer, int root, Algorithm algorithm);
  static Status RunBarrier(Exchange& exchange, Algorithm algorithm);
  // `zeros`: room for what this rank gives; outlives an exception.
  Status RunJoin(Exchange& exchange, std::chrono::milliseconds timeout, int& last,
                 std::vector<std::byte>& zeros);
  // This rank's part in an operation of others.
  Status RunShadow(Exchange& exchange, const OperationRecord& record,
                   std::vector<std::byte>& zeros);
  Status RunSplit(Exchange& exchange, int color, int key, std::unique_ptr<Communicator>& group);
  void FailWith(const Status& status);
  void DumpAfter(const Status& failure) const;

  // The driver's role.
  bool TakeRole() { return !driven_.load(std::memory_order_relaxed) && !driven_.exchange(true); }
  void LeaveRole() { driven_ = false; }
  bool AllDone() const { return begun_ == outcomes_->finished(); }
  void RunNext();  // with the role, and not AllDone()
  // With the role. Runs `f`, which says how it went. What it throws, for want of memory as a rule,
  // is a failure of the communicator: an exception would end the communicator's thread, and the
  // process with it, or leave the role to nobody.
  template <typename F>
  Status Contain(F f);
  void Hear();
  void Heard();
  bool MissedNews(std::uint64_t ticks) const;
  Status RunTask(Task& task);
  // `algorithm` ran, over `bytes`.
  Status EndTask(std::uint64_t flight, Algorithm algorithm, std::int64_t bytes, Status status);
  // Of one that has ended: its statistics and its flight record.
  Status Enter(std::uint64_t flight, Algorithm algorithm, std::int64_t bytes, const Status& status);
  void Drive(std::uint64_t number) override;
  void Leave(std::uint64_t number) override;

  // The communicator's thread.
  void Run();
  void Sleep(bool had_role);
  void Nudge();

  const int rank_;
  const int size_;
  const bool shared_memory_;
  const CommunicatorOptions options_;
  std::unique_ptr<NativeCollectives> native_;  // nullptr: none
  std::string_view backend_;
  Exchange exchange_;        // used by the driver, but for what its header allows
  const bool shares_;        // ranks reach each other's memory
  CostModel cost_;           // used by the driver
  CollectiveCounts counts_;  // likewise

  FlightRecorder flight_;
  const std::shared_ptr<Outcomes> outcomes_ = std::make_shared<Outcomes>();
  mutable std::mutex mutex_;
  std::deque<Task> queue_;  // guarded by mutex_
  Status failure_;          // guarded by mutex_

  // Sequentially consistent, or (begun_ in BeginAtOnce) behind it the store to driven_, which is a
  // full fence here (x86): whoever changes one and then looks at another is seen by whoever does it
  // the other way round.
  enum class Resting : std::uint8_t {
    kNo,       // the thread will look whether there is something to do
    kNaps,     // it will within its patience with callers who are about to wait
    kSleeps,   // it will some time
    kWatches,  // it will when the transport has something
  };
  std::atomic<bool> driven_ = false;
  std::atomic<std::uint64_t> begun_ = 0;  // operations called; their numbers run from 1
  std::atomic<Resting> resting_ = Resting::kNo;
  std::atomic<bool> nudged_ = false;
  std::atomic<bool> stopping_ = false;

  // When peers were last heard, or an operation ended; the driver's.
  TickClock clock_;
  Deadline heard_;
  std::uint64_t heard_ticks_ = 0;
  // An operation that the call began and the next driver finishes; the driver's.
  struct AtOnce {
    bool under_way = false;
    MutableBytes data;
    std::optional<Reduction> reduction;
    std::chrono::milliseconds timeout{0};
    std::uint64_t flight = 0;  // its index in the flight record
  };
  AtOnce at_once_;

  // Of the thread.
  std::condition_variable nudge_;  // with mutex_
  std::uint64_t seen_ = 0;         // begun_ when it last looked
  Deadline active_until_;
  // How long it leaves to its caller what that has called: more each time that callers have done
  // all there was, since each look takes the core from somebody; the least again where it found
  // something to run.
  Duration patience_;
  bool ran_ = false;  // something, since it last looked for what had been called
  Duration nap_;
  std::thread thread_;
};

}  // namespace cohort
