// RowGradientBuffer: a table's gradients of a step, in the order in which a replica gave them.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace cohort::ps {

struct RowGradientBuffer {
  std::vector<std::uint64_t> ids;
  std::vector<float> values;          // [ids, dim]
  std::vector<std::uint32_t> counts;  // as RowGradients::counts; empty: 1 each

  void Add(std::span<const std::uint64_t> more_ids, std::span<const float> more_values,
           std::span<const std::uint32_t> more_counts) {
    if (!counts.empty() || !more_counts.empty()) {
      counts.resize(ids.size(), 1);
      counts.insert(counts.end(), more_counts.begin(), more_counts.end());
      counts.resize(ids.size() + more_ids.size(), 1);
    }
    ids.insert(ids.end(), more_ids.begin(), more_ids.end());
    values.insert(values.end(), more_values.begin(), more_values.end());
  }
  // The first `count` of them stay.
  void Cut(std::size_t count, std::size_t dim) {
    ids.resize(count);
    values.resize(count * dim);
    counts.resize(std::min(counts.size(), count));
  }
  void Clear() { Cut(0, 0); }
};

}  // namespace cohort::ps
