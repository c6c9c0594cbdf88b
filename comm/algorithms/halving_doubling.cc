// Halving-doubling: as few steps as recursive doubling, as few bytes as the ring.
//
// Ranks act by their numbers in the canonical order; the even one of a pair hands its buffer to the
// odd one and gets the result at the end. Halving: in the step of bit b (1, 2, 4, ...) the two
// numbers that differ in it hold the same range, half combined; each gives the other half of it and
// combines the half it keeps, the lower number the lower half. After log2 p steps each holds 1/p,
// combined over all. Doubling: the same steps backwards, each giving what it holds. Starting with
// the nearest number is what keeps the canonical order: after bit b a range is combined over 2b
// consecutive numbers.
//
// Recursive halving is the first half. The range that number v ends with stands at place v with its
// bits reversed, so the chunks are laid out in that order first.

#include <bit>
#include <cstring>

#include "algorithms/algorithms.h"
#include "algorithms/canonical_order.h"

namespace cohort {
namespace {

// Places [first, last) of the layout.
struct Range {
  int first;
  int last;
};

struct Step {
  int peer;
  Range kept;
  Range given;
};

std::vector<Step> HalvingSteps(const CanonicalOrder& order, int number) {
  std::vector<Step> steps;
  Range held = {0, order.power()};
  for (int bit = 1; bit < order.power(); bit <<= 1) {
    const int middle = (held.first + held.last) / 2;
    const Range lower = {held.first, middle};
    const Range upper = {middle, held.last};
    const bool keeps_lower = (number & bit) == 0;
    steps.push_back(
        {order.actor(number ^ bit), keeps_lower ? lower : upper, keeps_lower ? upper : lower});
    held = steps.back().kept;
  }
  return steps;
}

// `number` with the bits below `power` in reverse order.
int Reversed(int number, int power) {
  int reversed = 0;
  for (int bit = 1; bit < power; bit <<= 1) {
    reversed = reversed * 2 + ((number & bit) != 0 ? 1 : 0);
  }
  return reversed;
}

}  // namespace

Status HalvingDoublingAllReduce(Exchange& exchange, Bytes input, MutableBytes output,
                                const Reduction& reduction) {
  const int rank = exchange.rank();
  const CanonicalOrder order(exchange.size());
  const std::size_t element = reduction.element_bytes();
  if (order.folds(rank)) {
    PostSend(exchange, rank + 1, input, element);
    COHORT_RETURN_IF_ERROR(exchange.WaitAll());
    PostReceive(exchange, rank + 1, output, element);
    return exchange.WaitAll();
  }
  Bytes mine = input;
  if (order.paired(rank)) {
    PostCombine(exchange, rank - 1, output, mine, /*local_first=*/false, reduction);
    COHORT_RETURN_IF_ERROR(exchange.WaitAll());
    mine = output;
  }
  const auto part = [&](auto data, Range range) {
    const auto place = [&](int i) {  // where chunk i begins
      return i == order.power()
                 ? output.size()
                 : static_cast<std::size_t>(Chunk(Bytes(output), i, order.power(), element).data() -
                                            output.data());
    };
    return data.subspan(place(range.first), place(range.last) - place(range.first));
  };
  const int number = order.number(rank);
  const std::vector<Step> steps = HalvingSteps(order, number);
  for (const Step& step : steps) {
    PostSend(exchange, step.peer, part(mine, step.given), element);
    PostCombine(exchange, step.peer, part(output, step.kept), part(mine, step.kept),
                step.kept.first < step.given.first, reduction);
    COHORT_RETURN_IF_ERROR(exchange.WaitAll());
    mine = output;
  }
  const MutableBytes finished = part(output, steps.back().kept);
  reduction.Finish(finished.data(), finished.size(), exchange.size());
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    PostSend(exchange, step->peer, part(output, step->kept), element);
    PostReceive(exchange, step->peer, part(output, step->given), element);
    COHORT_RETURN_IF_ERROR(exchange.WaitAll());
  }
  if (order.paired(rank)) {
    PostSend(exchange, rank - 1, output, element);
  }
  return exchange.WaitAll();
}

Status RecursiveHalvingReduceScatter(Exchange& exchange, MutableBytes input, MutableBytes output,
                                     const Reduction& reduction) {
  const int rank = exchange.rank();
  const CanonicalOrder order(exchange.size());
  const std::size_t element = reduction.element_bytes();
  const std::size_t chunk_bytes = output.size();
  // Place q belongs to the number that is q reversed: one chunk, or the two of its pair.
  std::vector<std::size_t> begins;
  const MutableBytes layout = exchange.Scratch(input.size());
  std::size_t at = 0;
  for (int place = 0; place < order.power(); ++place) {
    begins.push_back(at);
    const int number = Reversed(place, order.power());
    for (int r = order.first_rank(number); r <= order.actor(number); ++r) {
      if (chunk_bytes > 0) {
        std::memcpy(layout.data() + at, input.data() + static_cast<std::size_t>(r) * chunk_bytes,
                    chunk_bytes);
      }
      at += chunk_bytes;
    }
  }
  begins.push_back(at);
  if (order.folds(rank)) {
    PostSend(exchange, rank + 1, layout, element);
    PostReceive(exchange, rank + 1, output, element);
    return exchange.WaitAll();
  }
  if (order.paired(rank)) {
    PostCombine(exchange, rank - 1, layout, layout, /*local_first=*/false, reduction);
    COHORT_RETURN_IF_ERROR(exchange.WaitAll());
  }
  const auto part = [&](Range range) {
    const std::size_t begin = begins[static_cast<std::size_t>(range.first)];
    return layout.subspan(begin, begins[static_cast<std::size_t>(range.last)] - begin);
  };
  const std::vector<Step> steps = HalvingSteps(order, order.number(rank));
  for (const Step& step : steps) {
    PostSend(exchange, step.peer, part(step.given), element);
    PostCombine(exchange, step.peer, part(step.kept), part(step.kept),
                step.kept.first < step.given.first, reduction);
    COHORT_RETURN_IF_ERROR(exchange.WaitAll());
  }
  const MutableBytes finished = part(steps.back().kept);
  reduction.Finish(finished.data(), finished.size(), exchange.size());
  if (order.paired(rank)) {
    PostSend(exchange, rank - 1, finished.first(chunk_bytes), element);
  }
  const MutableBytes own = finished.last(chunk_bytes);
  if (!own.empty()) {
    std::memcpy(output.data(), own.data(), own.size());
  }
  return exchange.WaitAll();
}

}  // namespace cohort
