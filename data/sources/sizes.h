// Sizes that a file claims, multiplied without overflow.

#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

namespace cohort::data {

// Bytes of `dims` elements of `each` bytes. nullopt if that, with axes of 0 left out, does not fit
// into 63 bits: then no product of some of the axes overflows where this is not nullopt.
inline std::optional<std::uint64_t> CheckedBytes(const std::vector<std::int64_t>& dims,
                                                 std::size_t each) {
  std::uint64_t bytes = each;
  for (const std::int64_t dim : dims) {
    if (dim != 0 && bytes > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) /
                                static_cast<std::uint64_t>(dim)) {
      return std::nullopt;
    }
    bytes *= dim == 0 ? 1 : static_cast<std::uint64_t>(dim);
  }
  return std::find(dims.begin(), dims.end(), 0) == dims.end() ? bytes : 0;
}

}  // namespace cohort::data
