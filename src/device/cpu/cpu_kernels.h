// The CPU's table. Plans are cached by their spec; each kernel is a loop in the file of its kind:
// elementwise.cc, rows.cc, normalization.cc, losses.cc.

#pragma once

#include <cohort/device/kernels.h>

#include <map>
#include <type_traits>
#include <utility>

#include "cpu/dnnl_plans.h"
#include "cpu/half.h"
#include "cpu/parallel.h"

namespace cohort::cpu {

class CpuKernels final : public Kernels {
 public:
  explicit CpuKernels(int threads);

  int threads() const override { return threads_; }
  MatMulPlan& MatMul(const MatMulSpec& spec) override;
  ConvPlan& Conv(const ConvSpec& spec) override;
  PoolPlan& Pool(const PoolSpec& spec) override;
  AttentionPlan& Attention(const AttentionSpec& spec) override;

  void Fill(Stream& stream, FloatSpan y, float value) override;
  void Copy(Stream& stream, ConstElements x, Elements y) override;
  void Add(Stream& stream, ConstElements a, ConstElements b, Elements y) override;
  void Multiply(Stream& stream, ConstFloatSpan a, ConstFloatSpan b, FloatSpan y) override;
  void Activate(Stream& stream, Activation f, ConstElements x, Elements y) override;
  void ActivateBackward(Stream& stream, Activation f, ConstElements x, ConstElements y,
                        ConstElements dy, Elements dx) override;
  void Dropout(Stream& stream, const DropoutSpec& spec, ConstElements x, Elements y) override;
  void Compress(Stream& stream, ConstFloatSpan x, double weight, FloatSpan residual,
                Elements y) override;

  void CopyRows(Stream& stream, RowsOf size, Strided from, Strided to) override;
  void SumRows(Stream& stream, RowsOf size, ConstElements x, FloatSpan sums) override;
  void ReluBackwardSumRows(Stream& stream, RowsOf size, ConstElements y, Elements dy,
                           FloatSpan sums) override;
  void SumMiddle(Stream& stream, const MiddleOf& size, float scale, ConstElements x,
                 FloatSpan y) override;
  void SumMiddleBackward(Stream& stream, const MiddleOf& size, float scale, ConstFloatSpan dy,
                         Elements dx) override;
  void Softmax(Stream& stream, RowsOf size, ConstFloatSpan x, FloatSpan y) override;
  void SoftmaxBackward(Stream& stream, RowsOf size, ConstFloatSpan y, ConstFloatSpan dy,
                       FloatSpan dx) override;
  void Gather(Stream& stream, Indices ids, RowsOf table_size, ConstFloatSpan table,
              FloatSpan y) override;
  void ScatterAdd(Stream& stream, Indices ids, RowsOf table_size, ConstFloatSpan dy,
                  FloatSpan dtable) override;
  void Interaction(Stream& stream, std::int64_t batch, RowsOf size, ConstFloatSpan first,
                   ConstFloatSpan rest, FloatSpan y) override;
  void InteractionBackward(Stream& stream, std::int64_t batch, RowsOf size, ConstFloatSpan first,
                           ConstFloatSpan rest, ConstFloatSpan dy, FloatSpan dfirst,
                           FloatSpan drest) override;

  void LayerNorm(Stream& stream, const NormArguments& n) override;
  void LayerNormBackward(Stream& stream, const NormBackwardArguments& n) override;
  void SumSquaresRows(Stream& stream, RowsOf size, ConstElements x, ConstFloatSpan center,
                      FloatSpan sums) override;
  void Moments(Stream& stream, RowsOf size, ConstElements x, FloatSpan mean,
               FloatSpan square_sums) override;
  void DivideByCount(Stream& stream, ConstFloatSpan sums, ConstFloatSpan count,
                     FloatSpan y) override;
  void FinishMoments(Stream& stream, const MomentsArguments& m) override;
  void BatchNorm(Stream& stream, const NormArguments& n) override;
  void BatchNormBackwardSums(Stream& stream, const NormBackwardArguments& n,
                             FloatSpan sums) override;
  void BatchNormBackward(Stream& stream, const NormBackwardArguments& n, ConstFloatSpan sums,
                         ConstFloatSpan count) override;

  void SoftmaxCrossEntropy(Stream& stream, const LossArguments& l, FloatSpan loss) override;
  void SigmoidCrossEntropy(Stream& stream, const LossArguments& l, FloatSpan loss) override;
  void MeanSquaredError(Stream& stream, const LossArguments& l, FloatSpan loss) override;
  void SoftmaxCrossEntropyBackward(Stream& stream, const LossArguments& l, ConstFloatSpan loss,
                                   ConstFloatSpan dloss, Elements dx) override;
  void SigmoidCrossEntropyBackward(Stream& stream, const LossArguments& l, ConstFloatSpan loss,
                                   ConstFloatSpan dloss, FloatSpan dx) override;
  void MeanSquaredErrorBackward(Stream& stream, const LossArguments& l, ConstFloatSpan loss,
                                ConstFloatSpan dloss, FloatSpan dx) override;

  void Update(Stream& stream, const UpdateRule& rule, std::span<const UpdatePart> parts) override;
  void SumSquares(Stream& stream, ConstFloatSpan x, std::span<double> sum) override;

 private:
  // Puts `work` (returning nothing, or a Status) on the stream, with this table's threads.
  template <typename Work>
  void Put(Stream& stream, Work work) const {
    stream.Enqueue([threads = threads_, work = std::move(work)]() -> Status {
      const OmpThreads scope(threads);
      if constexpr (std::is_void_v<decltype(work())>) {
        work();
        return {};
      } else {
        return work();
      }
    });
  }

  const int threads_;
  DnnlEngine engine_;
  std::map<MatMulSpec, std::unique_ptr<MatMulPlan>> matmuls_;
  std::map<ConvSpec, std::unique_ptr<ConvPlan>> convs_;
  std::map<PoolSpec, std::unique_ptr<PoolPlan>> pools_;
  std::map<AttentionSpec, std::unique_ptr<AttentionPlan>> attentions_;
};

}  // namespace cohort::cpu
