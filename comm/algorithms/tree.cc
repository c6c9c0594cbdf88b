// The binomial tree and the dissemination barrier.
//
// Broadcast: ranks are numbered from the root. Number v's parent is v without its lowest set bit;
// its children are v + 1, v + 2, v + 4, ... below that bit. First an empty message runs from the
// leaves to the root, so that nobody's buffer is touched before all have entered the same
// operation; then the data run down, segment by segment, largest subtree first.

#include "algorithms/algorithms.h"

namespace cohort {

Status TreeBroadcast(Exchange& exchange, MutableBytes data, int root, std::size_t element_bytes) {
  const int n = exchange.size();
  const int number = (exchange.rank() - root + n) % n;
  const auto rank_of = [&](int v) { return (v + root) % n; };
  int lowest_bit = 1;  // of the root: beyond all
  while (lowest_bit < n && (number & lowest_bit) == 0) {
    lowest_bit <<= 1;
  }
  std::vector<int> children;
  for (int bit = lowest_bit >> 1; bit > 0; bit >>= 1) {
    if (number + bit < n) {
      children.push_back(rank_of(number + bit));
    }
  }
  const int parent = rank_of(number & ~lowest_bit);
  const bool is_root = number == 0;

  for (const int child : children) {
    exchange.Receive(child, {});
  }
  COHORT_RETURN_IF_ERROR(exchange.WaitAll());
  if (!is_root) {
    exchange.Send(parent, {});
  }

  const std::vector<MutableBytes> segments = Segments(data, exchange.SegmentBytes(element_bytes));
  std::vector<Ticket> arrivals;
  if (!is_root) {
    for (const MutableBytes segment : segments) {
      arrivals.push_back(exchange.Receive(parent, segment));
    }
  }
  for (std::size_t s = 0; s < segments.size(); ++s) {
    if (!is_root) {
      COHORT_RETURN_IF_ERROR(exchange.Wait(arrivals[s]));
    }
    for (const int child : children) {
      exchange.Send(child, segments[s]);
    }
  }
  return exchange.WaitAll();
}

// In round k each rank signals the one 2^k places on; after ceil(log2 n) rounds word of every rank
// has reached every other.
Status DisseminationBarrier(Exchange& exchange) {
  const int n = exchange.size();
  for (int distance = 1; distance < n; distance <<= 1) {
    exchange.Send((exchange.rank() + distance) % n, {});
    const Ticket ticket = exchange.Receive((exchange.rank() + n - distance) % n, {});
    COHORT_RETURN_IF_ERROR(exchange.Wait(ticket));
  }
  return exchange.WaitAll();
}

}  // namespace cohort
