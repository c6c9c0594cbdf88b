// The binomial trees and the dissemination barrier.
//
// Broadcast: ranks are numbered from the root. Number v's parent is v without its lowest set bit;
// its children are v + 1, v + 2, v + 4, ... below that bit. First an empty message runs from the
// leaves to the root, so that nobody's buffer is touched before all have entered the same
// operation; then the data run down, segment by segment, largest subtree first.
//
// Reduce and all-reduce: the same tree over the numbers of the canonical order, and the even one of
// a pair as the first child of the odd one: a rank that combines its children's parts in turn
// follows the canonical order. The parts run up segment by segment; then down runs the result, or
// for Reduce an empty message, so that nobody is done before all have entered.

#include "algorithms/algorithms.h"
#include "algorithms/canonical_order.h"

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

namespace {

class ReduceTree {
 public:
  ReduceTree(Exchange& exchange, const Reduction& reduction)
      : exchange_(exchange), reduction_(reduction), order_(exchange.size()) {
    const int rank = exchange.rank();
    if (order_.folds(rank)) {
      parent_ = rank + 1;
      return;
    }
    if (order_.paired(rank)) {
      children_.push_back({rank - 1, /*mine_first=*/false});
    }
    const int number = order_.number(rank);
    for (int bit = 1; bit < order_.power(); bit <<= 1) {
      if ((number & bit) != 0) {
        parent_ = order_.actor(number - bit);
        return;
      }
      children_.push_back({order_.actor(number + bit), /*mine_first=*/true});
    }
  }

  int root() const { return order_.actor(0); }
  bool is_root() const { return parent_ < 0; }

  // Combines the children's segment with this rank's; gives it to the parent, or finishes it.
  Status Up(Bytes mine, MutableBytes to) {
    for (const Child& child : children_) {
      COHORT_RETURN_IF_ERROR(exchange_.Wait(
          exchange_.Receive(child.rank, to, {&reduction_, mine.data(), child.mine_first})));
      mine = to;
    }
    if (is_root()) {
      reduction_.Finish(to.data(), to.size(), exchange_.size());
    } else {
      exchange_.Send(parent_, mine);
    }
    return {};
  }
  Ticket ExpectFromParent(MutableBytes to) { return exchange_.Receive(parent_, to); }
  void Down(Bytes data) {
    for (auto child = children_.rbegin(); child != children_.rend(); ++child) {
      exchange_.Send(child->rank, data);
    }
  }

 private:
  struct Child {
    int rank;
    bool mine_first;
  };

  Exchange& exchange_;
  const Reduction& reduction_;
  const CanonicalOrder order_;
  int parent_ = -1;
  std::vector<Child> children_;  // in the order of combining
};

}  // namespace

Status TreeAllReduce(Exchange& exchange, Bytes input, MutableBytes output,
                     const Reduction& reduction) {
  ReduceTree tree(exchange, reduction);
  const std::size_t segment_bytes = exchange.SegmentBytes(reduction.element_bytes());
  const std::vector<Bytes> mine = Segments(input, segment_bytes);
  const std::vector<MutableBytes> results = Segments(output, segment_bytes);
  std::vector<Ticket> arrivals;
  for (std::size_t s = 0; s < mine.size(); ++s) {
    COHORT_RETURN_IF_ERROR(tree.Up(mine[s], results[s]));
    if (tree.is_root()) {
      tree.Down(results[s]);
    } else {
      // A result comes only when the parent has this rank's part of it.
      arrivals.push_back(tree.ExpectFromParent(results[s]));
    }
  }
  for (std::size_t s = 0; s < arrivals.size(); ++s) {
    COHORT_RETURN_IF_ERROR(exchange.Wait(arrivals[s]));
    tree.Down(results[s]);
  }
  return exchange.WaitAll();
}

Status TreeReduce(Exchange& exchange, MutableBytes data, int root, const Reduction& reduction) {
  ReduceTree tree(exchange, reduction);
  const std::size_t element = reduction.element_bytes();
  const bool elsewhere = root != tree.root();  // the result moves on to the root asked for
  for (const MutableBytes segment : Segments(data, exchange.SegmentBytes(element))) {
    COHORT_RETURN_IF_ERROR(tree.Up(segment, segment));
    if (tree.is_root() && elsewhere) {
      exchange.Send(root, segment);
    }
  }
  if (elsewhere && exchange.rank() == root) {
    PostReceive(exchange, tree.root(), data, element);
  }
  if (!tree.is_root()) {
    COHORT_RETURN_IF_ERROR(exchange.Wait(tree.ExpectFromParent({})));
  }
  tree.Down({});
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
