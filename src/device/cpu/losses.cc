#include <Eigen/Core>
#include <cmath>
#include <string>
#include <vector>

#include "cpu/cpu_kernels.h"

// Sums over rows are the feeding thread's, in their order. The rows of softmax, which may be as
// wide as a vocabulary, are all threads' work; the other losses are the feeding thread's alone.

namespace cohort::cpu {
namespace {

Indices Labels(const LossArguments& l) { return {l.classes, l.rows, l.wide_classes}; }

std::int64_t ClassesEnd(const LossArguments& l) {
  return l.classes_end > 0 ? l.classes_end : l.columns;
}

float Weight(const LossArguments& l, std::int64_t row) {
  return l.weights.empty() ? 1.0F : l.weights[static_cast<std::size_t>(row)];
}

Status CheckLabel(std::int64_t label, std::int64_t row, std::int64_t classes) {
  if (label >= 0 && label < classes) {
    return {};
  }
  return InvalidArgument("label " + std::to_string(label) + " of example " + std::to_string(row) +
                         " is not one of " + std::to_string(classes) +
                         " classes [labels must be in [0, " + std::to_string(classes) + ")]");
}

// loss[0], loss[1] from row_loss(r), one row's loss.
template <typename RowLoss>
void WeightedMean(const LossArguments& l, FloatSpan loss, const RowLoss& row_loss) {
  double sum = 0;
  double weight = 0;
  for (std::int64_t r = 0; r < l.rows; ++r) {
    const double w = Weight(l, r);
    // A row of weight 0 is absent, whatever its loss (it may be infinite).
    sum += w == 0.0 ? 0.0 : w * row_loss(r);
    weight += w;
  }
  loss[0] = static_cast<float>(weight == 0.0 ? 0.0 : sum / weight);
  loss[1] = static_cast<float>(weight);
}

// dloss / sum of weights, then times each row's own: exactly 1 where they are equal.
float Factor(ConstFloatSpan loss, ConstFloatSpan dloss) {
  return loss[1] == 0.0F ? 0.0F : dloss[0] / loss[1];
}

// dx(r, c) = factor * weight(r) * of(r, c).
template <typename Of>
void Spread(const LossArguments& l, float factor, FloatSpan dx, const Of& of) {
  for (std::int64_t r = 0; r < l.rows; ++r) {
    const float scale = factor * Weight(l, r);
    for (std::int64_t c = 0; c < l.columns; ++c) {
      dx[static_cast<std::size_t>(r * l.columns + c)] = scale == 0.0F ? 0.0F : scale * of(r, c);
    }
  }
}

using Row = Eigen::Map<Eigen::ArrayXf>;
using ConstRow = Eigen::Map<const Eigen::ArrayXf>;

LossArguments With(LossArguments l, ConstFloatSpan x) {
  l.x = x;
  return l;
}

ConstRow RowOf(const LossArguments& l, ConstFloatSpan x, std::int64_t row) {
  return {x.data() + row * l.columns, l.columns};
}

// Row r's cross-entropy of softmax(x) and the label, or the targets.
double RowCrossEntropy(const LossArguments& l, std::int64_t r) {
  const ConstRow x = RowOf(l, l.x, r);
  const float maximum = x.maxCoeff();
  const float log_sum = std::log((x - maximum).exp().sum());
  if (l.classes != nullptr) {
    return log_sum - (x[Labels(l).At(r)] - maximum);
  }
  const ConstRow targets = RowOf(l, l.targets, r);
  double sum = 0;
  for (std::int64_t c = 0; c < l.columns; ++c) {
    sum += targets[c] == 0.0F ? 0.0F : targets[c] * (log_sum - (x[c] - maximum));
  }
  return sum;
}

// Its gradient: sum(targets) * softmax(x) - targets. A class label is a row of targets that sums
// to 1.
void RowCrossEntropyBackward(const LossArguments& l, std::int64_t r, float scale, Row out) {
  const ConstRow x = RowOf(l, l.x, r);
  out = (x - x.maxCoeff()).exp();
  const float sum = out.sum();
  if (l.classes != nullptr) {
    out *= scale / sum;
    out[Labels(l).At(r)] -= scale;
    return;
  }
  const ConstRow targets = RowOf(l, l.targets, r);
  const float total = targets.sum();
  out = scale * (total / sum * out - targets);
}

float Sigmoid(float x) { return 1.0F / (1.0F + std::exp(-x)); }

}  // namespace

void CpuKernels::SoftmaxCrossEntropy(Stream& stream, const LossArguments& given, FloatSpan loss) {
  Put(stream, [=]() -> Status {
    const Widened logits(given.x);
    const LossArguments l = With(given, logits.span());
    if (l.classes != nullptr) {
      for (std::int64_t r = 0; r < l.rows; ++r) {
        COHORT_RETURN_IF_ERROR(CheckLabel(Labels(l).At(r), r, ClassesEnd(l)));
      }
    }
    std::vector<double> losses(static_cast<std::size_t>(l.rows));
    ParallelFor(l.rows, RowGrain(l.columns), [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t r = begin; r < end; ++r) {
        losses[static_cast<std::size_t>(r)] = RowCrossEntropy(l, r);
      }
    });
    WeightedMean(l, loss, [&](std::int64_t r) { return losses[static_cast<std::size_t>(r)]; });
    return {};
  });
}

