// Direct exchange: every rank talks to every other, one hop. Two latency steps for an all-reduce
// whatever the number of ranks, and where ranks share memory no byte is copied on the way: the
// owner of a chunk reads the peers' buffers.
//
// Reduce: each rank gives chunk p to rank p, and combines the n-1 shares of its own chunk in the
// order rank, rank+1, ... (fixed, so bitwise repeatable), segment by segment, so that a segment
// stays in cache. Gather: it gives the finished segments to all.

#include <cstring>

#include "algorithms/algorithms.h"

namespace cohort {
namespace {

int Peer(const Exchange& exchange, int step) { return (exchange.rank() + step) % exchange.size(); }

// Combines all shares of this rank's chunk, `mine`, to `results`; each(segment) follows a finished
// one.
template <typename F>
Status ReduceOwnChunk(Exchange& exchange, const std::vector<MutableBytes>& mine,
                      const std::vector<MutableBytes>& results, const Reduction& reduction,
                      const std::function<void()>& after_first_posted, F each) {
  const int n = exchange.size();
  std::vector<Ticket> first(mine.size());
  for (std::size_t s = 0; s < mine.size(); ++s) {
    first[s] = exchange.Receive(Peer(exchange, 1), results[s], {&reduction, mine[s].data(), true});
  }
  after_first_posted();
  for (std::size_t s = 0; s < mine.size(); ++s) {
    COHORT_RETURN_IF_ERROR(exchange.Wait(first[s]));
    for (int step = 2; step < n; ++step) {
      COHORT_RETURN_IF_ERROR(exchange.Wait(exchange.Receive(
          Peer(exchange, step), results[s], {&reduction, results[s].data(), true})));
    }
    reduction.Finish(results[s].data(), results[s].size(), n);
    each(results[s]);
  }
  return {};
}

}  // namespace

Status DirectAllReduce(Exchange& exchange, MutableBytes data, const Reduction& reduction) {
  const int n = exchange.size();
  const std::size_t element = reduction.element_bytes();
  const std::size_t segment_bytes = exchange.SegmentBytes(element);
  const auto segments = [&](int owner) {
    return Segments(Chunk(data, owner, n, element), segment_bytes);
  };
  const auto expect_finished = [&](int step) {
    for (const MutableBytes segment : segments(Peer(exchange, step))) {
      exchange.Receive(Peer(exchange, step), segment);
    }
  };
  for (int step = 1; step < n; ++step) {
    for (const MutableBytes segment : segments(Peer(exchange, step))) {
      exchange.Send(Peer(exchange, step), segment);
    }
  }
  // The finished segments of the first peer may be expected as soon as its shares are.
  const auto expect_first = [&] {
    if (n > 1) {
      expect_finished(1);
    }
  };
  const std::vector<MutableBytes> mine = segments(exchange.rank());
  if (n > 1) {
    COHORT_RETURN_IF_ERROR(
        ReduceOwnChunk(exchange, mine, mine, reduction, expect_first, [&](MutableBytes segment) {
          for (int step = 1; step < n; ++step) {
            exchange.Send(Peer(exchange, step), segment);
          }
        }));
  }
  for (int step = 2; step < n; ++step) {
    expect_finished(step);
  }
  return exchange.WaitAll();
}

Status DirectReduceScatter(Exchange& exchange, MutableBytes input, MutableBytes output,
                           const Reduction& reduction) {
  const std::size_t segment_bytes = exchange.SegmentBytes(reduction.element_bytes());
  const auto segments = [&](int owner) {
    return Segments(input.subspan(static_cast<std::size_t>(owner) * output.size(), output.size()),
                    segment_bytes);
  };
  for (int step = 1; step < exchange.size(); ++step) {
    for (const MutableBytes segment : segments(Peer(exchange, step))) {
      exchange.Send(Peer(exchange, step), segment);
    }
  }
  COHORT_RETURN_IF_ERROR(ReduceOwnChunk(
      exchange, segments(exchange.rank()), Segments(output, segment_bytes), reduction, [] {},
      [](MutableBytes /*segment*/) {}));
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
  for (const Bytes segment : Segments(data, exchange.SegmentBytes(element_bytes))) {
    exchange.Send(to, segment);
  }
  return exchange.WaitAll();
}

Status ReceiveFrom(Exchange& exchange, int from, MutableBytes data, std::size_t element_bytes) {
  for (const MutableBytes segment : Segments(data, exchange.SegmentBytes(element_bytes))) {
    exchange.Receive(from, segment);
  }
  return exchange.WaitAll();
}

}  // namespace cohort
