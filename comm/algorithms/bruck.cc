// Bruck's all-gather: ceil(log2 n) steps for any n, for small blocks.
//
// Before the step of distance d (1, 2, 4, ...) a rank has the d blocks from its own on; it gives
// them, or as many as are still missing, to the rank d places before it, and gets as many from the
// rank d places after it. The blocks of one step travel packed, as one message.

#include <algorithm>
#include <cstring>

#include "algorithms/algorithms.h"

namespace cohort {
namespace {

// f(block) for the `count` blocks from that of `first` on.
template <typename F>
void ForBlocks(const std::vector<MutableBytes>& blocks, int first, int count, F f) {
  const auto n = static_cast<int>(blocks.size());
  for (int i = 0; i < count; ++i) {
    f(blocks[static_cast<std::size_t>((first + i) % n)]);
  }
}

}  // namespace

Status BruckAllGather(Exchange& exchange, const std::vector<MutableBytes>& blocks,
                      std::size_t element_bytes) {
  const int n = exchange.size();
  const int rank = exchange.rank();
  std::size_t total = 0;
  ForBlocks(blocks, 0, n, [&](MutableBytes block) { total += block.size(); });
  const MutableBytes room = exchange.Scratch(2 * total);
  for (int distance = 1; distance < n; distance <<= 1) {
    const int count = std::min(distance, n - distance);
    std::size_t given = 0;
    ForBlocks(blocks, rank, count, [&](MutableBytes block) {
      if (!block.empty()) {
        std::memcpy(room.data() + given, block.data(), block.size());
      }
      given += block.size();
    });
    const int from = (rank + distance) % n;
    std::size_t taken = 0;
    ForBlocks(blocks, from, count, [&](MutableBytes block) { taken += block.size(); });
    const MutableBytes arriving = room.subspan(total, taken);
    PostSend(exchange, (rank + n - distance) % n, room.first(given), element_bytes);
    PostReceive(exchange, from, arriving, element_bytes);
    COHORT_RETURN_IF_ERROR(exchange.WaitAll());
    std::size_t at = 0;
    ForBlocks(blocks, from, count, [&](MutableBytes block) {
      if (!block.empty()) {
        std::memcpy(block.data(), arriving.data() + at, block.size());
      }
      at += block.size();
    });
  }
  return exchange.WaitAll();
}

}  // namespace cohort
