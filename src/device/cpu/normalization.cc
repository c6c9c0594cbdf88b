#include <Eigen/Core>
#include <cmath>
#include <type_traits>

#include "cpu/cpu_kernels.h"
#include "cpu/sum_rows.h"

namespace cohort::cpu {
namespace {

using ConstArray = Eigen::Map<const Eigen::ArrayXf>;
using Array = Eigen::Map<Eigen::ArrayXf>;

void SumSquaresAround(RowsOf size, const float* x, const float* center, float* sums) {
  SumOverRows<1>(size.rows, size.columns, sums, [&](std::int64_t r, float* __restrict sum) {
    const float* row = x + r * size.columns;
    for (std::int64_t c = 0; c < size.columns; ++c) {
      const float d = row[c] - center[c];
      sum[c] += d * d;
    }
  });
}

// Batch norm's gradient by column, in plain numbers.
struct ColumnsBackward {
  explicit ColumnsBackward(const NormBackwardArguments& n)
      : mean(n.mean.data()),
        inverse(n.inverse_deviation.data()),
        offset(n.offset.data()),
        slope(ConstArray(inverse, n.columns) * ConstArray(n.scale.data(), n.columns)) {}

  // What of dy counts, of an element x of column c. As BatchNorm computes it: the same elements are
  // above 0.
  template <bool kMasks>
  float Counting(std::int64_t c, float x, float dy) const {
    return !kMasks || (x - mean[c]) * slope.data()[c] + offset[c] > 0.0F ? dy : 0.0F;
  }

  const float* const mean;
  const float* const inverse;
  const float* const offset;
  const Eigen::ArrayXf slope;
};

// fn(std::true_type) where f's part in the gradient is to be found again from x.
template <typename Fn>
void WithMask(const NormBackwardArguments& n, const Fn& fn) {
  if (n.activation == Activation::kRelu && n.y.empty()) {
    fn(std::true_type());
  } else {
    fn(std::false_type());
  }
}

}  // namespace

void CpuKernels::LayerNorm(Stream& stream, const NormArguments& n) {
  Put(stream, [=] {
    const ConstArray scale(n.scale.data(), n.columns);
    const ConstArray offset(n.offset.data(), n.columns);
    Rounded y(n.y);
    ParallelFor(n.rows, RowGrain(n.columns), [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t r = begin; r < end; ++r) {
        const ConstArray x(n.x.floats() + r * n.columns, n.columns);
        const float mean = n.columns == 0 ? 0.0F : x.mean();
        const float variance = n.columns == 0 ? 0.0F : (x - mean).square().mean();
        const float inverse = 1.0F / std::sqrt(variance + n.epsilon);
        Array(y.data() + r * n.columns, n.columns) = (x - mean) * inverse * scale + offset;
        n.mean.data()[r] = mean;
        n.inverse_deviation.data()[r] = inverse;
      }
    });
  });
}

void CpuKernels::LayerNormBackward(Stream& stream, const NormBackwardArguments& n) {
  Put(stream, [=] {
    const ConstArray scale(n.scale.data(), n.columns);
    const Widened gradient(n.dy);
    std::vector<float> sums(static_cast<std::size_t>(2 * n.columns));
    SumOverRows<2>(n.rows, n.columns, sums.data(), [&](std::int64_t r, float* sum) {
      const ConstArray x(n.x.floats() + r * n.columns, n.columns);
      const ConstArray dy(gradient.data() + r * n.columns, n.columns);
      const float mean = n.mean.data()[r];
      const float inverse = n.inverse_deviation.data()[r];
      Array(sum, n.columns) += dy;
      Array(sum + n.columns, n.columns) += dy * (x - mean) * inverse;
      if (!n.dx.empty()) {
        // dx = inverse * (g - mean(g) - xhat * mean(g * xhat)), g = dy * scale.
        const float g_mean = (dy * scale).mean();
        const float gx_mean = (dy * scale * (x - mean)).mean() * inverse;
        Array(n.dx.floats() + r * n.columns, n.columns) =
            inverse * (dy * scale - g_mean - (x - mean) * (inverse * gx_mean));
      }
    });
    std::copy_n(sums.data(), n.columns, n.doffset.data());
    std::copy_n(sums.data() + n.columns, n.columns, n.dscale.data());
  });
}

void CpuKernels::SumSquaresRows(Stream& stream, RowsOf size, ConstElements x, ConstFloatSpan center,
                                FloatSpan sums) {
  Put(stream, [=] { SumSquaresAround(size, Widened(x).data(), center.data(), sums.data()); });
}

void CpuKernels::Moments(Stream& stream, RowsOf size, ConstElements x, FloatSpan mean,
                         FloatSpan square_sums) {
  Put(stream, [=] {
    const Widened in(x);
    SumOverRows<1>(size.rows, size.columns, mean.data(),
                   [&](std::int64_t r, float* __restrict sum) {
                     const float* row = in.data() + r * size.columns;
                     for (std::int64_t c = 0; c < size.columns; ++c) {
                       sum[c] += row[c];
                     }
                   });
    for (float& m : mean) {
      m = size.rows == 0 ? 0.0F : m / static_cast<float>(size.rows);
    }
    SumSquaresAround(size, in.data(), mean.data(), square_sums.data());
  });
}

