// What is done to gradients between their reduction and the update.
//
// Pure functions: any thread, nothing blocks.

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/device/update.h>
#include <cohort/optim/gradient_sink.h>

namespace cohort {

// What to scale a gradient by, so that its norm is at most `clip_norm`: min(1, clip_norm / norm).
// 1 if clip_norm is 0 (no clipping). NaN if the norm is not finite: a broken gradient shows.
double ClipFactor(double squared_norm, double clip_norm);

// Rows, each once, ascending by index.
struct MergedSlices {
  std::vector<std::int64_t> indices;
  std::vector<float> values;         // indices.size() rows, row-major: repeated rows added up
  std::vector<std::int64_t> counts;  // of the rows that went into each

  IndexedSlices view() const { return {indices, values}; }
};

// Adds repeated rows in the order of the input. OutOfRange names the first index that is not in
// [0, rows); ContractError if `values` is not indices.size() rows.
Result<MergedSlices> MergeSlices(const IndexedSlices& slices, std::int64_t rows,
                                 std::int64_t row_elements);

}  // namespace cohort
