#include <cohort/optim/gradients.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

namespace cohort {

double ClipFactor(double squared_norm, double clip_norm) {
  if (!std::isfinite(squared_norm)) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  const double norm = std::sqrt(squared_norm);
  return clip_norm > 0 && norm > clip_norm ? clip_norm / norm : 1.0;
}

Result<MergedSlices> MergeSlices(const IndexedSlices& slices, std::int64_t rows,
                                 std::int64_t row_elements) {
  const std::size_t width = static_cast<std::size_t>(row_elements);
  Require(row_elements >= 0 && slices.values.size() == slices.indices.size() * width,
          "slices hold one row of values for each index");
  for (std::size_t i = 0; i < slices.indices.size(); ++i) {
    if (const std::int64_t row = slices.indices[i]; row < 0 || row >= rows) {
      return OutOfRange("row " + std::to_string(row) + " at position " + std::to_string(i) +
                        " of the slices is not in [0, " + std::to_string(rows) + ")");
    }
  }
  std::vector<std::size_t> order(slices.indices.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return slices.indices[a] < slices.indices[b];
  });

  MergedSlices merged;
  for (const std::size_t i : order) {
    const std::span<const float> row = slices.values.subspan(i * width, width);
    if (merged.indices.empty() || merged.indices.back() != slices.indices[i]) {
      merged.indices.push_back(slices.indices[i]);
      merged.counts.push_back(1);
      merged.values.insert(merged.values.end(), row.begin(), row.end());
      continue;
    }
    ++merged.counts.back();
    float* const sum = merged.values.data() + merged.values.size() - width;
    for (std::size_t j = 0; j < width; ++j) {
      sum[j] += row[j];
    }
  }
  return merged;
}

}  // namespace cohort
