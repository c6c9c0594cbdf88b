#include <Eigen/Core>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/cpu_kernels.h"
#include "cpu/sum_rows.h"

namespace cohort::cpu {
namespace {

Status CheckIds(const Indices& ids, std::int64_t rows) {
  for (std::int64_t i = 0; i < ids.size; ++i) {
    const std::int64_t id = ids.At(i);
    if (id < 0 || id >= rows) {
      return InvalidArgument("id " + std::to_string(id) + " of element " + std::to_string(i) +
                             " is outside the embedding's " + std::to_string(rows) +
                             " rows [ids must be in [0, " + std::to_string(rows) + ")]");
    }
  }
  return {};
}

}  // namespace

void CpuKernels::CopyRows(Stream& stream, RowsOf size, Strided from, Strided to) {
  Put(stream, [=] {
    ParallelFor(size.rows, RowGrain(size.columns), [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t r = begin; r < end; ++r) {
        std::copy_n(from.data + r * from.stride, size.columns, to.data + r * to.stride);
      }
    });
  });
}

void CpuKernels::SumRows(Stream& stream, RowsOf size, ConstElements x, FloatSpan sums) {
  Put(stream, [=] {
    const Widened in(x);
    SumOverRows<1>(size.rows, size.columns, sums.data(),
                   [&](std::int64_t r, float* __restrict sum) {
                     const float* row = in.data() + r * size.columns;
                     for (std::int64_t c = 0; c < size.columns; ++c) {
                       sum[c] += row[c];
                     }
                   });
  });
}

void CpuKernels::ReluBackwardSumRows(Stream& stream, RowsOf size, ConstElements y, Elements dy,
                                     FloatSpan sums) {
  Put(stream, [=] {
    const Widened of(y);
    Rounded gradient(dy, true);
    const std::int64_t columns = size.columns;
    std::vector<float> unwanted(sums.empty() ? static_cast<std::size_t>(columns) : 0);
    SumOverRows<1>(size.rows, columns, sums.empty() ? unwanted.data() : sums.data(),
                   [&](std::int64_t r, float* __restrict sum) {
                     const float* __restrict out = of.data() + r * columns;
                     float* __restrict g = gradient.data() + r * columns;
                     for (std::int64_t c = 0; c < columns; ++c) {
                       const float masked = out[c] > 0.0F ? g[c] : 0.0F;
                       g[c] = masked;
                       sum[c] += masked;
                     }
                   });
  });
}

void CpuKernels::SumMiddle(Stream& stream, const MiddleOf& size, float scale, ConstElements x,
                           FloatSpan y) {
  Put(stream, [=] {
    const Widened in(x);
    const auto [outer, middle, inner] = size;
    ParallelFor(outer, RowGrain(middle * inner), [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t o = begin; o < end; ++o) {
        float* __restrict sum = y.data() + o * inner;
        std::fill_n(sum, inner, 0.0F);
        for (std::int64_t m = 0; m < middle; ++m) {
          const float* row = in.data() + (o * middle + m) * inner;
          for (std::int64_t i = 0; i < inner; ++i) {
            sum[i] += row[i];
          }
        }
        for (std::int64_t i = 0; i < inner; ++i) {
          sum[i] *= scale;
        }
      }
    });
  });
}

void CpuKernels::SumMiddleBackward(Stream& stream, const MiddleOf& size, float scale,
                                   ConstFloatSpan dy, Elements dx) {
  Put(stream, [=] {
    Rounded out(dx);
    const auto [outer, middle, inner] = size;
    ParallelFor(outer * middle, RowGrain(inner), [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t r = begin; r < end; ++r) {
        const float* __restrict from = dy.data() + r / middle * inner;
        float* __restrict to = out.data() + r * inner;
        for (std::int64_t i = 0; i < inner; ++i) {
          to[i] = from[i] * scale;
        }
      }
    });
  });
}

void CpuKernels::Softmax(Stream& stream, RowsOf size, ConstFloatSpan x, FloatSpan y) {
  Put(stream, [=] {
    if (size.columns == 0) {
      return;
    }
    ParallelFor(size.rows, RowGrain(size.columns), [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t r = begin; r < end; ++r) {
        const Eigen::Map<const Eigen::ArrayXf> in(x.data() + r * size.columns, size.columns);
        Eigen::Map<Eigen::ArrayXf> out(y.data() + r * size.columns, size.columns);
        out = (in - in.maxCoeff()).exp();
        out *= 1.0F / out.sum();
      }
    });
  });
}

void CpuKernels::SoftmaxBackward(Stream& stream, RowsOf size, ConstFloatSpan y, ConstFloatSpan dy,
                                 FloatSpan dx) {
  Put(stream, [=] {
    ParallelFor(size.rows, RowGrain(size.columns), [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t r = begin; r < end; ++r) {
        const Eigen::Map<const Eigen::ArrayXf> out(y.data() + r * size.columns, size.columns);
        const Eigen::Map<const Eigen::ArrayXf> g(dy.data() + r * size.columns, size.columns);
        Eigen::Map<Eigen::ArrayXf> in(dx.data() + r * size.columns, size.columns);
        const float dot = (g * out).sum();
        in = out * (g - dot);
      }
    });
  });
}

void CpuKernels::Gather(Stream& stream, Indices ids, RowsOf table_size, ConstFloatSpan table,
                        FloatSpan y) {
  Put(stream, [=]() -> Status {
    COHORT_RETURN_IF_ERROR(CheckIds(ids, table_size.rows));
    const std::int64_t columns = table_size.columns;
    ParallelFor(ids.size, RowGrain(columns), [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t i = begin; i < end; ++i) {
        std::copy_n(table.data() + ids.At(i) * columns, columns, y.data() + i * columns);
      }
    });
    return {};
  });
}

void CpuKernels::ScatterAdd(Stream& stream, Indices ids, RowsOf table_size, ConstFloatSpan dy,
                            FloatSpan dtable) {
  Put(stream, [=] {
    const std::int64_t columns = table_size.columns;
    std::fill(dtable.begin(), dtable.end(), 0.0F);
    for (std::int64_t i = 0; i < ids.size; ++i) {
      const float* __restrict from = dy.data() + i * columns;
      float* __restrict to = dtable.data() + ids.At(i) * columns;
      for (std::int64_t c = 0; c < columns; ++c) {
        to[c] += from[c];
      }
    }
  });
}

}  // namespace cohort::cpu
