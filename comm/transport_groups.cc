// Split and Join of TransportCommunicator: some of its ranks among themselves, and ranks that have
// run out of data.

#include <algorithm>
#include <cstring>
#include <utility>

#include "algorithms/algorithms.h"
#include "transport_communicator.h"

namespace cohort {

Result<std::unique_ptr<Communicator>> TransportCommunicator::Split(int color, int key) {
  std::unique_ptr<Communicator> group;
  COHORT_ASSIGN_OR_RETURN(
      std::unique_ptr<Work> work,
      Enqueue({.kind = OperationKind::kSplit}, 0, {},
              [this, color, key, &group](Exchange& exchange, Algorithm /*algorithm*/) {
                return RunSplit(exchange, color, key, group);
              }));
  COHORT_RETURN_IF_ERROR(work->Wait());
  return group;
}

// All ranks tell all others their color, key and offer; each group's members then connect.
Status TransportCommunicator::RunSplit(Exchange& exchange, int color, int key,
                                       std::unique_ptr<Communicator>& group) {
  struct Entry {
    std::int32_t color;
    std::int32_t key;
    std::uint32_t offer_bytes;
    char offer[Transport::kMaxOfferBytes];
  };
  COHORT_ASSIGN_OR_RETURN(const std::string offer, exchange.transport().Offer());
  Require(offer.size() <= Transport::kMaxOfferBytes, "an offer fits its place");
  std::vector<Entry> entries(static_cast<std::size_t>(size_));
  Entry& mine = entries[static_cast<std::size_t>(rank_)];
  mine = {color, key, static_cast<std::uint32_t>(offer.size()), {}};
  std::memcpy(mine.offer, offer.data(), offer.size());
  std::vector<MutableBytes> blocks;
  for (Entry& entry : entries) {
    blocks.push_back(std::as_writable_bytes(std::span(&entry, 1)));
  }
  if (size_ > 1) {
    COHORT_RETURN_IF_ERROR(DirectAllGather(exchange, blocks, 1));
  }

  std::vector<int> members;
  for (int r = 0; r < size_ && color >= 0; ++r) {
    if (entries[static_cast<std::size_t>(r)].color == color) {
      members.push_back(r);
    }
  }
  std::stable_sort(members.begin(), members.end(), [&](int a, int b) {
    return entries[static_cast<std::size_t>(a)].key < entries[static_cast<std::size_t>(b)].key;
  });
  std::vector<std::string> offers;
  for (const int member : members) {
    const Entry& entry = entries[static_cast<std::size_t>(member)];
    offers.emplace_back(entry.offer,
                        std::min<std::size_t>(entry.offer_bytes, Transport::kMaxOfferBytes));
  }
  const auto my_index =
      static_cast<int>(std::find(members.begin(), members.end(), rank_) - members.begin());
  const std::string id = std::to_string(exchange.record().sequence) + "." + std::to_string(color);
  COHORT_ASSIGN_OR_RETURN(
      std::unique_ptr<Transport> transport,
      exchange.transport().Join(id, members, my_index, offers, exchange.deadline()));
  if (members.empty()) {
    return {};
  }
  CommunicatorOptions options = options_;
  options.name += "/" + id;
  if (options_.peer_name) {
    options.peer_name = [members, name = options_.peer_name](int r) {
      return name(members[static_cast<std::size_t>(r)]);
    };
  }
  TransportCommunicatorParts parts;
  parts.transport = std::move(transport);
  parts.rank = my_index;
  parts.size = static_cast<int>(members.size());
  parts.shared_memory = shared_memory_;
  group = std::make_unique<TransportCommunicator>(std::move(parts), std::move(options));
  return {};
}

Result<int> TransportCommunicator::Join(const CollectiveOptions& options) {
  int last = rank_;
  std::vector<std::byte> zeros;  // others read and write them until the operation has ended
  const auto timeout = options.timeout.count() > 0 ? options.timeout : options_.timeout;
  COHORT_ASSIGN_OR_RETURN(std::unique_ptr<Work> work,
                          Enqueue({.kind = OperationKind::kJoin}, 0, {.name = options.name},
                                  [&](Exchange& exchange, Algorithm /*algorithm*/) {
                                    return RunJoin(exchange, timeout, last, zeros);
                                  }));
  COHORT_RETURN_IF_ERROR(work->Wait());
  return last;
}

Status TransportCommunicator::RunJoin(Exchange& exchange, std::chrono::milliseconds timeout,
                                      int& last, std::vector<std::byte>& zeros) {
  COHORT_RETURN_IF_ERROR(exchange.BeginJoin());
  for (;;) {
    COHORT_ASSIGN_OR_RETURN(const std::optional<OperationRecord> record,
                            exchange.NextShadow(DeadlineAfter(timeout)));
    if (!record) {
      last = exchange.EndJoin();
      return {};
    }
    const Deadline now = std::chrono::steady_clock::now();
    const std::uint64_t flight = flight_.Queued(*record, now);
    Status status = exchange.Begin(OperationRecord(*record), now, now + timeout);
    flight_.Started(flight, exchange.record(), now);
    if (status.ok()) {
      status = exchange.AwaitRejects();
    }
    if (status.ok()) {
      status = RunShadow(exchange, *record, zeros);
    }
    status = exchange.End(status);
    flight_.Ended(flight, status.ok(), std::chrono::steady_clock::now());
    COHORT_RETURN_IF_ERROR(exchange.failure());
    if (!status.ok()) {  // given up by all, and the callers have been told
      options_.log.Warning(exchange.Name(rank_) + ", which has joined: " + status.message());
    }
  }
}

Status TransportCommunicator::RunShadow(Exchange& exchange, const OperationRecord& record,
                                        std::vector<std::byte>& zeros) {
  const std::int64_t total = record.count * static_cast<std::int64_t>(SizeOf(record.dtype));
  COHORT_ASSIGN_OR_RETURN(const Algorithm algorithm, Settle(exchange, total));
  const bool adds = record.reduce_op == ReduceOp::kSum || record.reduce_op == ReduceOp::kMean;
  const auto buffer = [&]() -> Buffer {
    zeros.assign(static_cast<std::size_t>(record.count) * SizeOf(record.dtype), std::byte(0));
    return {zeros.data(), record.count, record.dtype};
  };
  if (record.kind == OperationKind::kBarrier && record.shape != kExplains) {
    return RunBarrier(exchange, algorithm);
  }
  if (record.kind == OperationKind::kAllReduce && adds) {
    const Buffer all = buffer();
    return RunAllReduce(exchange, all, all, record.reduce_op, algorithm);
  }
  if (record.kind == OperationKind::kBroadcast && record.root != rank_) {
    return RunBroadcast(exchange, buffer(), record.root, algorithm);
  }
  return exchange.Mismatch(InvalidArgument(
      record.Numbered() + ": " + exchange.Name(rank_) +
      " has joined [only AllReduce of sum and mean, Broadcast from a rank that has not joined, and "
      "Barrier are possible until all have]"));
}

}  // namespace cohort
