// Gradients of operations on a tape, against finite differences.
#pragma once

#include <cohort/nn/tape.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace cohort::testing {

// A sink that keeps gradients, and the order in which they became ready. Fails the test where its
// contract is broken: a parameter ready twice, or one that is not trained.
class CollectingSink final : public GradientSink {
 public:
  explicit CollectingSink(const ParameterSet& parameters, float loss_seed = 1.0F);

  std::span<float> Accumulator(int parameter) override;
  void AddSlices(int parameter, const IndexedSlices& slices) override;
  void Ready(int parameter) override;
  float loss_seed() const override { return loss_seed_; }

  const std::vector<float>& gradient(int parameter) const {
    return gradients_.at(static_cast<std::size_t>(parameter));
  }
  const std::vector<int>& ready() const { return ready_; }
  int slices() const { return slices_; }  // calls of AddSlices

 private:
  const ParameterSet& parameters_;
  const float loss_seed_;
  std::vector<std::vector<float>> gradients_;
  std::vector<int> ready_;
  int slices_ = 0;
};

// Uniform in [low, high), a function of the seed.
Tensor RandomTensor(const Shape& shape, std::uint64_t seed, float low = -1.0F, float high = 1.0F);
// Distinct multiples of `step` around 0 in random order: no two close, none at a kink of Relu.
Tensor DistinctTensor(const Shape& shape, std::uint64_t seed, float step = 0.1F);

// sum of coefficient * element, with coefficients in [0.5, 1.5) drawn from the seed.
nn::Variable Dot(const nn::Variable& x, std::uint64_t seed);

struct GradientCheck {
  double epsilon = 5e-3;
  double tolerance = 2e-3;  // of the difference, relative to max(1, |gradient|)
  nn::TapeOptions tape;
};
using Forward = std::function<nn::Variable(nn::Tape& tape, const std::vector<nn::Variable>&)>;

// Expects the gradients of Dot(forward(inputs)) by every element of every input and of every
// trainable parameter to be what central differences say. `parameters` are as before when it
// returns, but for what `forward` itself changes.
void ExpectGradients(ParameterSet& parameters, const std::vector<Tensor>& inputs,
                     const Forward& forward, const GradientCheck& check = {});

}  // namespace cohort::testing