void CpuKernels::DivideByCount(Stream& stream, ConstFloatSpan sums, ConstFloatSpan count,
                               FloatSpan y) {
  Put(stream, [=] {
    for (std::size_t i = 0; i < y.size(); ++i) {
      y[i] = count[0] == 0.0F ? 0.0F : sums[i] / count[0];
    }
  });
}

void CpuKernels::FinishMoments(Stream& stream, const MomentsArguments& m) {
  Put(stream, [=] {
    const float count = m.count[0];
    for (std::size_t c = 0; c < m.mean.size(); ++c) {
      const float variance = count == 0.0F ? 1.0F : m.square_sums[c] / count;
      m.inverse_deviation[c] = 1.0F / std::sqrt(variance + m.epsilon);
      if (m.running_mean.empty() || count == 0.0F) {
        continue;
      }
      const float unbiased = count > 1.0F ? m.square_sums[c] / (count - 1.0F) : variance;
      m.running_mean[c] = m.momentum * m.running_mean[c] + (1.0F - m.momentum) * m.mean[c];
      m.running_variance[c] = m.momentum * m.running_variance[c] + (1.0F - m.momentum) * unbiased;
    }
  });
}

void CpuKernels::BatchNorm(Stream& stream, const NormArguments& n) {
  Put(stream, [=] {
    // y = x * slope + base, with both by column.
    const ConstArray mean(n.mean.data(), n.columns);
    const Eigen::ArrayXf slope =
        ConstArray(n.inverse_deviation.data(), n.columns) * ConstArray(n.scale.data(), n.columns);
    const ConstArray offset(n.offset.data(), n.columns);
    const Widened x(n.x);
    const Widened added(n.added);
    Rounded y(n.y);
    ParallelFor(n.rows, RowGrain(n.columns), [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t r = begin; r < end; ++r) {
        Array out(y.data() + r * n.columns, n.columns);
        const auto normalised =
            (ConstArray(x.data() + r * n.columns, n.columns) - mean) * slope + offset;
        if (n.added.empty()) {
          out = normalised;
        } else {
          out = normalised + ConstArray(added.data() + r * n.columns, n.columns);
        }
        if (n.activation == Activation::kRelu) {
          out = out.cwiseMax(0.0F);
        }
      }
    });
  });
}

void CpuKernels::BatchNormBackwardSums(Stream& stream, const NormBackwardArguments& n,
                                       FloatSpan sums) {
  Put(stream, [=] {
    const ColumnsBackward of(n);
    const Widened x(n.x);
    const std::int64_t columns = n.columns;
    if (n.activation == Activation::kRelu && !n.y.empty()) {
      const Widened y(n.y);
      Rounded dy(n.dy, true);
      const auto size = static_cast<std::int64_t>(n.y.size());
      ParallelFor(size, kGrain, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t i = begin; i < end; ++i) {
          dy.data()[i] = y.data()[i] > 0.0F ? dy.data()[i] : 0.0F;
        }
      });
    }
    const Widened gradient(n.dy);
    WithMask(n, [&](auto masks) {
      SumOverRows<2>(n.rows, columns, sums.data(), [&](std::int64_t r, float* __restrict sum) {
        const float* const value = x.data() + r * columns;
        const float* const dy = gradient.data() + r * columns;
        for (std::int64_t c = 0; c < columns; ++c) {
          const float g = of.Counting<masks>(c, value[c], dy[c]);
          sum[c] += g;
          sum[columns + c] += g * (value[c] - of.mean[c]) * of.inverse[c];
        }
      });
    });
  });
}

void CpuKernels::BatchNormBackward(Stream& stream, const NormBackwardArguments& n,
                                   ConstFloatSpan sums, ConstFloatSpan count) {
  Put(stream, [=] {
    const ColumnsBackward of(n);
    Eigen::ArrayXf dy_mean = Eigen::ArrayXf::Zero(n.columns);
    Eigen::ArrayXf dyx_mean = Eigen::ArrayXf::Zero(n.columns);
    if (!count.empty() && count[0] > 0.0F) {
      dy_mean = ConstArray(sums.data(), n.columns) / count[0];
      dyx_mean = ConstArray(sums.data() + n.columns, n.columns) / count[0] *
                 ConstArray(of.inverse, n.columns);
    }
    const Widened x(n.x);
    const Widened gradient(n.dy);
    Rounded dx(n.dx);
    const auto work = [&](auto masks, std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const float* const value = x.data() + r * n.columns;
        const float* const dy = gradient.data() + r * n.columns;
        float* const out = dx.data() + r * n.columns;
        for (std::int64_t c = 0; c < n.columns; ++c) {
          const float g = of.Counting<masks>(c, value[c], dy[c]);
          out[c] = of.slope.data()[c] *
                   (g - dy_mean.data()[c] - (value[c] - of.mean[c]) * dyx_mean.data()[c]);
        }
      }
    };
    WithMask(n, [&](auto masks) {
      ParallelFor(n.rows, RowGrain(n.columns),
                  [&](std::int64_t begin, std::int64_t end, int) { work(masks, begin, end); });
    });
  });
}

}  // namespace cohort::cpu
