// Reduction: what one collective does with two blocks of elements; byte-typed outside, typed loops
// inside.
//
// Combine is elementwise and its operands are ordered, so that a fixed order of combinations gives
// bitwise fixed results. float16 and bfloat16 are combined in float and rounded once per Combine.
// Integer sums and products wrap. min and max give NaN where either operand is NaN. `cohort bench
// reduction` shows how near the loops come to the speed of memory.

#pragma once

#include <cohort/comm/communicator.h>

#include <cstddef>
#include <span>

namespace cohort {

class Reduction {
 public:
  // What passes over memory are cut into: several of them fit the first-level cache. A multiple of
  // every element's size.
  static constexpr std::size_t kBlockBytes = 4096;

  Reduction(DType dtype, ReduceOp op);

  std::size_t element_bytes() const { return element_bytes_; }
  // to[i] = lhs[i] op rhs[i]; `to` may be lhs or rhs. Any alignment.
  void Combine(std::byte* to, const std::byte* lhs, const std::byte* rhs, std::size_t bytes) const {
    combine_(to, lhs, rhs, bytes);
  }
  // to = ((sources[0] op sources[1]) op sources[2]) ...: the bits that pairwise Combines give, in
  // one pass over memory. At least one source; `to` may be one of them. Any alignment. For the
  // order by rank that does not depend on the algorithm see algorithms/canonical_order.h.
  void CombineAll(std::byte* to, std::span<const std::byte* const> sources,
                  std::size_t bytes) const;
  // Mean over `ranks`: divides, for integers truncating toward zero. Nothing for other reductions.
  void Finish(std::byte* data, std::size_t bytes, int ranks) const;

 private:
  using CombineFn = void (*)(std::byte*, const std::byte*, const std::byte*, std::size_t);
  using DivideFn = void (*)(std::byte*, std::size_t, int);
  std::size_t element_bytes_;
  CombineFn combine_;
  DivideFn divide_;  // nullptr where nothing is to be done
};

}  // namespace cohort
