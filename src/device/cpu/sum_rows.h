// Sums over rows, the shape of every bias and statistics gradient.
//
// Rows are added up in blocks of kBlockRows, blocks in order within a thread's part, parts in
// order: rounding errors grow with the number of blocks, not of rows.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/parallel.h"

namespace cohort::cpu {

constexpr std::int64_t kBlockRows = 64;

// sums[0 .. kSums*columns) = the sum over r of what add(r, sum) adds to sum[0 .. kSums*columns).
template <int kSums, typename AddRow>
void SumOverRows(std::int64_t rows, std::int64_t columns, float* sums, const AddRow& add) {
  const std::int64_t width = kSums * columns;
  const std::int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  const std::int64_t grain = std::max<std::int64_t>(1, RowGrain(columns) / kBlockRows);
  // Two rows of sums for each part: of the block, of the part.
  const auto parts = static_cast<std::size_t>(omp_get_max_threads());
  std::vector<float> scratch(2 * parts * static_cast<std::size_t>(width), 0.0F);
  ParallelFor(blocks, grain, [&](std::int64_t begin, std::int64_t end, int part) {
    float* __restrict of_block = scratch.data() + 2 * part * width;
    float* __restrict of_part = of_block + width;
    for (std::int64_t b = begin; b < end; ++b) {
      std::fill_n(of_block, width, 0.0F);
      for (std::int64_t r = b * kBlockRows; r < std::min(rows, (b + 1) * kBlockRows); ++r) {
        add(r, of_block);
      }
      for (std::int64_t c = 0; c < width; ++c) {
        of_part[c] += of_block[c];
      }
    }
  });
  for (std::int64_t c = 0; c < width; ++c) {
    float sum = 0.0F;
    for (std::size_t part = 0; part < parts; ++part) {
      sum +=
          scratch[(2 * part + 1) * static_cast<std::size_t>(width) + static_cast<std::size_t>(c)];
    }
    sums[c] = sum;
  }
}

}  // namespace cohort::cpu
