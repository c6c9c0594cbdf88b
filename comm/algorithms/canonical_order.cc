#include "algorithms/canonical_order.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace cohort {
namespace {

// One block of the tree. An inner result stands on the stack of the call that made it; only the
// root's combination, the last one, writes to the destination.
class BlockTree {
 public:
  BlockTree(const Reduction& reduction, std::span<const std::byte* const> sources, std::size_t at,
            std::size_t bytes)
      : reduction_(reduction),
        sources_(sources),
        order_(static_cast<int>(sources.size())),
        at_(at),
        bytes_(bytes) {}

  void Run(std::byte* to) const { Combine(0, order_.power(), to); }

 private:
  const std::byte* Source(int rank) const { return sources_[static_cast<std::size_t>(rank)] + at_; }

  // to = numbers [first, first + count) combined; count > 1, or the number stands for two ranks.
  void Combine(int first, int count, std::byte* to) const {
    if (count == 1) {
      reduction_.Combine(to, Source(2 * first), Source(2 * first + 1), bytes_);
      return;
    }
    alignas(64) std::array<std::byte, Reduction::kBlockBytes> left;
    alignas(64) std::array<std::byte, Reduction::kBlockBytes> right;
    const std::byte* const a = Value(first, count / 2, left.data());
    const std::byte* const b = Value(first + count / 2, count / 2, right.data());
    reduction_.Combine(to, a, b, bytes_);
  }

  const std::byte* Value(int first, int count, std::byte* room) const {
    if (count == 1 && first >= order_.extra()) {
      return Source(order_.first_rank(first));
    }
    Combine(first, count, room);
    return room;
  }

  const Reduction& reduction_;
  const std::span<const std::byte* const> sources_;
  const CanonicalOrder order_;
  const std::size_t at_;
  const std::size_t bytes_;
};

}  // namespace

void CombineCanonically(const Reduction& reduction, std::byte* to,
                        std::span<const std::byte* const> sources, std::size_t bytes) {
  if (sources.size() <= 2) {
    reduction.CombineAll(to, sources, bytes);
    return;
  }
  for (std::size_t at = 0; at < bytes; at += Reduction::kBlockBytes) {
    BlockTree(reduction, sources, at, std::min(Reduction::kBlockBytes, bytes - at)).Run(to + at);
  }
}

}  // namespace cohort
