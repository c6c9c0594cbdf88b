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

// Sums of kRows rows, of kBlock columns each.
template <std::int64_t kRows>
struct Sums {
  Floats low[kRows] = {};
  Floats high[kRows] = {};

  // Adds weight(r) times the kBlock floats at `row` to the sums of row r.
  template <typename Weight>
  void Add(const float* row, const Weight& weight) {
    const Floats left = Load(row);
    const Floats right = Load(row + kLanes);
    for (std::int64_t r = 0; r < kRows; ++r) {
      low[r] += weight(r) * left;
      high[r] += weight(r) * right;
    }
  }
  void Store(std::int64_t r, std::int64_t count, float* to) const {
    if (count >= kBlock) {
      std::memcpy(to, &low[r], sizeof(Floats));
      std::memcpy(to + kLanes, &high[r], sizeof(Floats));
    } else if (count > 0) {
      float all[kBlock];
      std::memcpy(all, &low[r], sizeof(Floats));
      std::memcpy(all + kLanes, &high[r], sizeof(Floats));
      std::copy_n(all, count, to);
    }
  }
};

// out[Pairs(i) + j] of rows i in [row, row + kRows) and the rows j before each: sums over the
// columns in their order. `transposed` has [columns, stride].
template <std::int64_t kRows>
void Dots(const float* const* rows, std::int64_t row, std::int64_t columns, const float* transposed,
          std::int64_t stride, float* out) {
  for (std::int64_t at = 0; at < row + kRows - 1; at += kBlock) {
    Sums<kRows> sums;
    for (std::int64_t c = 0; c < columns; ++c) {
      sums.Add(transposed + c * stride + at, [&](std::int64_t r) { return rows[row + r][c]; });
    }
    for (std::int64_t r = 0; r < kRows; ++r) {
      sums.Store(r, row + r - at, out + Pairs(row + r) + at);
    }
  }
}

// The gradients of rows [row, row + kRows), at to(row): what the pairs with them, whose gradients
// are g, have of the other rows, in the order of these.
template <std::int64_t kRows, typename To>
void DotsBackward(const float* g, const float* const* rows, std::int64_t row, std::int64_t count,
                  std::int64_t columns, const To& to) {
  for (std::int64_t at = 0; at < columns; at += kBlock) {
    Sums<kRows> sums;
    for (std::int64_t j = 0; j < row; ++j) {
      sums.Add(rows[j] + at, [&](std::int64_t r) { return g[Pairs(row + r) + j]; });
    }
    for (std::int64_t j = row; j < row + kRows; ++j) {
      sums.Add(rows[j] + at, [&](std::int64_t r) {
        const std::int64_t i = row + r;
        return j == i ? 0.0F : j < i ? g[Pairs(i) + j] : g[Pairs(j) + i];
      });
    }
    for (std::int64_t j = row + kRows; j < count; ++j) {
      const float* const pairs = g + Pairs(j) + row;
      sums.Add(rows[j] + at, [&](std::int64_t r) { return pairs[r]; });
    }
    for (std::int64_t r = 0; r < kRows; ++r) {
      sums.Store(r, columns - at, to(row + r) + at);
    }
  }
}

// Where the rows of one example are, each followed by kBlock floats or more from every multiple of
// that on: copied where their columns are no such multiple.
class Rows {
 public:
  Rows(RowsOf size, const float* first, const float* rest)
      : size_(size),
        first_(first),
        rest_(rest),
        stride_(WholeBlocks(size.columns)),
        rows_(static_cast<std::size_t>(size.rows)) {
    if (stride_ != size.columns) {
      padded_.resize(static_cast<std::size_t>(size.rows * stride_));
    }
  }
  const float* const* Of(std::int64_t example) {
    for (std::int64_t r = 0; r < size_.rows; ++r) {
      const float*& row = rows_[static_cast<std::size_t>(r)];
      row = r == 0 ? first_ + example * size_.columns
                   : rest_ + (example * (size_.rows - 1) + r - 1) * size_.columns;
      if (!padded_.empty()) {
        float* const copy = padded_.data() + r * stride_;
        std::copy_n(row, size_.columns, copy);
        row = copy;
      }
    }
    return rows_.data();
  }

