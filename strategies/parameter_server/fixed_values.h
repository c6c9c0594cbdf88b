// FixedValues: the values of a worker that no gradient trains (running averages): its step function
// writes them itself, servers get them in the gradients' place, and a step that does not count must
// not have changed them.
//
// Each call costs a copy of these values; a model that has none costs a look at its parameters.
//
// Thread rules: one thread, while no step function runs.

#pragma once

#include <span>
#include <vector>

#include <cohort/optim/parameter_set.h>

namespace cohort::ps {

class FixedValues {
 public:
  // Outlives this. `values` and `gradients` below are laid out as its all().
  explicit FixedValues(const ParameterSet& parameters);

  // As they are before a pass.
  void Keep(std::span<const float> values);
  // As they were then.
  void Restore(std::span<float> values) const;
  // What they are now, or by how much they have moved since Keep, where gradients would be.
  void Put(std::span<const float> values, std::span<float> gradients, bool difference) const;

 private:
  const ParameterSet& parameters_;
  std::vector<float> kept_;  // one behind the other
};

}  // namespace cohort::ps
