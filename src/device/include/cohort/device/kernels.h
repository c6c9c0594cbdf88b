// Kernels: the arithmetic of a device, as one table.
//
// Every call puts work on a stream and returns; what it computes is there once the stream has got
// so far. Operands are memory of the device, dense, row-major, float32, and must stay valid until
// then; what is given as Elements may be of 16 bits (elements.h). A call overwrites its outputs
// unless its name says otherwise. An output may be an input where the comment says so.
//
// Plans (plan.h) are the heavy operations: made once for a shape, kept here, run every step.
//
// Of a device that does not share the host's memory, spans are addresses there: the table computes
// with them, and nobody else may follow them.
//
// Thread rules: one Kernels belongs to one stream, and is used by the thread that feeds it. What
// depends on data (a label out of range) fails the stream; a plan that the device cannot make is a
// ContractError.

#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include <cohort/device/plan.h>
#include <cohort/device/stream.h>
#include <cohort/device/update.h>

namespace cohort {

// Rows of `columns` elements each.
struct RowsOf {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
};

// An axis with those before it and behind it.
struct MiddleOf {
  std::int64_t outer = 0;
  std::int64_t middle = 0;
  std::int64_t inner = 0;
};

// Element (r, c) of a matrix inside a wider one: rows `stride` elements apart.
struct Strided {
  float* data = nullptr;
  std::int64_t stride = 0;
};

// Integer labels or ids, 32 or 64 bits wide.
struct Indices {
  const void* data = nullptr;
  std::int64_t size = 0;
  bool wide = true;  // int64
  std::int64_t At(std::int64_t i) const {
    return wide ? static_cast<const std::int64_t*>(data)[i]
                : static_cast<const std::int32_t*>(data)[i];
  }
};

class Kernels {
 public:
  virtual ~Kernels() = default;

  virtual int threads() const = 0;

  virtual MatMulPlan& MatMul(const MatMulSpec& spec) = 0;
  virtual ConvPlan& Conv(const ConvSpec& spec) = 0;
  virtual PoolPlan& Pool(const PoolSpec& spec) = 0;
  virtual AttentionPlan& Attention(const AttentionSpec& /*spec*/) {
    throw ContractError("this device has no attention");
  }

  // --- element by element; an output may be any input
  virtual void Fill(Stream& stream, FloatSpan y, float value) = 0;
  // Between any two types; of one type, y may be x.
  virtual void Copy(Stream& stream, ConstElements x, Elements y) = 0;
  // All of one type, or a and y of float32 and b of 16 bits.
  virtual void Add(Stream& stream, ConstElements a, ConstElements b, Elements y) = 0;
  virtual void Multiply(Stream& stream, ConstFloatSpan a, ConstFloatSpan b, FloatSpan y) = 0;
  // Here and in the next two, all of one type.
  virtual void Activate(Stream& stream, Activation f, ConstElements x, Elements y) = 0;
  // dx = dy * f'(x). `x` may be empty where f' is a function of y (all but gelu); `y` may be empty
  // for gelu.
  virtual void ActivateBackward(Stream& stream, Activation f, ConstElements x, ConstElements y,
                                ConstElements dy, Elements dx) = 0;
  // y = keep(i) ? x / (1 - rate) : 0, where keep(i) is drawn by Philox(key) at counter
  // (first + i, step). Backwards is the same call on dy.
  virtual void Dropout(Stream& stream, const DropoutSpec& spec, ConstElements x, Elements y) = 0;

  // What travels as 16 bits: y = x + weight * residual, rounded. The residual becomes what that
  // lost, by unit of weight, and 0 where that is not finite; it stays with a weight of 0. Empty:
  // y = x, rounded. The same bits on every device, but for NaNs.
  virtual void Compress(Stream& stream, ConstFloatSpan x, double weight, FloatSpan residual,
                        Elements y) = 0;

