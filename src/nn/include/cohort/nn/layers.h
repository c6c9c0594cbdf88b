// Layers: operations with parameters. A layer declares its parameters in a ParameterSet when it is
// made, and is applied to a variable as often as wanted; it holds indices only, no values.
//
// Names: a layer "conv1" has parameters "conv1/kernel", "conv1/bias", ... An initialiser that is
// left empty gets the layer's default, drawn from (seed, parameter name).
//
// Thread rules: values; apply one from any number of replicas at the same time.

#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include <cohort/nn/operations.h>
#include <cohort/nn/tape.h>
#include <cohort/optim/parameter_set.h>

namespace cohort::nn {

struct DenseOptions {
  Activation activation = Activation::kNone;
  bool bias = true;
  Initializer kernel_initializer;  // default: Glorot uniform
  Initializer bias_initializer;    // default: 0
  std::uint64_t seed = 0;
};

class FeedForward;

// y[..., out] = activation(x[..., in] kernel[in, out] + bias[out]).
class Dense {
 public:
  Dense(ParameterSet& parameters, const std::string& name, std::int64_t in, std::int64_t out,
        const DenseOptions& options = {});
  Variable operator()(const Variable& x) const;

 private:
  std::string name_;
  std::int64_t in_, out_;
  Activation activation_;
  int kernel_ = -1, bias_ = -1;
  friend class FeedForward;
};

// down(gelu(up(x))), of two dense layers, as one operation: gelu and its gradient are computed with
// the products before them, where the device can.
class FeedForward {
 public:
  // The options' activations do not count. Parameters "up/kernel", ..., under the layers' names.
  FeedForward(ParameterSet& parameters, const std::string& up, const std::string& down,
              std::int64_t width, std::int64_t hidden, const DenseOptions& up_options = {},
              const DenseOptions& down_options = {});
  Variable operator()(const Variable& x) const;

 private:
  Dense up_, down_;
};

struct Conv2DOptions {
  std::array<std::int64_t, 2> kernel = {3, 3};
  std::array<std::int64_t, 2> stride = {1, 1};
  Padding padding = Padding::kSame;
  std::int64_t groups = 1;
  Activation activation = Activation::kNone;
  bool bias = true;
  Initializer kernel_initializer;  // default: Glorot uniform
  Initializer bias_initializer;    // default: 0
  std::uint64_t seed = 0;
};

// x [batch, height, width, in], kernel [kernel_h, kernel_w, in / groups, out].
class Conv2D {
 public:
  Conv2D(ParameterSet& parameters, const std::string& name, std::int64_t in, std::int64_t out,
         const Conv2DOptions& options = {});
  Variable operator()(const Variable& x) const;

 private:
  std::string name_;
  std::int64_t in_, out_;
  Conv2DOptions options_;
  int kernel_ = -1, bias_ = -1;
};

struct BatchNormOptions {
  float momentum = 0.99F;  // of the running averages
  float epsilon = 1e-3F;
  // Replaces a span by its sum over all replicas. Called on the stream, the same number of times
  // and in the same order on every replica, also on those with an empty batch. Empty: each replica
  // normalises with its own batch.
  std::function<Status(std::span<float>)> sum_over_replicas;
  Activation activation = Activation::kNone;  // kNone or kRelu, with it in one pass
  Initializer scale_initializer;              // default: 1
};

// Over all axes but the last. In training the statistics are the batch's; otherwise the running
// averages, which are parameters that are not trained ("name/mean", "name/variance"). Of x's type.
class BatchNorm {
 public:
  BatchNorm(ParameterSet& parameters, const std::string& name, std::int64_t channels,
            BatchNormOptions options = {});
  Variable operator()(const Variable& x) const;
  // activation(norm(x) + added), which is of x's shape: the end of a residual block.
  Variable operator()(const Variable& x, const Variable& added) const;

 private:
  Variable Apply(const Variable& x, const Variable* added) const;

