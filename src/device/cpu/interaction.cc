#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/cpu_kernels.h"
#include "cpu/parallel.h"

namespace cohort::cpu {
namespace {

constexpr std::int64_t kLanes = 8;
constexpr std::int64_t kBlock = 2 * kLanes;  // sums of a row that stay in registers
constexpr std::int64_t kTogether = 4;        // rows whose sums do: one row alone waits for itself

using Floats = float __attribute__((vector_size(kLanes * sizeof(float))));

Floats Load(const float* from) {
  Floats floats;
  std::memcpy(&floats, from, sizeof(floats));
  return floats;
}

std::int64_t WholeBlocks(std::int64_t count) { return (count + kBlock - 1) / kBlock * kBlock; }
std::int64_t Pairs(std::int64_t rows) { return rows * (rows - 1) / 2; }

// For r below kRows and k below kBlock:
// sums[r * kBlock + k] = sum over i of weights[r * n + i] * rows[i * stride + k], in the order of
// i.
template <std::int64_t kRows>
void WeightedSums(const float* weights, std::int64_t n, const float* rows, std::int64_t stride,
                  float* sums) {
  Floats low[kRows] = {};
  Floats high[kRows] = {};
  for (std::int64_t i = 0; i < n; ++i) {
    const Floats left = Load(rows + i * stride);
    const Floats right = Load(rows + i * stride + kLanes);
    for (std::int64_t r = 0; r < kRows; ++r) {
      low[r] += weights[r * n + i] * left;
      high[r] += weights[r * n + i] * right;
    }
  }
  for (std::int64_t r = 0; r < kRows; ++r) {
    std::memcpy(sums + r * kBlock, &low[r], sizeof(Floats));
    std::memcpy(sums + r * kBlock + kLanes, &high[r], sizeof(Floats));
  }
}

// For rows [begin, end) of weights, `n` each, and the first width(r) of columns.
template <typename Width, typename To>
void MultiplyRows(std::int64_t begin, std::int64_t end, const float* weights, std::int64_t n,
                  const float* rows, std::int64_t stride, const Width& width, const To& to) {
  float sums[kTogether * kBlock];
  for (std::int64_t r = begin; r < end; r += kTogether) {
    const std::int64_t count = std::min(kTogether, end - r);
    for (std::int64_t at = 0; at < width(r + count - 1); at += kBlock) {
      if (count == kTogether) {
        WeightedSums<kTogether>(weights + r * n, n, rows + at, stride, sums);
      } else {
        for (std::int64_t k = 0; k < count; ++k) {
          WeightedSums<1>(weights + (r + k) * n, n, rows + at, stride, sums + k * kBlock);
        }
      }
      for (std::int64_t k = 0; k < count; ++k) {
        if (const std::int64_t some = std::min(kBlock, width(r + k) - at); some > 0) {
          std::copy_n(sums + k * kBlock, some, to(r + k) + at);
        }
      }
    }
  }
}

}  // namespace

// Row i times the transposed rows before it.
void CpuKernels::Interaction(Stream& stream, std::int64_t batch, RowsOf size, ConstFloatSpan first,
                             ConstFloatSpan rest, FloatSpan y) {
  Put(stream, [=] {
    const auto [rows, columns] = size;
    const std::int64_t stride = WholeBlocks(rows);
    ParallelFor(batch, RowGrain(Pairs(rows) + rows * columns),
                [&, rows = rows, columns = columns](std::int64_t begin, std::int64_t end, int) {
                  std::vector<float> in(static_cast<std::size_t>(rows * columns));
                  std::vector<float> transposed(static_cast<std::size_t>(columns * stride));
                  for (std::int64_t b = begin; b < end; ++b) {
                    float* const out = y.data() + b * (columns + Pairs(rows));
                    std::copy_n(first.data() + b * columns, columns, in.data());
                    std::copy_n(rest.data() + b * (rows - 1) * columns, (rows - 1) * columns,
                                in.data() + columns);
                    for (std::int64_t r = 0; r < rows; ++r) {
                      for (std::int64_t c = 0; c < columns; ++c) {
                        transposed[static_cast<std::size_t>(c * stride + r)] =
                            in[static_cast<std::size_t>(r * columns + c)];
                      }
                    }
                    std::copy_n(in.data(), columns, out);
                    MultiplyRows(
                        1, rows, in.data(), columns, transposed.data(), stride,
                        [](std::int64_t r) { return r; },
                        [&](std::int64_t r) { return out + columns + Pairs(r); });
                  }
                });
  });
}

void CpuKernels::InteractionBackward(Stream& stream, std::int64_t batch, RowsOf size,
                                     ConstFloatSpan first, ConstFloatSpan rest, ConstFloatSpan dy,
                                     FloatSpan dfirst, FloatSpan drest) {
  Put(stream, [=] {
    const auto [rows, columns] = size;
    const std::int64_t stride = WholeBlocks(columns);
    const std::int64_t from = dfirst.empty() ? 1 : 0;
    const std::int64_t until = drest.empty() ? std::min<std::int64_t>(1, rows) : rows;
    ParallelFor(batch, RowGrain(Pairs(rows) + rows * columns),
                [&, rows = rows, columns = columns](std::int64_t begin, std::int64_t end, int) {
                  std::vector<float> in(static_cast<std::size_t>(rows * stride));
                  // The gradients of all pairs as a symmetric matrix; its diagonal stays 0.
                  std::vector<float> weights(static_cast<std::size_t>(rows * rows));
                  for (std::int64_t b = begin; b < end; ++b) {
                    const float* const of = dy.data() + b * (columns + Pairs(rows));
                    const float* g = of + columns;
                    for (std::int64_t i = 1; i < rows; ++i) {
                      for (std::int64_t j = 0; j < i; ++j, ++g) {
                        weights[static_cast<std::size_t>(i * rows + j)] = *g;
                        weights[static_cast<std::size_t>(j * rows + i)] = *g;
                      }
                    }
                    for (std::int64_t r = 0; r < rows; ++r) {
                      const float* const row =
                          r == 0 ? first.data() + b * columns
                                 : rest.data() + (b * (rows - 1) + r - 1) * columns;
                      std::copy_n(row, columns, in.data() + r * stride);
                    }
                    MultiplyRows(
                        from, until, weights.data(), rows, in.data(), stride,
                        [&](std::int64_t) { return columns; },
                        [&](std::int64_t r) {
                          return r == 0 ? dfirst.data() + b * columns
                                        : drest.data() + (b * (rows - 1) + r - 1) * columns;
                        });
                    if (from == 0) {
                      float* const to = dfirst.data() + b * columns;
                      for (std::int64_t c = 0; c < columns; ++c) {
                        to[c] += of[c];
                      }
                    }
                  }
                });
  });
}

}  // namespace cohort::cpu
