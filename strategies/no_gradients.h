// NoGradients: what the step functions of Evaluate get for gradients. Whatever they ask of it is a
// ContractError.
//
// Thread rules: none; it has no state.

#pragma once

#include <span>

#include <cohort/core/status.h>
#include <cohort/optim/gradient_sink.h>

namespace cohort {

class NoGradients final : public GradientSink {
 public:
  std::span<float> Accumulator(int /*parameter*/) override { Refuse(); }
  void AddSlices(int /*parameter*/, const IndexedSlices& /*slices*/) override { Refuse(); }
  void Ready(int /*parameter*/) override { Refuse(); }
  float loss_seed() const override { Refuse(); }
  void SetWeight(double /*weight*/) override { Refuse(); }

 private:
  [[noreturn]] static void Refuse() { throw ContractError("no gradients in Evaluate"); }
};

}  // namespace cohort
