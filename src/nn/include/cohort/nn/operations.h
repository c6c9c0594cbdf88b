// Operations without parameters. Each records itself on its operands' tape and returns the result.
//
// Images are [batch, height, width, channels]. A batch of 0 is allowed everywhere. Operands whose
// shapes do not fit are a ContractError that names the operation and the shapes.

#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include <cohort/nn/tape.h>

namespace cohort::nn {

// x in another type (float32, bfloat16, float16), rounded to nearest even; x itself if it is of
// that type. Operations that say nothing of types take any, and give float32.
Variable Cast(const Variable& x, DType type);

// Of x's type, as are Reshape, Flatten and Dropout.
Variable Relu(const Variable& x);
// The tanh form: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), which differs from x Phi(x) by less
// than 5e-4. Hendrycks, Gimpel, "Gaussian error linear units", 2016.
Variable Gelu(const Variable& x);
Variable Sigmoid(const Variable& x);
Variable Tanh(const Variable& x);
Variable Activate(const Variable& x, Activation f);
Variable Softmax(const Variable& x);  // over the last axis

Variable Add(const Variable& a, const Variable& b);  // equal shapes; float32 where types differ
Variable Multiply(const Variable& a, const Variable& b);  // equal shapes
// Joined along `axis` (negative: from the end); the other axes are equal.
Variable Concat(const std::vector<Variable>& parts, int axis);
Variable Sum(const Variable& x, int axis);  // which is gone then; negative: from the end
Variable Reshape(const Variable& x, const Shape& shape);
Variable Flatten(const Variable& x);  // [batch, everything else]

// first [batch, width] and rest [batch, features, width]: of each example the first one as it is,
// and behind it the dot products of all pairs i > j of these 1 + features vectors, at
// i (i - 1) / 2 + j of [batch, width + features (features + 1) / 2]. Naumov et al., "Deep Learning
// Recommendation Model for Personalization and Recommendation Systems", 2019. Neither operand is
// copied.
Variable DotInteraction(const Variable& first, const Variable& rest);

// qkv [batch, length, 3 * width] holds the queries, keys and values of each place, each `heads`
// vectors side by side; y [batch, length, width] is softmax(q k^T / sqrt(width / heads)) v for each
// example and head. Scores are never in memory as a whole. `causal`: a place attends to itself and
// those before it.
// Of the type that the tape's products take, as qkv is then made.
Variable Attention(const Variable& qkv, std::int64_t heads, bool causal);

enum class Padding {
  kSame,   // as much (zeros; for pooling, nothing) as makes the output ceil(input / stride); the
           // odd one goes after
  kValid,  // none
  kSymmetric,  // (window - 1) / 2 before and after, as torchvision's models pad
};

struct Pool2DOptions {
  std::array<std::int64_t, 2> window = {2, 2};
  std::array<std::int64_t, 2> stride = {2, 2};
  Padding padding = Padding::kValid;
};
// Pools give x's type, but for the last, which gives float32.
// Of equal elements of a window the first takes the gradient; a NaN is larger than all.
Variable MaxPool2D(const Variable& x, const Pool2DOptions& options = {});
// The mean over the part of each window that lies inside the image.
Variable AvgPool2D(const Variable& x, const Pool2DOptions& options = {});
Variable GlobalAvgPool2D(const Variable& x);  // [batch, channels]

// Zeroes a share `rate` of the elements in training and scales the others by 1 / (1 - rate). Which
// ones is a function of the tape's seed and step, `name`, and the element's place in the global
// batch (TapeOptions::first_example): the same however the batch is split over replicas.
Variable Dropout(const Variable& x, float rate, const std::string& name);

}  // namespace cohort::nn
