// Philox4x32-10: counter-based random numbers, keyed by meaning.
//
// A value is a pure function of (key, counter): no state, no order of calls. Keys name what is
// drawn (seed, parameter), counters name which one (element, or epoch and example), so that results
// do not depend on threads, replicas or arrival.
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Known
// answers of the authors' Random123 library are in the tests.

#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace cohort {

class Philox {
 public:
  using Block = std::array<std::uint32_t, 4>;

  explicit Philox(std::uint64_t key) : key_(key) {}
  // A key of its own for each (seed, name): the way to give every parameter, or every use, its own
  // numbers.
  Philox(std::uint64_t seed, std::string_view name);

  // The four words at 128-bit counter (high, low).
  Block At(std::uint64_t low, std::uint64_t high = 0) const;

  // Element `index` of a stream, uniform in [0, 1) with 24 bits; and normal(0, 1) by Box-Muller.
  float Uniform(std::uint64_t index, std::uint64_t high = 0) const;
  float Normal(std::uint64_t index, std::uint64_t high = 0) const;
  // Uniform integer in [0, bound), bound > 0, without modulo bias worth noticing (64-bit
  // multiply-shift).
  std::uint64_t Below(std::uint64_t bound, std::uint64_t index, std::uint64_t high = 0) const;

 private:
  std::uint64_t key_;
};

// A permutation of [0, size) in closed form, a function of (key): position -> element without
// storing either. A Feistel network over the next even power of two, walked until the value is
// below size. Cost: a few rounds, O(1) memory.
class Permutation {
 public:
  Permutation(std::uint64_t size, std::uint64_t key);
  std::uint64_t size() const { return size_; }
  std::uint64_t operator()(std::uint64_t position) const;

 private:
  std::uint64_t size_;
  std::uint64_t key_;
  int half_bits_;
};

// 64-bit FNV-1a with a final mix: fingerprints that agree between processes. Not for adversaries.
std::uint64_t Hash64(std::string_view bytes, std::uint64_t seed = 0);

}  // namespace cohort
