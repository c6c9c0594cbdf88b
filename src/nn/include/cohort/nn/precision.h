// Precision: the policy of a tape, named as in tf.keras.mixed_precision.
//
// With a mixed policy, products (dense layers, convolutions, attention, scores) take operands of 16
// bits and add up in float32, and what lies between them in memory is of 16 bits. Parameters stay
// float32, as do their gradients, and the optimizer's slots: a tape rounds the parameters once, all
// of them together. Statistics of normalisations, losses, what is added to along a residual
// connection, and operations that know float32 only are float32; Cast stands in between.
//
// float16 ends at 65504, and gradients below 6e-8 are 0 in it: train with
// StrategyOptions::grad_scaler (cohort/strategies/grad_scaler.h). bfloat16 has float32's range.

#pragma once

#include <cstdint>
#include <string_view>

#include <cohort/core/dtype.h>
#include <cohort/core/status.h>

namespace cohort::nn {

enum class Precision : std::uint8_t { kFloat32, kMixedBFloat16, kMixedFloat16 };

// "float32", "mixed_bfloat16", "mixed_float16"; InvalidArgument names others.
Result<Precision> ParsePrecision(std::string_view name);
std::string_view PrecisionName(Precision precision);
// What products take.
DType ComputeType(Precision precision);

}  // namespace cohort::nn
