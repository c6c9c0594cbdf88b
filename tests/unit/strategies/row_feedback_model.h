// What a worker's feedback should make of its pushes, in the plainest way: without a bound, and for
// numbers of which all arithmetic but the rounding is exact.

#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "parameter_server/frames/row_codec.h"

namespace cohort::ps {

inline std::vector<float> Rounded(TableSpec::Wire wire, const std::vector<float>& row) {
  std::vector<std::byte> bytes(EncodedBytes(wire, row.size(), 1));
  EXPECT_FALSE(EncodeRows(wire, row.size(), row, bytes).has_value());
  std::vector<float> back(row.size());
  DecodeRows(wire, row.size(), bytes, back);
  return back;
}

// Gradients of one push, by id, repeated ids added up in the order of the input.
inline std::map<std::uint64_t, std::vector<float>> SumsById(std::span<const std::uint64_t> ids,
                                                            std::span<const float> gradients) {
  const std::size_t dim = gradients.size() / ids.size();
  std::map<std::uint64_t, std::vector<float>> sums;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    std::vector<float>& sum = sums.try_emplace(ids[i], std::vector<float>(dim, 0)).first->second;
    for (std::size_t k = 0; k < dim; ++k) {
      sum[k] += gradients[i * dim + k];
    }
  }
  return sums;
}

struct FeedbackModel {
  TableSpec::Wire wire;
  std::map<std::uint64_t, std::vector<float>> kept{};  // times the scale

  // What arrives of a gradient that the server multiplies by `scale`. `counts`: it is applied.
  std::vector<float> Push(std::uint64_t id, const std::vector<float>& gradient, float scale,
                          bool counts = true) {
    const std::vector<float> before =
        kept.contains(id) ? kept[id] : std::vector<float>(gradient.size(), 0);
    std::vector<float> sum(gradient.size());
    for (std::size_t k = 0; k < sum.size(); ++k) {
      sum[k] = gradient[k] + before[k] / scale;
    }
    const std::vector<float> arrives = Rounded(wire, sum);
    for (std::size_t k = 0; counts && k < sum.size(); ++k) {
      kept.try_emplace(id, std::vector<float>(sum.size(), 0)).first->second[k] =
          (sum[k] - arrives[k]) * scale;
    }
    return arrives;
  }
};

}  // namespace cohort::ps
