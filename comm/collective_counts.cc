#include "collective_counts.h"

#include <algorithm>
#include <cctype>
#include <string>

namespace cohort {

void CollectiveCounts::Count(OperationKind kind, Algorithm algorithm, std::uint64_t bytes) {
  const auto k = static_cast<std::size_t>(kind);
  const auto a = static_cast<std::size_t>(algorithm);
  if (k >= series_.size()) {
    series_.resize(k + 1);
  }
  if (a >= series_[k].size()) {
    series_[k].resize(a + 1);
  }
  Series& series = series_[k][a];
  if (series.operations == nullptr) {
    series = SeriesOf(kind, algorithm);
  }
  series.operations->Add();
  if (series.bytes != nullptr) {
    series.bytes->Add(static_cast<double>(bytes));
  }
}

CollectiveCounts::Series CollectiveCounts::SeriesOf(OperationKind kind, Algorithm algorithm) const {
  std::string name(OperationKindName(kind));
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const Metrics::Labels labels = {{"algorithm", std::string(AlgorithmName(algorithm))}};
  Series series;
  series.operations =
      &metrics_->AddCounter("cohort_" + name + "_operations_total",
                            std::string(OperationKindName(kind)) + " operations done.", labels);
  if (kind != OperationKind::kBarrier && kind != OperationKind::kSplit) {
    series.bytes =
        &metrics_->AddCounter("cohort_" + name + "_bytes_total",
                              "Bytes of the buffers of " + std::string(OperationKindName(kind)) +
                                  " operations done, all ranks' parts together.",
                              labels);
  }
  return series;
}

}  // namespace cohort
