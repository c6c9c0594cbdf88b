// The operations of TransportCommunicator: what is asked of the caller, the record by which ranks
// compare, and the algorithm that runs.

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "algorithms/algorithms.h"
#include "algorithms/one_shot.h"
#include "algorithms/shared.h"
#include "buffers.h"
#include "transport_communicator.h"

namespace cohort {
namespace {

// Consecutive pieces of `all`, counts[i] elements each.
template <typename Span>
std::vector<Span> Pieces(Span all, const std::vector<std::int64_t>& counts, std::size_t element) {
  std::vector<Span> pieces;
  std::size_t at = 0;
  for (const std::int64_t count : counts) {
    const std::size_t bytes = static_cast<std::size_t>(count) * element;
    pieces.push_back(all.subspan(at, bytes));
    at += bytes;
  }
  return pieces;
}

void Copy(MutableBytes to, Bytes from) {
  if (!from.empty() && to.data() != from.data()) {
    std::memmove(to.data(), from.data(), from.size());
  }
}

}  // namespace

Communicator::Pending TransportCommunicator::AllReduce(ConstBuffer read, Buffer output, ReduceOp op,
                                                       const CollectiveOptions& options) {
  const Buffer input = OnlyRead(read);
  CheckBuffer(input);
  CheckBuffer(output);
  Require(input.dtype == output.dtype && input.count == output.count,
          "AllReduce: input and output have one element type and count");
  CheckReduceOp(op);
  OperationRecord record{.kind = OperationKind::kAllReduce,
                         .dtype = output.dtype,
                         .reduce_op = op,
                         .count = output.count};
  const auto total = static_cast<std::int64_t>(output.bytes());
  if (const auto quiet = Quiet(record.kind, output.bytes(), options.algorithm)) {
    record.algorithm = static_cast<std::uint8_t>(*quiet);
    if (input.data == output.data) {
      if (std::unique_ptr<Work> work = BeginAtOnce(record, output, options)) {
        return work;
      }
    }
  }
  return Enqueue(std::move(record), total, options,
                 [=, this](Exchange& exchange, Algorithm algorithm) {
                   return RunAllReduce(exchange, input, output, op, algorithm);
                 });
}

Communicator::Pending TransportCommunicator::Reduce(Buffer buffer, ReduceOp op, int root,
                                                    const CollectiveOptions& options) {
  CheckBuffer(buffer);
  Require(root >= 0 && root < size_, "Reduce: root is a rank");
  CheckReduceOp(op);
  OperationRecord record{.kind = OperationKind::kReduce,
                         .dtype = buffer.dtype,
                         .reduce_op = op,
                         .root = root,
                         .count = buffer.count};
  const auto total = static_cast<std::int64_t>(buffer.bytes());
  return Enqueue(std::move(record), total, options,
                 [=, this](Exchange& exchange, Algorithm /*algorithm*/) -> Status {
                   return size_ == 1 ? Status()
                                     : TreeReduce(exchange, BytesOf(buffer), root,
                                                  Reduction(buffer.dtype, op));
                 });
}

Status TransportCommunicator::RunAllReduce(Exchange& exchange, Buffer input, Buffer output,
                                           ReduceOp op, Algorithm algorithm) {
  const Reduction reduction(output.dtype, op);
  const Bytes from = BytesOf(input);
  const MutableBytes to = BytesOf(output);
  if (size_ == 1) {
    Copy(to, from);
    return {};
  }
  switch (algorithm) {
    case Algorithm::kOneShot:
      Copy(to, from);
      ShowOneShot(exchange, to);
      return FinishOneShot(exchange, to, &reduction);
    case Algorithm::kShared:
      Copy(to, from);
      ShowShared(exchange, to);
      return FinishSharedAllReduce(exchange, to, reduction);
    case Algorithm::kNative:
    case Algorithm::kHierarchical:
      Copy(to, from);
      return native_->AllReduce(exchange, output, op);
    case Algorithm::kRecursiveDoubling:
      return RecursiveDoublingAllReduce(exchange, from, to, reduction);
    case Algorithm::kHalvingDoubling:
      return HalvingDoublingAllReduce(exchange, from, to, reduction);
    case Algorithm::kTree:
      return TreeAllReduce(exchange, from, to, reduction);
    case Algorithm::kRing:
      return RingAllReduce(exchange, from, to, reduction);
    default:
      return DirectAllReduce(exchange, from, to, reduction);
  }
}

Communicator::Pending TransportCommunicator::ReduceScatter(Buffer input, Buffer output, ReduceOp op,
                                                           const CollectiveOptions& options) {
  CheckBuffer(input);
  CheckBuffer(output);
  Require(input.dtype == output.dtype, "ReduceScatter: input and output have one element type");
  Require(input.count == output.count * size_,
          "ReduceScatter: input has size() times the elements of output");
  CheckReduceOp(op);
  OperationRecord record{.kind = OperationKind::kReduceScatter,
                         .dtype = output.dtype,
                         .reduce_op = op,
                         .count = output.count};
  const auto total = static_cast<std::int64_t>(input.bytes());
  if (const auto quiet = Quiet(record.kind, input.bytes(), options.algorithm)) {
    record.algorithm = static_cast<std::uint8_t>(*quiet);
  }
  return Enqueue(
      std::move(record), total, options,
      [=, this](Exchange& exchange, Algorithm algorithm) -> Status {
        const Reduction reduction(output.dtype, op);
        if (size_ == 1) {
          Copy(BytesOf(output), BytesOf(input));
          return {};
        }
        if (algorithm == Algorithm::kShared) {
          ShowShared(exchange, BytesOf(input));
          return FinishSharedReduceScatter(exchange, BytesOf(input), BytesOf(output), reduction);
        }
        return (algorithm == Algorithm::kRing ? RingReduceScatter
                : algorithm == Algorithm::kRecursiveHalving
                    ? RecursiveHalvingReduceScatter
                    : DirectReduceScatter)(exchange, BytesOf(input), BytesOf(output), reduction);
      });
}

Communicator::Pending TransportCommunicator::AllGather(ConstBuffer read, Buffer output,
                                                       const CollectiveOptions& options) {
  const Buffer input = OnlyRead(read);
  CheckBuffer(input);
  CheckBuffer(output);
  Require(output.count == input.count * size_,
          "AllGather: output has size() times the elements of input");
  return EnqueueGather(OperationKind::kAllGather, input, output,
                       std::vector<std::int64_t>(static_cast<std::size_t>(size_), input.count),
                       options);
}

Communicator::Pending TransportCommunicator::AllGatherV(ConstBuffer read, Buffer output,
                                                        std::span<const std::int64_t> counts,
                                                        const CollectiveOptions& options) {
  const Buffer input = OnlyRead(read);
  CheckBuffer(input);
  CheckBuffer(output);
  Require(static_cast<int>(counts.size()) == size_, "AllGatherV: one count for each rank");
  std::vector<std::int64_t> copy(counts.begin(), counts.end());
  Require(std::all_of(copy.begin(), copy.end(), [](std::int64_t c) { return c >= 0; }),
          "AllGatherV: counts are not negative");
  Require(copy[static_cast<std::size_t>(rank_)] == input.count,
          "AllGatherV: counts[rank()] is the count of input");
  Require(Total(copy) == output.count, "AllGatherV: output has the sum of the counts");
  return EnqueueGather(OperationKind::kAllGatherV, input, output, std::move(copy), options);
}

Communicator::Pending TransportCommunicator::EnqueueGather(OperationKind kind, Buffer input,
                                                           Buffer output,
                                                           std::vector<std::int64_t> counts,
                                                           const CollectiveOptions& options) {
  Require(input.dtype == output.dtype, "AllGather: input and output have one element type");
  const bool uneven = kind == OperationKind::kAllGatherV;
  OperationRecord record{.kind = kind,
                         .dtype = output.dtype,
                         .count = uneven ? output.count : input.count,
                         .shape = uneven ? Digest(counts) : 0};
  const auto total = static_cast<std::int64_t>(output.bytes());
  if (const auto quiet = Quiet(kind, output.bytes(), options.algorithm); quiet) {
    record.algorithm = static_cast<std::uint8_t>(*quiet);
  }
  return Enqueue(
      std::move(record), total, options,
      [=, this](Exchange& exchange, Algorithm algorithm) -> Status {
        if (algorithm == Algorithm::kNative) {
          return native_->AllGather(exchange, input, output);
        }
        const std::size_t element = SizeOf(output.dtype);
        const std::vector<MutableBytes> blocks = Pieces(BytesOf(output), counts, element);
        Copy(blocks[static_cast<std::size_t>(rank_)], BytesOf(input));
        if (size_ == 1) {
          return {};
        }
        if (algorithm == Algorithm::kShared) {
          ShowShared(exchange, blocks[static_cast<std::size_t>(rank_)]);
          return FinishSharedAllGather(exchange, blocks, element);
        }
        return (algorithm == Algorithm::kRing    ? RingAllGather
                : algorithm == Algorithm::kBruck ? BruckAllGather
                                                 : DirectAllGather)(exchange, blocks, element);
      });
}

Communicator::Pending TransportCommunicator::Broadcast(Buffer buffer, int root,
                                                       const CollectiveOptions& options) {
  CheckBuffer(buffer);
  Require(root >= 0 && root < size_, "Broadcast: root is a rank");
  OperationRecord record{.kind = OperationKind::kBroadcast,
                         .dtype = buffer.dtype,
                         .root = root,
                         .count = buffer.count};
  if (const auto quiet = Quiet(record.kind, buffer.bytes(), options.algorithm)) {
    record.algorithm = static_cast<std::uint8_t>(*quiet);
  }
  const auto total = static_cast<std::int64_t>(buffer.bytes());
  return Enqueue(std::move(record), total, options,
                 [=, this](Exchange& exchange, Algorithm algorithm) {
                   return RunBroadcast(exchange, buffer, root, algorithm);
                 });
}

Status TransportCommunicator::RunBroadcast(Exchange& exchange, Buffer buffer, int root,
                                           Algorithm algorithm) {
  if (algorithm == Algorithm::kShared) {
    ShowShared(exchange, rank_ == root ? BytesOf(buffer) : MutableBytes());
    return FinishSharedBroadcast(exchange, BytesOf(buffer), root, SizeOf(buffer.dtype));
  }
  if (algorithm == Algorithm::kNative) {
    return native_->Broadcast(exchange, buffer, root);
  }
  return TreeBroadcast(exchange, BytesOf(buffer), root, SizeOf(buffer.dtype));
}

Communicator::Pending TransportCommunicator::AllToAll(ConstBuffer read, Buffer output,
                                                      const CollectiveOptions& options) {
  const Buffer input = OnlyRead(read);
  Require(input.count == output.count, "AllToAll: input and output have equal counts");
  Require(input.count % size_ == 0, "AllToAll: counts divide by size()");
  const std::vector<std::int64_t> counts(static_cast<std::size_t>(size_), input.count / size_);
  return EnqueueAllToAll(OperationKind::kAllToAll, input, counts, output, counts, options);
}

Communicator::Pending TransportCommunicator::AllToAllV(ConstBuffer read,
                                                       std::span<const std::int64_t> send_counts,
                                                       Buffer output,
                                                       std::span<const std::int64_t> receive_counts,
                                                       const CollectiveOptions& options) {
  const Buffer input = OnlyRead(read);
  return EnqueueAllToAll(OperationKind::kAllToAllV, input,
                         std::vector<std::int64_t>(send_counts.begin(), send_counts.end()), output,
                         std::vector<std::int64_t>(receive_counts.begin(), receive_counts.end()),
                         options);
}

Communicator::Pending TransportCommunicator::EnqueueAllToAll(
    OperationKind kind, Buffer input, std::vector<std::int64_t> send_counts, Buffer output,
    std::vector<std::int64_t> receive_counts, const CollectiveOptions& options) {
  CheckBuffer(input);
  CheckBuffer(output);
  Require(input.dtype == output.dtype, "AllToAll: input and output have one element type");
  const auto check = [this](const std::vector<std::int64_t>& counts, std::int64_t total) {
    Require(static_cast<int>(counts.size()) == size_, "AllToAllV: one count for each rank");
    Require(std::all_of(counts.begin(), counts.end(), [](std::int64_t c) { return c >= 0; }),
            "AllToAllV: counts are not negative");
    Require(Total(counts) == total, "AllToAllV: the counts add up to the buffer's");
  };
  check(send_counts, input.count);
  check(receive_counts, output.count);
  const auto self = static_cast<std::size_t>(rank_);
  Require(send_counts[self] == receive_counts[self],
          "AllToAllV: what a rank sends to itself is what it receives from itself");
  OperationRecord record{.kind = kind,
                         .dtype = input.dtype,
                         .count = kind == OperationKind::kAllToAll ? input.count : 0};
  const auto total = static_cast<std::int64_t>(input.bytes());
  return Enqueue(std::move(record), total, options,
                 [=](Exchange& exchange, Algorithm /*algorithm*/) -> Status {
                   const std::size_t element = SizeOf(input.dtype);
                   return DirectAllToAll(exchange,
                                         Pieces(Bytes(BytesOf(input)), send_counts, element),
                                         Pieces(BytesOf(output), receive_counts, element), element);
                 });
}

Communicator::Pending TransportCommunicator::Send(ConstBuffer read, int to,
                                                  const CollectiveOptions& options) {
  const Buffer buffer = OnlyRead(read);
  CheckBuffer(buffer);
  Require(to >= 0 && to < size_ && to != rank_, "Send: to another rank");
  OperationRecord record{
      .kind = OperationKind::kSend, .dtype = buffer.dtype, .root = to, .count = buffer.count};
  const auto total = static_cast<std::int64_t>(buffer.bytes());
  return Enqueue(std::move(record), total, options,
                 [=](Exchange& exchange, Algorithm /*algorithm*/) -> Status {
                   return SendTo(exchange, to, BytesOf(buffer), SizeOf(buffer.dtype));
                 });
}

Communicator::Pending TransportCommunicator::Receive(Buffer buffer, int from,
                                                     const CollectiveOptions& options) {
  CheckBuffer(buffer);
  Require(from >= 0 && from < size_ && from != rank_, "Receive: from another rank");
  OperationRecord record{
      .kind = OperationKind::kReceive, .dtype = buffer.dtype, .root = from, .count = buffer.count};
  const auto total = static_cast<std::int64_t>(buffer.bytes());
  return Enqueue(std::move(record), total, options,
                 [=](Exchange& exchange, Algorithm /*algorithm*/) -> Status {
                   return ReceiveFrom(exchange, from, BytesOf(buffer), SizeOf(buffer.dtype));
                 });
}

Communicator::Pending TransportCommunicator::Barrier(const CollectiveOptions& options) {
  OperationRecord record{.kind = OperationKind::kBarrier};
  if (const auto quiet = Quiet(record.kind, 0, options.algorithm)) {
    record.algorithm = static_cast<std::uint8_t>(*quiet);
    if (std::unique_ptr<Work> work = BeginAtOnce(record, {}, options)) {
      return work;
    }
  }
  return Enqueue(std::move(record), 0, options, RunBarrier);
}

Status TransportCommunicator::RunBarrier(Exchange& exchange, Algorithm algorithm) {
  if (algorithm != Algorithm::kOneShot) {
    return DisseminationBarrier(exchange);
  }
  ShowOneShot(exchange, {});
  return FinishOneShot(exchange, {}, nullptr);
}

}  // namespace cohort
