// Recursive doubling: ceil(log2 n) exchanges of the whole buffer, for small ones.
//
// With p the largest power of two that is at most n, the first 2(n-p) ranks pair up: the even one
// gives its buffer to the odd one, sits out, and gets the result at the end. The p others exchange
// with the partner whose number differs in bit 0, then bit 1, and so on. The lower side's operand
// stands first in every combination, so both partners compute the same bits.

#include <bit>

#include "algorithms/algorithms.h"

namespace cohort {

Status RecursiveDoublingAllReduce(Exchange& exchange, MutableBytes data,
                                  const Reduction& reduction) {
  const int n = exchange.size();
  const int rank = exchange.rank();
  const int power = static_cast<int>(std::bit_floor(static_cast<unsigned>(n)));
  const int extra = n - power;
  const bool paired = rank < 2 * extra;
  if (paired && rank % 2 == 0) {
    exchange.Send(rank + 1, data);
    COHORT_RETURN_IF_ERROR(exchange.WaitAll());
    return exchange.Wait(exchange.Receive(rank + 1, data));
  }
  std::vector<std::byte> scratch(data.size());
  if (paired) {
    COHORT_RETURN_IF_ERROR(exchange.Wait(exchange.Receive(rank - 1, scratch)));
    reduction.Combine(data.data(), scratch.data(), data.data(), data.size());
  }
  const int number = paired ? rank / 2 : rank - extra;
  for (int bit = 1; bit < power; bit <<= 1) {
    const int other = number ^ bit;
    const int peer = other < extra ? 2 * other + 1 : other + extra;
    exchange.Send(peer, data);
    exchange.Receive(peer, scratch);
    COHORT_RETURN_IF_ERROR(exchange.WaitAll());
    const bool mine_first = number < other;
    reduction.Combine(data.data(), mine_first ? data.data() : scratch.data(),
                      mine_first ? scratch.data() : data.data(), data.size());
  }
  reduction.Finish(data.data(), data.size(), n);
  if (paired) {
    exchange.Send(rank - 1, data);
  }
  return exchange.WaitAll();
}

}  // namespace cohort
