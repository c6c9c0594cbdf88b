// Recursive doubling: ceil(log2 n) exchanges of the whole buffer, for small ones.
//
// Ranks act by their numbers in the canonical order: the even one of a pair hands its buffer to the
// odd one, sits out, and gets the result at the end; the others exchange with the one whose number
// differs in bit 0, then bit 1, and so on. The lower side's operand stands first in every
// combination, so both partners compute the same bits.

#include "algorithms/algorithms.h"
#include "algorithms/canonical_order.h"

namespace cohort {

Status RecursiveDoublingAllReduce(Exchange& exchange, Bytes input, MutableBytes output,
                                  const Reduction& reduction) {
  const int rank = exchange.rank();
  const CanonicalOrder order(exchange.size());
  if (order.folds(rank)) {
    exchange.Send(rank + 1, input);
    COHORT_RETURN_IF_ERROR(exchange.WaitAll());
    return exchange.Wait(exchange.Receive(rank + 1, output));
  }
  Bytes mine = input;
  if (order.paired(rank)) {
    COHORT_RETURN_IF_ERROR(exchange.Wait(
        exchange.Receive(rank - 1, output, {&reduction, input.data(), /*local_first=*/false})));
    mine = output;
  }
  const MutableBytes scratch = exchange.Scratch(output.size());
  const int number = order.number(rank);
  for (int bit = 1; bit < order.power(); bit <<= 1) {
    const int peer = order.actor(number ^ bit);
    exchange.Send(peer, mine);
    exchange.Receive(peer, scratch);
    COHORT_RETURN_IF_ERROR(exchange.WaitAll());
    const bool mine_first = (number & bit) == 0;
    reduction.Combine(output.data(), mine_first ? mine.data() : scratch.data(),
                      mine_first ? scratch.data() : mine.data(), output.size());
    mine = output;
  }
  reduction.Finish(output.data(), output.size(), exchange.size());
  if (order.paired(rank)) {
    exchange.Send(rank - 1, output);
  }
  return exchange.WaitAll();
}

}  // namespace cohort
