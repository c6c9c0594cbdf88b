// A communicator that passes everything on to another one, for tests that look at, or change, some
// of it.

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cohort/comm/communicator.h>

namespace cohort::testing {

class PassingCommunicator : public Communicator {
 public:
  explicit PassingCommunicator(std::unique_ptr<Communicator> inner) : inner_(std::move(inner)) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  std::uint64_t generation() const override { return inner_->generation(); }
  std::string_view backend() const override { return inner_->backend(); }
  std::string peer_name(int rank) const override { return inner_->peer_name(rank); }
  Status status() const override { return inner_->status(); }
  CommunicatorStats stats() const override { return inner_->stats(); }
  OperationProgress progress() const override { return inner_->progress(); }
  Result<std::string> DumpFlightRecord(std::string_view reason) const override {
    return inner_->DumpFlightRecord(reason);
  }
  using Communicator::AllReduce;
  Pending AllReduce(ConstBuffer input, Buffer output, ReduceOp op,
                    const CollectiveOptions& options) override {
    return inner_->AllReduce(input, output, op, options);
  }
  Pending Reduce(Buffer buffer, ReduceOp op, int root, const CollectiveOptions& options) override {
    return inner_->Reduce(buffer, op, root, options);
  }
  Pending ReduceScatter(Buffer input, Buffer output, ReduceOp op,
                        const CollectiveOptions& options) override {
    return inner_->ReduceScatter(input, output, op, options);
  }
  Pending AllGather(ConstBuffer input, Buffer output, const CollectiveOptions& options) override {
    return inner_->AllGather(input, output, options);
  }
  Pending AllGatherV(ConstBuffer input, Buffer output, std::span<const std::int64_t> counts,
                     const CollectiveOptions& options) override {
    return inner_->AllGatherV(input, output, counts, options);
  }
  Pending Broadcast(Buffer buffer, int root, const CollectiveOptions& options) override {
    return inner_->Broadcast(buffer, root, options);
  }
  Pending AllToAll(ConstBuffer input, Buffer output, const CollectiveOptions& options) override {
    return inner_->AllToAll(input, output, options);
  }
  Pending AllToAllV(ConstBuffer input, std::span<const std::int64_t> send_counts, Buffer output,
                    std::span<const std::int64_t> receive_counts,
                    const CollectiveOptions& options) override {
    return inner_->AllToAllV(input, send_counts, output, receive_counts, options);
  }
  Pending Send(ConstBuffer buffer, int to, const CollectiveOptions& options) override {
    return inner_->Send(buffer, to, options);
  }
  Pending Receive(Buffer buffer, int from, const CollectiveOptions& options) override {
    return inner_->Receive(buffer, from, options);
  }
  Pending Barrier(const CollectiveOptions& options) override { return inner_->Barrier(options); }
  Result<std::unique_ptr<Memory>> Allocate(std::size_t bytes) override {
    return inner_->Allocate(bytes);
  }
  Result<std::unique_ptr<Communicator>> Split(int color, int key) override {
    return inner_->Split(color, key);
  }
  Result<int> Join(const CollectiveOptions& options) override { return inner_->Join(options); }
  std::vector<std::string_view> algorithms(OperationKind kind) const override {
    return inner_->algorithms(kind);
  }
  bool keeps_order(std::string_view algorithm) const override {
    return inner_->keeps_order(algorithm);
  }
  Result<CostEstimate> Explain(OperationKind kind, std::int64_t bytes) override {
    return inner_->Explain(kind, bytes);
  }
  void Abort(const Status& reason) override { inner_->Abort(reason); }

 protected:
  Communicator& inner() const { return *inner_; }

 private:
  const std::unique_ptr<Communicator> inner_;
};

}  // namespace cohort::testing
