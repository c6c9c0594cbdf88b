// Plans: heavy operations prepared for one shape, and the operands of kernels with many of them.
//
// A plan owns what its preparation made (compiled code, scratch memory). It belongs to the Kernels
// that made it, lives as long, and is run on that Kernels' stream only.

#pragma once

#include <compare>
#include <cstdint>
#include <span>

#include <cohort/core/tensor.h>
#include <cohort/device/elements.h>
#include <cohort/device/stream.h>

namespace cohort {

enum class Activation {
  kNone,
  kRelu,
  kGelu,  // the tanh form: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
  kSigmoid,
  kTanh,
};

// c[m,n] = activation(op(a)[m,k] op(b)[k,n] + bias[n]); op transposes what lies in memory. Only
// kNone, kRelu and kGelu. Products are added up in float32, whatever the types.
struct MatMulSpec {
  std::int64_t m = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
  bool transpose_a = false;
  bool transpose_b = false;
  bool bias = false;
  Activation activation = Activation::kNone;
  // Of kGelu: what it was given is written to Run's `before`.
  bool keeps_before = false;
  // kGelu: c = (op(a) op(b)) * gelu'(before) instead; no bias, no activation.
  Activation gradient_of = Activation::kNone;
  DType type = DType::kFloat32;  // of a and b
  DType out = DType::kFloat32;   // of c, bias and before: float32, or `type`
  friend auto operator<=>(const MatMulSpec&, const MatMulSpec&) = default;
};

class MatMulPlan {
 public:
  virtual ~MatMulPlan() = default;
  // Of the types that the spec says. `before` [m,n]: written (keeps_before) or read (gradient_of).
  virtual void Run(Stream& stream, const void* a, const void* b, const void* bias, void* c,
                   void* before) = 0;
  void Run(Stream& stream, const void* a, const void* b, const void* bias, void* c) {
    Run(stream, a, b, bias, c, nullptr);
  }
};

// x [batch, height, width, in], kernel [kernel_h, kernel_w, in / groups, out], y [batch,
// out_height, out_width, out]. Output channel o uses the input channels of group o / (out /
// groups).
struct ConvSpec {
  std::int64_t batch = 0, height = 0, width = 0, in = 0;
  std::int64_t kernel_h = 0, kernel_w = 0, out = 0;
  std::int64_t stride_h = 1, stride_w = 1;
  std::int64_t pad_top = 0, pad_bottom = 0, pad_left = 0, pad_right = 0;
  std::int64_t groups = 1;
  bool bias = false;
  Activation activation = Activation::kNone;  // kNone or kRelu
  DType type = DType::kFloat32;               // of all but dkernel, which is float32
  friend auto operator<=>(const ConvSpec&, const ConvSpec&) = default;

  std::int64_t out_height() const {
    return (height + pad_top + pad_bottom - kernel_h) / stride_h + 1;
  }
  std::int64_t out_width() const {
    return (width + pad_left + pad_right - kernel_w) / stride_w + 1;
  }
};

class ConvPlan {
 public:
  virtual ~ConvPlan() = default;
  virtual void Forward(Stream& stream, const void* x, const void* kernel, const void* bias,
                       void* y) = 0;
  // `dy` is the gradient before the activation.
  virtual void BackwardKernel(Stream& stream, const void* x, const void* dy, float* dkernel) = 0;
  virtual void BackwardInput(Stream& stream, const void* kernel, const void* dy, void* dx) = 0;
};

// Windows over x [batch, height, width, channels]. Averages leave padding out of the count; sums
// are float32.
struct PoolSpec {
  bool max = true;
  std::int64_t batch = 0, height = 0, width = 0, channels = 0;
  std::int64_t window_h = 0, window_w = 0;
  std::int64_t stride_h = 1, stride_w = 1;
  std::int64_t pad_top = 0, pad_bottom = 0, pad_left = 0, pad_right = 0;
  DType type = DType::kFloat32;  // of all but the workspace
  friend auto operator<=>(const PoolSpec&, const PoolSpec&) = default;

