// GradientSink: where a backward pass puts its gradients. All that a model, or a user's own code,
// must know of a strategy.
//
// For every trainable parameter, in any order, once per backward pass: write the gradient into
// Accumulator(p) (or hand rows to AddSlices), then call Ready(p). Ready may start communication
// while the pass goes on. A gradient is the SUM over the replica's examples, scaled by loss_seed();
// the strategy divides by the weight of the global batch.
//
// Thread rules: one sink per replica, used by that replica's thread.

#pragma once

#include <cstdint>
#include <span>

#include <cohort/core/tensor.h>

namespace cohort {

// Rows of a parameter: row indices[i] of the first axis gets values[i, :]. Indices may repeat;
// repeated rows add up.
struct IndexedSlices {
  std::span<const std::int64_t> indices;
  std::span<const float> values;  // indices.size() rows, row-major
};

// Gradients of rows of a table (ParameterSet::tables): row ids[i] gets values[i, :]. Ids may
// repeat; repeated rows add up, in their order.
struct RowGradients {
  int table = 0;
  std::span<const std::uint64_t> ids;
  std::span<const float> values;  // [ids, dim]
  // Of how many gradients each is the sum, which is at least 1; empty: 1 each.
  std::span<const std::uint32_t> counts = {};
};

class GradientSink {
 public:
  virtual ~GradientSink() = default;

  // Where the gradient of `parameter` is to be written: parameter's elements, zeroed at the start
  // of the pass.
  virtual std::span<float> Accumulator(int parameter) = 0;
  // Adds rows to it, on the replica's stream: they must live until the stream has run this.
  virtual void AddSlices(int parameter, const IndexedSlices& slices) = 0;
  // Rows of a table. Read before it returns, so after the stream has written them. As often as
  // wanted.
  virtual void AddRows(const RowGradients& /*gradients*/) {
    throw ContractError("AddRows: this sink is of no model with tables");
  }
  void AddRows(int table, std::span<const std::uint64_t> ids, std::span<const float> values) {
    AddRows({.table = table, .ids = ids, .values = values});
  }
  // Exactly once per trainable parameter and pass, after the writes were put on the replica's
  // stream.
  virtual void Ready(int parameter) = 0;
  // So many bytes of gradients are worth Ready while the rest of the pass is still to be put on the
  // stream: what is done with them begins then. 0: nothing is gained by that.
  virtual std::int64_t early_bytes() const { return 0; }

  // d(objective)/d(mean loss over this replica's examples), from which the backward pass starts:
  // the replica's weight, so that gradients come out as sums over examples; 1 under the DDP- and
  // TF-compatible scalings.
  virtual float loss_seed() const = 0;

  // The replica's weight, where it is not its number of examples: tokens, sample weights. Before
  // loss_seed() and before the first Ready; the step function must return the same.
  virtual void SetWeight(double /*weight*/) {
    throw ContractError("SetWeight: the weight of this sink is its number of examples");
  }
};

}  // namespace cohort