 private:
  const RowsOf size_;
  const float* const first_;
  const float* const rest_;
  const std::int64_t stride_;
  std::vector<const float*> rows_;
  std::vector<float> padded_;
};

// [rows, columns] to [columns, stride], of which what is behind the rows stays as it is.
void Transpose(const float* const* rows, RowsOf size, std::int64_t stride, float* to) {
  std::int64_t r = 0;
  for (; r + 4 <= size.rows; r += 4) {
    const float* const a = rows[r];
    const float* const b = rows[r + 1];
    const float* const c = rows[r + 2];
    const float* const d = rows[r + 3];
    for (std::int64_t i = 0; i < size.columns; ++i) {
      const float four[4] = {a[i], b[i], c[i], d[i]};
      std::memcpy(to + i * stride + r, four, sizeof(four));
    }
  }
  for (; r < size.rows; ++r) {
    for (std::int64_t i = 0; i < size.columns; ++i) {
      to[i * stride + r] = rows[r][i];
    }
  }
}

}  // namespace

// Row i times the transposed rows before it.
void CpuKernels::Interaction(Stream& stream, std::int64_t batch, RowsOf size, ConstFloatSpan first,
                             ConstFloatSpan rest, FloatSpan y) {
  Put(stream, [=] {
    const std::int64_t stride = WholeBlocks(size.rows);
    ParallelFor(batch, RowGrain(Pairs(size.rows) + size.rows * size.columns),
                [&](std::int64_t begin, std::int64_t end, int) {
                  Rows rows(size, first.data(), rest.data());
                  std::vector<float> transposed(static_cast<std::size_t>(size.columns * stride));
                  for (std::int64_t b = begin; b < end; ++b) {
                    const float* const* const in = rows.Of(b);
                    float* out = y.data() + b * (size.columns + Pairs(size.rows));
                    out = std::copy_n(in[0], size.columns, out);
                    Transpose(in, size, stride, transposed.data());
                    std::int64_t i = 1;
                    for (; i + kTogether <= size.rows; i += kTogether) {
                      Dots<kTogether>(in, i, size.columns, transposed.data(), stride, out);
                    }
                    for (; i < size.rows; ++i) {
                      Dots<1>(in, i, size.columns, transposed.data(), stride, out);
                    }
                  }
                });
  });
}

void CpuKernels::InteractionBackward(Stream& stream, std::int64_t batch, RowsOf size,
                                     ConstFloatSpan first, ConstFloatSpan rest, ConstFloatSpan dy,
                                     FloatSpan dfirst, FloatSpan drest) {
  Put(stream, [=] {
    ParallelFor(batch, RowGrain(Pairs(size.rows) + size.rows * size.columns),
                [&](std::int64_t begin, std::int64_t end, int) {
                  Rows rows(size, first.data(), rest.data());
                  for (std::int64_t b = begin; b < end; ++b) {
                    const float* const* const in = rows.Of(b);
                    const float* const of = dy.data() + b * (size.columns + Pairs(size.rows));
                    const float* const g = of + size.columns;
                    const auto to = [&](std::int64_t r) {
                      return r == 0 ? dfirst.data() + b * size.columns
                                    : drest.data() + (b * (size.rows - 1) + r - 1) * size.columns;
                    };
                    if (!dfirst.empty()) {
                      DotsBackward<1>(g, in, 0, size.rows, size.columns, to);
                      for (std::int64_t c = 0; c < size.columns; ++c) {
                        to(0)[c] += of[c];
                      }
                    }
                    std::int64_t i = drest.empty() ? size.rows : 1;
                    for (; i + kTogether <= size.rows; i += kTogether) {
                      DotsBackward<kTogether>(g, in, i, size.rows, size.columns, to);
                    }
                    for (; i < size.rows; ++i) {
                      DotsBackward<1>(g, in, i, size.rows, size.columns, to);
                    }
                  }
                });
  });
}

}  // namespace cohort::cpu