  // --- rows and columns
  virtual void CopyRows(Stream& stream, RowsOf size, Strided from, Strided to) = 0;
  // sums[c] = sum over rows of x(r, c).
  virtual void SumRows(Stream& stream, RowsOf size, ConstElements x, FloatSpan sums) = 0;
  // In one pass: dy = dy * (y > 0) in place, and its SumRows. `sums` may be empty.
  virtual void ReluBackwardSumRows(Stream& stream, RowsOf size, ConstElements y, Elements dy,
                                   FloatSpan sums) = 0;
  // scale * the sum over the middle of [outer, middle, inner], and its gradient.
  virtual void SumMiddle(Stream& stream, const MiddleOf& size, float scale, ConstElements x,
                         FloatSpan y) = 0;
  virtual void SumMiddleBackward(Stream& stream, const MiddleOf& size, float scale,
                                 ConstFloatSpan dy, Elements dx) = 0;
  virtual void Softmax(Stream& stream, RowsOf size, ConstFloatSpan x, FloatSpan y) = 0;
  virtual void SoftmaxBackward(Stream& stream, RowsOf size, ConstFloatSpan y, ConstFloatSpan dy,
                               FloatSpan dx) = 0;
  // y[i, :] = table[ids[i], :]. An id outside the table fails the stream.
  virtual void Gather(Stream& stream, Indices ids, RowsOf table_size, ConstFloatSpan table,
                      FloatSpan y) = 0;
  // dtable = 0, then dtable[ids[i], :] += dy[i, :] in the order of i.
  virtual void ScatterAdd(Stream& stream, Indices ids, RowsOf table_size, ConstFloatSpan dy,
                          FloatSpan dtable) = 0;
  // Of each example the rows are that of `first` [batch, columns] and those of `rest` [batch,
  // rows - 1, columns]; y [batch, columns + rows (rows - 1) / 2] has the first row, and behind it
  // the dot products of rows i > j, at i (i - 1) / 2 + j. At least one row.
  virtual void Interaction(Stream& stream, std::int64_t batch, RowsOf size, ConstFloatSpan first,
                           ConstFloatSpan rest, FloatSpan y) = 0;
  // Of the gradients those that are not empty.
  virtual void InteractionBackward(Stream& stream, std::int64_t batch, RowsOf size,
                                   ConstFloatSpan first, ConstFloatSpan rest, ConstFloatSpan dy,
                                   FloatSpan dfirst, FloatSpan drest) = 0;

  // --- normalisation; operands in plan.h
  virtual void LayerNorm(Stream& stream, const NormArguments& n) = 0;
  virtual void LayerNormBackward(Stream& stream, const NormBackwardArguments& n) = 0;
  // sums[c] = sum over rows of (x(r, c) - center[c])^2.
  virtual void SumSquaresRows(Stream& stream, RowsOf size, ConstElements x, ConstFloatSpan center,
                              FloatSpan sums) = 0;
  // In one pass: the mean by column, and SumSquaresRows around it. Of no rows, zeros.
  virtual void Moments(Stream& stream, RowsOf size, ConstElements x, FloatSpan mean,
                       FloatSpan square_sums) = 0;
  // y = sums / count[0], or 0 where count[0] is 0.
  virtual void DivideByCount(Stream& stream, ConstFloatSpan sums, ConstFloatSpan count,
                             FloatSpan y) = 0;
  // inverse_deviation from the sums of squares, and the running averages moved towards mean and
  // unbiased variance where they are not empty. A count of 0 leaves the averages as they were.
  virtual void FinishMoments(Stream& stream, const MomentsArguments& m) = 0;
  virtual void BatchNorm(Stream& stream, const NormArguments& n) = 0;
  // sums = [sum of dy, sum of dy * xhat], each by column, of what of dy counts. With `y`, the rest
  // of dy is set to 0 first: that is the gradient of `added`, and BatchNormBackward is then asked
  // with kNone.
  virtual void BatchNormBackwardSums(Stream& stream, const NormBackwardArguments& n,
                                     FloatSpan sums) = 0;
  // dx from those sums over count[0] rows; with both empty, the statistics were constants.
  virtual void BatchNormBackward(Stream& stream, const NormBackwardArguments& n,
                                 ConstFloatSpan sums, ConstFloatSpan count) = 0;

  // --- losses: the weighted mean over rows as loss[0], the sum of weights as loss[1]. Without
  // weights each row weighs 1. Weights that sum to 0 give loss 0 and gradient 0.
  virtual void SoftmaxCrossEntropy(Stream& stream, const LossArguments& l, FloatSpan loss) = 0;
  virtual void SigmoidCrossEntropy(Stream& stream, const LossArguments& l, FloatSpan loss) = 0;
  virtual void MeanSquaredError(Stream& stream, const LossArguments& l, FloatSpan loss) = 0;
  // dx of the last three: dloss[0] / loss[1] is computed first and then spread.
  // That of cross-entropy is of the type of its logits.
  virtual void SoftmaxCrossEntropyBackward(Stream& stream, const LossArguments& l,
                                           ConstFloatSpan loss, ConstFloatSpan dloss,
                                           Elements dx) = 0;
  virtual void SigmoidCrossEntropyBackward(Stream& stream, const LossArguments& l,
                                           ConstFloatSpan loss, ConstFloatSpan dloss,
                                           FloatSpan dx) = 0;
  virtual void MeanSquaredErrorBackward(Stream& stream, const LossArguments& l, ConstFloatSpan loss,
                                        ConstFloatSpan dloss, FloatSpan dx) = 0;

  // --- training
  // One pass of an update rule (update.h) over all of the parts.
  virtual void Update(Stream& stream, const UpdateRule& rule,
                      std::span<const UpdatePart> parts) = 0;
  // sum[0] = the sum of squares, added up in double.
  virtual void SumSquares(Stream& stream, ConstFloatSpan x, std::span<double> sum) = 0;
};

// The CPU's: oneDNN for plans, plain loops for the rest. `threads` work on each call, the feeding
// thread being one of them; 0: one for each core that this process may run on.
std::unique_ptr<Kernels> MakeCpuKernels(int threads);

}  // namespace cohort
