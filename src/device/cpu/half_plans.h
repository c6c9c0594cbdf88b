// Plans whose operands are of 16 bits: the float32 plan between two conversions.

#pragma once

#include <cohort/device/plan.h>

#include <memory>

namespace cohort::cpu {

// `plan`: that of the same spec in float32; it outlives the one that is made.
std::unique_ptr<MatMulPlan> MakeHalfMatMul(int threads, const MatMulSpec& spec, MatMulPlan& plan);
std::unique_ptr<ConvPlan> MakeHalfConv(int threads, const ConvSpec& spec, ConvPlan& plan);
std::unique_ptr<PoolPlan> MakeHalfPool(int threads, const PoolSpec& spec, PoolPlan& plan);
std::unique_ptr<AttentionPlan> MakeHalfAttention(int threads, const AttentionSpec& spec,
                                                 AttentionPlan& plan);

}  // namespace cohort::cpu
