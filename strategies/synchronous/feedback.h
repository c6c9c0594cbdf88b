// Feedback: what a lossy exchange could not send this time, kept for the next.
//
// Kept per unit of weight, so that a residual of a full batch does not swamp a short one; and by
// parameter, so that other buckets find it.
//
// Thread rules: those of a hook. Different parameters may be used at once.

#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include <cohort/strategies/bucket_hook.h>

namespace cohort {

class Feedback {
 public:
  // Off: Add does nothing, and nothing is kept.
  void Bind(const ParameterSet& parameters, bool on) {
    residuals_.assign(on ? parameters.all().size() : 0, 0.0F);
  }
  // The residual of a part's parameter; empty where feedback is off.
  std::span<float> Of(const BucketPart& part) {
    return residuals_.empty() ? std::span<float>()
                              : std::span(residuals_)
                                    .subspan(static_cast<std::size_t>(part.offset),
                                             static_cast<std::size_t>(part.shape.elements()));
  }
  // values += residual * weight.
  void Add(const BucketPart& part, double weight, std::span<float> values) {
    const std::span<float> residual = Of(part);
    const auto factor = static_cast<float>(weight);
    for (std::size_t i = 0; i < residual.size(); ++i) {
      values[i] += residual[i] * factor;
    }
  }

 private:
  std::vector<float> residuals_;  // as ParameterSet::all()
};

}  // namespace cohort
