// The canonical order of a reduction over ranks: one tree, whatever the algorithm, the transport,
// and wherever the buffer is cut. All algorithms but the ring keep it, so their results are the
// same bits.
//
// With p the largest power of two that is at most n, the first 2 (n - p) ranks pair up, even op
// odd, so that p numbers remain; a balanced binary tree combines those: numbers 2i and 2i + 1, then
// the pairs' results 2i and 2i + 1, and so on, the lower always first. For n = 6: ((01)(23))(45) is
// ((0 op 1) op (2 op 3)) op (4 op 5). Over n = 2^k ranks it is the tree over n shards, and the tree
// over 2^j ranks is its top where each rank has combined 2^(k-j) consecutive shards by it.

#pragma once

#include <bit>
#include <cstddef>
#include <span>

#include "reduction.h"

namespace cohort {

class CanonicalOrder {
 public:
  explicit CanonicalOrder(int ranks)
      : power_(static_cast<int>(std::bit_floor(static_cast<unsigned>(ranks)))),
        extra_(ranks - power_) {}

  int power() const { return power_; }  // how many numbers there are
  int extra() const { return extra_; }  // numbers below it stand for two ranks
  // Whether the rank is one of a pair, and whether it is the one that only hands its part over.
  bool paired(int rank) const { return rank < 2 * extra_; }
  bool folds(int rank) const { return paired(rank) && rank % 2 == 0; }
  int number(int rank) const { return paired(rank) ? rank / 2 : rank - extra_; }
  // The rank that acts for a number: the odd one of a pair.
  int actor(int number) const { return number < extra_ ? 2 * number + 1 : number + extra_; }
  int first_rank(int number) const { return number < extra_ ? 2 * number : number + extra_; }

 private:
  int power_;
  int extra_;
};

// to = the sources of ranks 0, 1, ... combined in canonical order, in one pass over memory. At
// least one source; `to` may be one of them. No Finish.
void CombineCanonically(const Reduction& reduction, std::byte* to,
                        std::span<const std::byte* const> sources, std::size_t bytes);

}  // namespace cohort
