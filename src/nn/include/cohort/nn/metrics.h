// Metrics, as sums: what each replica and each step saw is added up, and divided once at the end.
//
// Inputs are host tensors. Labels are int32, int64 or uint8, one for each row; one that is not
// below the number of classes is OutOfRange, naming its row. `weights` is one number for each row;
// empty means 1 each. Shapes that do not fit are the caller's breach (ContractError).
//
// Thread rules: functions from any thread; an Auc from one at a time.

#pragma once

#include <span>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/core/tensor.h>

namespace cohort::nn {

struct WeightedSum {
  double sum = 0;
  double weight = 0;

  double mean() const { return weight > 0 ? sum / weight : 0; }
  WeightedSum& operator+=(const WeightedSum& other) {
    sum += other.sum;
    weight += other.weight;
    return *this;
  }
};

// Rows of `scores` ([rows, classes], float32) whose largest score is the label's. Of equal scores
// the first counts as the larger; NaN is larger than any number, and never right.
Result<WeightedSum> Accuracy(const Tensor& scores, const Tensor& labels,
                             std::span<const float> weights = {});
// Rows whose label is among the k largest scores. ContractError unless k >= 1.
Result<WeightedSum> TopKAccuracy(const Tensor& scores, const Tensor& labels, int k,
                                 std::span<const float> weights = {});
WeightedSum Mean(std::span<const float> values, std::span<const float> weights = {});

// Area under the ROC curve, bucketed: scores in [0, 1] are counted in equal buckets, two rows of
// one bucket count as equal (half a win). So it is exact but for pairs of a positive and a negative
// that share a bucket; with b buckets and evenly spread scores the error is below 1 / (2 b).
class Auc {
 public:
  explicit Auc(int buckets = 1000);

  // Labels 0 and 1. InvalidArgument for a score outside of [0, 1] or NaN, OutOfRange for another
  // label: both name the row, and nothing is counted.
  Status Add(std::span<const float> scores, const Tensor& labels,
             std::span<const float> weights = {});

  // The counts, 2 * buckets numbers: negatives and positives of each bucket in turn. Sums of the
  // counts of parts, or these scaled, are the counts of the whole: they can travel as a step's
  // metric_sums, and come back as weighted means.
  const std::vector<double>& counts() const { return counts_; }
  void AddCounts(std::span<const double> counts);  // as many as counts() has

  double value() const;  // NaN unless both kinds of label were seen

 private:
  std::vector<double> counts_;
};

}  // namespace cohort::nn
