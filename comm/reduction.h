// Reduction: what one collective does with two blocks of elements; byte-typed outside, typed loops
// inside.
//
// Combine is elementwise and its operands are ordered, so that a fixed order of combinations gives
// bitwise fixed results. float16 and bfloat16 are combined in float and rounded once per Combine.
// Integer sums and products wrap. min and max give NaN where either operand is NaN.

#pragma once

#include <cohort/comm/communicator.h>

#include <cstddef>

namespace cohort {

class Reduction {
 public:
  Reduction(DType dtype, ReduceOp op);

  std::size_t element_bytes() const { return element_bytes_; }
  // to[i] = lhs[i] op rhs[i]; `to` may be lhs or rhs. Any alignment.
  void Combine(std::byte* to, const std::byte* lhs, const std::byte* rhs, std::size_t bytes) const {
    combine_(to, lhs, rhs, bytes);
  }
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