  std::string name_;
  std::int64_t channels_;
  BatchNormOptions options_;
  int scale_, offset_, mean_, variance_;
};

// Over the last axis. Of the type that the tape's products take.
class LayerNorm {
 public:
  LayerNorm(ParameterSet& parameters, const std::string& name, std::int64_t width,
            float epsilon = 1e-5F);
  Variable operator()(const Variable& x) const;

 private:
  std::string name_;
  std::int64_t width_;
  float epsilon_;
  int scale_, offset_;
};

struct EmbeddingOptions {
  // True: the gradient goes to the sink as indexed slices, one row per id; false: as a dense table.
  bool sparse_gradient = false;
  Initializer initializer;  // default: uniform in [-0.05, 0.05)
  std::uint64_t seed = 0;
  // Set, even to TableSpec(): the rows are a sparse table, not a parameter. Rows are made as ids
  // come up, only those of a batch are updated, and under parameter servers the servers hold them.
  // The layer fills in the name ("name/table"), dim, and, where it is 0, the seed; first values are
  // table->initializer's; `initializer` and `sparse_gradient` do not count.
  std::optional<TableSpec> table;
};

// Rows of a table [rows, width] for ids of int64 or int32: [..., width]. An id out of range is
// InvalidArgument from Finish. A sparse table may have 0 for `rows`: then all ids are in range.
class Embedding {
 public:
  Embedding(ParameterSet& parameters, const std::string& name, std::int64_t rows,
            std::int64_t width, const EmbeddingOptions& options = {});
  Variable operator()(Tape& tape, const Tensor& ids) const;
  // x [..., width] times the transposed table: [..., rows], an output layer that shares the
  // embedding's values. Press, Wolf, "Using the output embedding to improve language models", 2017.
  // ContractError for a sparse table or gradient.
  Variable Scores(const Variable& x) const;
  // The mean softmax cross-entropy of Scores(x) and labels, one for each place of x. In 16 bits
  // scores are computed for a multiple of 8 rows, the further ones at -infinity: tensor cores take
  // others at a fraction of their speed. A label of such a row makes the loss infinite.
  Variable ScoresLoss(const Variable& x, const Tensor& labels) const;

 private:
  Variable ScoresOf(const Variable& x, std::int64_t columns) const;
  Variable LookUp(Tape& tape, const Tensor& ids) const;
  Variable LookUpOnce(Tape& tape, std::span<const std::uint64_t> wanted, Status status,
                      const Shape& shape) const;

  std::string name_;
  std::int64_t rows_, width_;
  bool sparse_;
  bool is_table_;
  int table_;  // the parameter, or the table
};

struct PositionEmbeddingOptions {
  Initializer initializer;  // default: uniform in [-0.05, 0.05)
  std::uint64_t seed = 0;
};

// y[b, i, :] = x[b, i, :] + table[i, :] for x [batch, up to length, width].
class PositionEmbedding {
 public:
  PositionEmbedding(ParameterSet& parameters, const std::string& name, std::int64_t length,
                    std::int64_t width, const PositionEmbeddingOptions& options = {});
  Variable operator()(const Variable& x) const;

 private:
  std::string name_;
  std::int64_t length_, width_;
  int table_;
};

struct SelfAttentionOptions {
  bool causal = true;  // a place attends to itself and those before it
  DenseOptions qkv;    // of the layer "name/qkv" in front: queries, keys and values
  DenseOptions out;    // of the layer "name/out" behind
};

// Multi-head self-attention over x [batch, length, width]; `heads` divides width. Vaswani et al.,
// "Attention is all you need", NIPS 2017.
class SelfAttention {
 public:
  SelfAttention(ParameterSet& parameters, const std::string& name, std::int64_t width,
                std::int64_t heads, const SelfAttentionOptions& options = {});
  Variable operator()(const Variable& x) const;

 private:
  std::int64_t heads_;
  bool causal_;
  Dense qkv_, out_;
};

}  // namespace cohort::nn
