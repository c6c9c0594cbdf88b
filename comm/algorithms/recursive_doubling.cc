// Recursive doubling: ceil(log2 n) exchanges of the whole buffer, for small ones.
//
// Ranks act by their numbers in the canonical order: the even one of a pair hands its buffer to the
// odd one, sits out, and gets the result at the end; the others exchange with the one whose number
// differs in bit 0, then bit 1, and so on. The lower side's operand stands first in every
// combination, so both partners compute the same bits.

#include <algorithm>

#include "algorithms/algorithms.h"
#include "algorithms/canonical_order.h"

namespace cohort {
namespace {

// A buffer goes as one message, but for those beyond what MPI counts.
constexpr std::size_t kMostBytes = std::size_t{1} << 30;

template <typename F>
void ForMessages(std::size_t bytes, F f) {
  std::size_t at = 0;
  do {
    const std::size_t n = std::min(kMostBytes, bytes - at);
    f(at, n);
    at += n;
  } while (at < bytes);
}

void SendAll(Exchange& exchange, int to, Bytes data) {
  ForMessages(data.size(),
              [&](std::size_t at, std::size_t n) { exchange.Send(to, data.subspan(at, n)); });
}

void ReceiveAll(Exchange& exchange, int from, MutableBytes data) {
  ForMessages(data.size(),
              [&](std::size_t at, std::size_t n) { exchange.Receive(from, data.subspan(at, n)); });
}

}  // namespace

Status RecursiveDoublingAllReduce(Exchange& exchange, Bytes input, MutableBytes output,
                                  const Reduction& reduction) {
  const int rank = exchange.rank();
  const CanonicalOrder order(exchange.size());
  if (order.folds(rank)) {
    SendAll(exchange, rank + 1, input);
    COHORT_RETURN_IF_ERROR(exchange.WaitAll());
    ReceiveAll(exchange, rank + 1, output);
    return exchange.WaitAll();
  }
  Bytes mine = input;
  if (order.paired(rank)) {
    ForMessages(output.size(), [&](std::size_t at, std::size_t n) {
      exchange.Receive(rank - 1, output.subspan(at, n),
                       {&reduction, input.data() + at, /*local_first=*/false});
    });
    COHORT_RETURN_IF_ERROR(exchange.WaitAll());
    mine = output;
  }
  const MutableBytes scratch = exchange.Scratch(output.size());
  const int number = order.number(rank);
  for (int bit = 1; bit < order.power(); bit <<= 1) {
    const int peer = order.actor(number ^ bit);
    SendAll(exchange, peer, mine);
    ReceiveAll(exchange, peer, scratch);
    COHORT_RETURN_IF_ERROR(exchange.WaitAll());
    const bool mine_first = (number & bit) == 0;
    reduction.Combine(output.data(), mine_first ? mine.data() : scratch.data(),
                      mine_first ? scratch.data() : mine.data(), output.size());
    mine = output;
  }
  reduction.Finish(output.data(), output.size(), exchange.size());
  if (order.paired(rank)) {
    SendAll(exchange, rank - 1, output);
  }
  return exchange.WaitAll();
}

}  // namespace cohort
