#include <Eigen/Core>
#include <cmath>

#include "cpu/cpu_kernels.h"
#include "cpu/sum_rows.h"

namespace cohort::cpu {
namespace {

using ConstArray = Eigen::Map<const Eigen::ArrayXf>;
using Array = Eigen::Map<Eigen::ArrayXf>;

}  // namespace

void CpuKernels::LayerNorm(Stream& stream, const NormArguments& n) {
  Put(stream, [=] {
    const ConstArray scale(n.scale.data(), n.columns);
    const ConstArray offset(n.offset.data(), n.columns);
    Rounded y(n.y);
    ParallelFor(n.rows, RowGrain(n.columns), [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t r = begin; r < end; ++r) {
        const ConstArray x(n.x.data() + r * n.columns, n.columns);
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
      const ConstArray x(n.x.data() + r * n.columns, n.columns);
      const ConstArray dy(gradient.data() + r * n.columns, n.columns);
      const float mean = n.mean.data()[r];
      const float inverse = n.inverse_deviation.data()[r];
      Array(sum, n.columns) += dy;
      Array(sum + n.columns, n.columns) += dy * (x - mean) * inverse;
      if (!n.dx.empty()) {
        // dx = inverse * (g - mean(g) - xhat * mean(g * xhat)), g = dy * scale.
        const float g_mean = (dy * scale).mean();
        const float gx_mean = (dy * scale * (x - mean)).mean() * inverse;
        Array(n.dx.data() + r * n.columns, n.columns) =
            inverse * (dy * scale - g_mean - (x - mean) * (inverse * gx_mean));
      }
    });
    std::copy_n(sums.data(), n.columns, n.doffset.data());
    std::copy_n(sums.data() + n.columns, n.columns, n.dscale.data());
  });
}

void CpuKernels::SumSquaresRows(Stream& stream, RowsOf size, ConstFloatSpan x,
                                ConstFloatSpan center, FloatSpan sums) {
  Put(stream, [=] {
    SumOverRows<1>(size.rows, size.columns, sums.data(),
                   [&](std::int64_t r, float* __restrict sum) {
                     const float* row = x.data() + r * size.columns;
                     for (std::int64_t c = 0; c < size.columns; ++c) {
                       const float d = row[c] - center.data()[c];
                       sum[c] += d * d;
                     }
                   });
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
  const FloatSpan y = n.y;
  Put(stream, [=] {
    // y = x * slope + base, with both by column.
    const ConstArray mean(n.mean.data(), n.columns);
    const Eigen::ArrayXf slope =
        ConstArray(n.inverse_deviation.data(), n.columns) * ConstArray(n.scale.data(), n.columns);
    const ConstArray offset(n.offset.data(), n.columns);
    ParallelFor(n.rows, RowGrain(n.columns), [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t r = begin; r < end; ++r) {
        Array(y.data() + r * n.columns, n.columns) =
            (ConstArray(n.x.data() + r * n.columns, n.columns) - mean) * slope + offset;
      }
    });
  });
}

void CpuKernels::BatchNormBackwardSums(Stream& stream, const NormBackwardArguments& n,
                                       FloatSpan sums) {
  const ConstFloatSpan gradient = n.dy;
  Put(stream, [=] {
    const ConstArray mean(n.mean.data(), n.columns);
    const ConstArray inverse(n.inverse_deviation.data(), n.columns);
    SumOverRows<2>(n.rows, n.columns, sums.data(), [&](std::int64_t r, float* sum) {
      const ConstArray dy(gradient.data() + r * n.columns, n.columns);
      Array(sum, n.columns) += dy;
      Array(sum + n.columns, n.columns) +=
          dy * (ConstArray(n.x.data() + r * n.columns, n.columns) - mean) * inverse;
    });
  });
}

void CpuKernels::BatchNormBackward(Stream& stream, const NormBackwardArguments& n,
                                   ConstFloatSpan sums, ConstFloatSpan count) {
  const ConstFloatSpan gradient = n.dy;
  Put(stream, [=] {
    const ConstArray mean(n.mean.data(), n.columns);
    const ConstArray inverse(n.inverse_deviation.data(), n.columns);
    const Eigen::ArrayXf slope = inverse * ConstArray(n.scale.data(), n.columns);
    Eigen::ArrayXf dy_mean = Eigen::ArrayXf::Zero(n.columns);
    Eigen::ArrayXf dyx_mean = Eigen::ArrayXf::Zero(n.columns);
    if (!count.empty() && count[0] > 0.0F) {
      dy_mean = ConstArray(sums.data(), n.columns) / count[0];
      dyx_mean = ConstArray(sums.data() + n.columns, n.columns) / count[0] * inverse;
    }
    ParallelFor(n.rows, RowGrain(n.columns), [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t r = begin; r < end; ++r) {
        Array(n.dx.data() + r * n.columns, n.columns) =
            slope * (ConstArray(gradient.data() + r * n.columns, n.columns) - dy_mean -
                     (ConstArray(n.x.data() + r * n.columns, n.columns) - mean) * dyx_mean);
      }
    });
  });
}

}  // namespace cohort::cpu
