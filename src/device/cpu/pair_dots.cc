#include <algorithm>
#include <vector>

#include "cpu/cpu_kernels.h"
#include "cpu/parallel.h"

namespace cohort::cpu {
namespace {

constexpr std::int64_t kBlock = 16;  // sums that stay in registers

// sums[k] = sum over i of weights[i] * rows[i * stride + k], for k below `count`, in the order of
// i.
void WeightedSum(const float* weights, const float* rows, std::int64_t n, std::int64_t stride,
                 std::int64_t count, float* __restrict sums) {
  for (std::int64_t at = 0; at < count; at += kBlock) {
    float block[kBlock] = {};
    if (const std::int64_t width = std::min(kBlock, count - at); width == kBlock) {
      for (std::int64_t i = 0; i < n; ++i) {
        const float* row = rows + i * stride + at;
        for (std::int64_t k = 0; k < kBlock; ++k) {
          block[k] += weights[i] * row[k];
        }
      }
      std::copy_n(block, kBlock, sums + at);
    } else {
      for (std::int64_t i = 0; i < n; ++i) {
        const float* row = rows + i * stride + at;
        for (std::int64_t k = 0; k < width; ++k) {
          block[k] += weights[i] * row[k];
        }
      }
      std::copy_n(block, width, sums + at);
    }
  }
}

std::int64_t Pairs(std::int64_t rows) { return rows * (rows - 1) / 2; }

}  // namespace

// Row i times the transposed rows before it: so that the sums of many pairs advance at once.
void CpuKernels::PairDots(Stream& stream, std::int64_t batch, RowsOf size, ConstFloatSpan x,
                          FloatSpan y) {
  Put(stream, [=] {
    const auto [rows, columns] = size;
    const std::int64_t stride = (rows + kBlock - 1) / kBlock * kBlock;
    ParallelFor(batch, RowGrain(Pairs(rows) + rows * columns),
                [&, rows = rows, columns = columns](std::int64_t begin, std::int64_t end, int) {
                  std::vector<float> transposed(static_cast<std::size_t>(columns * stride));
                  std::vector<float> sums(static_cast<std::size_t>(stride));
                  for (std::int64_t b = begin; b < end; ++b) {
                    const float* in = x.data() + b * rows * columns;
                    float* out = y.data() + b * Pairs(rows);
                    for (std::int64_t r = 0; r < rows; ++r) {
                      for (std::int64_t c = 0; c < columns; ++c) {
                        transposed[static_cast<std::size_t>(c * stride + r)] = in[r * columns + c];
                      }
                    }
                    for (std::int64_t i = 1; i < rows; ++i) {
                      const std::int64_t whole = (i + kBlock - 1) / kBlock * kBlock;
                      WeightedSum(in + i * columns, transposed.data(), columns, stride, whole,
                                  sums.data());
                      out = std::copy_n(sums.data(), i, out);
                    }
                  }
                });
  });
}

void CpuKernels::PairDotsBackward(Stream& stream, std::int64_t batch, RowsOf size, ConstFloatSpan x,
                                  ConstFloatSpan dy, FloatSpan dx) {
  Put(stream, [=] {
    const auto [rows, columns] = size;
    ParallelFor(batch, RowGrain(Pairs(rows) + rows * columns),
                [&, rows = rows, columns = columns](std::int64_t begin, std::int64_t end, int) {
                  // The gradients of all pairs as a symmetric matrix; its diagonal stays 0.
                  std::vector<float> weights(static_cast<std::size_t>(rows * rows));
                  for (std::int64_t b = begin; b < end; ++b) {
                    const float* g = dy.data() + b * Pairs(rows);
                    for (std::int64_t i = 1; i < rows; ++i) {
                      for (std::int64_t j = 0; j < i; ++j, ++g) {
                        weights[static_cast<std::size_t>(i * rows + j)] = *g;
                        weights[static_cast<std::size_t>(j * rows + i)] = *g;
                      }
                    }
                    const std::int64_t at = b * rows * columns;
                    for (std::int64_t i = 0; i < rows; ++i) {
                      WeightedSum(weights.data() + i * rows, x.data() + at, rows, columns, columns,
                                  dx.data() + at + i * columns);
                    }
                  }
                });
  });
}

}  // namespace cohort::cpu
