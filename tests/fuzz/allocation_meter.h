// AllocationMeter: the memory that a piece of code takes, in a program that is linked with
// allocation_meter.cc.

#pragma once

#include <cstddef>

namespace cohort::fuzz {

// Thread rules: one at a time.
class AllocationMeter {
 public:
  AllocationMeter();  // begins to count

  // The most that was taken by `new` at once, by all threads, beyond what was taken before; and the
  // largest piece of aligned_alloc, of which tensors are made.
  static std::size_t Most();
};

}  // namespace cohort::fuzz
