// IntegerModel: a model whose gradients are small integers, so that their sums are exact in float
// in whatever order they are added, and strategies can be compared with ==.
//
// Example i contributes x[i][k] * q(value) to an element's gradient, where q rounds the parameter's
// present value to an integer: what one step computes depends on what the last one left. One
// parameter gets its gradient as rows, one is not trainable, one is larger than a chunk. Each
// replica finishes its parameters in another order, and all reads and writes happen on the
// replica's stream. Where the replica's memory is a device's, values and gradients go through the
// host's.
//
// TrainOnOneThread is the oracle: plain loops over global batches, no strategy.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <cohort/data/dataset.h>
#include <cohort/optim/optimizer.h>
#include <cohort/optim/parameter_set.h>
#include <cohort/strategies/strategy.h>

namespace cohort::testing {

// Declared and built. `seed` moves the initial values.
ParameterSet IntegerParameters(int seed = 0);

// Features "x" float32[4] of integers, "id" int64, and "tokens" int64 (1 to 3, some 0).
data::Dataset IntegerData(std::int64_t examples, std::int64_t global_batch,
                          bool drop_remainder = false);

// Loss: the sum of an integer per example. One metric: how many ids are even. `by_tokens`: the
// weight is the number of tokens instead of examples, and an example counts as many times.
StepFn IntegerStep(bool by_tokens = false);

struct Trained {
  std::vector<float> values;                 // ParameterSet::all()
  std::vector<std::vector<float>> slots;     // in the optimizer's order
  std::vector<double> losses;                // by step
  std::vector<std::vector<double>> metrics;  // by step
  std::vector<double> weights;
  std::int64_t step = 0;
  friend bool operator==(const Trained&, const Trained&) = default;
};

Trained TrainOnOneThread(const data::Dataset& dataset, const Optimizer& optimizer, int epochs,
                         bool by_tokens = false);
// The same through a strategy: Bind, Distribute, Step until the epochs are over. Errors throw.
Trained TrainWith(Strategy& strategy, const data::Dataset& dataset,
                  std::unique_ptr<Optimizer> optimizer, int epochs, const StepFn& fn);

}  // namespace cohort::testing