void CpuKernels::SoftmaxCrossEntropyBackward(Stream& stream, const LossArguments& given,
                                             ConstFloatSpan loss, ConstFloatSpan dloss,
                                             Elements dx) {
  Put(stream, [=] {
    const Widened logits(given.x);
    const LossArguments l = With(given, logits.span());
    Rounded gradient(dx);
    const float factor = Factor(loss, dloss);
    ParallelFor(l.rows, RowGrain(l.columns), [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t r = begin; r < end; ++r) {
        Row out(gradient.data() + r * l.columns, l.columns);
        const float scale = factor * Weight(l, r);
        if (scale == 0.0F) {
          out.setZero();
        } else {
          RowCrossEntropyBackward(l, r, scale, out);
        }
      }
    });
  });
}

void CpuKernels::SigmoidCrossEntropy(Stream& stream, const LossArguments& l, FloatSpan loss) {
  const ConstFloatSpan logits = l.x;
  Put(stream, [=] {
    WeightedMean(l, loss, [&](std::int64_t r) {
      double sum = 0;
      for (std::int64_t i = r * l.columns; i < (r + 1) * l.columns; ++i) {
        const auto at = static_cast<std::size_t>(i);
        const float x = logits[at];
        // max(x,0) - x t + log(1 + exp(-|x|)): finite for every finite x.
        sum += std::max(x, 0.0F) - x * l.targets[at] + std::log1p(std::exp(-std::fabs(x)));
      }
      return l.columns == 0 ? 0.0 : sum / static_cast<double>(l.columns);
    });
  });
}

void CpuKernels::SigmoidCrossEntropyBackward(Stream& stream, const LossArguments& l,
                                             ConstFloatSpan loss, ConstFloatSpan dloss,
                                             FloatSpan dx) {
  const ConstFloatSpan logits = l.x;
  Put(stream, [=] {
    const float columns = static_cast<float>(l.columns);
    Spread(l, Factor(loss, dloss), dx, [&](std::int64_t r, std::int64_t c) {
      const auto at = static_cast<std::size_t>(r * l.columns + c);
      return (Sigmoid(logits[at]) - l.targets[at]) / columns;
    });
  });
}

void CpuKernels::MeanSquaredError(Stream& stream, const LossArguments& l, FloatSpan loss) {
  const ConstFloatSpan x = l.x;
  Put(stream, [=] {
    WeightedMean(l, loss, [&](std::int64_t r) {
      double sum = 0;
      for (std::int64_t i = r * l.columns; i < (r + 1) * l.columns; ++i) {
        const auto at = static_cast<std::size_t>(i);
        const double error = static_cast<double>(x[at]) - l.targets[at];
        sum += error * error;
      }
      return l.columns == 0 ? 0.0 : sum / static_cast<double>(l.columns);
    });
  });
}

void CpuKernels::MeanSquaredErrorBackward(Stream& stream, const LossArguments& l,
                                          ConstFloatSpan loss, ConstFloatSpan dloss, FloatSpan dx) {
  const ConstFloatSpan x = l.x;
  Put(stream, [=] {
    const float scale = 2.0F / static_cast<float>(l.columns);
    Spread(l, Factor(loss, dloss), dx, [&](std::int64_t r, std::int64_t c) {
      const auto at = static_cast<std::size_t>(r * l.columns + c);
      return scale * (x[at] - l.targets[at]);
    });
  });
}

}  // namespace cohort::cpu
