// Direct exchange: every rank talks to every other, one hop. Two latency steps for an all-reduce
// whatever the number of ranks, and where ranks share memory no byte is copied on the way: the
// owner of a chunk reads the peers' buffers.
//
// Reduce: each rank gives chunk p to rank p, and combines the shares of its own chunk by the
// canonical tree, segment by segment, so that a segment stays in cache. Gather: it gives the
// finished segments to all.

#include <bit>
#include <functional>

#include "algorithms/algorithms.h"
#include "algorithms/canonical_order.h"

namespace cohort {
namespace {

int Peer(const Exchange& exchange, int step) { return (exchange.rank() + step) % exchange.size(); }

// The canonical tree over the ranks' shares of one segment, at its owner. A share is combined as it
// arrives where its sibling in the tree is there already. Inner results stand in rooms, one segment
// each; only the root's combination writes to the destination, which may be the own share.
class OwnerTree {
 public:
  OwnerTree(Exchange& exchange, const Reduction& reduction, std::size_t room_bytes)
      : exchange_(exchange),
        reduction_(reduction),
        order_(exchange.size()),
        room_bytes_(room_bytes),
        // One for each level, and one for a share that waits for its sibling at the lowest.
        rooms_(exchange.Scratch(room_bytes * static_cast<std::size_t>(std::bit_width(
                                                 static_cast<unsigned>(order_.power()))))) {}

  Status Combine(const std::byte* own, MutableBytes to) {
    own_ = own;
    bytes_ = to.size();
    Value ignored;
    return Node(0, order_.power(), 0, to.data(), ignored);
  }

 private:
  struct Value {  // of one place in the tree
    bool here = false;
    const std::byte* data = nullptr;  // if it is here
    int rank = -1;                    // if not: whose share it is
  };

  std::byte* Room(std::size_t level) const { return rooms_.data() + level * room_bytes_; }
  Value Share(int rank) const {
    return rank == exchange_.rank() ? Value{true, own_, rank} : Value{false, nullptr, rank};
  }
  Status Receive(int rank, std::byte* to, const CombineWith& combine) {
    return exchange_.Wait(exchange_.Receive(rank, {to, bytes_}, combine));
  }

  // to = the numbers [first, first + count) combined. The left half may use the rooms from `level`
  // on, the right half those behind it.
  Status Node(int first, int count, std::size_t level, std::byte* to, Value& value) {
    Value left;
    Value right;
    if (count == 1) {
      if (first >= order_.extra()) {
        value = Share(order_.first_rank(first));
        return {};
      }
      left = Share(order_.first_rank(first));
      right = Share(order_.actor(first));
    } else {
      const int half = count / 2;
      COHORT_RETURN_IF_ERROR(Node(first, half, level, Room(level), left));
      COHORT_RETURN_IF_ERROR(Node(first + half, half, level + 1, Room(level + 1), right));
    }
    if (!left.here && !right.here) {
      COHORT_RETURN_IF_ERROR(Receive(left.rank, Room(level), {}));
      left = {true, Room(level), -1};
    }
    value = {true, to, -1};
    if (!left.here) {
      return Receive(left.rank, to, {&reduction_, right.data, /*local_first=*/false});
    }
    if (!right.here) {
      return Receive(right.rank, to, {&reduction_, left.data, /*local_first=*/true});
    }
    reduction_.Combine(to, left.data, right.data, bytes_);
    return {};
  }

