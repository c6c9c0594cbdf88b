#include <cohort/nn/metrics.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

namespace cohort::nn {
namespace {

std::int64_t LabelAt(const Tensor& labels, std::size_t row) {
  switch (labels.dtype()) {
    case DType::kInt32:
      return labels.data<std::int32_t>()[row];
    case DType::kInt64:
      return labels.data<std::int64_t>()[row];
    case DType::kUInt8:
      return labels.data<std::uint8_t>()[row];
    default:
      throw ContractError("labels are int32, int64 or uint8, not " +
                          std::string(DTypeName(labels.dtype())));
  }
}

void CheckRows(std::size_t rows, const Tensor& labels, std::span<const float> weights) {
  Require(labels.elements() == static_cast<std::int64_t>(rows), "one label for each row");
  Require(weights.empty() || weights.size() == rows, "one weight for each row");
}

Status CheckLabel(std::int64_t label, std::int64_t classes, std::size_t row) {
  if (label >= 0 && label < classes) {
    return {};
  }
  return OutOfRange("label " + std::to_string(label) + " of row " + std::to_string(row) +
                    " is not in [0, " + std::to_string(classes) + ")");
}

// How many classes come before the label's, largest score first.
std::int64_t RankOf(std::span<const float> row, std::size_t label) {
  const float score = row[label];
  if (std::isnan(score)) {
    return std::numeric_limits<std::int64_t>::max();
  }
  std::int64_t before = 0;
  for (std::size_t c = 0; c < row.size(); ++c) {
    before += !(row[c] <= score) || (row[c] == score && c < label) ? 1 : 0;
  }
  return before;
}

}  // namespace

Result<WeightedSum> TopKAccuracy(const Tensor& scores, const Tensor& labels, int k,
                                 std::span<const float> weights) {
  Require(k >= 1, "k is at least 1");
  Require(scores.shape().rank() == 2, "scores are [rows, classes]");
  const auto rows = static_cast<std::size_t>(scores.shape()[0]);
  const std::int64_t classes = scores.shape()[1];
  const auto width = static_cast<std::size_t>(classes);
  CheckRows(rows, labels, weights);
  const std::span<const float> all = scores.data<float>();
  WeightedSum right;
  for (std::size_t row = 0; row < rows; ++row) {
    const std::int64_t label = LabelAt(labels, row);
    COHORT_RETURN_IF_ERROR(CheckLabel(label, classes, row));
    const double weight = weights.empty() ? 1.0 : weights[row];
    right.weight += weight;
    if (RankOf(all.subspan(row * width, width), static_cast<std::size_t>(label)) < k) {
      right.sum += weight;
    }
  }
  return right;
}

Result<WeightedSum> Accuracy(const Tensor& scores, const Tensor& labels,
                             std::span<const float> weights) {
  return TopKAccuracy(scores, labels, 1, weights);
}

WeightedSum Mean(std::span<const float> values, std::span<const float> weights) {
  Require(weights.empty() || weights.size() == values.size(), "one weight for each value");
  WeightedSum mean;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double weight = weights.empty() ? 1.0 : weights[i];
    mean.sum += weight * values[i];
    mean.weight += weight;
  }
  return mean;
}

Auc::Auc(int buckets) {
  Require(buckets >= 1, "at least one bucket");
  counts_.resize(2 * static_cast<std::size_t>(buckets));
}

Status Auc::Add(std::span<const float> scores, const Tensor& labels,
                std::span<const float> weights) {
  CheckRows(scores.size(), labels, weights);
  for (std::size_t row = 0; row < scores.size(); ++row) {
    if (!(scores[row] >= 0 && scores[row] <= 1)) {
      return InvalidArgument("score " + std::to_string(scores[row]) + " of row " +
                             std::to_string(row) +
                             " is not in [0, 1] [AUC takes probabilities: apply a sigmoid]");
    }
    COHORT_RETURN_IF_ERROR(CheckLabel(LabelAt(labels, row), 2, row));
  }
  const std::size_t buckets = counts_.size() / 2;
  for (std::size_t row = 0; row < scores.size(); ++row) {
    const auto bucket =
        std::min(buckets - 1, static_cast<std::size_t>(scores[row] * static_cast<float>(buckets)));
    counts_[2 * bucket + static_cast<std::size_t>(LabelAt(labels, row))] +=
        weights.empty() ? 1.0 : weights[row];
  }
  return {};
}

void Auc::AddCounts(std::span<const double> counts) {
  Require(counts.size() == counts_.size(), "counts of as many buckets");
  for (std::size_t i = 0; i < counts.size(); ++i) {
    counts_[i] += counts[i];
  }
}

double Auc::value() const {
  double negatives = 0;  // of the buckets below
  double positives = 0;
  double wins = 0;
  for (std::size_t i = 0; i < counts_.size(); i += 2) {
    wins += counts_[i + 1] * (negatives + counts_[i] / 2);
    negatives += counts_[i];
    positives += counts_[i + 1];
  }
  return negatives > 0 && positives > 0 ? wins / (negatives * positives)
                                        : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace cohort::nn
