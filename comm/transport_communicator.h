// TransportCommunicator: the Communicator of every backend: an Exchange, the algorithms, and the
// thread that runs operations in call order.

#pragma once

#include <cohort/comm/communicator.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "algorithms/choose.h"
#include "exchange.h"
#include "flight_recorder.h"
#include "native_collectives.h"

namespace cohort {

struct TransportCommunicatorParts {
  std::unique_ptr<Transport> transport;
  int rank = 0;
  int size = 1;
  bool shared_memory = false;  // see ChooseAlgorithm
};

class TransportCommunicator final : public Communicator {
 public:
  TransportCommunicator(TransportCommunicatorParts parts, CommunicatorOptions options);
  ~TransportCommunicator() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::uint64_t generation() const override { return options_.generation; }
  std::string_view backend() const override { return exchange_.transport().backend(); }
  std::string peer_name(int rank) const override;
  CommunicatorStats stats() const override;
  Status status() const override;
  OperationProgress progress() const override;
  Result<std::string> DumpFlightRecord(std::string_view reason) const override;

  Pending AllReduce(Buffer buffer, ReduceOp op, const CollectiveOptions& options) override;
  Pending ReduceScatter(Buffer input, Buffer output, ReduceOp op,
                        const CollectiveOptions& options) override;
  Pending AllGather(Buffer input, Buffer output, const CollectiveOptions& options) override;
  Pending AllGatherV(Buffer input, Buffer output, std::span<const std::int64_t> counts,
                     const CollectiveOptions& options) override;
  Pending Broadcast(Buffer buffer, int root, const CollectiveOptions& options) override;
  Pending AllToAll(Buffer input, Buffer output, const CollectiveOptions& options) override;
  Pending AllToAllV(Buffer input, std::span<const std::int64_t> send_counts, Buffer output,
                    std::span<const std::int64_t> receive_counts,
                    const CollectiveOptions& options) override;
  Pending Send(Buffer buffer, int to, const CollectiveOptions& options) override;
  Pending Receive(Buffer buffer, int from, const CollectiveOptions& options) override;
  Pending Barrier(const CollectiveOptions& options) override;
  Result<std::unique_ptr<Communicator>> Split(int color, int key) override;
  void Abort(const Status& reason) override;

 private:
  struct Task;
  using Body = std::function<Status(Exchange&)>;

  // Fills in what all operations share and queues it. `total` bytes decide the algorithm.
  Pending Enqueue(OperationRecord record, std::int64_t total, const CollectiveOptions& options,
                  const std::function<Body(Algorithm)>& body);
  Pending EnqueueGather(OperationKind kind, Buffer input, Buffer output,
                        std::vector<std::int64_t> counts, const CollectiveOptions& options);
  Pending EnqueueAllToAll(OperationKind kind, Buffer input, std::vector<std::int64_t> send_counts,
                          Buffer output, std::vector<std::int64_t> receive_counts,
                          const CollectiveOptions& options);
  Status RunSplit(Exchange& exchange, int color, int key, std::unique_ptr<Communicator>& group);
  void Run();
  Status RunTask(Task& task);
  void FailWith(const Status& status);
  void DumpAfter(const Status& failure) const;

  const int rank_;
  const int size_;
  const bool shared_memory_;
  const CommunicatorOptions options_;
  const std::unique_ptr<NativeCollectives> native_;  // nullptr: none
  Exchange exchange_;  // used by thread_ only, but for what its header allows

  FlightRecorder flight_;

  mutable std::mutex mutex_;
  std::deque<Task> queue_;        // guarded by mutex_
  Status failure_;                // guarded by mutex_
  std::uint64_t operations_ = 0;  // guarded by mutex_: begun
  bool stopping_ = false;         // guarded by mutex_
  std::thread thread_;
};

}  // namespace cohort