  Exchange& exchange_;
  const Reduction& reduction_;
  const CanonicalOrder order_;
  const std::size_t room_bytes_;
  const MutableBytes rooms_;
  const std::byte* own_ = nullptr;
  std::size_t bytes_ = 0;
};

// Two ranks: the peer's share of every segment is asked for at once.
template <typename F>
Status ReduceWithOne(Exchange& exchange, const std::vector<Bytes>& mine,
                     const std::vector<MutableBytes>& results, const Reduction& reduction,
                     const std::function<void()>& after_posted, F each) {
  const int peer = 1 - exchange.rank();
  std::vector<Ticket> tickets(mine.size());
  for (std::size_t s = 0; s < mine.size(); ++s) {
    tickets[s] =
        exchange.Receive(peer, results[s], {&reduction, mine[s].data(), exchange.rank() < peer});
  }
  after_posted();
  for (std::size_t s = 0; s < mine.size(); ++s) {
    COHORT_RETURN_IF_ERROR(exchange.Wait(tickets[s]));
    reduction.Finish(results[s].data(), results[s].size(), 2);
    each(results[s]);
  }
  return {};
}

// Combines all shares of this rank's chunk, `mine`, to `results`; each(segment) follows a finished
// one, after_posted() all that is asked of the peers.
template <typename F>
Status ReduceOwnChunk(Exchange& exchange, const std::vector<Bytes>& mine,
                      const std::vector<MutableBytes>& results, const Reduction& reduction,
                      const std::function<void()>& after_posted, F each) {
  const int n = exchange.size();
  if (n == 2) {
    return ReduceWithOne(exchange, mine, results, reduction, after_posted, each);
  }
  OwnerTree tree(exchange, reduction, mine.front().size());
  for (std::size_t s = 0; s < mine.size(); ++s) {
    COHORT_RETURN_IF_ERROR(tree.Combine(mine[s].data(), results[s]));
    reduction.Finish(results[s].data(), results[s].size(), n);
    each(results[s]);
  }
  after_posted();
  return {};
}

}  // namespace

Status DirectAllReduce(Exchange& exchange, Bytes input, MutableBytes output,
                       const Reduction& reduction) {
  const int n = exchange.size();
  const std::size_t element = reduction.element_bytes();
  const auto chunk = [&](auto data, int owner) { return Chunk(data, owner, n, element); };
  for (int step = 1; step < n; ++step) {
    PostSend(exchange, Peer(exchange, step), chunk(input, Peer(exchange, step)), element);
  }
  const auto expect_finished = [&] {
    for (int step = 1; step < n; ++step) {
      const int peer = Peer(exchange, step);
      PostReceive(exchange, peer, chunk(output, peer), element);
    }
  };
  const std::size_t segment_bytes = exchange.SegmentBytes(element);
  COHORT_RETURN_IF_ERROR(ReduceOwnChunk(exchange,
                                        Segments(chunk(input, exchange.rank()), segment_bytes),
                                        Segments(chunk(output, exchange.rank()), segment_bytes),
                                        reduction, expect_finished, [&](MutableBytes segment) {
                                          for (int step = 1; step < n; ++step) {
                                            exchange.Send(Peer(exchange, step), segment);
                                          }
                                        }));
  return exchange.WaitAll();
}

Status DirectReduceScatter(Exchange& exchange, MutableBytes input, MutableBytes output,
                           const Reduction& reduction) {
  const std::size_t element = reduction.element_bytes();
  const auto chunk = [&](int owner) {
    return Bytes(input.subspan(static_cast<std::size_t>(owner) * output.size(), output.size()));
  };
  for (int step = 1; step < exchange.size(); ++step) {
    PostSend(exchange, Peer(exchange, step), chunk(Peer(exchange, step)), element);
  }
  const std::size_t segment_bytes = exchange.SegmentBytes(element);
  COHORT_RETURN_IF_ERROR(ReduceOwnChunk(
      exchange, Segments(chunk(exchange.rank()), segment_bytes), Segments(output, segment_bytes),
      reduction, [] {}, [](MutableBytes /*segment*/) {}));
  return exchange.WaitAll();
}

Status DirectAllGather(Exchange& exchange, const std::vector<MutableBytes>& blocks,
                       std::size_t element_bytes) {
  const std::size_t segment_bytes = exchange.SegmentBytes(element_bytes);
  for (int step = 1; step < exchange.size(); ++step) {
    const int peer = Peer(exchange, step);
    for (const MutableBytes segment :
         Segments(blocks[static_cast<std::size_t>(exchange.rank())], segment_bytes)) {
      exchange.Send(peer, segment);
    }
    for (const MutableBytes segment :
         Segments(blocks[static_cast<std::size_t>(peer)], segment_bytes)) {
      exchange.Receive(peer, segment);
    }
  }
  return exchange.WaitAll();
}

// Both sides state a size, and they are users' numbers: they are compared before data moves.
Status DirectAllToAll(Exchange& exchange, const std::vector<Bytes>& sends,
                      const std::vector<MutableBytes>& receives, std::size_t element_bytes) {
  const int n = exchange.size();
  const int rank = exchange.rank();
  const auto at = [](int r) { return static_cast<std::size_t>(r); };
  const std::size_t segment_bytes = exchange.SegmentBytes(element_bytes);
  std::vector<std::uint64_t> offered(at(n));
  std::vector<std::uint64_t> announced(at(n));
  for (int step = 1; step < n; ++step) {
    const int peer = Peer(exchange, step);
    offered[at(peer)] = sends[at(peer)].size();
    exchange.Send(peer, std::as_bytes(std::span(&offered[at(peer)], 1)));
    exchange.Receive(peer, std::as_writable_bytes(std::span(&announced[at(peer)], 1)));
  }
  COHORT_RETURN_IF_ERROR(exchange.WaitAll());
  for (int step = 1; step < n; ++step) {
    const int peer = Peer(exchange, step);
    if (announced[at(peer)] != receives[at(peer)].size()) {
      return exchange.Mismatch(InvalidArgument(
          exchange.record().Numbered() + ": " + exchange.Name(peer) + " sends " +
          std::to_string(announced[at(peer)] / element_bytes) + " elements to " +
          exchange.Name(rank) + ", which expects " +
          std::to_string(receives[at(peer)].size() / element_bytes) +
          " [send_counts[to] of the one must be receive_counts[from] of the other]"));
    }
  }
  for (int step = 1; step < n; ++step) {
    const int to = Peer(exchange, step);
    const int from = Peer(exchange, n - step);
    for (const Bytes segment : Segments(sends[at(to)], segment_bytes)) {
      exchange.Send(to, segment);
    }
    for (const MutableBytes segment : Segments(receives[at(from)], segment_bytes)) {
      exchange.Receive(from, segment);
    }
  }
  Deliver(receives[at(rank)].data(), sends[at(rank)], {}, nullptr);
  return exchange.WaitAll();
}

Status SendTo(Exchange& exchange, int to, Bytes data, std::size_t element_bytes) {
  PostSend(exchange, to, data, element_bytes);
  return exchange.WaitAll();
}

Status ReceiveFrom(Exchange& exchange, int from, MutableBytes data, std::size_t element_bytes) {
  PostReceive(exchange, from, data, element_bytes);
  return exchange.WaitAll();
}

}  // namespace cohort