  std::int64_t out_height() const {
    return (height + pad_top + pad_bottom - window_h) / stride_h + 1;
  }
  std::int64_t out_width() const {
    return (width + pad_left + pad_right - window_w) / stride_w + 1;
  }
};

class PoolPlan {
 public:
  virtual ~PoolPlan() = default;
  // Bytes that Forward writes for Backward: which element of a window was the largest.
  virtual std::int64_t workspace_bytes() const = 0;
  virtual void Forward(Stream& stream, const void* x, void* y, std::byte* workspace) = 0;
  virtual void Backward(Stream& stream, const void* dy, const std::byte* workspace, void* dx) = 0;
};

// Softmax(q k^T / sqrt(head_size)) v for each example and head. qkv [batch, length, 3, heads,
// head_size] has an example's queries, keys and values; y [batch, length, heads, head_size].
// `causal`: a place attends to itself and those before it.
struct AttentionSpec {
  std::int64_t batch = 0, length = 0, heads = 0, head_size = 0;
  bool causal = false;
  DType type = DType::kFloat32;  // of all but what is saved
  friend auto operator<=>(const AttentionSpec&, const AttentionSpec&) = default;
};

class AttentionPlan {
 public:
  virtual ~AttentionPlan() = default;
  // Floats that Forward writes for Backward: at least log(sum of exp) of each row of scores, never
  // the scores themselves.
  virtual std::int64_t saved_elements() const = 0;
  virtual void Forward(Stream& stream, const void* qkv, void* y, float* saved) = 0;
  virtual void Backward(Stream& stream, const void* qkv, const void* y, const float* saved,
                        const void* dy, void* dqkv) = 0;
};

struct DropoutSpec {
  float rate = 0;
  std::uint64_t key = 0;    // of Philox: the seed and the layer
  std::uint64_t step = 0;   // high half of the counter
  std::uint64_t first = 0;  // low half of the first element's counter
};

// y = f((x - mean) * inverse_deviation * scale + offset + added). Layer norm: mean and
// inverse_deviation are outputs, one per row, with `epsilon`; x is float32, y may be of 16 bits,
// and neither f nor `added` is there. Batch norm: mean and inverse_deviation are inputs, one per
// column; x, y and `added` are of one type.
struct NormArguments {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  float epsilon = 0;
  ConstElements x;
  std::span<const float> scale, offset;
  std::span<float> mean, inverse_deviation;
  Elements y;
  ConstElements added;                        // or empty
  Activation activation = Activation::kNone;  // or kRelu
};

struct NormBackwardArguments {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  ConstElements x;
  std::span<const float> scale, mean, inverse_deviation;
  Elements dy;                       // of layer norm: as its y
  Elements dx;                       // empty: not wanted
  std::span<float> dscale, doffset;  // of layer norm; batch norm's are in its sums
  // Batch norm's f. Of kRelu: dy counts where y > 0; without `y`, where that was for what `offset`
  // and the others make of x.
  Activation activation = Activation::kNone;
  std::span<const float> offset;
  ConstElements y;
};

struct MomentsArguments {
  std::span<const float> mean, square_sums;  // SumSquaresRows around the mean
  std::span<const float> count;              // one element
  float epsilon = 0;
  float momentum = 0;  // running = momentum * running + (1 - momentum) * batch
  std::span<float> inverse_deviation, running_mean, running_variance;
};

// Labels are class numbers (`classes` elements) or rows as wide as x (`targets`); one of the two.
struct LossArguments {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  ConstElements x;  // logits or predictions; of 16 bits for SoftmaxCrossEntropy only
  const void* classes = nullptr;
  bool wide_classes = true;  // int64, otherwise int32
  std::span<const float> targets;
  std::span<const float> weights;  // one per row, or empty
  std::int64_t classes_end = 0;    // of SoftmaxCrossEntropy: labels are less; 0: than columns
};

}  // namespace cohort
